"""The fused form of the deployed model is the plain one, and is fused where it can be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import OUTPUTS, FoldedMCDRL
from mcdrl_rt.model.fused import FusedTransformerBlock, Patches, fuse
from mcdrl_rt.model.half import to_half
from mcdrl_rt.model.mcdrl import MCDRL
from mcdrl_rt.types import ModelSpec

MakeModel = Callable[[ModelSpec], MCDRL]
ENCODERS = ("ViT-B-32", "ViT-B-32-quickgelu", "RN50", "mcdrl-small")


@torch.no_grad()
def outputs(model: FoldedMCDRL, frames: Tensor) -> dict[str, Tensor]:
    return dict(zip(OUTPUTS, model(frames), strict=True))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_fused_model_is_the_plain_one(make_model: MakeModel, small_spec: ModelSpec, encoder: str) -> None:
    stride = small_spec.grid_stride if encoder == "mcdrl-small" else 0
    spec = dataclasses.replace(small_spec, encoder=encoder, grid_stride=stride, readout="", input_size=(96, 80))
    spec = dataclasses.replace(spec, classes=("polyp",), colors=(), confounders=spec.confounders[:3])  # few prompts
    plain = FoldedMCDRL(make_model(spec))
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    model = fuse(plain)
    frames = torch.randint(0, 256, (2, 96, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    one, other = outputs(plain, frames), outputs(model, frames)
    assert (one["logits"] - other["logits"]).norm() <= 1e-4 * one["logits"].norm()
    assert torch.allclose(one["confounders"], other["confounders"], atol=1e-5)
    assert torch.equal(one["selected"], other["selected"])
    again = outputs(model, frames)  # nothing was added to what the next frame starts from
    assert all(torch.equal(other[name], again[name]) for name in OUTPUTS)
    half = outputs(to_half(model), frames)
    assert {k: (v.shape, v.dtype) for k, v in half.items()} == {k: (v.shape, v.dtype) for k, v in one.items()}
    if encoder.startswith("ViT"):
        check_tower(plain, model, encoder)
    after = plain.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def check_tower(plain: FoldedMCDRL, model: FoldedMCDRL, encoder: str) -> None:
    """Every block but the last, whose parts the encoder reads, is fused; one with a layer scale is left alone."""
    *blocks, last = model.encoder.tower.transformer.resblocks
    assert all(isinstance(block, FusedTransformerBlock) for block in blocks)
    assert {block.quick for block in blocks} == {encoder.endswith("quickgelu")}
    assert not isinstance(last, FusedTransformerBlock) and isinstance(model.encoder.tower.conv1, Patches)
    first = plain.encoder.tower.transformer.resblocks[0]
    first.ls_1 = nn.Linear(768, 768)
    assert type(fuse(plain).encoder.tower.transformer.resblocks[0]) is type(first)
    first.ls_1 = nn.Identity()


def test_shipped_model_keeps_its_labels() -> None:
    plain = FoldedMCDRL(load_checkpoint(DEFAULT_CHECKPOINT))
    shape = (1, *plain.spec.input_size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    one, other = outputs(plain, frames), outputs(fuse(plain), frames)
    assert (one["score"].int() - other["score"].int()).abs().max() <= 1
