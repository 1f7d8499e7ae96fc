"""The fused operator ``mcdrl_rt::select_intervene`` and its attention half, ``mcdrl_rt::intervene``.

Here are the schemas, the reference implementations (every device, ``CompositeExplicitAutograd``) and the fake
ones that ``torch.export`` traces with. A native library only adds faster CUDA implementations to the same names,
so the dispatcher is the fallback and no caller has an ``if``. The dictionary Z is constant at inference, which
folds a cross-attention block into two thin products (``fold_attention``), exactly.

Beside the two stand what ``mcdrl_rt.model.fused`` uses: ``norm_shift`` (what a residual branch needs), the two with it
in one (``…_norm``), and ``lift`` (a decoder's level).

    >>> out, readout = torch.ops.mcdrl_rt.intervene(tokens, a, c, b, heads, eps)   # doctest: +SKIP
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcdrl_rt.errors import first_line

_library = torch.library.Library("mcdrl_rt", "DEF")
_library.define("intervene(Tensor tokens, Tensor a, Tensor c, Tensor b, int heads, float eps) -> (Tensor, Tensor)")
_library.define(
    "select_intervene(Tensor features, Tensor texts, Tensor a, Tensor c, Tensor b, int count, int heads, float eps)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "intervene_norm(Tensor tokens, Tensor a, Tensor c, Tensor b, Tensor shift, int heads, float eps, float norm_eps)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "select_intervene_norm(Tensor features, Tensor texts, Tensor a, Tensor c, Tensor b, Tensor shift, int count,"
    " int heads, float eps, float norm_eps) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define("norm_shift(Tensor x, Tensor? weight, Tensor? bias, Tensor shift, float eps) -> (Tensor, Tensor)")
_library.define("lift(Tensor coarse, Tensor gate, Tensor sharp, int height, int width) -> Tensor")


def similarity(features: Tensor, texts: Tensor) -> Tensor:
    """Cosine of every grid token with every class text (Eq. 6).

    Args:
        features: C, (B, T, d) float.
        texts: e, (K, d) float.

    Returns:
        S, (B, T, K) in [-1, 1], at least float32.
    """
    features, texts = at_least_float32(features), at_least_float32(texts)
    return F.normalize(features, dim=-1) @ F.normalize(texts, dim=-1).mT


def top_tokens(similarities: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` tokens most like any class text, best first, ties to the lower index (§4.1).

    Args:
        similarities: S, (B, T, K).
        count: N, in 1…T.

    Returns:
        (B, N) int64.
    """
    best = similarities.amax(dim=-1)  # (B, T)
    return best.argsort(dim=-1, descending=True, stable=True)[:, :count].contiguous()


def gather_tokens(features: Tensor, indices: Tensor) -> Tensor:
    """F, (B, N, d): the rows of C (B, T, d) named by ``indices`` (B, N)."""
    return features.gather(1, indices.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


class FoldedAttention(NamedTuple):
    """Cross-attention to a constant dictionary as two thin products: ``softmax(norm(F)·aᵀ + c)·bᵀ``.

    Both lie as the weights of linear layers do, (out, in): what a product sums over is contiguous.
    """

    a: Tensor  # (heads·M, d)
    c: Tensor  # (heads·M,)
    b: Tensor  # (d, heads·M)


def fold_attention(
    query_norm: nn.LayerNorm, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, z: Tensor, heads: int
) -> FoldedAttention:
    """Fold a pre-norm multi-head cross-attention over the constant context ``z`` exactly, in float64.

    Per head j, with K_j and V_j the keys and values of z: ``a_j = γ·W_q,j·K_jᵀ/√d_h``, ``c_j`` the same of the
    biases, ``b_j = V_j·W_o,j``. The output bias is spread over heads: each head's softmax sums to one, so a
    ``1/heads`` share added to every column of ``b_j`` adds up to it.

    Args:
        query_norm: LayerNorm of the queries; its affine part is folded too.
        query, key, value, out: projections d → d.
        z: (M, d), the normalised dictionary as keys and values see it.
        heads: number of heads, a divisor of d.

    Returns:
        The folded attention in float64.
    """
    dim, count = query.in_features, z.shape[0]
    head_dim = dim // heads

    def matrix(linear: nn.Linear) -> Tensor:
        return linear.weight.detach().double()

    def bias(linear: nn.Linear) -> Tensor:
        return linear.bias.detach().double()

    z = z.detach().double()
    keys = (z @ matrix(key).T + bias(key)).view(count, heads, head_dim)  # (M, heads, d_h)
    values = (z @ matrix(value).T + bias(value)).view(count, heads, head_dim)
    gamma, beta = query_norm.weight.detach().double(), query_norm.bias.detach().double()
    w_q = (matrix(query) * gamma).view(heads, head_dim, dim)
    b_q = (bias(query) + matrix(query) @ beta).view(heads, head_dim)
    w_o = matrix(out).view(dim, heads, head_dim)
    scale = head_dim**-0.5
    a = torch.einsum("jed,mje->jmd", w_q, keys) * scale  # (heads, M, d)
    c = torch.einsum("je,mje->jm", b_q, keys) * scale  # (heads, M)
    b = torch.einsum("mje,dje->djm", values, w_o) + bias(out).view(-1, 1, 1) / heads  # (d, heads, M)
    return FoldedAttention(a.reshape(-1, dim), c.reshape(-1), b.reshape(dim, -1))


def intervene_reference(
    tokens: Tensor, a: Tensor, c: Tensor, b: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Residual folded attention, ``F + softmax(norm(F)·aᵀ + c)·bᵀ`` (Eq. 8 with §7's fold).

    Args:
        tokens: F, (B, N, d) float16/32/64.
        a, c, b: the folded attention, ``fold_attention``.
        heads: number of heads.
        eps: of the LayerNorm, whose affine part is inside ``a`` and ``c``.

    Returns:
        Intervened tokens (B, N, d) in the type of ``tokens``, and every token's attention over the M confounders,
        averaged over heads, (B, N, M), at least float32; each row sums to one.
    """
    wide = at_least_float32(tokens)
    scores = F.linear(F.layer_norm(wide, wide.shape[-1:], eps=eps), a.to(wide.dtype), c.to(wide.dtype))
    weights = scores.unflatten(-1, (heads, -1)).softmax(dim=-1)  # (B, N, heads, M)
    update = F.linear(weights.flatten(2), b.to(wide.dtype))  # (B, N, d)
    return (wide + update).to(tokens.dtype), weights.mean(dim=2)


def select_intervene_reference(
    features: Tensor, texts: Tensor, a: Tensor, c: Tensor, b: Tensor, count: int, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pick the N tokens nearest the class texts, then intervene on them: the first causal block's attention.

    Args:
        features: C, (B, T, d) float16/32/64.
        texts: e, (K, d).
        a, c, b, heads, eps: as in ``intervene_reference``.
        count: N, in 1…T.

    Returns:
        Intervened tokens (B, N, d); their grid indices (B, N) int64, best first, ties to the lower index; and the
        confounder readout (B, N, M).
    """
    indices = top_tokens(similarity(features, texts), count)
    tokens, readout = intervene_reference(gather_tokens(features, indices), a, c, b, heads, eps)
    return tokens, indices, readout


def norm_shift_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """What a residual branch starts from, and what its last product is added to.

    Args:
        x: (…, d).
        weight, bias: (d,) or None, of the LayerNorm.
        shift: (d,), the bias of the branch's last linear layer.

    Returns:
        LayerNorm(x) and x + shift, both like ``x``.
    """
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps), x + shift


def intervene_norm_reference(
    tokens: Tensor, a: Tensor, c: Tensor, b: Tensor, shift: Tensor, heads: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``intervene``, and ``norm_shift`` of what it gives: LayerNorm and shifted tokens (B, N, d), readout (B, N, M)."""
    out, readout = intervene_reference(tokens, a, c, b, heads, eps)
    return *norm_shift_reference(out, None, None, shift, norm_eps), readout


def select_intervene_norm_reference(
    features: Tensor, texts: Tensor, a: Tensor, c: Tensor, b: Tensor, shift: Tensor, count: int, heads: int,
    eps: float, norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """``select_intervene``, and ``norm_shift`` of what it gives; indices before the readout."""
    out, indices, readout = select_intervene_reference(features, texts, a, c, b, count, heads, eps)
    return *norm_shift_reference(out, None, None, shift, norm_eps), indices, readout


def lift_reference(coarse: Tensor, gate: Tensor, sharp: Tensor, height: int, width: int) -> Tensor:
    """A decoder's next level: coarse features at a finer resolution, and beside them sharp ones behind a gate.

    Args:
        coarse: (B, c, h, w).
        gate: (B, s, h, w), before its logistic function: the gate acts at the coarser resolution.
        sharp: (B, s, h', w').
        height, width: of the result; what has another size is resampled bilinearly, corners not aligned.

    Returns:
        (B, c + s, height, width).
    """
    gates, coarse, sharp = (_resized(t, (height, width)) for t in (torch.sigmoid(gate), coarse, sharp))
    return torch.cat([coarse, gates * sharp], dim=1)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    same = tuple(x.shape[-2:]) == size
    return x if same else F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision as float32; any other type as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _intervene_fake(
    tokens: Tensor, a: Tensor, c: Tensor, b: Tensor, heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(tokens), _readout_like(tokens, a, tokens.shape[1], heads)


def _select_intervene_fake(
    features: Tensor, texts: Tensor, a: Tensor, c: Tensor, b: Tensor, count: int, heads: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, dim = features.shape
    tokens = features.new_empty(batch, count, dim)
    indices = features.new_empty((batch, count), dtype=torch.int64)
    return tokens, indices, _readout_like(features, a, count, heads)


def _intervene_norm_fake(
    tokens: Tensor, a: Tensor, c: Tensor, b: Tensor, shift: Tensor, heads: int, eps: float, norm_eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    out, readout = _intervene_fake(tokens, a, c, b, heads, eps)
    return out, torch.empty_like(out), readout


def _select_intervene_norm_fake(
    features: Tensor, texts: Tensor, a: Tensor, c: Tensor, b: Tensor, shift: Tensor, count: int, heads: int,
    eps: float, norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    out, indices, readout = _select_intervene_fake(features, texts, a, c, b, count, heads, eps)
    return out, torch.empty_like(out), indices, readout


def _norm_shift_fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _lift(coarse: Tensor, gate: Tensor, sharp: Tensor, height: int, width: int) -> Tensor:
    return lift_reference(coarse, gate, sharp, height, width).contiguous(memory_format=torch.channels_last)


def _lift_fake(coarse: Tensor, gate: Tensor, sharp: Tensor, height: int, width: int) -> Tensor:
    shape = (len(coarse), coarse.shape[1] + sharp.shape[1], height, width)
    return torch.empty(shape, dtype=coarse.dtype, device=coarse.device, memory_format=torch.channels_last)


def _readout_like(tokens: Tensor, a: Tensor, count: int, heads: int) -> Tensor:
    dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
    return tokens.new_empty((tokens.shape[0], count, a.shape[0] // heads), dtype=dtype)


for _name, _reference, _fake in (
    ("intervene", intervene_reference, _intervene_fake),
    ("select_intervene", select_intervene_reference, _select_intervene_fake),
    ("intervene_norm", intervene_norm_reference, _intervene_norm_fake),
    ("select_intervene_norm", select_intervene_norm_reference, _select_intervene_norm_fake),
    ("norm_shift", norm_shift_reference, _norm_shift_fake),
    ("lift", _lift, _lift_fake),
):
    _library.impl(_name, _reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mcdrl_rt::{_name}", _fake, lib=_library)


def _load_native() -> None:
    """Add the CUDA implementations, where they were built: ``MCDRL_NATIVE_LIBRARY`` or the library beside this file."""
    named = os.environ.get("MCDRL_NATIVE_LIBRARY")
    path = Path(named or Path(__file__).with_name("libmcdrl_rt_native.so"))
    warn = logging.getLogger(__name__).warning
    if not path.is_file():
        if named:
            warn("MCDRL_NATIVE_LIBRARY names %s, which is not there", path)
        return
    try:
        torch.ops.load_library(path)
    except OSError as error:
        warn("%s was built for another torch and is left out: %s", path, first_line(error))


_load_native()
