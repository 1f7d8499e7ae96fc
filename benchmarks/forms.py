"""The forms of one model that are compared: the paper's equations as printed, alone or in the deployed form; the
folded model; and that with its fused operator taken apart again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcdrl_rt.engine.base import LESION
from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.intervention import CausalBlock, FoldedBlock
from mcdrl_rt.model.mcdrl import MCDRL, build_model
from mcdrl_rt.model.prompts import confounder_names
from mcdrl_rt.ops import gather_tokens, similarity
from mcdrl_rt.types import ModelSpec

Model = TypeVar("Model", MCDRL, FoldedMCDRL)


def spec_of(encoder: str, size: int, depth: int, grid_stride: int = 0) -> ModelSpec:
    """One class, twelve confounders; weights will be random, which latency does not depend on."""
    return ModelSpec(
        name=f"depth-{depth}",
        encoder=encoder,
        input_size=(size, size),
        grid_stride=grid_stride,
        classes=("polyp",),
        confounders=confounder_names(12),
        depth=depth,
    )


def model_named(name: str) -> MCDRL:
    """The shipped model; or one of an encoder's name at depth 3 and 224×224, with random weights."""
    torch.manual_seed(0)
    return load_checkpoint(DEFAULT_CHECKPOINT) if name == "shipped" else build_model(spec_of(name, 224, 3)).eval()


def literal(model: MCDRL, frames: Tensor) -> Callable[[], Tensor]:
    """The paper's equations in eager torch, uint8 frames (B, H, W, 3) to logits."""
    mean = torch.tensor(model.spec.mean, device=frames.device).view(1, 3, 1, 1)
    std = torch.tensor(model.spec.std, device=frames.device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def run() -> Tensor:
        images = frames.permute(0, 3, 1, 2).float() / 255
        return model((images - mean) / std).logits

    return run


def labels(outputs: Sequence[Tensor]) -> tuple[Tensor]:
    """Labels (B, H, W) uint8 from what ``FoldedMCDRL`` gives."""
    score, label = outputs[:2]
    return (label * (score >= LESION),)


def at_depth(model: Model, depth: int) -> Model:
    """A copy with the first ``depth`` blocks that shares every weight: models of one encoder differ in nothing else."""
    tensors = (*model.parameters(), *model.buffers())
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    copied.network.blocks = copied.network.blocks[:depth]
    return copied


def unfolded(model: MCDRL) -> FoldedMCDRL:
    """The deployed form with its causal blocks as printed: for runtimes that compile it."""
    deployed = FoldedMCDRL(model)
    blocks = cast(Sequence[CausalBlock], model.network.blocks)
    deployed.network.blocks = nn.ModuleList(_PrintedBlock(block, model.text_dictionary) for block in blocks)
    return deployed.requires_grad_(False)


class _PrintedBlock(nn.Module):
    def __init__(self, block: CausalBlock, z: Tensor) -> None:
        super().__init__()
        self.block = copy.deepcopy(block)
        self.register_buffer("z", z)

    def select_intervene(self, features: Tensor, texts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        # no exporter knows a stable sort; ties go where torch's top-k lets them, which is no slower
        indices = similarity(features, texts).amax(dim=-1).topk(count, dim=-1).indices
        f, readout = self(gather_tokens(features, indices))
        return f, indices, readout

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        f, readout = self.block(f, self.z)
        return f, readout.unsqueeze(1)  # the folded form has one for each token


def unfused(model: FoldedMCDRL) -> FoldedMCDRL:
    """A copy in which the fused operators are the torch operations one would write in their place."""
    model = copy.deepcopy(model)
    for block in cast(Sequence[FoldedBlock], model.network.blocks):
        block.__class__ = _UnfusedBlock
    return model


class _UnfusedBlock(FoldedBlock):
    def select_intervene(self, features: Tensor, texts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        f, indices, readout = select_intervene(
            features, texts, self.a, self.c, self.b, count, self.heads, self.eps
        )
        return self.feed_forward(f), indices, readout

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        f, readout = intervene(f, self.a, self.c, self.b, self.heads, self.eps)
        return self.feed_forward(f), readout


def intervene(tokens: Tensor, a: Tensor, c: Tensor, b: Tensor, heads: int, eps: float) -> tuple[Tensor, Tensor]:
    """``mcdrl_rt::intervene`` one torch operation at a time, in the type of its inputs throughout."""
    scores = F.linear(F.layer_norm(tokens, tokens.shape[-1:], eps=eps), a, c)
    weights = scores.unflatten(-1, (heads, -1)).softmax(dim=-1)  # (B, N, heads, M)
    return tokens + F.linear(weights.flatten(2), b), weights.mean(dim=2, dtype=torch.float32)


def select_intervene(
    features: Tensor, texts: Tensor, a: Tensor, c: Tensor, b: Tensor, count: int, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``mcdrl_rt::select_intervene`` likewise. Ties go where torch's top-k lets them, which is no slower."""
    similarities = F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).T  # (B, T, K)
    indices = similarities.amax(dim=-1).topk(count, dim=-1).indices
    tokens = features.gather(1, indices.unsqueeze(-1).expand(-1, -1, features.shape[-1]))
    out, readout = intervene(tokens, a, c, b, heads, eps)
    return out, indices, readout
