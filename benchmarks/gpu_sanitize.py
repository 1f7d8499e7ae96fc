"""The native operators on a few small shapes, for compute-sanitizer to watch; a part of ``gpu.sh``.

    compute-sanitizer --tool racecheck python benchmarks/gpu_sanitize.py [cuda]
"""

from __future__ import annotations

import sys

import torch
from gpu_kernels import EPS, HEADS, Shape, draw

from mcdrl_rt import ops as _ops  # noqa: F401 (loads the operators)

SHAPES = (Shape("odd", 33, 7, 96, 3), Shape("all", 20, 20, 256), Shape("wide", 49, 24, 1024))


def main(device: str) -> None:
    """Run every operator once for each shape and type; a number that is none is an error."""
    for shape in SHAPES:
        for dtype in (torch.float16, torch.bfloat16):
            inputs = draw(shape, 2, dtype, torch.device(device))
            outputs = torch.ops.mcdrl_rt.select_intervene(*inputs, shape.count, HEADS, EPS)
            outputs += torch.ops.mcdrl_rt.intervene(inputs[0], *inputs[2:], HEADS, EPS)
            shift = inputs[1][0]
            outputs += torch.ops.mcdrl_rt.select_intervene_norm(*inputs, shift, shape.count, HEADS, EPS, EPS)
            outputs += torch.ops.mcdrl_rt.intervene_norm(inputs[0], *inputs[2:], shift, HEADS, EPS, EPS)
            outputs += torch.ops.mcdrl_rt.norm_shift(inputs[0], None, inputs[1][0], inputs[1][0], EPS)
            level = (torch.randn(2, 32, size, size).to(inputs[0]) for size in (5, 5, 9))
            outputs += (torch.ops.mcdrl_rt.lift(*(x.to(memory_format=torch.channels_last) for x in level), 10, 11),)
            if not all(bool(output.isfinite().all()) for output in outputs):
                sys.exit(f"{shape.name}, {dtype}: not a number")
    print("ran")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda")
