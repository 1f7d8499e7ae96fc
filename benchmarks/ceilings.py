"""What this machine can do at best: products of matrices in OpenVINO on all its cores, and copies of memory.

A ceiling is measured, not read off a data sheet: the fastest run of a few large shapes, which the plugin runs as it
would run them in a model. A copy counts what it reads and what it writes; small ones stay in the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import openvino as ov
import torch
from machine import describe
from openvino import opset13 as op

from mcdrl_rt.engine.openvino import PRECISIONS, core

COPIES_MIB = (2, 8, 32, 256)  # read and written together
SIDE, CHANNELS, CELLS = 1024, 256, 36  # of a square product, and of a 3×3 convolution
_LIMITS = {"activations": (-1.0, 127 / 128, 256), "weights": (-1.0, 1.0, 255)}


class Ceilings:
    """What is measured again and again between the engines, so that a drift of the machine meets both.

    Args:
        precisions: of ``mcdrl_rt.engine.openvino.PRECISIONS``.
    """

    def __init__(self, precisions: tuple[str, ...]) -> None:
        self._products = {precision: _products(precision) for precision in precisions}
        sizes = {size: torch.zeros(size * 2**20 // 8) for size in COPIES_MIB}
        self._copies = {size: (target, torch.ones_like(target)) for size, target in sizes.items()}

    def measure(self, runs: int = 10) -> dict[str, dict[Any, float]]:
        """Operations a second by precision, and bytes a second by the size of a copy in MiB."""
        operations = {
            precision: max(count / _least_s(run, runs) for count, run in products)
            for precision, products in self._products.items()
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(describe()["cores"])
        try:
            copied = {
                size: size * 2**20 / _least_s(lambda t=target, s=source: t.copy_(s), runs)
                for size, (target, source) in self._copies.items()
            }
        finally:
            torch.set_num_threads(threads)
        return {"operations_per_s": operations, "bytes_per_s": copied}


def bandwidth(copied: Mapping[int, float], size: float) -> float:
    """Bytes a second that ``size`` bytes can be moved at: that of the fastest copy that is not smaller."""
    fitting = [rate for mib, rate in copied.items() if mib * 2**20 >= size]
    return max(fitting, default=copied[max(copied)])


def _least_s(run: Callable[[], Any], runs: int) -> float:
    times = []
    for _ in range(runs + 2):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times[2:])


def _products(precision: str) -> list[tuple[int, Callable[[], Any]]]:
    """A matrix product and a convolution: the operations of each, and what runs it."""
    rng = np.random.default_rng(0)
    shapes = (
        ((SIDE, SIDE), (SIDE, SIDE), 2 * SIDE**3),
        ((1, CHANNELS, CELLS, CELLS), (CHANNELS, CHANNELS, 3, 3), 2 * (CELLS * CHANNELS * 3) ** 2),
    )
    products = []
    for shape, weights, operations in shapes:
        values = rng.uniform(-1, 1, weights).astype(np.float32)
        request = _compiled(shape, values, precision)
        data = rng.uniform(-1, 1, shape).astype(np.float32)
        products.append((operations, lambda r=request, x=data: r.infer({0: x}, share_inputs=True)))
    return products


def _compiled(shape: tuple[int, ...], weights: Any, precision: str) -> Any:
    """The product alone; in int8 between quantisations, which OpenVINO makes one with it."""
    data, constant = op.parameter(shape, np.float32), op.constant(weights)
    inputs = [data, constant]
    if precision == "int8":
        inputs = [_quantized(node, what) for node, what in zip(inputs, _LIMITS, strict=True)]
    if len(shape) == 2:
        result = op.matmul(*inputs, False, True)
    else:
        result = op.convolution(*inputs, [1, 1], [1, 1], [1, 1], [1, 1])
    if precision == "int8":
        result = _quantized(result, "activations")
    hint = PRECISIONS[precision] or "f32"
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    return core().compile_model(ov.Model([op.result(result)], [data], precision), "CPU", options).create_infer_request()


def _quantized(node: Any, what: str) -> Any:
    low, high, levels = _LIMITS[what]
    ends = [op.constant(np.float32(end)) for end in (low, high)] * 2
    return op.fake_quantize(node, *ends, levels)
