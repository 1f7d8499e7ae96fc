"""Ops: the fused operator is the paper's equations, on every shape, and a good citizen of torch."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from conftest import shake
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, layer_norm

from mcdrl_rt.model.intervention import CausalBlock
from mcdrl_rt.ops import fold_attention, top_tokens

DTYPES = (torch.float32, torch.float64)


class Case(NamedTuple):
    """A causal block, its dictionary, and what it looks at."""

    block: CausalBlock  # float64
    z: Tensor  # (M, d)
    features: Tensor  # (B, T, d)
    texts: Tensor  # (K, d)
    count: int

    @property
    def heads(self) -> int:
        return self.block.heads

    def folded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        context = self.block.norm_z(self.z).detach()
        b = self.block
        a, c, b = fold_attention(b.norm_f, b.query, b.key, b.value, b.out, context, b.heads)
        return a.to(dtype), c.to(dtype), b.to(dtype)

    def select_intervene(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.mcdrl_rt.select_intervene(
            self.features.to(dtype), self.texts.to(dtype), *self.folded(dtype), self.count, self.heads, 1e-5
        )


def make_case(
    batch: int = 2, tokens: int = 9, dim: int = 16, classes: int = 3, confounders: int = 5,
    heads: int = 2, count: int = 4, seed: int = 0,
) -> Case:  # fmt: skip
    torch.manual_seed(seed)
    block = CausalBlock(dim, heads).double()
    shake(block)
    draw = (torch.randn(n, dim, dtype=torch.float64) for n in (confounders, batch * tokens, classes))
    z, features, texts = draw
    return Case(block.eval(), z, features.view(batch, tokens, dim), texts, count)


def paper_attention(case: Case, f: Tensor) -> tuple[Tensor, Tensor]:
    """F + MHA(LN(F), LN(Z), LN(Z)) by torch's own attention, and the attention over Z (Eq. 7–8)."""
    block, dim = case.block, f.shape[-1]
    attention = torch.nn.MultiheadAttention(dim, block.heads, batch_first=True, dtype=torch.float64)
    parts = (block.query, block.key, block.value)
    attention.in_proj_weight.data = torch.cat([part.weight for part in parts])
    attention.in_proj_bias.data = torch.cat([part.bias for part in parts])
    attention.out_proj.weight.data, attention.out_proj.bias.data = block.out.weight.data, block.out.bias.data
    z = block.norm_z(case.z).expand(len(f), -1, -1)
    update, weights = attention(block.norm_f(f), z, z)  # weights (B, N, M), averaged over heads
    return (f + update).detach(), weights.detach()


def paper_selection(case: Case) -> Tensor:
    """The N tokens of highest max-over-classes cosine, best first, ties to the lower index (Eq. 6)."""
    best = cosine_similarity(case.features.unsqueeze(2), case.texts, dim=-1).amax(dim=-1)  # (B, T)
    rows = [sorted(range(len(row)), key=lambda t, row=row: (-row[t], t))[: case.count] for row in best.tolist()]
    return torch.tensor(rows)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 33),
    heads=st.sampled_from([1, 2, 3, 5, 8]),
    head_dim=st.integers(2, 7),
    classes=st.integers(1, 6),
    confounders=st.integers(1, 15),
    share=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
)
def test_fused_operator_is_the_papers_equations(
    batch: int, tokens: int, heads: int, head_dim: int, classes: int, confounders: int, share: float,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    count = max(1, round(share * tokens))
    case = make_case(batch, tokens, heads * head_dim, classes, confounders, heads, count, seed)
    out, indices, readout = case.select_intervene(dtype)
    if dtype == torch.float64:  # in float32 two near-equal cosines may change places, which is no fault
        assert torch.equal(indices, paper_selection(case))
    chosen = case.features.gather(1, indices.unsqueeze(-1).expand(-1, -1, case.features.shape[-1]))
    expected, expected_readout = paper_attention(case, chosen)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert (out - expected).abs().max() <= tolerance * max(1, expected.abs().max())
    assert (readout - expected_readout).abs().max() <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_half_is_the_causal_blocks(dtype: torch.dtype) -> None:
    case = make_case(tokens=7)
    out, readout = torch.ops.mcdrl_rt.intervene(case.features.to(dtype), *case.folded(dtype), case.heads, 1e-5)
    block = case.block
    whole, whole_readout = block(case.features, case.z)
    expected, _ = paper_attention(case, case.features)
    assert torch.allclose(whole, expected + block.ffn(block.norm_ffn(expected)))  # the block is that half and its FFN
    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert torch.allclose(readout.double().mean(dim=1), whole_readout, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_inside_in_float32(dtype: torch.dtype) -> None:
    case = make_case(tokens=21, count=8)
    features, texts = case.features.to(dtype), case.texts.to(dtype)
    folded = tuple(part.to(dtype) for part in case.folded(torch.float64))
    out, indices, readout = torch.ops.mcdrl_rt.select_intervene(features, texts, *folded, 8, case.heads, 1e-5)
    wide = tuple(part.float() for part in folded)
    exact = torch.ops.mcdrl_rt.select_intervene(features.float(), texts.float(), *wide, 8, case.heads, 1e-5)
    assert (out.dtype, readout.dtype) == (dtype, torch.float32)
    assert torch.equal(indices, exact[1])
    assert torch.equal(out, exact[0].to(dtype))  # rounded once, at the end
    assert torch.equal(readout, exact[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    case = make_case(batch=2, tokens=10)
    straight = case.select_intervene(dtype)
    features = case.features.to(dtype)
    wide = torch.stack([features, features + 1], dim=-1)[..., 0]  # every second number
    swapped = features.transpose(0, 1).contiguous().transpose(0, 1)
    a, c, b = case.folded(dtype)
    a, b, texts = a.T.contiguous().T, b.T.contiguous().T, case.texts.to(dtype).T.contiguous().T
    for features in (wide, swapped):
        assert not features.is_contiguous()
        got = torch.ops.mcdrl_rt.select_intervene(features, texts, a, c, b, case.count, case.heads, 1e-5)
        assert torch.equal(got[1], straight[1])
        assert torch.allclose(got[0], straight[0], atol=1e-5)
        assert torch.allclose(got[2], straight[2], atol=1e-6)


def test_inputs_are_left_as_they_were() -> None:
    case = make_case()
    features, texts = case.features.clone(), case.texts.clone()
    case.select_intervene(torch.float64)
    assert torch.equal(case.features, features)
    assert torch.equal(case.texts, texts)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=60), st.integers(1, 60))
def test_ties_go_to_the_lower_index(values: list[int], count: int) -> None:
    count = min(count, len(values))
    scores = torch.tensor(values, dtype=torch.float32).view(1, -1, 1)
    expected = sorted(range(len(values)), key=lambda t: (-values[t], t))[:count]
    assert top_tokens(scores, count).tolist() == [expected]


def test_equal_tokens_are_taken_in_order() -> None:
    case = make_case(tokens=12, count=5)
    same = case._replace(features=case.features[:, :1].expand(-1, 12, -1))
    _, indices, _ = same.select_intervene(torch.float32)
    assert indices.tolist() == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_readout_sums_to_one(dtype: torch.dtype) -> None:
    _, _, readout = make_case(tokens=30, confounders=12, count=17).select_intervene(dtype)
    assert (readout >= 0).all()
    assert torch.allclose(readout.sum(dim=-1), torch.ones(readout.shape[:2], dtype=dtype), atol=1e-6)


def test_fold_takes_the_norm_and_every_bias_in() -> None:
    case = make_case()
    folded = case.folded(torch.float64)
    for part in (case.block.norm_f.weight, case.block.norm_f.bias, case.block.query.bias, case.block.out.bias):
        with torch.no_grad():
            part.add_(0.5)
        moved = case.folded(torch.float64)
        assert not all(torch.equal(one, other) for one, other in zip(folded, moved, strict=True))
        folded = moved
    a, c, b = folded
    normed = layer_norm(case.features, (16,))
    weights = (normed @ a.T + c).unflatten(-1, (2, -1)).softmax(dim=-1).flatten(2)
    assert torch.allclose(case.features + weights @ b.T, paper_attention(case, case.features)[0])


OPERATORS = ("intervene", "select_intervene", "intervene_norm", "select_intervene_norm", "norm_shift", "lift")


@pytest.mark.parametrize("dtype", [torch.float16, *DTYPES])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_pass_torchs_own_checks(name: str, dtype: torch.dtype) -> None:
    opcheck(name, dtype, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_on_cuda_pass_torchs_checks_and_agree_with_the_cpu(name: str, dtype: torch.dtype) -> None:
    on_cpu, on_cuda = opcheck(name, dtype, "cpu"), opcheck(name, dtype, "cuda")
    for one, other in zip(on_cpu, on_cuda, strict=True):
        assert torch.allclose(one, other.cpu(), atol=1e-5 if dtype == torch.float32 else 1e-2)


def opcheck(name: str, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Run torch.library.opcheck on an operator; returns its outputs."""
    case = make_case(tokens=11, count=6)
    a, c, b = (part.to(device) for part in case.folded(dtype))
    features, texts = case.features.to(device, dtype), case.texts.to(device, dtype)
    picture, numbers = features.new_ones(2, 24, 3, 5), (case.heads, 1e-5)
    arguments: dict[str, tuple[Any, ...]] = {
        "intervene": (features, a, c, b, *numbers),
        "select_intervene": (features, texts, a, c, b, case.count, *numbers),
        "intervene_norm": (features, a, c, b, a[0], *numbers, 1e-5),
        "select_intervene_norm": (features, texts, a, c, b, a[0], case.count, *numbers, 1e-5),
        "norm_shift": (features, texts[0], None, a[0], 1e-5),
        "lift": (picture[:, :16], picture[:, :8], picture[:, 16:, :2, :3], 2, 9),
    }
    operator = getattr(torch.ops.mcdrl_rt, name).default
    torch.library.opcheck(operator, arguments[name])
    results = operator(*arguments[name])
    return results if isinstance(results, tuple) else (results,)
