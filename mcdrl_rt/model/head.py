"""H(F_ca): from intervened tokens on the grid to per-pixel class logits (§4.2.2, ``P = H(F_ca)``).

Two forms, one signature. ``GridHead`` decodes the grid alone and is bounded by its cells. ``DetailHead`` (default)
also sees shallow encoder features, finest last, each let through a gate that the intervened features control:
what draws the boundary is the picture, what decides is F_ca.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mcdrl_rt.ops import lift_reference

FEWEST = (160, 96, 32)  # channels at the grid and after each doubling: fewer lose accuracy and save next to nothing


def head_widths(dim: int, levels: int) -> list[int]:
    """Channels of the decoder at the grid and after each of ``levels`` doublings: d/2, halved each time, but not fewer
    than ``FEWEST``.

    Multiples of 32: a vector register of every CPU and GPU we run on divides them.
    """
    least = [*FEWEST, *FEWEST[-1:] * levels]
    return [max(least[level], round(dim / 2**level / 64) * 32) for level in range(levels + 1)]


def _conv_norm(inputs: int, outputs: int, dilation: int = 1, kernel: int = 3) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Context(nn.Module):
    """What lies further off: dilated convolutions and the mean over the whole grid, added to each cell.

    Tokens pass through MTRS and CDRL each for itself; here they first hear of one another. (After DeepLab's pyramid,
    arXiv 1706.05587, at a fraction of its channels.)

    Args:
        width: channels, in and out.
        dilations: of the convolutions side by side, in cells.
    """

    def __init__(self, width: int, dilations: Sequence[int] = (2, 4, 6)) -> None:
        super().__init__()
        inner = max(32, width // 64 * 32)
        self.squeeze = _conv_norm(width, inner, kernel=1)
        self.near = nn.ModuleList(_conv_norm(inner, inner, dilation) for dilation in dilations)
        self.whole = nn.Sequential(nn.Conv2d(inner, inner, 1), nn.ReLU(inplace=True))
        self.project = nn.Conv2d(inner * (len(dilations) + 1), width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) → the same."""
        squeezed = self.squeeze(x)
        whole = self.whole(squeezed.mean(dim=(2, 3), keepdim=True)).expand_as(squeezed)
        return x + self.project(torch.cat([whole, *(near(squeezed) for near in self.near)], dim=1))


class GridHead(nn.Module):
    """The plain form: two convolutions on the grid.

    Attributes:
        doublings: of the grid's resolution, none here.
    """

    doublings = 0

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

    Attributes:
        doublings: of the grid's resolution.
    """

    def __init__(self, dim: int, labels: int, detail_channels: Sequence[int]) -> None:
        super().__init__()
        self.doublings = len(detail_channels)
        self.lift: Callable[[Tensor, Tensor, Tensor, int, int], Tensor] = lift_reference  # or a faster form of it
        widths = head_widths(dim, len(detail_channels))
        sharps = [max(32, width // 64 * 32) for width in widths[:-1]]  # channels of what the shallow features add
        self.stem = nn.Sequential(_conv_norm(dim, widths[0]), Context(widths[0]))
        self.lateral = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in zip(detail_channels, sharps, strict=True))
        self.gate = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in zip(widths[:-1], sharps, strict=True))
        self.merge = nn.ModuleList(
            nn.Sequential(_conv_norm(coarse + sharp, fine), _conv_norm(fine, fine))
            for (coarse, fine), sharp in zip(pairwise(widths), sharps, strict=True)
        )
        self.classify = nn.Conv2d(widths[-1], labels, 1)

    def forward(self, grid: Tensor, details: Sequence[Tensor]) -> Tensor:
        """(B, d, h, w) and details (B, c_i, h_i, w_i) → logits (B, K+1, h_L, w_L) at the finest detail."""
        x = self.stem(grid)
        for detail, lateral, gate, merge in zip(details, self.lateral, self.gate, self.merge, strict=True):
            # a ViT has no finer features than its grid: its shallow tokens are drawn at twice the resolution
            finer = detail.shape[-1] > x.shape[-1]
            height, width = detail.shape[-2:] if finer else (2 * x.shape[-2], 2 * x.shape[-1])
            x = merge(self.lift(x, gate(x), lateral(detail), height, width))
        return self.classify(x)


HEADS: dict[str, type[GridHead] | type[DetailHead]] = {"detail": DetailHead, "grid": GridHead}
