"""What each precision gains, batch 1, on this machine's CPU.

    python benchmarks/precision.py --frames FOLDER [--models shipped RN50 ViT-B-16] [--runs 40] [--save NAME]

The shipped model, and others at depth 3 and 224×224 with random weights (latency does not depend on them): the paper's
equations in eager torch float32, and OpenVINO in fp32, in bf16 where the processor has it, and in int8, calibrated on
the frames (pictures, videos or folders of them). Interleaved; medians, and the speed relative to torch and to
OpenVINO's own fp32. How far each is from the truth is the question of ``python -m training.evaluate``. One JSON line
at the end.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forms import literal, model_named
from machine import describe
from outputs import Parser, check_outputs, count, finish, run_main
from timing import SETTLE_S, interleaved

from mcdrl_rt.engine.frames import real_frames
from mcdrl_rt.engine.onnx import export_onnx, inlined
from mcdrl_rt.engine.openvino import OpenVinoEngine, convert, resolve_precision, save
from mcdrl_rt.engine.quantize import MAX_DROP, quantize
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.mcdrl import MCDRL


def main() -> None:
    """Measure, print a table, and end with one JSON line."""
    parser = Parser(__doc__)
    parser.add_argument("--frames", type=Path, required=True, help="real pictures or videos to calibrate int8 with")
    parser.add_argument("--models", nargs="+", default=["shipped", "RN50", "ViT-B-16"])
    parser.add_argument("--runs", type=count, default=40)
    arguments = parser.parse_args()
    check_outputs(arguments)
    logging.getLogger().setLevel(logging.ERROR)
    rows = []
    for name in arguments.models:
        row = measure(name, model_named(name), arguments.frames, arguments.runs)
        rows.append(row)
        fp32 = row["p50_ms"]["openvino fp32"]
        for form, value in row["p50_ms"].items():
            gain = row["p50_ms"]["torch fp32, literal"] / value
            ratios = f"{gain:>5.1f}× torch  {fp32 / value:>5.2f}× fp32"
            print(f"{name:>10} {form:>20} {value:>9.2f} ms  {ratios}", flush=True)
    result = {"benchmark": "precision", "runs": arguments.runs, "models": rows, "machine": describe()}
    finish(result, arguments)


def measure(name: str, model: MCDRL, frames: Path, runs: int) -> dict[str, Any]:
    """Latencies of one model's forms."""
    size = model.spec.input_size
    pictures = real_frames(frames, size)
    frame = pictures[0][None]
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "plain.xml", Path(folder) / "int8.xml"
        converted = convert(inlined(export_onnx(FoldedMCDRL(model))).SerializeToString(), plain.with_suffix(".onnx"))
        save(converted, plain)
        # a network of random weights draws no masks to be held to
        max_drop = MAX_DROP if name == "shipped" else None
        save(quantize(converted, pictures, max_drop), small)
        precisions = {"fp32": plain, resolve_precision("auto"): plain, "int8": small}
        engines = {f"openvino {p}": OpenVinoEngine(path, model.spec, p) for p, path in precisions.items()}
        forms: dict[str, Callable[[], Any]] = {"torch fp32, literal": literal(model, torch.from_numpy(frame))}
        forms |= {name: (lambda engine=engine: engine.infer(frame)) for name, engine in engines.items()}
        times = interleaved(forms, runs, settle_s=SETTLE_S)
        return {"model": name, "input_size": size, "depth": model.spec.depth, **times}


if __name__ == "__main__":
    run_main(main)
