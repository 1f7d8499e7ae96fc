"""How far each engine is from what this machine can do: time of every part of the model beside its limit.

    python benchmarks/roofline.py [--models shipped RN50] [--rounds 5] [--plot FILE] [--save NAME]

Each model runs in OpenVINO, in fp32, in bf16 where the processor has it, and in int8 (everything quantised, on
synthetic frames: this is about time). Operations and bytes are counted in the graph as it is executed (``layers.py``),
times are OpenVINO's own of each layer, and the ceilings are measured (``ceilings.py``), all in turn, round after round.
A part's limit is the longer of two times: its operations at the rate of the fastest product of its precision, and its
bytes at the rate of a copy (weights: one as large as all of them; the rest: one as large as the largest layer moves).
Its share is the limit over the time: median of the rounds, least and most. One JSON line at the end.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ceilings import Ceilings, bandwidth
from forms import model_named
from layers import Layer, Profile, layers_of, parts_of
from machine import describe
from outputs import Parser, check_outputs, count, finish, run_main
from rich.console import Console
from rich.table import Table
from timing import interleaved, span

from mcdrl_rt.engine.frames import synthetic_frames
from mcdrl_rt.engine.onnx import export_onnx, inlined
from mcdrl_rt.engine.openvino import OpenVinoEngine, convert, core, resolve_precision, save
from mcdrl_rt.engine.quantize import quantize
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.types import ModelSpec

RUNS, WARM_UP = 16, 4  # of an engine in a round
CALIBRATION = 20  # frames
KINDS = 8  # of layers, those that lose most
_TYPES = {"f32": "fp32", "bf16": "bf16", "i8": "int8", "u8": "int8"}  # whose ceiling a layer is held to
Rates = dict[str, dict[Any, float]]


class Measured:
    """One engine, and what its rounds have shown so far: median times of the frame; means, of the same runs, of the
    frame under the profile and of its layers.

    Args:
        title: model and precision.
        path: the engine's file.
        spec, precision: of the engine.
        parts: of MCDRL, by the model's node.
    """

    def __init__(self, title: str, path: Path, spec: ModelSpec, precision: str, parts: dict[str, str]) -> None:
        self.title, self._make = title, lambda: OpenVinoEngine(path, spec, precision)
        self._engine, self._parts = self._make(), parts
        self._frame = synthetic_frames(spec.input_size, 1)[0][None]
        self.layers: list[Layer] = []
        self.frame_ms: list[float] = []
        self.profiled_ms: list[float] = []
        self.layer_ms: list[dict[str, float]] = []

    def measure(self) -> None:
        """One round: the frame without the profile, then every layer."""
        round_ = len(self.frame_ms)
        run = {"frame": lambda: self._engine.infer(self._frame)}
        self.frame_ms.append(interleaved(run, RUNS, warm_up=WARM_UP)["p50_ms"]["frame"])
        core().set_property("CPU", {"PERF_COUNT": True})  # of what is compiled from here on
        try:
            profiled = self._make()
        finally:
            core().set_property("CPU", {"PERF_COUNT": False})
        request = profiled._request
        profile = Profile(request)
        for runs in (WARM_UP, RUNS):
            started = time.perf_counter()
            for _ in range(runs):
                profiled.infer(self._frame)
            self.profiled_ms[round_:] = [(time.perf_counter() - started) / runs * 1e3]
            times = profile.read(runs)
        self.layers = layers_of(request.get_compiled_model().get_runtime_model(), self._parts)
        self.layer_ms.append(times)


def main() -> None:
    """Measure, print tables, and end with one JSON line."""
    parser = Parser(__doc__, draws=True)
    parser.add_argument("--models", nargs="+", default=["shipped", "RN50"], help="shipped, or encoders' names")
    parser.add_argument("--rounds", type=count, default=5)
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    check_outputs(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.models, arguments.rounds, Path(folder))
    show(result)
    finish(result, arguments, draw)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw it: only that needs Matplotlib."""
    import roofline_plot

    roofline_plot.draw(result, path)


def measure(models: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
    """All engines of all models, round by round, with the ceilings in between."""
    precisions = tuple(dict.fromkeys(("fp32", resolve_precision("auto"), "int8")))
    console = Console(stderr=True)
    engines: list[Measured] = []
    with console.status("building") as status:
        for name in models:
            status.update(f"building {name}")
            engines += build(name, precisions, folder)
        ceilings, rates = Ceilings(precisions), list[Rates]()
        for round_ in range(rounds):
            status.update(f"round {round_ + 1} of {rounds}")
            rates.append(ceilings.measure())
            for engine in engines:
                engine.measure()
    middle = {
        what: {str(key): round(statistics.median(one[what][key] for one in rates) / 1e9, 2) for key in rates[0][what]}
        for what in ("operations_per_s", "bytes_per_s")
    }
    return {
        "benchmark": "roofline",
        "rounds": rounds,
        "runs": RUNS,
        "ceilings": {"gops": middle["operations_per_s"], "copy_gb_per_s_by_mib": middle["bytes_per_s"]},
        "engines": [report(engine, rates) for engine in engines],
        "machine": describe(),
    }


def build(name: str, precisions: Iterable[str], folder: Path) -> list[Measured]:
    """The engines of one model."""
    folded = FoldedMCDRL(model_named(name))
    proto = inlined(export_onnx(folded))
    plain, small = folder / f"{name}.xml", folder / f"{name}-int8.xml"
    converted = convert(proto.SerializeToString(), plain.with_suffix(".onnx"))
    save(converted, plain)
    save(quantize(converted, synthetic_frames(folded.spec.input_size, CALIBRATION), None), small)
    parts = parts_of(proto)
    return [
        Measured(f"{name} {precision}", small if precision == "int8" else plain, folded.spec, precision, parts)
        for precision in precisions
    ]


def report(engine: Measured, rates: Sequence[Rates]) -> dict[str, Any]:
    """Every figure of one engine."""
    weights = sum(layer.weights for layer in engine.layers)
    parts = {name: _row(some, engine, rates, weights) for name, some in _grouped(engine.layers, lambda x: x.part)}
    kinds = [
        {"kind": kind, "layers": len(some)} | _row(some, engine, rates, weights)
        for kind, some in _grouped(engine.layers, lambda x: f"{x.kind} {x.precision}")
    ]
    kinds.sort(key=lambda row: row["limit_ms"] - row["ms"])
    frames = engine.frame_ms
    limits = [
        sum(limit_ms(some, one, weights) for _, some in _grouped(engine.layers, lambda x: x.part)) for one in rates
    ]
    between = [frame - sum(times.values()) for frame, times in zip(engine.profiled_ms, engine.layer_ms, strict=True)]
    return {
        "engine": engine.title,
        "frame_ms": span(frames),
        "profiled_ms": span(engine.profiled_ms),
        "between_layers_ms": span(between),
        "limit_ms": round(statistics.median(limits), 4),
        "share": span([limit / frame for limit, frame in zip(limits, frames, strict=True)]),
        "gop": round(sum(layer.operations for layer in engine.layers) / 1e9, 4),
        "parts": parts,
        "kinds": kinds[:KINDS],
    }


def limit_ms(layers: Sequence[Layer], rates: Rates, all_weights: int) -> float:
    """The least time these layers could take at the ceilings."""
    return max(_compute_ms(layers, rates), _memory_ms(layers, rates, all_weights))


def _compute_ms(layers: Sequence[Layer], rates: Rates) -> float:
    ceilings = rates["operations_per_s"]
    return 1e3 * sum(x.operations / ceilings.get(_TYPES.get(x.precision, ""), ceilings["fp32"]) for x in layers)


def _memory_ms(layers: Sequence[Layer], rates: Rates, all_weights: int) -> float:
    copied = rates["bytes_per_s"]
    largest = max(layer.activations for layer in layers)
    read = sum(layer.weights for layer in layers) / bandwidth(copied, all_weights)
    return 1e3 * (read + sum(layer.activations for layer in layers) / bandwidth(copied, largest))


def _row(layers: Sequence[Layer], engine: Measured, rates: Sequence[Rates], all_weights: int) -> dict[str, Any]:
    """Layers together: what they compute and move, their time, and their limit."""
    times = [sum(one.get(layer.name, 0.0) for layer in layers) for one in engine.layer_ms]
    limits = [limit_ms(layers, one, all_weights) for one in rates]
    compute = statistics.median(_compute_ms(layers, one) for one in rates)
    memory = statistics.median(_memory_ms(layers, one, all_weights) for one in rates)
    return {
        "gop": round(sum(layer.operations for layer in layers) / 1e9, 4),
        "mb": round(sum(layer.weights + layer.activations for layer in layers) / 1e6, 3),
        "ms": round(statistics.median(times), 4),
        "of_frame": round(statistics.median(t / f for t, f in zip(times, engine.profiled_ms, strict=True)), 4),
        "limit_ms": round(statistics.median(limits), 4),
        "bound": "compute" if compute > memory else "memory",
        "share": span([limit / time if time else 0.0 for limit, time in zip(limits, times, strict=True)]),
    }


def _grouped(layers: Iterable[Layer], key: Callable[[Layer], str]) -> list[tuple[str, list[Layer]]]:
    groups: dict[str, list[Layer]] = defaultdict(list)
    for layer in layers:
        groups[key(layer)].append(layer)
    return list(groups.items())


def show(result: dict[str, Any]) -> None:
    """The tables."""
    console = Console(width=max(136, Console().width))
    gops, copies = result["ceilings"]["gops"], result["ceilings"]["copy_gb_per_s_by_mib"]
    console.print("ceilings:", ", ".join(f"{name} {value:.0f} Gop/s" for name, value in gops.items()))
    console.print("copies:", ", ".join(f"{mib} MiB {rate:.0f} GB/s" for mib, rate in copies.items()))
    for row in result["engines"]:
        middle, low, high = row["frame_ms"]
        title = f"{row['engine']}: {middle:.2f} ms ({low:.2f} to {high:.2f}), {_percent(row['share'])} of its limit"
        table = Table(title=title, title_justify="left")
        for heading in ("part", "Gop", "MB", "op/byte", "ms", "of the frame", "limit, ms", "bound by", "of the limit"):
            table.add_column(heading, justify="left" if heading in ("part", "bound by") else "right")
        for name, part in row["parts"].items():
            table.add_row(name, *_cells(part))
        spent = row["between_layers_ms"][0]
        table.add_row("between layers", "", "", "", f"{spent:.3f}", f"{spent / row['profiled_ms'][0]:.1%}", "", "", "")
        table.add_section()
        for part in row["kinds"]:
            table.add_row(f"{part['layers']} × {part['kind']}", *_cells(part))
        console.print(table)


def _cells(part: dict[str, Any]) -> list[str]:
    intensity = f"{part['gop'] * 1e3 / part['mb']:.1f}" if part["mb"] else ""
    return [
        f"{part['gop']:.3f}",
        f"{part['mb']:.2f}",
        intensity,
        f"{part['ms']:.3f}",
        f"{part['of_frame']:.1%}",
        f"{part['limit_ms']:.3f}",
        part["bound"] if part["mb"] else "",
        _percent(part["share"]) if part["mb"] else "",
    ]


def _percent(spread: Sequence[float]) -> str:
    middle, low, high = spread
    return f"{middle:.0%} ({low:.0%} to {high:.0%})"


if __name__ == "__main__":
    run_main(main)
