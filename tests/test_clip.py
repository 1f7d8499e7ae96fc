"""CLIP as a dense encoder: every family keeps its grid, at every size, and reads it as the papers say."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import conv2d

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.clip import DenseEncoder, dense_encoder, encode_texts, load_clip, resize_positions
from mcdrl_rt.model.mcdrl import build_model
from mcdrl_rt.types import ModelSpec

ENCODERS = ("mcdrl-small", "RN50", "ViT-B-16", pytest.param("ViT-L-14", marks=pytest.mark.slow))
DIMS = {"mcdrl-small": 256, "RN50": 1024, "ViT-B-16": 512, "ViT-L-14": 768}
STRIDES = {"mcdrl-small": 32, "RN50": 32, "ViT-B-16": 16, "ViT-L-14": 14}


@pytest.fixture(scope="module")
def clips() -> dict[str, Any]:
    return {}


@pytest.fixture
def load(clips: dict[str, Any]) -> Any:
    """Random CLIPs by name, each built once and handed out as a copy of its image tower."""

    def get(name: str) -> Any:
        if name not in clips:
            torch.manual_seed(0)
            clips[name] = load_clip(name).eval()
        return SimpleNamespace(visual=copy.deepcopy(clips[name].visual))

    return get


@torch.no_grad()
def run(encoder: DenseEncoder, batch: int = 2, seed: int = 0) -> tuple[Tensor, Any]:
    size = (encoder.grid[0] * encoder.stride, encoder.grid[1] * encoder.stride)
    images = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed))
    return images, encoder.eval()(images, summary=True)


def capture(module: nn.Module) -> list[Tensor]:
    """A list that gets the module's every output."""
    seen: list[Tensor] = []
    module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    return seen


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("cells", [(2, 2), (3, 5)])
def test_tokens_details_and_summary_have_the_announced_shapes(load: Any, name: str, cells: tuple[int, int]) -> None:
    stride = STRIDES[name]
    encoder = dense_encoder(load(name), (cells[0] * stride, cells[1] * stride))
    assert (encoder.dim, encoder.stride, encoder.grid) == (DIMS[name], stride, cells)
    images, features = run(encoder)
    assert features.tokens.shape == (2, cells[0] * cells[1], encoder.dim)
    assert features.summary.shape == (2, encoder.dim)
    assert tuple(d.shape[1] for d in features.details) == encoder.detail_channels
    widths = [d.shape[-1] for d in features.details]
    assert widths == sorted(widths)  # coarse to fine
    assert all(d.shape[-2] * cells[1] == d.shape[-1] * cells[0] for d in features.details)
    assert encoder(images[:1]).summary is None


@pytest.mark.parametrize("name", ENCODERS)
def test_tokens_are_row_major_over_the_grid(load: Any, name: str) -> None:
    stride = STRIDES[name]
    encoder = dense_encoder(load(name), (4 * stride, 8 * stride), None if "ViT" not in name else "maskclip")
    images, features = run(encoder, batch=1)
    images[:, :, :stride, -stride:] += 3  # the cell at the top right
    with torch.no_grad():
        moved = (encoder(images).tokens - features.tokens).norm(dim=-1).view(4, 8)
    assert int(moved.argmax()) == 7


@pytest.mark.parametrize("name", ENCODERS)
def test_summary_is_clips_own_image_feature(load: Any, clips: dict[str, Any], name: str) -> None:
    encoder = dense_encoder(load(name), (224, 224))
    images, features = run(encoder, batch=1)
    with torch.no_grad():
        expected = clips[name].encode_image(images)
    assert torch.allclose(features.summary, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("readout", ["clearclip", "maskclip", "plain"])
def test_vit_readouts_are_their_equations(load: Any, readout: str) -> None:
    clip = load("ViT-B-16")
    tower, last = clip.visual, clip.visual.transformer.resblocks[-1]
    with torch.no_grad():  # random biases too, or leaving one out would go unseen
        last.attn.in_proj_bias.normal_()
        last.attn.out_proj.bias.normal_()
    encoder = dense_encoder(clip, (64, 96), readout)
    before = capture(tower.transformer.resblocks[-2])
    _, features = run(encoder)
    with torch.no_grad():
        x = before[0]  # (B, 1 + T, width)
        q, _, v = (last.ln_1(x) @ last.attn.in_proj_weight.T + last.attn.in_proj_bias).split(x.shape[-1], dim=-1)
        if readout == "clearclip":  # softmax(q·qᵀ/√d_h)·v in every head; neither residual nor FFN
            heads = zip(q.split(64, dim=-1), v.split(64, dim=-1), strict=True)
            x = torch.cat([(qj @ qj.mT / 8).softmax(dim=-1) @ vj for qj, vj in heads], dim=-1)
            x = x @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
        elif readout == "maskclip":
            x = v @ last.attn.out_proj.weight.T + last.attn.out_proj.bias
        else:
            x = last(x)
        expected = (tower.ln_post(x) @ tower.proj)[:, 1:]
    assert torch.allclose(features.tokens, expected, atol=1e-4)


def test_resnet_readout_is_its_attention_pools_projections(load: Any) -> None:
    clip = load("RN50")
    seen, pool = capture(clip.visual.layer4), clip.visual.attnpool
    encoder = dense_encoder(clip, (64, 96))
    _, features = run(encoder)
    with torch.no_grad():
        x = conv2d(seen[0], pool.v_proj.weight[..., None, None], pool.v_proj.bias)
        x = conv2d(x, pool.c_proj.weight[..., None, None], pool.c_proj.bias)  # (B, d, h, w)
    assert torch.allclose(features.tokens, x.flatten(2).mT, atol=1e-5)


def test_trunk_readout_is_its_projection_per_location(load: Any) -> None:
    encoder = dense_encoder(load("mcdrl-small"), (96, 64))
    images, features = run(encoder)
    with torch.no_grad():
        x = encoder.trunk.forward_features(images)  # (B, c, h, w)
        expected = conv2d(x, encoder.head.proj.weight[..., None, None], encoder.head.proj.bias)
    assert torch.allclose(features.tokens, expected.flatten(2).mT, atol=1e-5)
    assert torch.allclose(features.summary, expected.mean(dim=(2, 3)), atol=1e-5)


@pytest.mark.parametrize("stride", [8, 16])
def test_trunk_takes_a_finer_grid(load: Any, stride: int) -> None:
    encoder = dense_encoder(load("mcdrl-small"), (64, 96), None, stride)
    images, features = run(encoder)
    assert encoder.grid == (64 // stride, 96 // stride)
    assert features.tokens.shape == (2, encoder.grid[0] * encoder.grid[1], 256)
    with torch.no_grad():
        encoder.fine.weight.normal_()
        assert not torch.allclose(encoder(images).tokens, features.tokens)  # the finer stage has its say


@pytest.mark.parametrize("name", ["mcdrl-small", "RN50", "ViT-B-16"])
def test_any_frame_size_is_padded_to_whole_cells_and_cut_back(name: str) -> None:
    spec = ModelSpec(
        name="odd", encoder=name, input_size=(70, 101), classes=("polyp",), confounders=("blur", "blood"), depth=1
    )
    model = build_model(spec).eval()
    stride = STRIDES[name]
    assert model.spec.grid == (-(-70 // stride), -(-101 // stride))
    with torch.no_grad():
        out = model(torch.randn(1, 3, 70, 101))
    assert out.logits.shape == (1, 2, 70, 101)
    assert out.indices.shape == (1, model.spec.selected)


def test_position_table_of_the_right_size_is_left_alone() -> None:
    table = torch.randn(1 + 6, 4)
    assert resize_positions(table, (2, 3), (2, 3)) is table


def test_resized_position_table_keeps_class_token_and_directions() -> None:
    rows = torch.arange(8.0).view(8, 1).expand(8, 6)
    columns = torch.arange(6.0).expand(8, 6)
    table = torch.cat([torch.tensor([[-5.0, -7.0]]), torch.stack([rows, columns], dim=-1).flatten(0, 1)])
    resized = resize_positions(table, (8, 6), (4, 12))
    assert torch.equal(resized[0], table[0])
    picture = resized[1:].view(4, 12, 2)
    assert (picture[:, :, 0].diff(dim=0) > 1).all()  # half as many rows: twice the step
    assert torch.allclose(picture[:, 3:9, 1].diff(dim=1), torch.full((4, 5), 0.5), atol=0.15)


def test_texts_are_unit_vectors_of_the_joint_space(clips: dict[str, Any], load: Any) -> None:
    load("mcdrl-small")
    texts = encode_texts(clips["mcdrl-small"], "mcdrl-small", ["A polyp", "A cyst in an endoscopic image"])
    assert texts.shape == (2, 256)
    assert torch.allclose(texts.norm(dim=-1), torch.ones(2))
    assert float(texts[0] @ texts[1]) < 0.999


@pytest.mark.parametrize(
    ("name", "readout", "stride", "complaint"),
    [
        ("RN50", "clearclip", 0, "choose native"),
        ("mcdrl-small", "plain", 0, "choose native"),
        ("ViT-B-16", "native", 0, "clearclip or maskclip or plain"),
        ("ViT-B-16", None, 8, "only a timm trunk"),
        ("RN50", None, 16, "only a timm trunk"),
        ("mcdrl-small", None, 5, "2, 4, 8, 16, 32"),
    ],
)
def test_what_an_encoder_cannot_do_is_said_with_the_choices(
    load: Any, name: str, readout: str | None, stride: int, complaint: str
) -> None:
    with pytest.raises(SpecError, match=complaint):
        dense_encoder(load(name), (64, 64), readout, stride)


def test_unknown_tower_is_named() -> None:
    with pytest.raises(SpecError, match="Linear"):
        dense_encoder(SimpleNamespace(visual=nn.Linear(1, 1)), (64, 64))


@pytest.mark.parametrize(
    ("tower", "complaint"),
    [
        (lambda: TimmModel("resnet10t", 32, pool="avg", proj=""), "pooled before the projection"),
        (lambda: TimmModel("resnet10t", 32, pool="avg", proj="mlp"), "pooled before the projection"),
        (lambda: TimmModel("vit_tiny_patch16_224", 32, pool="token", proj="linear"), "no convolutional pyramid"),
        (lambda: TimmModel("swin_tiny_patch4_window7_224", 32, pool="avg", proj="linear"), "no convolutional pyramid"),
        (lambda: small_vit(attentional_pool=True), "not a projected class token"),
        (lambda: small_vit(final_ln_after_pool=True), "not a projected class token"),
    ],
)
def test_towers_without_a_dense_readout_are_refused(tower: Callable[[], nn.Module], complaint: str) -> None:
    with pytest.raises(SpecError, match=f"no dense readout: .*{complaint.removeprefix('no ')}"):
        dense_encoder(SimpleNamespace(visual=tower()), (64, 64))


def small_vit(**options: Any) -> VisionTransformer:
    return VisionTransformer(64, 16, 32, 2, 2, 4.0, output_dim=32, **options)


def test_unknown_encoder_is_refused_with_suggestions() -> None:
    with pytest.raises(SpecError, match=r"no encoder 'ViT-Z-99'.*RN50.*mcdrl-small") as caught:
        load_clip("ViT-Z-99")
    assert "\n" not in str(caught.value)


def test_random_weights_load_silently_and_missing_ones_offline_are_one_line(tmp_path: Path) -> None:
    script = """
import logging
from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.clip import load_clip
load_clip("mcdrl-small")
try:
    load_clip("RN50", "openai")
except SpecError as error:
    print(error)
print(logging.getLogger().handlers, logging.getLogger().filters)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == ""
    message, logger = done.stdout.splitlines()
    assert message.startswith("cannot load RN50 with pretrained='openai'")
    assert message.endswith("is this machine online?")
    assert logger == "[] []"
