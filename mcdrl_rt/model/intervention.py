"""CDRL, causal-driven representation learning: the intervention network A(F, Z) (§4.2, Eq. 7–8).

``InterventionNetwork`` is the literal form that is trained; ``FoldedNetwork`` the exact folded form that is
deployed (Z is constant at inference, see ``mcdrl_rt.ops.fold_attention``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcdrl_rt import ops


def ffn_width(dim: int) -> int:
    """Hidden width of the FFN: 10/3·d, to the nearest multiple of 8 (2560 for d = 768, Table 5's counts)."""
    return round(10 * dim / 3 / 8) * 8


class CausalBlock(nn.Module):
    """Pre-norm multi-head cross-attention, queries F, keys and values Z, then an FFN; residual both."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_f, self.norm_z, self.norm_ffn = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_width(dim)), nn.GELU(), nn.Linear(ffn_width(dim), dim))

    def forward(self, f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Intervene on F (B, N, d) with Z (M, d); returns F (B, N, d) and the readout (B, M)."""
        z = self.norm_z(z)
        q = self.query(self.norm_f(f)).unflatten(-1, (self.heads, -1))  # (B, N, heads, d_h)
        k = self.key(z).unflatten(-1, (self.heads, -1))  # (M, heads, d_h)
        v = self.value(z).unflatten(-1, (self.heads, -1))
        weights = (torch.einsum("bnje,mje->bnjm", q, k) * q.shape[-1] ** -0.5).softmax(dim=-1)
        f = f + self.out(torch.einsum("bnjm,mje->bnje", weights, v).flatten(2))
        return f + self.ffn(self.norm_ffn(f)), weights.mean(dim=(1, 2))


class InterventionNetwork(nn.Module):
    """L causal blocks.

    Args:
        dim: d; heads must divide it.
        depth: L ≥ 1.
        heads: attention heads.
    """

    def __init__(self, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        blocks = [CausalBlock(dim, heads) for _ in range(depth)]
        for block in blocks:  # small residual branches: switching the network on in mid-training is no shock
            branches: tuple[Any, Any] = (block.out, block.ffn[-1])
            for last in branches:
                nn.init.normal_(last.weight, std=0.02 / (2 * depth) ** 0.5)
                nn.init.zeros_(last.bias)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, f: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """F_ca (B, N, d), and the attention over Z averaged over blocks, heads and tokens (B, M)."""
        readouts = []
        for block in self.blocks:
            f, readout = block(f, z)
            readouts.append(readout)
        return f, torch.stack(readouts).mean(dim=0)


class FeedForward(nn.Module):
    """A causal block's FFN with its residual, the norm's affine part folded.

    Args:
        expand, contract: d → ``ffn_width(d)`` → d.
        eps: of the LayerNorm.
    """

    def __init__(self, expand: nn.Linear, contract: nn.Linear, eps: float) -> None:
        super().__init__()
        self.expand, self.contract, self.eps = expand, contract, eps

    def forward(self, f: Tensor) -> Tensor:
        """F (B, N, d) → the same."""
        return f + self.contract(F.gelu(self.expand(F.layer_norm(f, f.shape[-1:], eps=self.eps))))


class FoldedBlock(nn.Module):
    """One causal block for a fixed dictionary: two thin products and the FFN, no other parameters."""

    def __init__(self, block: CausalBlock, z: Tensor) -> None:
        super().__init__()
        self.heads, self.eps = block.heads, block.norm_f.eps
        context = F.layer_norm(
            z.double(), z.shape[-1:], block.norm_z.weight.double(), block.norm_z.bias.double(), block.norm_z.eps
        )
        folded = ops.fold_attention(block.norm_f, block.query, block.key, block.value, block.out, context, self.heads)
        for name, value in folded._asdict().items():
            self.register_buffer(name, value.float())
        self.a: Tensor
        self.b: Tensor
        self.c: Tensor
        expand = _fold_norm(block.norm_ffn, cast(nn.Linear, block.ffn[0]))
        self.feed_forward: nn.Module = FeedForward(expand, cast(nn.Linear, block.ffn[2]), block.norm_ffn.eps)

    def select_intervene(self, features: Tensor, texts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The whole block with MTRS in front: C (B, T, d) → F (B, N, d), indices (B, N), readout (B, N, M)."""
        f, indices, readout = torch.ops.mcdrl_rt.select_intervene(
            features, texts, self.a, self.c, self.b, count, self.heads, self.eps
        )
        return self.feed_forward(f), indices, readout

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """F (B, N, d) → F (B, N, d), readout (B, N, M)."""
        f, readout = torch.ops.mcdrl_rt.intervene(f, self.a, self.c, self.b, self.heads, self.eps)
        return self.feed_forward(f), readout


class FoldedNetwork(nn.Module):
    """L folded blocks, the first fused with the selection.

    Args:
        network: the trained intervention network.
        z: the dictionary Z, (M, d).
        texts: class texts e, (K, d).
        count: N, the static number of selected tokens.
    """

    def __init__(self, network: InterventionNetwork, z: Tensor, texts: Tensor, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FoldedBlock(block, z) for block in cast(Sequence[CausalBlock], network.blocks))
        self.register_buffer("texts", F.normalize(texts.double(), dim=-1).float())
        self.texts: Tensor
        self.count = count

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C (B, T, d) → F_ca (B, N, d), indices (B, N), readout (B, M)."""
        first, *later = cast(Sequence[FoldedBlock], self.blocks)
        f, indices, readout = first.select_intervene(features, self.texts, self.count)
        readouts = [readout]
        for block in later:
            f, readout = block(f)
            readouts.append(readout)
        return f, indices, torch.stack(readouts).mean(dim=(0, 2))


def _fold_norm(norm: nn.LayerNorm, linear: nn.Linear) -> nn.Linear:
    """The linear layer that, on normalised input, equals ``linear`` on the norm's affine output."""
    folded = nn.Linear(linear.in_features, linear.out_features)
    weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
    folded.weight.data = (weight * norm.weight.detach().double()).float()
    folded.bias.data = (bias + weight @ norm.bias.detach().double()).float()
    return folded
