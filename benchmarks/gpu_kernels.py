"""The fused operators alone: their error against float64, and their time against the same in torch operations.

A part of ``gpu.sh``; the shapes are those of the models. Inputs are random, as features are: away from the mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import forms
import torch
from part import Part
from timing import interleaved
from torch import Tensor

from mcdrl_rt import ops
from mcdrl_rt.engine.tensors import Capture

HEADS, CONFOUNDERS, EPS = 8, 12, 1e-5
BOUND = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # one rounding of rows, weights and result each


class Shape(NamedTuple):
    """Sizes of one model's first causal block."""

    name: str
    tokens: int
    count: int
    dim: int
    classes: int = 1


SHAPES = (
    Shape("ViT-L-14 at 224", 256, 128, 768),
    Shape("ViT-B-16 at 224", 196, 98, 512),
    Shape("RN50 at 224", 49, 24, 1024),
    Shape("mcdrl-small at 288", 324, 194, 256),
    Shape("mcdrl-small, five classes", 324, 194, 256, 5),
    Shape("the largest grid", 4096, 2048, 768, 5),
)
TINY = (Shape("tiny", 24, 12, 64, 2),)


def main() -> None:
    """Check, then time."""
    part = Part.from_arguments(__doc__)
    shapes = TINY if part.rehearse else SHAPES
    batches = (1, 2) if part.rehearse else (1, 8, 64)
    cases = [(shape, batch) for batch in batches for shape in shapes if shape.tokens * batch <= 64 * 256]
    rows: list[dict[str, Any]] = []
    for (shape, batch), dtype in itertools.product(cases, BOUND):
        name = f"error of {shape.name}, batch {batch}"
        if not part.has_time():
            part.leave_out(name)
        elif row := part.attempt(name, lambda s=shape, b=batch, d=dtype: error(s, b, d, part.device)):
            rows.append(row)
            part.save(errors_against_float64=rows)
    good, all_of_them = all(row["within_bounds"] for row in rows), len(rows) == len(cases) * len(BOUND)
    part.save(within_bounds=good if all_of_them or not good else None)  # of the others nobody knows
    timings: list[dict[str, Any]] = []
    for shape, batch in cases:
        name = f"time of {shape.name}, batch {batch}"
        if not part.has_time(5):
            part.leave_out(name)
        elif timed := part.attempt(name, lambda s=shape, b=batch: measure(s, b, part)):
            timings.append(timed)
            part.save(microseconds=timings)
    for row in timings:
        print(f"{row['shape']:<28} batch {row['batch']:>2}: {row['select_intervene']} µs")


def draw(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> tuple[Tensor, ...]:
    """Features, texts and a folded attention with a say, as the operators take them."""
    generator = torch.Generator().manual_seed(seed)
    columns, dim = HEADS * CONFOUNDERS, shape.dim
    sizes = ((batch, shape.tokens, dim), (shape.classes, dim), (columns, dim), (columns,), (dim, columns))
    features, texts, a, c, b = (torch.randn(*size, generator=generator) for size in sizes)
    parts = (features * 2 + 0.5, texts, a * 2 / dim**0.5, c, b / 2)
    return tuple(part.to(device, dtype) for part in parts)


def error(shape: Shape, batch: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Relative errors of the norm, and how the selection compares, over three sets of random inputs."""
    worst: dict[str, float] = {"out": 0.0, "readout": 0.0, "score_gap": 0.0}
    agree, total = 0, 0
    for seed in range(3):
        inputs = draw(shape, batch, dtype, device, seed)
        exact = [part.double() for part in inputs]
        got = torch.ops.mcdrl_rt.select_intervene(*inputs, shape.count, HEADS, EPS)
        best = ops.similarity(exact[0], exact[1]).amax(dim=-1)
        indices = ops.top_tokens(ops.similarity(exact[0], exact[1]), shape.count)
        agree, total = agree + int((got[1] == indices).sum()), total + indices.numel()
        gap = (best.gather(1, got[1]) - best.gather(1, indices)).abs().max()
        out, readout = ops.intervene_reference(ops.gather_tokens(exact[0], got[1]), *exact[2:], HEADS, EPS)
        alone = torch.ops.mcdrl_rt.intervene(inputs[0], *inputs[2:], HEADS, EPS)
        expected = ops.intervene_reference(exact[0], *exact[2:], HEADS, EPS)
        relative = [_relative(*pair) for pair in ((got[0], out), (got[2], readout), *zip(alone, expected, strict=True))]
        worst["out"] = max(worst["out"], relative[0], relative[2])
        worst["readout"] = max(worst["readout"], relative[1], relative[3])
        worst["score_gap"] = max(worst["score_gap"], float(gap))
    # the operators compute cosines in float32: rows may change places only where those tie within its rounding
    good = max(worst["out"], worst["readout"]) <= BOUND[dtype] and worst["score_gap"] <= 1e-5
    name = str(dtype).removeprefix("torch.")
    return {"shape": shape.name, "batch": batch, "dtype": name, "relative_error": worst, "indices_equal": agree / total,
            "within_bounds": good}  # fmt: skip


def _relative(got: Tensor, expected: Tensor) -> float:
    value = (got.double() - expected.double()).norm() / expected.double().norm()
    return float(value.nan_to_num(nan=torch.inf))


def measure(shape: Shape, batch: int, part: Part) -> dict[str, Any]:
    """Microseconds of one call, from graphs of many calls: what a call costs inside a captured model."""
    calls = 2 if part.rehearse else 50
    features, *rest = draw(shape, batch, torch.float16, part.device)
    inside, attention = (*rest, shape.count, HEADS, EPS), (*rest[1:], HEADS, EPS)
    first = {"fused": torch.ops.mcdrl_rt.select_intervene, "torch, fp16": forms.select_intervene,
             "torch, fp32 inside": ops.select_intervene_reference}  # fmt: skip
    later = {"fused": torch.ops.mcdrl_rt.intervene, "torch, fp16": forms.intervene,
             "torch, fp32 inside": ops.intervene_reference}  # fmt: skip
    tokens = features[:, : shape.count].contiguous()
    row: dict[str, Any] = {"shape": shape.name, "batch": batch}
    row["select_intervene"] = _compared(first, features, inside, calls, part)
    row["intervene"] = _compared(later, tokens, attention, calls, part)
    return row


def _compared(
    variants: dict[str, Callable[..., Any]], x: Tensor, arguments: tuple[Any, ...], calls: int, part: Part
) -> dict[str, float]:
    """Microseconds of one call by variant; one that cannot be captured is noted and left out."""
    graphs: dict[str, Callable[[], Any]] = {}
    for name, form in variants.items():
        capture = part.attempt(f"{name}, {tuple(x.shape)}", lambda f=form: Capture(_repeated(f, arguments, calls), x))
        if capture is not None:
            graphs[name] = capture.replay
    runs = 2 if part.rehearse else 40
    times = interleaved(graphs, runs, warm_up=3, wait=part.wait, seconds=0.5)
    return {name: round(value / calls * 1e3, 2) for name, value in times["p50_ms"].items()}


def _repeated(
    form: Callable[..., Any], arguments: tuple[Any, ...], calls: int
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        for _ in range(calls):
            out = form(x, *arguments)
        return tuple(out)

    return run


if __name__ == "__main__":
    main()
