"""Model: MCDRL's parts do what the method says, and the folded form is the same function."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from conftest import shake
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.clip import encode_texts, load_clip
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.head import DetailHead, GridHead
from mcdrl_rt.model.intervention import FoldedNetwork, InterventionNetwork
from mcdrl_rt.model.mcdrl import MCDRL, build_model, encode_prompts, pad_to_stride
from mcdrl_rt.model.selection import scatter_tokens, select, selected_cells
from mcdrl_rt.ops import gather_tokens
from mcdrl_rt.types import ModelSpec, UInt8Array

DEPTHS = (1, 2, 3, 4, 5)


def normalised(pictures: UInt8Array, spec: ModelSpec) -> Tensor:
    """(B, 3, H, W) float from (B, H, W, 3) uint8, as the specification says."""
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    return (images - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)


def with_depth(model: MCDRL, depth: int) -> MCDRL:
    """A copy of ``model`` with another, livelier intervention network."""
    torch.manual_seed(depth)
    model = copy.deepcopy(model)
    model.spec = dataclasses.replace(model.spec, depth=depth)
    model.network = InterventionNetwork(model.spec.embed_dim, depth, model.spec.heads).eval()
    shake(model.network)
    return model


# --- the fold ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def fold_error(model: MCDRL, pictures: UInt8Array) -> float:
    """Largest difference of logits between the literal and the folded model, as a share of the largest logit;
    asserts that the network matters."""
    images = normalised(pictures, model.spec)
    literal, bypassed = model(images), model(images, intervene=False)
    *_, confounders, cells, logits = FoldedMCDRL(model)(torch.from_numpy(pictures))
    assert (literal.logits - bypassed.logits).abs().max() > 0.01
    assert torch.equal(cells, selected_cells(literal.indices, model.spec.grid).to(torch.uint8))
    assert torch.allclose(confounders, literal.confounders, atol=1e-5)
    return float((literal.logits - logits).abs().max() / literal.logits.abs().max())


@pytest.mark.parametrize("depth", DEPTHS)
def test_folded_model_is_the_literal_one(small_model: MCDRL, pictures: UInt8Array, depth: int) -> None:
    assert fold_error(with_depth(small_model, depth), pictures[:2]) <= 1e-4


@pytest.fixture(scope="module", params=[512, 768, 1024])
def deep_network(request: pytest.FixtureRequest) -> InterventionNetwork:
    torch.manual_seed(request.param)
    network = InterventionNetwork(request.param, max(DEPTHS), 8)
    shake(network)
    return network.requires_grad_(False)


@pytest.mark.parametrize("depth", DEPTHS)
def test_folded_network_is_the_literal_one_at_every_encoders_width(
    deep_network: InterventionNetwork, depth: int
) -> None:
    network = copy.copy(deep_network)
    network._modules = {"blocks": deep_network.blocks[:depth]}
    dim = deep_network.blocks[0].query.in_features
    features, texts, z = torch.randn(2, 49, dim), torch.randn(5, dim), torch.randn(12, dim)
    chosen = select(features, texts, 24)
    expected, expected_readout = network(chosen.tokens, z)
    f, indices, readout = FoldedNetwork(network, z, texts, 24)(features)
    assert torch.equal(indices, chosen.indices)
    assert (expected - chosen.tokens).abs().mean() > 0.1  # the network does something
    assert (f - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (readout - expected_readout).abs().max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50", "ViT-B-16", "ViT-L-14"])
def test_folded_model_is_the_literal_one_for_every_paper_encoder(
    make_model: Callable[[ModelSpec], MCDRL], small_spec: ModelSpec, pictures: UInt8Array, name: str
) -> None:
    spec = dataclasses.replace(small_spec, encoder=name, input_size=(224, 224), grid_stride=0)
    model = make_model(spec)
    frames = pictures[:1, :128, :128].repeat(2, axis=1).repeat(2, axis=2)[:, :224, :224].copy()
    for depth in DEPTHS:
        assert fold_error(with_depth(model, depth), frames) <= 1e-4, depth


def test_fold_leaves_the_trained_model_alone(small_model: MCDRL) -> None:
    before = {name: value.clone() for name, value in small_model.state_dict().items()}
    folded = FoldedMCDRL(small_model)
    for value in folded.state_dict().values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in small_model.state_dict().items())
    assert all(p.requires_grad for p in small_model.parameters())


def test_model_without_causal_block_cannot_be_deployed(small_model: MCDRL) -> None:
    with pytest.raises(SpecError, match="at least one causal block"):
        FoldedMCDRL(with_depth(small_model, 0))


# --- the deployed form -------------------------------------------------------------------------------------------


@torch.no_grad()
def test_folded_outputs_keep_their_contract(small_model: MCDRL, pictures: UInt8Array) -> None:
    score, label, confounders, cells, logits = FoldedMCDRL(small_model)(torch.from_numpy(pictures))
    margin, best = (logits[:, 1:] - logits[:, :1]).max(dim=1)
    clear = margin.abs() > 1e-3
    assert score.dtype == label.dtype == cells.dtype == torch.uint8
    assert 0.2 < (score >= 128).float().mean() < 0.8  # or the next line says little
    assert torch.equal((score >= 128)[clear], (margin > 0)[clear])
    assert torch.equal(label.unique(), torch.tensor([1, 2, 3], dtype=torch.uint8))
    assert (label == best + 1).float().mean() > 0.999  # but for exact ties
    assert torch.allclose(confounders.sum(dim=1), torch.ones(len(pictures)), atol=1e-5)
    assert cells.shape == (len(pictures), 8, 10)
    assert (cells.flatten(1).sum(dim=1) == small_model.spec.selected).all()


@torch.no_grad()
def test_frames_of_a_batch_do_not_see_each_other(small_model: MCDRL, pictures: UInt8Array) -> None:
    folded, frames = FoldedMCDRL(small_model), torch.from_numpy(pictures[:3])
    together = folded(frames)
    for i in range(3):
        alone = folded(frames[i : i + 1])
        assert torch.allclose(alone[-1], together[-1][i : i + 1], atol=1e-4)
        assert torch.allclose(alone[2], together[2][i : i + 1], atol=1e-5)


# --- the trained form --------------------------------------------------------------------------------------------


@torch.no_grad()
def test_output_has_the_documented_shapes(small_model: MCDRL, pictures: UInt8Array) -> None:
    spec = small_model.spec
    assert (spec.grid, spec.embed_dim, spec.readout, spec.selected) == ((8, 10), 256, "native", 40)
    out = small_model(normalised(pictures[:2], spec), summary=True)
    assert out.logits.shape == (2, 4, 128, 160)
    assert out.similarities.shape == (2, 80, 3)
    assert out.similarities.abs().max() <= 1 + 1e-5
    assert out.indices.shape == (2, 40)
    assert out.intervened.shape == (2, 40, 256)
    assert out.confounders.shape == (2, 12)
    assert torch.allclose(out.confounders.sum(dim=1), torch.ones(2))
    assert out.summary is not None and out.summary.shape == (2, 256)


@torch.no_grad()
def test_without_intervention_the_selected_features_go_straight_to_the_head(
    small_model: MCDRL, pictures: UInt8Array
) -> None:
    images = normalised(pictures[:2], small_model.spec)
    out = small_model(images, intervene=False)
    features = small_model.encoder(images).tokens
    assert torch.equal(out.intervened, gather_tokens(features, out.indices))
    assert torch.allclose(out.confounders, torch.full((2, 12), 1 / 12))
    assert out.summary is None


@torch.no_grad()
def test_alpha_is_the_share_of_cells_the_head_sees(small_model: MCDRL, pictures: UInt8Array) -> None:
    images = normalised(pictures[:2], small_model.spec)
    for alpha, count in ((0.1, 8), (0.3, 24), (1.0, 80)):
        model = copy.copy(small_model)
        model.spec = dataclasses.replace(small_model.spec, alpha=alpha)
        assert model(images).indices.shape == (2, count)


@pytest.mark.parametrize(("depth", "millions"), [(1, 12.4), (2, 18.6), (3, 24.9), (4, 31.2), (5, 37.5)])
def test_parameter_count_is_table_5s(depth: int, millions: float) -> None:
    with torch.device("meta"):  # ViT-L/14: d = 768, two details of the transformer's width
        parts = (InterventionNetwork(768, depth, 8), DetailHead(768, 6, (1024, 1024)))
    count = sum(p.numel() for part in parts for p in part.parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.02)


def test_parameter_count_leaves_the_encoder_out(small_model: MCDRL) -> None:
    everything = sum(p.numel() for p in small_model.parameters())
    encoder = sum(p.numel() for p in small_model.encoder.parameters())
    assert small_model.parameter_count() == everything - encoder > 0


def test_prompts_are_encoded_once_as_the_paper_has_them(small_spec: ModelSpec) -> None:
    clip = load_clip(small_spec.encoder).eval()
    texts = encode_prompts(clip, small_spec)

    def encode(prompts: list[str]) -> Tensor:
        return encode_texts(clip, small_spec.encoder, prompts)

    assert torch.allclose(texts.classes[1], encode(["A tumor in an endoscopic image"])[0], atol=1e-5)
    assert torch.allclose(texts.dictionary[0], encode(["An endoscopy image with motion blur."])[0], atol=1e-5)
    target = encode([f"A cyst with {name}" for name in small_spec.confounders]).mean(dim=0)
    assert torch.allclose(texts.targets[2], target, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"confounders": ()}, "empty confounder dictionary"),
        ({"heads": 7}, "7 heads do not divide the width 256"),
        ({"head": "fancy"}, "no head 'fancy'; choose detail or grid"),
        ({"grid_stride": 7}, "no stage of stride 7"),
        ({"readout": "clearclip"}, "choose native"),
    ],
)
def test_specification_that_no_model_fits_is_refused(
    small_spec: ModelSpec, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(SpecError, match=complaint):
        build_model(dataclasses.replace(small_spec, **change))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 14, 16, 32]))
def test_padding_reaches_whole_cells_and_keeps_the_picture(height: int, width: int, stride: int) -> None:
    images = torch.rand(1, 3, height, width) + 1
    padded = pad_to_stride(images, stride)
    assert [side % stride for side in padded.shape[2:]] == [0, 0]
    assert padded.shape[2] - height < stride
    assert padded.shape[3] - width < stride
    assert torch.equal(padded[..., :height, :width], images)
    assert float(padded.sum()) == pytest.approx(float(images.sum()), rel=1e-5)  # the rest is zero


# --- selection ---------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.data())
def test_scatter_puts_gathered_tokens_back(batch: int, h: int, w: int, classes: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, h * w))
    features, texts = torch.rand(batch, h * w, 6) + 1, torch.randn(classes, 6)
    chosen = select(features, texts, count)
    assert chosen.tokens.shape == (batch, count, 6)
    cells = selected_cells(chosen.indices, (h, w))
    assert cells.shape == (batch, h, w)
    assert cells.flatten(1).sum(dim=1).tolist() == [count] * batch
    grid = scatter_tokens(chosen.tokens, chosen.indices, (h, w))
    assert torch.equal(grid, features.mT.reshape(batch, 6, h, w) * cells.unsqueeze(1))
    assert torch.equal(gather_tokens(grid.flatten(2).mT, chosen.indices), chosen.tokens)


def test_selection_keeps_the_tokens_most_like_a_class() -> None:
    texts = torch.eye(4)[:2]
    features = torch.eye(4).repeat(2, 1)[None] * torch.arange(1.0, 9.0).view(1, 8, 1)  # length plays no part
    assert select(features, texts, 4).indices.tolist() == [[0, 1, 4, 5]]


# --- heads -------------------------------------------------------------------------------------------------------


def test_grid_head_answers_on_the_grid() -> None:
    head = GridHead(64, 3, (32, 16)).eval()
    assert head(torch.randn(2, 64, 5, 7), []).shape == (2, 3, 5, 7)


@pytest.mark.parametrize(
    ("shapes", "out"),
    [
        (((32, 10, 14), (16, 20, 28)), (20, 28)),  # a pyramid: the finest detail's size
        (((32, 5, 7), (16, 5, 7)), (20, 28)),  # a ViT: shallow tokens, drawn at twice the resolution each time
    ],
)
def test_detail_head_answers_at_the_finest_detail(shapes: tuple[tuple[int, ...], ...], out: tuple[int, int]) -> None:
    head = DetailHead(64, 3, tuple(shape[0] for shape in shapes)).eval()
    details = [torch.randn(2, *shape) for shape in shapes]
    assert head(torch.randn(2, 64, 5, 7), details).shape == (2, 3, *out)


@torch.no_grad()
def test_closed_gates_keep_details_out() -> None:
    head = DetailHead(64, 3, (32, 16)).eval()
    grid = torch.randn(1, 64, 4, 4)
    one, other = ([torch.randn(1, 32, 8, 8), torch.randn(1, 16, 16, 16)] for _ in range(2))
    assert not torch.allclose(head(grid, one), head(grid, other))
    for gate in head.gate:
        assert isinstance(gate, nn.Conv2d) and gate.bias is not None
        gate.weight.zero_()
        gate.bias.fill_(-1e4)
    assert torch.equal(head(grid, one), head(grid, other))
