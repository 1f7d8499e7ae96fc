"""Methods: each trains what it says it trains, on the same footing as the others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from miniature import write_site
from safetensors.torch import save_file

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import McdrlError, SpecError
from mcdrl_rt.model.checkpoint import load_checkpoint, save_checkpoint
from mcdrl_rt.model.folded import FoldedMCDRL
from training.dataset import Item, LesionDataset
from training.evaluate import MethodEngine
from training.methods import build_method
from training.methods.base import load_trunk, upsample_cells
from training.methods.causal import Causal
from training.methods.prompted import PromptTower
from training.recipe import METHODS, Recipe, load_recipe
from training.sites import load_site

RECIPE = Recipe(name="tiny", input_size=(64, 64), grid_stride=16, depth=1, readout=0.1, edge=1.0, seed=3, lr=2e-3)
MANY = dataclasses.replace(RECIPE, classes=("polyp", "tumor", "cyst"))


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Item:
    site = write_site(tmp_path_factory.mktemp("data") / "tiny", count=4)
    names = build_method(RECIPE, site).spec.confounders
    dataset = LesionDataset(load_site(site), RECIPE.input_size, conditions=names)
    return Item(*(torch.stack(side) for side in zip(*(dataset[0, i] for i in range(4)), strict=True)))


@pytest.mark.parametrize("name", METHODS)
def test_method_learns_the_lesion(name: str, batch: Item, tmp_path: Path) -> None:
    method = build_method(dataclasses.replace(RECIPE, method=name), tmp_path).train()
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], RECIPE.lr)
    fixed = {n: b.clone() for n, b in method.named_buffers() if n.startswith(("network.text_", "teacher", "pruned"))}
    tower = method.prompts.clip.token_embedding.weight.clone() if hasattr(method, "prompts") else None
    history = []
    for _ in range(30):
        terms = method(batch, True)
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        history.append({key: value.item() for key, value in terms.items()})
    for term in set(history[0]) - {"distil"}:
        assert history[-1][term] < 0.75 * history[0][term], term
    assert all(torch.equal(value, dict(method.named_buffers())[n]) for n, value in fixed.items())
    if tower is not None:
        assert torch.equal(tower, method.prompts.clip.token_embedding.weight)  # frozen
    logits = method.eval().predict(method.normalise(batch.pixels)).logits
    assert logits.shape == (4, 2, 64, 64)


@pytest.mark.parametrize(
    ("name", "terms", "alpha", "depth"),
    [
        ("mcdrl", {"segmentation", "dice", "dense", "causal", "readout", "contrast"}, 0.5, 1),
        ("baseline", {"segmentation", "dice"}, 1.0, 0),
        ("wo-mtrs", {"segmentation", "dice", "causal", "readout"}, 1.0, 1),
        ("wo-cdrl", {"segmentation", "dice", "dense", "contrast"}, 0.5, 0),
        ("stylip", {"segmentation", "dice", "dense", "contrast"}, 0.5, 1),
        ("biomedcoop", {"segmentation", "dice", "dense", "contrast", "ensemble", "distil"}, 0.5, 1),
        ("unet", {"segmentation", "dice"}, 0.5, 1),
    ],
)
def test_method_has_its_terms(
    name: str, terms: set[str], alpha: float, depth: int, batch: Item, tmp_path: Path
) -> None:
    method = build_method(dataclasses.replace(MANY, method=name), tmp_path)
    assert set(method(batch, True)) == terms
    assert (method.spec.alpha, method.spec.depth) == (alpha, depth)
    if name == "mcdrl":
        assert set(method(batch, False)) == terms - {"causal", "readout"}
        alone = dataclasses.replace(MANY, dice=0.0, dense=0.0, readout=0.0, edge=0.0)
        assert set(build_method(alone, tmp_path)(batch, True)) == {"segmentation", "causal", "contrast"}  # Eq. 9


def test_contrast_is_left_out_where_it_is_zero(batch: Item, tmp_path: Path) -> None:
    assert "contrast" not in build_method(RECIPE, tmp_path)(batch, True)


def test_prompts_follow_the_image_in_stylip_and_only_there(batch: Item, tmp_path: Path) -> None:
    for name, differ in (("stylip", True), ("biomedcoop", False)):
        method = build_method(dataclasses.replace(MANY, method=name), tmp_path).eval()
        if differ:  # words start near zero
            for word in method.words:
                torch.nn.init.normal_(word.weight, std=0.5)
        texts = method.texts(method._encode(method.normalise(batch.pixels), False))
        assert texts.shape == (4, 3, 256)
        assert torch.allclose(texts.norm(dim=-1), torch.ones(4, 3), atol=1e-5)
        assert (not torch.allclose(texts[0], texts[1], atol=1e-4)) == differ


def test_words_that_are_embeddings_give_the_text_they_spell(tmp_path: Path) -> None:
    """A prompt given as vectors is encoded as the same prompt given as words."""
    from mcdrl_rt.model.clip import encode_texts

    prompts = build_method(dataclasses.replace(RECIPE, method="biomedcoop"), tmp_path).prompts
    learned = prompts(prompts.embed("a photo of").unsqueeze(0), "a polyp.")
    assert torch.allclose(learned, encode_texts(prompts.clip, RECIPE.encoder, ["a photo of a polyp."]), atol=1e-5)
    with pytest.raises(SpecError, match="too long for this text tower"):
        prompts(torch.zeros(1, 30, prompts.width), "a polyp")


def test_same_seed_same_start(tmp_path: Path) -> None:
    for name in ("mcdrl", "stylip", "biomedcoop", "unet"):  # ablations are the first with less
        recipe = dataclasses.replace(RECIPE, method=name)
        one, again = (build_method(recipe, tmp_path) for _ in range(2))
        other = again.state_dict()
        assert all(torch.equal(value, other[key]) for key, value in one.state_dict().items())
        # a moving average of −∞, such as a text tower's mask may hold, is NaN
        assert all(torch.isfinite(value).all() for value in (*one.parameters(), *one.buffers())), name


def test_all_start_from_the_same_encoder_weights(data_root: Path) -> None:
    recipe = dataclasses.replace(RECIPE, encoder_weights="weights/mobilenetv2_100_imagenet.safetensors")
    stems = []
    for name in METHODS:
        method = build_method(dataclasses.replace(recipe, method=name), data_root)
        parameters = {id(p) for p in method.pretrained_parameters()}
        (stem,) = (p for n, p in method.named_parameters() if n.endswith("conv_stem.weight") and id(p) in parameters)
        assert all(id(p) not in parameters for n, p in method.named_parameters() if ".head." in f".{n}")
        stems.append(stem)
    assert all(torch.equal(stem, stems[0]) for stem in stems)


def test_method_engine_is_the_deployed_engine(tmp_path: Path) -> None:
    method = build_method(RECIPE, tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    one, other = MethodEngine(method, "cpu").infer(frames), TorchEngine(FoldedMCDRL(method.network)).infer(frames)
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(one, other, strict=True))
    assert np.abs(one.score.astype(int) - other.score).max() <= 1
    assert (one.selected == other.selected).mean() > 0.99
    np.testing.assert_allclose(one.confounders, other.confounders, atol=1e-5)


def test_shipped_model_is_trained_further(tmp_path: Path) -> None:
    recipe = load_recipe(ROOT / "training" / "recipes" / "finetune.toml", ["input_size=[96, 128]", "alpha=0.7"])
    assert not recipe.pretrains
    method = build_method(recipe, tmp_path)
    assert isinstance(method, Causal)
    shipped, further = load_checkpoint(DEFAULT_CHECKPOINT), method.network
    state = shipped.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in further.state_dict().items())
    assert (further.spec.name, further.spec.input_size, further.spec.alpha) == ("finetuned", (96, 128), 0.7)
    assert json.loads(further.spec.provenance["start"]) == dict(shipped.spec.provenance)
    assert json.loads(further.spec.provenance["recipe"])["start"] == "mcdrl-small"
    assert further.eval()(torch.zeros(1, 3, 96, 128)).logits.shape == (1, 2, 96, 128)
    ids = {id(p) for p in method.pretrained_parameters()}
    assert ids == {id(p) for p in further.encoder.get_submodule("trunk").parameters()}


def test_positions_follow_the_input_size_of_the_further_training(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, encoder="ViT-S-32-alt", grid_stride=0)
    first = build_method(recipe, tmp_path)
    assert isinstance(first, Causal)
    save_checkpoint(first.network, tmp_path / "first.safetensors")
    recipe = dataclasses.replace(recipe, start=str(tmp_path / "first.safetensors"), input_size=(96, 64))
    further = build_method(recipe, tmp_path)
    assert isinstance(further, Causal) and further.spec.grid == (3, 2)
    tables = [model.network.encoder.get_parameter("tower.positional_embedding") for model in (first, further)]
    assert [len(table) for table in tables] == [1 + 4, 1 + 6]
    torch.testing.assert_close(tables[1][0], tables[0][0], atol=1e-3, rtol=1e-3)  # of the class token
    torch.testing.assert_close(tables[1][1:].mean(dim=0), tables[0][1:].mean(dim=0), atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"start": "gone.safetensors"}, "no checkpoint at gone.safetensors"),
        ({"start": "mcdrl-small", "depth": 2, "confounders": 9}, "mcdrl-small has another confounders, depth; give"),
        ({"start": "mcdrl-small", "encoder": "RN50", "grid_stride": 0}, "mcdrl-small has another encoder; give"),
    ],
)
def test_checkpoint_that_does_not_fit_the_recipe_is_refused(
    settings: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    recipe = load_recipe(ROOT / "training" / "recipes" / "finetune.toml")
    with pytest.raises(McdrlError, match=complaint):
        build_method(dataclasses.replace(recipe, **settings), tmp_path)


def test_encoder_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no encoder weights at"):
        build_method(dataclasses.replace(RECIPE, encoder_weights="none.safetensors"), tmp_path)
    save_file({"foreign": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(SpecError, match="does not fit the image trunk"):
        build_method(dataclasses.replace(RECIPE, encoder_weights="foreign.safetensors"), tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"no tensors")
    with pytest.raises(SpecError, match="not a safetensors file or is cut off"):
        load_trunk(torch.nn.Linear(1, 1), tmp_path / "cut.safetensors")


@pytest.mark.parametrize("size", [(64, 72), (80, 64)])
def test_unet_refuses_a_size_it_cannot_take(size: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=f"takes sides that 32 divides, not {size[0]}×{size[1]}; change input_size"):
        build_method(dataclasses.replace(RECIPE, method="unet", input_size=size), tmp_path)


def test_prompts_need_clips_own_text_tower() -> None:
    with pytest.raises(SpecError, match="prompts cannot be learned with the text tower of coca"):
        PromptTower(SimpleNamespace(), "coca")


def test_cells_cover_their_pixels() -> None:
    cells = torch.tensor([[[1, 0], [0, 1]]])
    pixels = upsample_cells(cells, 3, (5, 4))
    assert pixels.dtype == torch.bool and pixels.shape == (1, 5, 4)
    assert pixels[0, :3, :3].all() and pixels[0, 3:, 3:].all() and pixels.sum() == 11
