"""Evaluation: what is measured is what users get, on images the model has not seen, and the card says just that."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from miniature import write_site

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.sidecar import file_hash
from mcdrl_rt.errors import SourceError
from mcdrl_rt.model.checkpoint import read_spec
from mcdrl_rt.model.prompts import confounder_names
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import ModelSpec, UInt8Array
from training import evaluate as evaluation
from training.card import render_card
from training.conditions import CONDITIONS, PHANTOM_CONDITIONS, PLAIN
from training.evaluate import evaluate
from training.launch import make_fabric
from training.readout import (
    dice_under_conditions,
    marked_on_empty,
    measure_parts,
    readout_on_phantom,
    readout_on_real,
)
from training.recipe import Recipe
from training.split import Split, split_sites
from training.train import train


class RedEngine:
    """Calls red what is lesion, and reads brightness: what the miniature's lesions and dim light are told by."""

    name = "red"
    max_batch = 1

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = dataclasses.replace(spec, grid=(4, 4), grid_stride=16)

    def infer(self, frames: UInt8Array) -> RawOutput:
        red = frames[..., 0].astype(int) - frames[..., 2] > 60
        names = self.spec.confounders
        weights = np.full((len(frames), len(names)), 0.1, np.float32)
        weights[:, names.index("dim lighting")] = 1 - frames.mean() / 255
        cells = np.ones((len(frames), 4, 4), np.uint8)
        cells[:, :, 2:] = 0
        return RawOutput(np.where(red, 200, 0).astype(np.uint8), np.ones_like(frames[..., 0]), weights, cells)


@pytest.fixture
def red() -> Segmenter:
    recipe = {"name": "red", "train_sites": ["here"], "validation_share": 0.25, "seed": 4}
    spec = ModelSpec(
        name="red",
        encoder="none",
        input_size=(64, 64),
        classes=("polyp",),
        confounders=confounder_names(12),
        provenance={"recipe": json.dumps(recipe)},
    )
    return Segmenter(RedEngine(spec))


def test_held_out_part_and_unseen_sites_are_measured_and_nothing_else(red: Segmenter, tmp_path: Path) -> None:
    write_site(tmp_path / "here", count=8)
    write_site(tmp_path / "there", count=3, size=(150, 90))
    (tmp_path / "no site").mkdir()
    sites = evaluate(red, tmp_path)
    assert {name: site.unseen for name, site in sites.items()} == {"here": False, "there": True}
    _, held = split_sites(tmp_path, Recipe(name="x", train_sites=("here",), validation_share=0.25, seed=4))
    assert sites["here"].samples == held and len(held) == 2
    assert len(sites["there"].scores) == 3
    figures = sites["there"].figures()
    assert figures["dice"] > 0.9 and figures["s_measure"] > 0.8 and figures["hd95"] < 10
    assert 0 < figures["selection_recall"] < 1  # half of the cells


def test_what_a_models_start_was_trained_on_is_not_unseen(red: Segmenter, tmp_path: Path) -> None:
    for name in ("here", "there", "elsewhere"):
        write_site(tmp_path / name, count=8)
    start = {"recipe": json.dumps({"name": "first", "train_sites": ["there"], "validation_share": 0.5, "seed": 1})}
    provenance = {**red.spec.provenance, "start": json.dumps(start)}
    red.engine.spec = dataclasses.replace(red.spec, provenance=provenance)
    sites = evaluate(Segmenter(red.engine), tmp_path)
    assert {name: site.unseen for name, site in sites.items()} == {"there": False, "here": False, "elsewhere": True}
    for name, share, seed in (("there", 0.5, 1), ("here", 0.25, 4)):
        recipe = Recipe(name="x", train_sites=(name,), validation_share=share, seed=seed)
        assert sites[name].samples == split_sites(tmp_path, recipe)[1]


def test_images_that_come_later_and_bad_ones_change_nothing(
    red: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = write_site(tmp_path / "here", count=8)
    recipe = Recipe(name="x", train_sites=("here", "gone"), validation_share=0.25, seed=4, bad_images="skip")
    kept, held = split_sites(tmp_path, dataclasses.replace(recipe, train_sites=("here",)))
    provenance = {
        "recipe": json.dumps(dataclasses.asdict(recipe)),
        "images": Split.of(kept, held, tmp_path).to_json(),
    }
    red.engine.spec = dataclasses.replace(red.spec, provenance=provenance)
    for i in range(30):
        for part in ("images", "masks"):
            shutil.copy(here / part / "im0.png", here / part / f"a{i}.png")
    assert evaluate(red, tmp_path)["here"].samples == held
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "30 images have come to here since it was trained on: not measured",
        f"gone, which it was trained on, is not in {tmp_path}: not measured",
    ]
    held[0].image.write_bytes(b"no picture")
    assert evaluate(red, tmp_path)["here"].samples == held[1:]
    assert f"left out: cannot read {held[0].image}" in capsys.readouterr().err
    strict = json.dumps(dataclasses.asdict(recipe) | {"bad_images": "stop"})
    red.engine.spec = dataclasses.replace(red.spec, provenance=provenance | {"recipe": strict})
    with pytest.raises(SourceError, match=r"cannot read .*--bad-images skip"):
        evaluate(red, tmp_path)
    assert evaluate(red, tmp_path, skip_bad=True)["here"].samples == held[1:]


@pytest.mark.parametrize(
    ("then", "now", "noted"),
    [
        ("Kvasir-SEG", "kvasir-seg", True),
        ("Kvasir-SEG", "kvasir-seg", False),
        ("kvasir-seg", "Kvasir-SEG", True),
        ("ours", "new", True),
    ],
)
def test_a_site_whose_folder_is_renamed_is_not_unseen(
    red: Segmenter, tmp_path: Path, then: str, now: str, noted: bool
) -> None:
    site = write_site(tmp_path / then, count=8, suffix=".jpg")
    if then == "ours":
        (site / "site.toml").write_text('name = "Ours"\n[[layout]]\nimage = "images/*"\nmask = "masks/{name}"\n')
    recipe = Recipe(name="x", train_sites=(then,), validation_share=0.25, seed=4)
    kept, held = split_sites(tmp_path, recipe)
    provenance = {"recipe": json.dumps(dataclasses.asdict(recipe))}
    provenance |= {"images": Split.of(kept, held, tmp_path).to_json()} if noted else {}
    red.engine.spec = dataclasses.replace(red.spec, provenance=provenance)
    site.rename(tmp_path / now)
    sites = evaluate(red, tmp_path)
    assert {name: one.unseen for name, one in sites.items()} == {now: False}
    assert [sample.image.name for sample in sites[now].samples] == [sample.image.name for sample in held]
    if then != "ours":
        assert evaluate(red, tmp_path, only=[then]).keys() == {now}


def test_sites_may_be_chosen_and_the_others_are_not_looked_at(red: Segmenter, tmp_path: Path) -> None:
    write_site(tmp_path / "here", count=8)
    there = write_site(tmp_path / "there", count=3)
    for mask in (there / "masks").iterdir():
        mask.unlink()
    assert list(evaluate(red, tmp_path, only=["here"])) == ["here"]
    with pytest.raises(SourceError, match="3 of 3 images have no mask"):
        evaluate(red, tmp_path)
    with pytest.raises(SourceError, match=r"nowhere is no site in .*, which has here, there"):
        evaluate(red, tmp_path, only=["nowhere"])


def test_site_of_a_class_the_model_does_not_know_is_left_out_aloud(
    red: Segmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_site(tmp_path / "here", count=8)
    there = write_site(tmp_path / "there", count=3)
    (there / "site.toml").write_text('class = "cyst"\n[[layout]]\nimage = "images/*.png"\nmask = "masks/{name}"\n')
    assert list(evaluate(red, tmp_path)) == ["here"]
    assert capsys.readouterr().err == "there is left out: the model knows no cyst\n"


def test_dice_is_told_for_every_class(red: Segmenter, tmp_path: Path) -> None:
    here = write_site(tmp_path / "here", count=8)
    (here / "site.toml").write_text('class = "cyst"\n[[layout]]\nimage = "images/*.png"\nmask = "masks/{name}"\n')
    write_site(tmp_path / "there", count=2)
    engine = red.engine
    engine.spec = dataclasses.replace(engine.spec, classes=("polyp", "cyst"), colors=())
    sites = evaluate(red, tmp_path)
    both = evaluation.SiteScores(
        True, sites["here"].samples + sites["there"].samples, sites["here"].scores + sites["there"].scores
    )
    assert both.figures()["dice[cyst]"] == 0  # it says polyp
    assert both.figures()["dice[polyp]"] > 0.9


def test_readout_counts_pictures_whose_weight_rises(red: Segmenter) -> None:
    pictures = [np.full((80, 80, 3), 120 + i, np.uint8) for i in range(4)]
    shares = readout_on_real(red, pictures)
    assert set(shares) == set(confounder_names(12)) - {"white-light imaging", "a distant view"}
    assert shares["dim lighting"] == 1.0 and shares["blood"] == 0.0  # its weight never moves
    phantom = readout_on_phantom(red, count=3)
    assert set(phantom) == set(PHANTOM_CONDITIONS) - {"white-light", "blur"}  # blur's are not among the twelve
    assert phantom["dim"] == 1.0


def test_what_is_marked_on_pictures_without_content_is_measured(red: Segmenter) -> None:
    shares = marked_on_empty(red)
    assert shares["white"] == shares["white with noise"] == shares["grey with noise"] == 0
    assert shares["orange-pink"] == 1 and shares["orange-pink with noise"] > 0.99


def test_parts_with_and_without_a_lesion_are_measured(red: Segmenter) -> None:
    pixels = np.full((80, 100, 3), 90, np.uint8)
    labels = np.zeros((80, 100), np.uint8)
    labels[:, :20] = 1
    seen, wrong = pixels.copy(), pixels.copy()
    seen[:, :20] = wrong[:, 60:] = (200, 40, 40)  # called a lesion: which it is, and which it is not
    right = measure_parts(red, [(seen, labels)] * 10)
    assert right == {"parts": 10, "marked": 0.0, "area": 0.0, "dice": right["dice"]} and right["dice"] > 0.9
    found = measure_parts(red, [(wrong, labels)] * 20)
    assert found["parts"] == 20 and 0.5 < found["marked"] <= 1 and 0.2 < found["area"] < 0.8 and found["dice"] == 0
    assert measure_parts(red, [(pixels, np.ones_like(labels)), (pixels, np.zeros_like(labels))]) == {}


def test_masks_are_measured_under_every_condition(red: Segmenter) -> None:
    pixels = np.full((80, 100, 3), 90, np.uint8)
    labels = np.zeros((80, 100), np.uint8)
    labels[20:60, 30:70] = 1
    pixels[20:60, 30:70] = (200, 40, 40)  # called a lesion
    found = dice_under_conditions(red, [(pixels, labels)] * 3)
    assert next(iter(found)) == "none" and found["none"] > 0.95
    assert set(found) - {"none"} == {*red.spec.confounders} & {*CONDITIONS} - {PLAIN, "a distant view"}
    assert found["narrow-band imaging"] < 0.5  # in which nothing is red
    assert found["a close-up view"] > 0.8  # labels move with the pixels
    hidden = np.zeros_like(labels)
    assert dice_under_conditions(red, [(pixels, labels), (pixels, hidden)])["none"] == found["none"]
    assert dice_under_conditions(red, [(pixels, hidden)]) == {}


def test_card_is_made_of_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_site(tmp_path / "data" / "here", count=10)
    write_site(tmp_path / "data" / "there", count=3)
    recipe = Recipe(
        name="tiny",
        input_size=(64, 64),
        train_sites=("here",),
        validation_share=0.2,
        depth=1,
        epochs=1,
        causal_from_epoch=0,
        batch_size=4,
        precision="32-true",
    )
    run = tmp_path / "run"
    train(make_fabric("32-true", "cpu"), recipe, tmp_path / "data", run)
    monkeypatch.setattr(evaluation, "readout_on_phantom", lambda segmenter: {"dim": 0.5})
    capsys.readouterr()
    for model, extra in ((run, []), (run / "tiny.safetensors", ["--card", "--engine", "torch"])):
        monkeypatch.setattr(sys, "argv", ["evaluate", str(model), "--data", str(tmp_path / "data"), *extra])
        assert evaluation.main() == 0
        said = json.loads(capsys.readouterr().out)
        assert set(said["sites"]) == {"here (held out)", "there (unseen)"}
    measured = json.loads((run / "tiny.json").read_text())
    assert measured == said and measured["weights"] == file_hash(run / "tiny.safetensors")
    card = (run / "tiny.md").read_text()
    assert card == render_card(read_spec(run / "tiny.safetensors"), measured)
    assert f"| mean Dice | {measured['sites']['here (held out)']['dice']:.3f} |" in card
    assert f"| motion blur | {measured['readout']['real']['motion blur']:.0%} |" in card
    conditions = measured["conditions"]
    assert list(conditions) == list(measured["sites"]) and len(conditions["here (held out)"]) == 11
    assert "| blood | {:.3f} | {:.3f} |".format(*(site["blood"] for site in conditions.values())) in card
    parts = measured["parts"]["there (unseen)"]
    assert f"| there (unseen) | {parts['parts']} | {parts['marked']:.0%} | {parts['area']:.1%} |" in card
    assert f"| grey with noise | {measured['empty']['grey with noise']:.0%} |" in card
    kept = json.loads((run / "evaluation.json").read_text())
    assert len(kept["sites"]["there"]["images"]["dice"]) == 3 and kept["recipe"]["name"] == "tiny"
    assert kept["sites"]["there"]["images"]["place"] == [f"images/im{i}.png" for i in range(3)]


def test_card_tells_what_branches_have_seen() -> None:
    first = Recipe(name="x", phantom_count=300)
    branches = dataclasses.replace(first, start="x", branches=6, phantom_count=100)
    tuned = dataclasses.replace(first, start="y", phantom_count=0)
    provenance: dict[str, str] = {}
    cards = []
    for recipe in (first, branches, tuned):
        own = {"recipe": json.dumps(dataclasses.asdict(recipe))}
        provenance = own | ({"start": json.dumps(provenance)} if provenance else {})
        spec = dataclasses.replace(read_spec(DEFAULT_CHECKPOINT), provenance=provenance)
        cards.append(render_card(spec, {"sites": {}, "engine": "none", "weights": ""}))
    assert "\n- 300 frames of this package's procedural phantom.\n" in cards[0]
    assert all("\n- 300 + 6 × 100 frames of this package's" in card for card in cards[1:])
    assert "The weights are the mean of 6 trainings' weights, of each the moving average at the last epoch" in cards[1]
    assert all("The weights are the moving average at the last epoch" in card for card in (cards[0], cards[2]))


def test_card_does_not_call_held_out_what_a_later_run_has_seen() -> None:
    first = Recipe(name="x", train_sites=("Kvasir-SEG", "there"), validation_share=0.1)
    tuned = dataclasses.replace(first, start="x", validation_share=0.0, train_sites=("Kvasir-SEG",))
    start = json.dumps({"recipe": json.dumps(dataclasses.asdict(first))})
    provenance = {"recipe": json.dumps(dataclasses.asdict(tuned)), "start": start}
    spec = dataclasses.replace(read_spec(DEFAULT_CHECKPOINT), provenance=provenance)
    card = render_card(spec, {"sites": {}, "engine": "none", "weights": ""})
    assert "under CC BY 4.0 (Borgli et al. 2020): all of it.\n" in card
    assert "- there: all but 10%, which were drawn at random (seed 0) and held out.\n" in card


def test_what_measured_nothing_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = write_site(tmp_path / "data" / "here", count=2)
    (site / "site.toml").write_text('class = "nodule"\n[[layout]]\nimage = "images/*"\nmask = "masks/{name}"\n')
    shutil.copy(DEFAULT_CHECKPOINT, tmp_path / "m.safetensors")
    (tmp_path / "m.md").write_text("a card")
    arguments = ["evaluate", str(tmp_path / "m.safetensors"), "--card", "--engine", "torch"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--data", str(tmp_path / "data")])
    assert evaluation.main() == 1
    err = capsys.readouterr().err.splitlines()
    assert "here is left out: the model knows no nodule" in err
    asked = "name images of its classes it was not trained on"
    assert err[-1] == f"error: nothing in {tmp_path / 'data'} could be measured on; {asked}"
    assert (tmp_path / "m.md").read_text() == "a card" and not (tmp_path / "m.json").exists()


def test_folder_without_a_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate", str(tmp_path)])
    assert evaluation.main() == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path} holds no finished run") and err.count("\n") == 1
