"""The training loop: it learns, it resumes, many processes are as one, and what is wrong is said."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from miniature import write_site
from safetensors.torch import load_file
from torch import Tensor

from mcdrl_rt.errors import SourceError, SpecError
from mcdrl_rt.model.checkpoint import load_checkpoint, read_spec, save_checkpoint
from training import launch, loop
from training import train as training
from training.data import write_phantom_sites
from training.dataset import EpochBatches, Item, LesionDataset
from training.launch import IMAGES, add_arguments, claim, make_fabric, read_images
from training.loop import Trainer
from training.methods import Prediction, build_method
from training.metrics import score_image, summarise
from training.recipe import Recipe, lineage, load_recipe
from training.sites import find_sites, load_site
from training.split import Split, split_sites
from training.train import load_method, train

FABRIC = make_fabric("32-true", "cpu")


@pytest.fixture
def tiny(tmp_path: Path) -> Recipe:
    """A recipe of two epochs of four steps on the site at ``tmp_path / "tiny"``."""
    write_site(tmp_path / "tiny", count=9)
    return Recipe(
        name="tiny",
        input_size=(64, 64),
        grid_stride=16,
        train_sites=("tiny",),
        validation_share=0.1,
        depth=1,
        confounders=3,
        epochs=2,
        causal_from_epoch=1,
        batch_size=2,
        condition_rate=0.5,
        edge=1.0,
        readout=0.1,
        precision="32-true",
        seed=7,
    )


def write_recipe(recipe: Recipe, path: Path) -> Path:
    path.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in dataclasses.asdict(recipe).items()))
    return path


def command(recipe: Recipe, folder: Path, run: str) -> list[str]:
    """The command line that trains ``recipe`` on the site in ``folder``."""
    path = write_recipe(recipe, folder / f"{recipe.name}.toml")
    return ["-m", "training.train", str(path), "--output", str(folder / run), "--data", str(folder), "--device", "cpu"]


def log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open() as file:
        return list(csv.DictReader(file))


def test_run_killed_at_any_moment_ends_with_the_weights_it_would_have_had(tiny: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny, epochs=4, pretrain_epochs=3, accumulate=2, patience=3)
    train(FABRIC, recipe, tmp_path, tmp_path / "straight")
    arguments = [sys.executable, *command(recipe, tmp_path, "killed")]
    seed = time.time_ns()
    print(f"seed {seed}")  # shown where the test fails
    chance = random.Random(seed)
    for state in (tmp_path / "killed" / "pretraining" / "last.pt", tmp_path / "killed" / "last.pt"):
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not state.exists():  # the first epoch is on disk
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.8))  # somewhere in an epoch, a validation or a write
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "method.safetensors").exists()
    done = torch.load(state, weights_only=True)["progressed"]["epochs"]
    resumed = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)
    assert f'"epoch": {done + 1}' in resumed.stdout and f'"epoch": {done},' not in resumed.stdout
    for name in ("method.safetensors", "tiny.safetensors", "clip.safetensors"):
        one, other = (load_file(tmp_path / run / name) for run in ("straight", "killed"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name
    assert log(tmp_path / "killed") == log(tmp_path / "straight")


def test_two_processes_are_as_one(tiny: Recipe, tmp_path: Path, data_root: Path) -> None:
    """The loss curve of two processes (gloo) is that of one at the same global batch.

    In float64: what float32 rounds differently in each, AdamW blows up where a gradient is zero but for rounding. What
    float64 does differ by the processor: by 1e-5 where it has AVX2 only.
    """
    weights = str((data_root / "weights" / "mobilenetv2_100_imagenet.safetensors").resolve())
    recipe = dataclasses.replace(tiny, batch_size=4, precision="64-true", encoder_weights=weights)
    train(make_fabric("64-true", "cpu"), recipe, tmp_path, tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*launcher, *command(recipe, tmp_path, "two")], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert "2 × cpu" in ended.stdout and ended.stdout.count('"epoch": 1,') == 1  # only one of them speaks
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        for name in ("segmentation", "dice", "dense", "causal", "readout"):
            if a[name]:
                assert float(b[name]) == pytest.approx(float(a[name]), abs=1e-4), (a["epoch"], name)


def test_log_samples_and_checkpoint_of_a_run(
    tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    method = train(FABRIC, dataclasses.replace(tiny, deployed_alpha=0.75), tmp_path, run)
    first, second = log(run)
    assert (first["epoch"], first["causal"]) == ("1", "") and float(second["causal"]) > 0  # the schedule: off at first
    assert {"lr", "segmentation", "dice", "dense", "readout", "held_dice", "held_recall"} <= first.keys()
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["epoch-001.jpg", "epoch-002.jpg"]
    assert any(path.name.startswith("events.out.tfevents") for path in run.iterdir())
    assert "mcdrl on 8 images (0 of them synthetic), 1 held out, 1 × cpu 32-true" in capsys.readouterr().out
    spec = read_spec(run / "tiny.safetensors")
    assert (spec.name, spec.input_size, spec.classes, spec.grid) == ("tiny", (64, 64), ("polyp",), (4, 4))
    carried = json.loads(spec.provenance["recipe"])
    assert (spec.alpha, carried["alpha"]) == (0.75, 0.5)
    assert (carried["seed"], carried["train_sites"], carried["epochs"]) == (7, ["tiny"], 2)
    again = load_method(run, tmp_path)
    images = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        one, other = (m.eval().predict(images).logits for m in (again, method))
    assert torch.allclose(one, other, atol=1e-5)  # the order of channels in memory differs
    deployed = load_checkpoint(run / "tiny.safetensors").state_dict()
    assert all(torch.allclose(value, deployed[name], atol=2e-3) for name, value in method.network.state_dict().items())


def test_finished_run_is_left_alone_and_another_recipes_is_refused(tiny: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny, epochs=1, causal_from_epoch=0)
    train(FABRIC, recipe, tmp_path, tmp_path / "run")
    before = load_file(tmp_path / "run" / "method.safetensors")
    train(FABRIC, recipe, tmp_path, tmp_path / "run")
    after = load_file(tmp_path / "run" / "method.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(SpecError, match=r"holds a run with other settings \(epochs, lr\); name another --output"):
        train(FABRIC, dataclasses.replace(recipe, epochs=4, lr=1e-4), tmp_path, tmp_path / "run")


def test_what_a_run_was_shown_is_kept_and_cannot_change_meanwhile(tiny: Recipe, tmp_path: Path) -> None:
    recipe, run = dataclasses.replace(tiny, epochs=1, causal_from_epoch=0), tmp_path / "run"
    method = train(FABRIC, recipe, tmp_path, run)
    split = Split.of(*split_sites(tmp_path, recipe), tmp_path)
    carried = read_spec(run / "tiny.safetensors").provenance
    for provenance in (method.spec.provenance, load_method(run, tmp_path).spec.provenance, carried):
        assert Split.from_json(provenance["images"]) == split and len(split.held) == 1
    for part in ("images", "masks"):
        (tmp_path / "tiny" / part / "im0.png").rename(tmp_path / "tiny" / part / "im9.png")
    with pytest.raises(SpecError, match=r"begun with other images \(1 have come since, 1 are gone\); name another"):
        train(FABRIC, recipe, tmp_path, run)
    further = dataclasses.replace(recipe, start=str(run / "tiny.safetensors"), validation_share=0.9, seed=8)
    train(FABRIC, further, tmp_path, tmp_path / "further")
    again = Split.from_json(read_spec(tmp_path / "further" / "tiny.safetensors").provenance["images"])
    assert again.held - split.held and not again.held & split.kept  # what is new may be held out, no more


def test_training_that_goes_astray_ends(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, run = Trainer.part, tmp_path / "run"
    parts = iter(range(9))

    def strayed(self: Trainer, *arguments: Any) -> dict[str, Tensor]:
        terms = part(self, *arguments)
        if next(parts) == 7:  # the last of all
            next(iter(self.method.parameters())).grad.fill_(float("nan"))
        return terms

    monkeypatch.setattr(Trainer, "part", strayed)
    with pytest.raises(SpecError, match=r"went astray in epoch 2: weights are no numbers any more; lower"):
        train(FABRIC, tiny, tmp_path, run)
    assert torch.load(run / "last.pt", weights_only=True)["progressed"]["epochs"] == 1
    assert not (run / "method.safetensors").exists()


def test_another_start_than_that_of_an_attempt_that_came_to_nothing(tiny: Recipe, tmp_path: Path) -> None:
    for name, seed in (("one", 7), ("two", 8)):
        recipe = dataclasses.replace(tiny, epochs=1, causal_from_epoch=0, seed=seed)
        train(FABRIC, recipe, tmp_path, tmp_path / name)
    one, two = (str(tmp_path / name / "tiny.safetensors") for name in ("one", "two"))
    further = dataclasses.replace(tiny, start=one, epochs=1, causal_from_epoch=0)
    with pytest.raises(SpecError, match="do not fill one batch of 64"):
        train(FABRIC, dataclasses.replace(further, batch_size=64), tmp_path, tmp_path / "run")
    train(FABRIC, dataclasses.replace(further, start=two), tmp_path, tmp_path / "run")
    assert (tmp_path / "run" / "start.safetensors").read_bytes() == Path(two).read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".last.pt.partial").symlink_to("/dev/full")
    trainer = make_trainer(tiny, tmp_path)
    with pytest.raises(SpecError, match=r"cannot write .*last\.pt: ") as caught:
        trainer.save()
    assert "\n" not in str(caught.value)


def test_patience_needs_somebody_to_be_held_out(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="has patience, and a validation_share that holds no image out"):
        train(FABRIC, dataclasses.replace(tiny, patience=1, validation_share=0.01), tmp_path, tmp_path / "run")


def test_what_has_not_begun_can_be_corrected(tiny: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(SourceError, match="no site at"):
        train(FABRIC, dataclasses.replace(tiny, train_sites=("tyni",)), tmp_path, run)
    (run / "pretraining").mkdir()
    claim(FABRIC, tiny, run)
    assert json.loads((run / "recipe.json").read_text())["train_sites"] == ["tiny"]


def test_two_trainings_in_one_folder_are_not_at_once(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    claim(FABRIC, tiny, run)
    claim(FABRIC, tiny, run)  # its own
    script = f"from filelock import FileLock; FileLock({str(run / launch.LOCK)!r}, timeout=0).acquire()"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "Timeout" in other.stderr
    monkeypatch.setattr(launch, "_PATIENCE_S", 0.1)
    (tmp_path / "b").mkdir()
    script = f"from filelock import FileLock; lock = FileLock({str(tmp_path / 'b' / launch.LOCK)!r}); lock.acquire()"
    script += "; print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(SpecError, match=r"another training is at work in .*b; wait for it, or name another --output"):
        claim(FABRIC, tiny, tmp_path / "b")
    holder.communicate(b"\n")
    claim(FABRIC, tiny, tmp_path / "b")


def test_run_of_an_earlier_version_goes_on_if_nothing_differs(tiny: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    claim(FABRIC, tiny, run)
    (run / "last.pt").touch()
    settings = json.loads((run / "recipe.json").read_text())
    assert settings.pop("start") == ""  # a setting that there was not
    (run / "recipe.json").write_text(json.dumps(settings))
    claim(FABRIC, tiny, run)
    for text in ("", '{"name": "tiny", "colour": 1}'):
        (run / "recipe.json").write_text(text)
        with pytest.raises(SpecError, match=r"cannot go on from .*recipe\.json \(.*\); name another --output"):
            claim(FABRIC, tiny, run)


def test_causal_network_that_would_never_be_trained_is_refused(tiny: Recipe, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'tiny' would never train its causal network: of 1 epochs it begins after 1"):
        train(FABRIC, dataclasses.replace(tiny, epochs=1), tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoint_is_trained_further_on_views_it_has_not_seen(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    batches = loop.EpochBatches

    def noted(*args: Any, epoch: int, **kwargs: Any) -> EpochBatches:
        seen.append(epoch)
        return batches(*args, epoch=epoch, **kwargs)

    monkeypatch.setattr(loop, "EpochBatches", noted)
    first, second = tmp_path / "first", tmp_path / "second"
    train(FABRIC, tiny, tmp_path, first)
    start = first / "tiny.safetensors"
    recipe = dataclasses.replace(tiny, start=str(start), epochs=1, causal_from_epoch=0)
    trained = train(FABRIC, recipe, tmp_path, second)
    assert seen == [0, 1, 2]
    spec = read_spec(second / "tiny.safetensors")
    assert [(old.epochs, old.start) for old in lineage(spec.provenance)] == [(1, str(start)), (2, "")]
    start.unlink()  # the run has its own copy
    again = load_method(second, tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trained.state_dict().items())
    assert lineage(again.spec.provenance) == lineage(spec.provenance)


def test_start_keeps_its_share_of_the_weights(tiny: Recipe, tmp_path: Path) -> None:
    train(FABRIC, dataclasses.replace(tiny, epochs=1, causal_from_epoch=0), tmp_path, tmp_path / "first")
    start = tmp_path / "first" / "tiny.safetensors"
    further = dataclasses.replace(tiny, start=str(start), epochs=1, causal_from_epoch=0)
    before = load_checkpoint(start).state_dict()
    after = train(FABRIC, further, tmp_path, tmp_path / "all").state_dict()
    quarter = dataclasses.replace(further, start_share=0.25)
    for _ in range(2):  # a finished run that is started again ends the same
        mixed = train(FABRIC, quarter, tmp_path, tmp_path / "mixed").state_dict()
        for name, value in before.items():
            if value.is_floating_point():
                trained = after[f"network.{name}"]
                torch.testing.assert_close(mixed[f"network.{name}"], 0.25 * value + 0.75 * trained)
    weights = load_checkpoint(tmp_path / "mixed" / "tiny.safetensors").encoder.trunk.conv_stem.weight
    torch.testing.assert_close(weights, mixed["network.encoder.trunk.conv_stem.weight"], rtol=1e-3, atol=1e-4)


def test_branches_are_trained_apart_and_their_mean_is_kept(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(FABRIC, dataclasses.replace(tiny, epochs=1, causal_from_epoch=0), tmp_path, tmp_path / "first")
    start = tmp_path / "first" / "tiny.safetensors"
    for part in ("images", "masks"):  # nine have come since: by its own seed each branch would hold out others of them
        for picture in list((tmp_path / "tiny" / part).iterdir()):
            shutil.copy(picture, picture.with_name(f"new-{picture.name}"))
    further = dataclasses.replace(tiny, start=str(start), epochs=1, causal_from_epoch=0, validation_share=0.3)
    recipe = dataclasses.replace(further, branches=2)
    epoch = Trainer.epoch

    def stopped(self: Trainer, number: int) -> dict[str, float]:
        if self.recipe.seed == 9:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "epoch", stopped)
        train(FABRIC, recipe, tmp_path, run)
    files = [run / f"branch-{seed}" / "method.safetensors" for seed in (8, 9)]
    first = files[0].stat().st_mtime_ns
    start.write_bytes(b"another")  # the run has its own copy, and is under way
    result = train(FABRIC, recipe, tmp_path, run)
    assert files[0].stat().st_mtime_ns == first and not result.training
    one, other = map(load_file, files)
    for name, value in result.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (one[name] + other[name]) / 2)
    weight = "network.encoder.trunk.conv_stem.weight"
    assert not torch.equal(one[weight], other[weight])
    split = read_images(run / IMAGES)
    spec = read_spec(run / "tiny.safetensors")
    assert Split.from_json(spec.provenance["images"]) == split and len(split.held) == 1 + round(0.3 * 9)
    assert [old.branches for old in lineage(spec.provenance)] == [2, 0]
    branch = load_method(run / "branch-9", tmp_path)  # which can be measured by itself
    assert Split.from_json(branch.spec.provenance["images"]) == split
    assert torch.equal(branch.get_parameter(weight), other[weight])
    again = train(FABRIC, recipe, tmp_path, run).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in result.state_dict().items())
    with pytest.raises(SpecError, match=r"holds a run with other settings \(branches\)"):
        train(FABRIC, dataclasses.replace(recipe, branches=3), tmp_path, run)
    shutil.copyfile(run / "start.safetensors", start)
    half = train(FABRIC, dataclasses.replace(recipe, start_share=0.5), tmp_path, tmp_path / "half").state_dict()
    kept = load_checkpoint(run / "start.safetensors").state_dict()["encoder.trunk.conv_stem.weight"]
    torch.testing.assert_close(half[weight], (kept + result.state_dict()[weight]) / 2)
    files[1].write_bytes(files[1].read_bytes()[:1000])
    with pytest.raises(SpecError, match=r"cannot read .*branch-9/method.* delete it, and it is made again"):
        train(FABRIC, recipe, tmp_path, run)
    files[1].unlink()
    again = train(FABRIC, recipe, tmp_path, run).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in result.state_dict().items())


def test_start_that_does_not_say_what_it_has_seen_needs_the_same_split(tiny: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny, epochs=1, causal_from_epoch=0)
    train(FABRIC, recipe, tmp_path, tmp_path / "first")
    model = load_checkpoint(tmp_path / "first" / "tiny.safetensors")
    model.spec = dataclasses.replace(model.spec, provenance={"recipe": model.spec.provenance["recipe"]})
    save_checkpoint(model, tmp_path / "old.safetensors")  # as those of before splits were written down
    further = dataclasses.replace(recipe, start=str(tmp_path / "old.safetensors"))
    with pytest.raises(SpecError, match=r"was trained on tiny with validation_share=0\.1 and seed=7; give the"):
        train(FABRIC, dataclasses.replace(further, seed=8), tmp_path, tmp_path / "other")
    train(FABRIC, dataclasses.replace(further, branches=1), tmp_path, tmp_path / "same")  # whose own seed is 8
    with pytest.raises(SpecError, match=r"recipe 'tiny' starts from .*gone, which is not there; train that first"):
        train(FABRIC, dataclasses.replace(further, start=str(tmp_path / "gone")), tmp_path, tmp_path / "more")


def test_patience_judges_no_epoch_before_the_causal_network_is_trained(tiny: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny, epochs=4, causal_from_epoch=2, patience=1, validation_share=0.2, lr=1e-9)
    train(FABRIC, recipe, tmp_path, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["progressed"]
    assert state["best_epoch"] == 3 and state["epochs"] == 4


def test_pictures_judged_together_are_judged_as_each_alone(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = LesionDataset(load_site(tmp_path / "tiny"), tiny.input_size)
    held.labels[3] = 0
    figures = []
    for together in (1, 4, 100):
        monkeypatch.setattr(loop, "JUDGED", together)
        method = build_method(tiny, tmp_path)
        run = Trainer(FABRIC, tiny, method, tmp_path / "run", held, held)
        figures.append(run.validate())
        held.labels[3:4], held.labels[4:5] = held.labels[4:5].copy(), held.labels[3:4].copy()
        held.pixels[3:4], held.pixels[4:5] = held.pixels[4:5].copy(), held.pixels[3:4].copy()
    assert figures[0] == figures[1] == figures[2] and 0 < figures[0]["held_recall"] <= 1


def test_images_without_lesion_are_judged_as_they_are_measured(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = LesionDataset(load_site(tmp_path / "tiny")[:4], tiny.input_size)
    run = Trainer(FABRIC, tiny, build_method(tiny, tmp_path), tmp_path / "run", held, held)
    logits = torch.zeros(4, 2, 64, 64)
    logits[1, 1, :10, :10] = 9  # marked there, and nowhere else
    cells = torch.ones(4, *run.result.spec.grid)

    def predict(images: Tensor) -> Prediction:
        return Prediction(logits, cells, torch.ones(4, 3) / 3)

    monkeypatch.setattr(run.result, "predict", predict)
    held.labels[:] = 0
    assert run.validate() == {"held_dice": 0.75}
    held.labels[0] = 1
    held.labels[1, :10, :20] = 1
    found = logits.argmax(dim=1).numpy().astype(np.uint8)
    scores = [score_image(one, truth, truth > 0) for one, truth in zip(found, held.labels, strict=True)]
    assert run.validate() == {"held_dice": round(summarise(scores)["dice"], 4), "held_recall": 1.0}
    assert [round(score.dice, 3) for score in scores] == [0, 0.667, 1, 1]


def test_damaged_state_is_named(tiny: Recipe, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(b"PK no state")
    with pytest.raises(SpecError, match=r"cannot go on from .*last\.pt .*; move it away, or name another") as caught:
        train(FABRIC, tiny, tmp_path, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_patience_ends_a_run_and_keeps_the_best_epoch(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = dataclasses.replace(tiny, epochs=9, patience=2, depth=0, validation_share=0.2, ema=0.0)
    marks = iter([0.2, 0.6, 0.5, 0.4, 0.9])
    seen: list[dict[str, Tensor]] = []
    judge = Trainer._judge

    def judged(self: Trainer, dice: float) -> None:
        seen.append({name: value.clone() for name, value in self.result.state_dict().items()})
        judge(self, next(marks))

    monkeypatch.setattr(Trainer, "_judge", judged)
    method = train(FABRIC, recipe, tmp_path, tmp_path / "run")
    assert len(log(tmp_path / "run")) == 4  # two epochs without a better one
    assert all(torch.equal(value, seen[1][name]) for name, value in method.state_dict().items())
    assert not all(torch.equal(value, seen[3][name]) for name, value in method.state_dict().items())
    kept = load_file(tmp_path / "run" / "method.safetensors")
    assert all(torch.equal(value, seen[1][name]) for name, value in kept.items())


def test_parts_of_a_batch_make_one_step(tiny: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny, batch_size=4, accumulate=2, epochs=1, causal_from_epoch=0)
    train(FABRIC, recipe, tmp_path, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["schedule"]["last_epoch"] == 2  # 8 images, 4 a step
    assert int(state["averaged"]["n_averaged"]) == 2


def test_gradients_of_parts_add_up_to_those_of_the_batch(tiny: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny, batch_size=4, edge=0.0, readout=0.0)
    trainer = make_trainer(recipe, tmp_path)
    trainer.method.eval()  # a batch norm sees other statistics in a part
    batch = first_batch(recipe, tmp_path, 4)
    grads = []
    for parts in (1, 2):
        trainer.recipe = dataclasses.replace(recipe, accumulate=parts)
        trainer.optimizer.zero_grad()
        for i in range(parts):
            trainer.part(Item(*(t[i::parts] for t in batch)), True, i == parts - 1)
        grads.append([p.grad.clone() for p in trainer.method.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 50
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*grads, strict=True))


def make_trainer(recipe: Recipe, folder: Path) -> Trainer:
    method = training.build_method(recipe, folder)
    dataset = training.training_set(FABRIC, recipe, load_site(folder / "tiny"))
    return Trainer(FABRIC, recipe, method, folder, dataset)


def first_batch(recipe: Recipe, folder: Path, count: int) -> Item:
    names = ("motion blur", "dim lighting", "narrow-band imaging")
    dataset = LesionDataset(load_site(folder / "tiny"), recipe.input_size, conditions=names, condition_rate=1.0)
    return Item(*(torch.stack(side) for side in zip(*(dataset[0, i] for i in range(count)), strict=True)))


def test_moving_average_follows_with_a_shorter_past_at_first(tiny: Recipe, tmp_path: Path) -> None:
    trainer = make_trainer(dataclasses.replace(tiny, ema=0.5), tmp_path)
    weight = trainer.method.module.network.head.classify.bias
    mean = trainer.result.network.head.classify.bias
    values, expected = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0], 0.0
    for count, value in enumerate(values):
        torch.nn.init.constant_(weight, value)
        trainer.averaged.update_parameters(trainer.method.module)
        decay = min(0.5, (1 + count) / (10 + count)) if count else 0.0
        expected = decay * expected + (1 - decay) * value
        assert mean[0].item() == pytest.approx(expected)


def test_encoder_weights_are_trained_at_their_own_rate(tiny: Recipe, tmp_path: Path, data_root: Path) -> None:
    recipe = dataclasses.replace(tiny, encoder_weights=str(data_root / "weights/mobilenetv2_100_imagenet.safetensors"))
    trainer = make_trainer(recipe, tmp_path)
    groups = trainer.optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == [recipe.encoder_lr, recipe.lr]
    assert len(groups[0]["params"]) == len(list(trainer.method.module.network.encoder.trunk.parameters()))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch_size": 64}, "9 images do not fill one batch of 64"),
        ({"classes": ("cyst",)}, "no prompt for class polyp"),
        ({"train_sites": ("gone",)}, r"""no site at .*gone; .* has tiny: --set 'train_sites=\["tiny"\]'$"""),
        ({"validation_share": 0.99}, "has nothing left to train on"),
        ({"encoder_weights": "none.safetensors"}, "no encoder weights at"),
        ({"encoder": "RN50", "method": "unet"}, "the U-Net shares the encoder of mcdrl-small alone"),
    ],
)
def test_recipe_that_cannot_be_run_is_refused(
    tiny: Recipe, tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    share = 0.0 if "batch_size" in changes else 0.1
    recipe = dataclasses.replace(tiny, **{"validation_share": share, **changes})
    with pytest.raises((SpecError, SourceError), match=complaint) as caught:
        train(FABRIC, recipe, tmp_path, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_pretrained_weights_without_a_network_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_site(tmp_path / "tiny", count=4)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    arguments = ["train", str(ROOT / "training/recipes/paper.toml"), "--data", str(tmp_path)]
    arguments += ["--output", str(tmp_path / "run"), "--set", "train_sites=['tiny']", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert training.main() == 1
    err = capsys.readouterr().err
    assert err.startswith("error: cannot load ViT-L-14 with pretrained='openai'") and "is this machine online?" in err
    assert err.count("\n") == 1


def test_settings_can_be_named_together_or_one_by_one() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    fixed = ["small.toml", "--output", "run"]
    together = parser.parse_args([*fixed, "--set", "depth=1", "alpha=0.3"]).set
    assert together == parser.parse_args([*fixed, "--set", "depth=1", "--set", "alpha=0.3"]).set
    assert parser.parse_args(fixed).set == [] and together == ["depth=1", "alpha=0.3"]


def test_command_line_ends_with_one_line_on_a_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "training" / "recipes" / "small.toml"
    arguments = ["train", str(recipe), "--output", str(tmp_path / "run"), "--data", str(tmp_path), "--set", "depht=1"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert training.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: recipe ") and "depht" in err and err.count("\n") == 1


def test_device_and_precision_that_are_not_there_are_refused() -> None:
    with pytest.raises(SpecError, match="'16-mixed' needs a GPU"):
        make_fabric("16-mixed", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(SpecError, match="torch sees no GPU here"):
            make_fabric("auto", "cuda")


def test_phantom_data_have_a_recipe_of_their_own(tmp_path: Path) -> None:
    write_phantom_sites(tmp_path, 3)
    recipe = load_recipe(ROOT / "training" / "recipes" / "phantom.toml", ["epochs=1", "causal_from_epoch=0"])
    train(FABRIC, dataclasses.replace(recipe, batch_size=8), tmp_path, tmp_path / "run")
    assert read_spec(tmp_path / "run" / "phantom.safetensors").classes == ("polyp",)
    sites = {site.name for site in find_sites(tmp_path)}
    assert len(sites - {*recipe.train_sites}) == 2  # to be measured on


@pytest.mark.slow
def test_the_papers_recipe_takes_two_steps_on_a_cpu(tmp_path: Path) -> None:
    """ViT-L/14 with random weights: 8 GB of memory, a minute."""
    write_site(tmp_path / "tiny", count=2)
    path = str(ROOT / "training/recipes/paper.toml")
    settings = ["train_sites=['tiny']", "pretrained=''", "batch_size=1", "validation_share=0", "epochs=1"]
    settings += ["causal_from_epoch=0", "precision='32-true'"]
    arguments = ["-m", "training.train", path, "--output", str(tmp_path / "run"), "--data", str(tmp_path), "--set"]
    threads = os.environ | {"OMP_NUM_THREADS": "2"}
    ended = subprocess.run(
        [sys.executable, *arguments, *settings], cwd=ROOT, capture_output=True, text=True, env=threads
    )
    assert ended.returncode == 0, ended.stderr
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["schedule"]["last_epoch"] == 2


def test_strided_depthwise_convolutions_stay_in_float32_under_bf16(tiny: Recipe, tmp_path: Path) -> None:
    fabric = make_fabric("bf16-mixed", "cpu")
    method = training.build_method(tiny, tmp_path).train()
    dataset = training.training_set(fabric, tiny, load_site(tmp_path / "tiny"))
    convolutions = {n: m for n, m in method.named_modules() if isinstance(m, torch.nn.Conv2d)}
    names = [name for name, module in convolutions.items() if module.groups > 1 and module.stride[0] > 1]
    assert len(names) == 4
    trainer = Trainer(fabric, tiny, method, tmp_path, dataset)
    kinds: dict[str, set[torch.dtype]] = {"strided": set(), "other": set()}
    for name, module in convolutions.items():
        kind = kinds["strided" if name in names else "other"]
        module.register_forward_hook(lambda module, inputs, output, kind=kind: kind.add(output.dtype))
    trainer.part(first_batch(tiny, tmp_path, 2), True, True)
    assert kinds == {"strided": {torch.float32}, "other": {torch.bfloat16}}
    trainer.step()
    assert trainer.result.state_dict().keys() == method.state_dict().keys()
