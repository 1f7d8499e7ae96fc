"""MCDRL, composed: dense CLIP features → MTRS → CDRL → head, in the literal form that is trained.

    >>> spec = ModelSpec(name="demo", encoder="mcdrl-small", input_size=(224, 224), classes=("polyp",),
    ...                  confounders=confounder_names(12))
    >>> model = build_model(spec)                      # random weights           # doctest: +SKIP
    >>> out = model(images)                            # (B, 3, 224, 224) float   # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.clip import DenseEncoder, clip_config, dense_encoder, encode_texts, load_clip
from mcdrl_rt.model.head import HEADS
from mcdrl_rt.model.intervention import InterventionNetwork
from mcdrl_rt.model.prompts import class_confounder_prompt, class_prompt, confounder_prompt
from mcdrl_rt.model.selection import scatter_tokens, select
from mcdrl_rt.types import ModelSpec


class Texts(NamedTuple):
    """Text features of every prompt, each of unit length; constants once training starts."""

    classes: Tensor  # e, (K, d)
    dictionary: Tensor  # Z, (M, d)
    targets: Tensor  # mean over m of t_k,m, (K, d), Eq. 11


class Output(NamedTuple):
    """Everything the losses and the evaluation look at."""

    logits: Tensor  # (B, K+1, H, W)
    similarities: Tensor  # S, (B, T, K)
    indices: Tensor  # (B, N), the selected cells
    intervened: Tensor  # F_ca, (B, N, d)
    confounders: Tensor  # (B, M), rows sum to one
    summary: Tensor | None  # F_vis, (B, d), when asked for


class MCDRL(nn.Module):
    """The model of arXiv 2508.05008.

    Args:
        spec: with ``grid`` and ``embed_dim`` as the encoder has them; ``build_model`` sees to that.
        encoder: dense image encoder.
        texts: encoded prompts.
    """

    def __init__(self, spec: ModelSpec, encoder: DenseEncoder, texts: Texts) -> None:
        super().__init__()
        self.spec, self.encoder = spec, encoder
        self.network = InterventionNetwork(spec.embed_dim, spec.depth, spec.heads)
        self.head = HEADS[spec.head](spec.embed_dim, len(spec.classes) + 1, encoder.detail_channels)
        for name, value in texts._asdict().items():
            self.register_buffer(f"text_{name}", value.clone())
        self.text_classes: Tensor
        self.text_dictionary: Tensor
        self.text_targets: Tensor

    def forward(self, images: Tensor, summary: bool = False, intervene: bool = True) -> Output:
        """Segment normalised images.

        Args:
            images: (B, 3, H, W) float with (H, W) = ``spec.input_size``.
            summary: also compute F_vis, for the contrastive loss.
            intervene: False sends F straight to the head (the schedule's first epochs, §5).
        """
        features = self.encoder(pad_to_stride(images, self.encoder.stride), summary)
        selection = select(features.tokens, self.text_classes, self.spec.selected)
        f, readout = selection.tokens, None
        if intervene and self.spec.depth:
            f, readout = self.network(f, self.text_dictionary)
        if readout is None:
            readout = images.new_full((len(images), len(self.text_dictionary)), 1 / len(self.text_dictionary))
        coarse = self.head(scatter_tokens(f, selection.indices, self.encoder.grid), features.details)
        logits = to_input_size(coarse, self.encoder, self.spec.input_size)
        return Output(logits, selection.similarities, selection.indices, f, readout, features.summary)

    def parameter_count(self) -> int:
        """Trainable parameters, encoder excluded: the figure of Table 5."""
        return sum(p.numel() for part in (self.network, self.head) for p in part.parameters())


def build_model(spec: ModelSpec, pretrained: str | Path | None = None) -> MCDRL:
    """Build the model of ``spec`` with CLIP's weights ``pretrained`` (``"openai"``, a safetensors file) or random ones.

    The returned model's ``spec`` has grid, stride, width, readout and the exact encoder configuration filled in.

    Raises:
        SpecError: the specification asks for what its encoder cannot do, or weights cannot be had.
    """
    clip = load_clip(spec.encoder, pretrained)
    encoder = dense_encoder(clip, spec.input_size, spec.readout or None, spec.grid_stride)
    texts = encode_prompts(clip, spec)
    config = spec.encoder if isinstance(pretrained, Path) else clip_config(spec.encoder, pretrained)
    return MCDRL(_complete(spec, encoder, config), encoder, texts)


def build_empty(spec: ModelSpec) -> MCDRL:
    """The model of a complete ``spec`` with weights and text features yet to be loaded: no prompt is encoded."""
    encoder = dense_encoder(load_clip(spec.encoder), spec.input_size, spec.readout, spec.grid_stride)
    k, m, d = len(spec.classes), len(spec.confounders), encoder.dim
    texts = Texts(torch.zeros(k, d), torch.zeros(m, d), torch.zeros(k, d))
    return MCDRL(_complete(spec, encoder, spec.encoder), encoder, texts)


def encode_prompts(clip: Any, spec: ModelSpec) -> Texts:
    """Encode the prompts of a specification with an open_clip model's text tower."""
    if not spec.confounders:
        raise SpecError(f"model specification {spec.name!r} has an empty confounder dictionary")
    domains = [
        encode_texts(clip, spec.encoder, [class_confounder_prompt(name, c) for c in spec.confounders])
        for name in spec.classes
    ]  # K × (M, d)
    return Texts(
        encode_texts(clip, spec.encoder, [class_prompt(name) for name in spec.classes]),
        encode_texts(clip, spec.encoder, [confounder_prompt(name) for name in spec.confounders]),
        torch.stack([t.mean(dim=0) for t in domains]),
    )


def to_input_size(maps: Tensor, encoder: DenseEncoder, size: tuple[int, int]) -> Tensor:
    """Resample the head's maps (B, c, h_L, w_L) to the input size, cutting off what ``pad_to_stride`` added."""
    padded = (encoder.grid[0] * encoder.stride, encoder.grid[1] * encoder.stride)
    return F.interpolate(maps, size=padded, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Extend images (B, 3, H, W) right and down with zeros (the mean colour) to whole grid cells."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride)) if height % stride or width % stride else images


def _complete(spec: ModelSpec, encoder: DenseEncoder, config: str) -> ModelSpec:
    if spec.head not in HEADS:
        raise SpecError(f"no head {spec.head!r}; choose {' or '.join(HEADS)}")
    if encoder.dim % spec.heads:
        raise SpecError(f"{spec.heads} heads do not divide the width {encoder.dim} of {spec.encoder}")
    readout = getattr(encoder, "readout", "native")
    return dataclasses.replace(
        spec,
        encoder=config,
        grid=encoder.grid,
        grid_stride=encoder.stride,
        embed_dim=encoder.dim,
        readout=readout,
    )
