"""Contrastive pretraining: pictures come to lie near the prompts that fit them."""

from __future__ import annotations

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from miniature import write_site

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.clip import load_clip
from training import pretrain as pretraining
from training.dataset import Item, LesionDataset, training_set
from training.launch import make_fabric
from training.methods.base import start_model
from training.pretrain import PromptPairs, pretrain, selection_recall
from training.recipe import Recipe
from training.sites import load_site
from training.split import split_sites

FABRIC = make_fabric("32-true", "cpu")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write_site(tmp_path / "tiny", count=8)
    return Recipe(
        name="tiny",
        input_size=(64, 64),
        train_sites=("tiny",),
        validation_share=0.25,
        depth=1,
        confounders=3,
        batch_size=2,
        pretrain_epochs=1,
        seed=5,
    )


def test_loss_falls_where_pictures_and_prompts_can_agree(recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pairs = PromptPairs(load_clip(recipe.encoder), recipe)
    dataset = LesionDataset(
        load_site(tmp_path / "tiny"),
        (64, 64),
        conditions=pairs.spec.confounders,
        condition_rate=0.7,
        part_rate=0.5,
    )
    batch = Item(*(torch.stack(side) for side in zip(*(dataset[0, i] for i in range(8)), strict=True)))
    optimizer = torch.optim.AdamW(pairs.parameters(), 1e-3)
    history = []
    for _ in range(25):
        loss = pairs(batch)["pairs"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]
    text = pairs.clip.get_submodule("transformer").resblocks[0].mlp.c_fc.weight.grad
    assert text is not None and text.abs().sum() > 0  # the text tower learns too


def test_what_was_pretrained_is_where_training_starts(recipe: Recipe, tmp_path: Path) -> None:
    samples = load_site(tmp_path / "tiny")
    dataset = partial(training_set, FABRIC, recipe, samples)
    weights = pretrain(FABRIC, recipe, tmp_path, dataset, tmp_path / "run")
    made = weights.stat().st_mtime_ns
    assert pretrain(FABRIC, recipe, tmp_path, dataset, tmp_path / "run") == weights
    assert weights.stat().st_mtime_ns == made  # done is done
    model, other = (start_model(recipe, tmp_path, path) for path in (weights, None))
    clip = load_clip(recipe.encoder, weights)
    assert torch.equal(model.encoder.trunk.conv_stem.weight, clip.visual.trunk.conv_stem.weight)  # type: ignore[union-attr]
    assert not torch.equal(model.text_dictionary, other.text_dictionary)
    shares = [selection_recall(dataclasses.replace(recipe, alpha=a), tmp_path, weights, samples) for a in (0.25, 1.0)]
    assert 0 < shares[0] < 1 and shares[1] == 1  # one cell of four, and all of them


def test_command_line_says_recall_before_and_after(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{k} = {json.dumps(v)}" for k, v in dataclasses.asdict(recipe).items()]
    (tmp_path / "tiny.toml").write_text("\n".join(lines))
    monkeypatch.setattr(
        sys, "argv", ["pretrain", str(tmp_path / "tiny.toml"), "--output", str(tmp_path / "r"), "--data", str(tmp_path)]
    )
    assert pretraining.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last["selection_recall"]) == {"before", "after"} and last["images"] == 2


def test_what_cannot_be_measured_is_not_trained(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretraining, "pretrain", lambda *_: pytest.fail("trained"))
    lines = [f"{k} = {json.dumps(v)}" for k, v in dataclasses.asdict(recipe).items()]
    (tmp_path / "tiny.toml").write_text("\n".join(lines))
    arguments = ["pretrain", str(tmp_path / "tiny.toml"), "--output", str(tmp_path / "r"), "--data", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--set", "validation_share=0.0"])
    assert pretraining.main() == 1
    said = "error: recipe 'tiny' holds no image out to measure on; raise its validation_share\n"
    assert capsys.readouterr().err == said
    _, held = split_sites(tmp_path, recipe)
    held[0].image.write_text("no picture")
    monkeypatch.setattr(sys, "argv", arguments)
    assert pretraining.main() == 1
    assert f"cannot read {held[0].image}" in capsys.readouterr().err


def test_foreign_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "foreign.safetensors").write_text("no tensors")
    with pytest.raises(SpecError, match="does not hold the weights of mcdrl-small") as caught:
        load_clip("mcdrl-small", tmp_path / "foreign.safetensors")
    assert "\n" not in str(caught.value)
