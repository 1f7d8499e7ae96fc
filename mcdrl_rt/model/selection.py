"""MTRS, multimodal target region selection: text prompts pick the grid tokens worth looking at (§4.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mcdrl_rt.ops import gather_tokens, similarity, top_tokens


class Selection(NamedTuple):
    """The outcome of MTRS for a batch."""

    tokens: Tensor  # F, (B, N, d)
    indices: Tensor  # (B, N) int64, best first
    similarities: Tensor  # S, (B, T, K)


def select(features: Tensor, texts: Tensor, count: int) -> Selection:
    """Keep the ``count`` tokens of C (B, T, d) whose best cosine with the class texts (K, d) is highest.

    ``count`` is static for an input size and α, so no shape depends on the data.
    """
    similarities = similarity(features, texts)
    indices = top_tokens(similarities, count)
    return Selection(gather_tokens(features, indices), indices, similarities)


def scatter_tokens(tokens: Tensor, indices: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put tokens (B, N, d) back on an otherwise zero grid (B, d, h, w)."""
    batch, _, dim = tokens.shape
    canvas = tokens.new_zeros(batch, grid[0] * grid[1], dim)
    canvas[torch.arange(batch, device=tokens.device).unsqueeze(1), indices] = tokens  # whole rows at once
    return canvas.unflatten(1, grid).permute(0, 3, 1, 2)


def selected_cells(indices: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, h, w) float, 1 where a cell is among ``indices`` (B, N) and 0 elsewhere."""
    cells = indices.new_zeros((indices.shape[0], grid[0] * grid[1])).float()
    return cells.scatter(1, indices, 1.0).reshape(-1, *grid)
