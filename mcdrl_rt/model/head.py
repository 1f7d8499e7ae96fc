"""H(F_ca): from intervened tokens on the grid to per-pixel class logits (§4.2.2, ``P = H(F_ca)``).

Two forms, one signature. ``GridHead`` decodes the grid alone and is bounded by its cells. ``DetailHead`` (default)
also sees shallow encoder features, finest last, each let through a gate that the intervened features control:
what draws the boundary is the picture, what decides is F_ca.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def head_widths(dim: int, levels: int) -> list[int]:
    """Channels of the decoder at the grid and after each of ``levels`` doublings: 2/3·d, halved each time.

    Multiples of 32: a vector register of every CPU and GPU we run on divides them.
    """
    return [max(32, round(2 * dim / 3 / 2**level / 32) * 32) for level in range(levels + 1)]


def _conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class GridHead(nn.Module):
    """The plain form: two convolutions on the grid."""

    def __init__(self, dim: int, labels: int, detail_channels: Sequence[int]) -> None:
        super().__init__()
        width = head_widths(dim, 0)[0]
        self.decode = nn.Sequential(_conv_norm(dim, width), nn.Conv2d(width, labels, 1))

    def forward(self, grid: Tensor, details: Sequence[Tensor]) -> Tensor:
        """(B, d, h, w) → logits (B, K+1, h, w); details are not looked at."""
        return self.decode(grid)


class DetailHead(nn.Module):
    """The default: a decoder over the grid with gated lateral paths from shallow features.

    Args:
        dim: d, channels of the grid.
        labels: K + 1 output channels.
        detail_channels: channels of the shallow features, coarse to fine; each doubles the resolution.
    """

    def __init__(self, dim: int, labels: int, detail_channels: Sequence[int]) -> None:
        super().__init__()
        widths = head_widths(dim, len(detail_channels))
        self.stem = _conv_norm(dim, widths[0])
        pairs = list(zip(widths[:-1], detail_channels, strict=True))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for width, channels in pairs)
        self.gate = nn.ModuleList(nn.Conv2d(width, width, 1) for width, _ in pairs)
        self.merge = nn.ModuleList(_conv_norm(*step) for step in pairwise(widths))
        self.classify = nn.Conv2d(widths[-1], labels, 1)

    def forward(self, grid: Tensor, details: Sequence[Tensor]) -> Tensor:
        """(B, d, h, w) and details (B, c_i, h_i, w_i) → logits (B, K+1, h_L, w_L) at the finest detail."""
        x = self.stem(grid)
        for detail, lateral, gate, merge in zip(details, self.lateral, self.gate, self.merge, strict=True):
            gates = torch.sigmoid(gate(x))  # at the coarser resolution, where F_ca lives
            # a ViT has no finer features than its grid: its shallow tokens are drawn at twice the resolution
            finer = detail.shape[-1] > x.shape[-1]
            size = detail.shape[-2:] if finer else (2 * x.shape[-2], 2 * x.shape[-1])
            gates, x, sharp = (_resize(t, size) for t in (gates, x, lateral(detail)))
            x = merge(x + gates * sharp)
        return self.classify(x)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    same = tuple(x.shape[-2:]) == tuple(size)
    return x if same else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


HEADS: dict[str, type[GridHead] | type[DetailHead]] = {"detail": DetailHead, "grid": GridHead}
