"""The training loop: it learns, it resumes, and what it saves carries all that is needed."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from miniature import write_site
from torch import Tensor

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.checkpoint import load_checkpoint, read_spec
from training import train as training
from training.dataset import Item, LesionDataset
from training.recipe import Recipe
from training.sites import hold_out, load_site


@pytest.fixture
def tiny(tmp_path: Path) -> Recipe:
    """A recipe of two epochs of four steps on the site at ``tmp_path / "tiny"``."""
    write_site(tmp_path / "tiny", count=9)
    return Recipe(
        name="tiny",
        input_size=(64, 64),
        train_site="tiny",
        validation_count=1,
        depth=1,
        confounders=3,
        epochs=2,
        causal_from_epoch=1,
        batch_size=2,
        condition_rate=0.5,
        seed=7,
    )


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).state_dict()


def test_resumed_run_is_the_run_itself(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight = training.train(tiny, tmp_path, tmp_path / "straight")

    torch.manual_seed(tiny.seed)  # the first epoch alone, as if the machine then went down
    model = training.initial_model(tiny, tmp_path)
    samples, _ = hold_out(load_site(tmp_path / "tiny"), 1, tiny.seed)
    dataset = LesionDataset(samples, tiny.input_size, True, 0, tiny.seed, model.spec.confounders, tiny.condition_rate)
    trainer = training.Trainer(tiny, model, steps_per_epoch=4)
    trainer.epoch(0, training.batches(dataset, tiny, 0))
    (tmp_path / "resumed").mkdir()
    trainer.save(tmp_path / "resumed" / "last.pt", 1)
    torch.manual_seed(12345)  # another process has other random numbers
    resumed = training.train(tiny, tmp_path, tmp_path / "resumed")

    one, other = weights(straight), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    log = [json.loads(line) for line in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
    again = [json.loads(line) for line in (tmp_path / "resumed" / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in again] == [2]
    assert {k: v for k, v in again[0].items() if k != "seconds"} == {k: v for k, v in log[1].items() if k != "seconds"}
    assert "causal" not in log[0] and "causal" in log[1]  # the schedule: off at first
    assert training.train(tiny, tmp_path, tmp_path / "resumed") == resumed  # nothing left to do
    assert all(torch.equal(one[name], value) for name, value in weights(resumed).items())
    assert "epochs 2 to 2" in capsys.readouterr().out


def test_order_of_the_data_depends_on_seed_and_epoch_alone(tiny: Recipe, tmp_path: Path) -> None:
    dataset = LesionDataset(load_site(tmp_path / "tiny"), tiny.input_size, augment=True)

    def first(recipe: Recipe, epoch: int) -> Tensor:
        torch.manual_seed(np.random.SeedSequence().entropy % 2**31)  # whatever the process drew before
        return next(iter(training.batches(dataset, recipe, epoch))).pixels

    again = first(tiny, 1)
    assert torch.equal(first(tiny, 1), again)
    assert not torch.equal(first(tiny, 0), again)
    assert not torch.equal(first(dataclasses.replace(tiny, seed=8), 1), again)


def test_checkpoint_carries_its_recipe(tiny: Recipe, tmp_path: Path) -> None:
    path = training.train(dataclasses.replace(tiny, epochs=1), tmp_path, tmp_path / "run")
    spec = read_spec(path)
    assert (spec.name, spec.input_size, spec.classes, spec.grid) == ("tiny", (64, 64), ("polyp",), (4, 4))
    recipe = json.loads(spec.provenance["recipe"])
    assert (recipe["seed"], recipe["train_site"], recipe["epochs"]) == (7, "tiny", 1)


def test_training_learns_the_lesion(tiny: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny, lr=2e-3, warmup_epochs=0.0, epochs=1, causal_from_epoch=0)
    recipe = dataclasses.replace(recipe, confounders=12, edge=2.0, readout=0.1)
    torch.manual_seed(0)
    trainer = training.Trainer(recipe, training.initial_model(recipe, tmp_path), steps_per_epoch=30)
    names = trainer.model.spec.confounders
    dataset = LesionDataset(load_site(tmp_path / "tiny"), recipe.input_size, augment=False, conditions=names)
    batch = Item(*(torch.stack(side) for side in zip(*(dataset[i] for i in range(4)), strict=True)))
    frozen = {name: value.clone() for name, value in trainer.model.named_buffers() if name.startswith("text_")}
    history = [trainer.step(batch, intervene=True) for _ in range(30)]
    for name in ("segmentation", "dice", "dense", "causal", "readout"):
        assert history[-1][name] < 0.7 * history[0][name], name
    assert all(torch.equal(value, dict(trainer.model.named_buffers())[name]) for name, value in frozen.items())


def test_encoder_weights_are_loaded_and_trained_at_their_own_rate(tiny: Recipe, data_root: Path) -> None:
    recipe = dataclasses.replace(tiny, encoder_weights="weights/mobilenetv2_100_imagenet.safetensors")
    torch.manual_seed(0)
    model = training.initial_model(recipe, data_root)
    torch.manual_seed(0)
    random = training.initial_model(tiny, data_root)
    assert not torch.equal(model.encoder.trunk.conv_stem.weight, random.encoder.trunk.conv_stem.weight)
    groups = training.Trainer(recipe, model, 4).optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == [recipe.encoder_lr, recipe.lr]
    assert len(groups[0]["params"]) == len(list(model.encoder.trunk.parameters()))


def test_encoder_weights_that_do_not_fit_are_refused(tiny: Recipe, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(SpecError, match="no encoder weights at"):
        training.initial_model(dataclasses.replace(tiny, encoder_weights="none.safetensors"), tmp_path)
    save_file({"foreign": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(SpecError, match="does not fit the image trunk"):
        training.initial_model(dataclasses.replace(tiny, encoder_weights="foreign.safetensors"), tmp_path)


def test_command_line_ends_with_one_line_on_a_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "training" / "recipes" / "small.toml"
    arguments = ["train", str(recipe), "--run", str(tmp_path / "run"), "--data", str(tmp_path), "--set", "depht=1"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert training.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: recipe ") and "depht" in err and err.count("\n") == 1
