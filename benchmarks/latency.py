"""What each depth of the causal network costs, batch 1, on this machine's CPU.

    python benchmarks/latency.py [--encoder mcdrl-small] [--depths 1 2 3 4 5] [--runs 60] [--save NAME]

For every depth, random weights (latency does not depend on them): the paper's equations in eager torch float32 and
the folded model in OpenVINO, in fp32 and in the fastest precision. Runs of the three are interleaved, so that a drift
of the machine meets all of them; medians are reported. The shipped model is measured too. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forms import literal, spec_of
from machine import describe
from timing import interleaved

from mcdrl_rt import Segmenter
from mcdrl_rt.engine.onnx import export_onnx, inlined
from mcdrl_rt.engine.openvino import OpenVinoEngine, resolve_precision
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.mcdrl import build_model

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure, print a table, and end with one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="mcdrl-small")
    parser.add_argument("--input-size", type=int, default=256)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--save", help="also write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    fast = resolve_precision("auto")
    columns = f"{'torch fp32':>12} {'openvino fp32':>14} {'openvino ' + fast:>14}"
    print(f"{'depth':>5} {'parameters':>11} {columns}   p50, ms")
    rows = []
    for depth in arguments.depths:
        row = measure_depth(arguments.encoder, arguments.input_size, depth, arguments.runs, fast)
        rows.append(row)
        names = ("torch fp32, literal", "openvino fp32", f"openvino {fast}")
        torch_ms, *openvino_ms = (row["p50_ms"][name] for name in names)
        values = f"{torch_ms:>12.2f} " + " ".join(f"{value:>14.2f}" for value in openvino_ms)
        print(f"{depth:>5} {row['parameters'] / 1e6:>9.2f} M {values}", flush=True)
    shipped = measure_shipped(arguments.runs)
    alone, whole = shipped["engine_p50_ms"], shipped["frame_p50_ms"]
    print(f"shipped model, {shipped['engine']}: engine {alone:.2f} ms, frame {whole:.2f} ms")
    result = {"benchmark": "latency", "encoder": arguments.encoder, "input_size": arguments.input_size}
    result |= {"runs": arguments.runs, "depths": rows, "shipped": shipped, "machine": describe()}
    if arguments.save:
        (RESULTS / f"{arguments.save}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def measure_depth(encoder: str, size: int, depth: int, runs: int, fast: str) -> dict[str, Any]:
    """Parameters and latencies of one depth; the encoder is not among the parameters (Table 5)."""
    torch.manual_seed(0)
    model = build_model(spec_of(encoder, size, depth, 16 if encoder == "mcdrl-small" else 0)).eval()
    frame = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(inlined(export_onnx(FoldedMCDRL(model))).SerializeToString())
        engines = {f"openvino {p}": OpenVinoEngine(path, model.spec, p) for p in ("fp32", fast)}
        forms = {"torch fp32, literal": literal(model, torch.from_numpy(frame))}
        forms |= {name: (lambda engine=engine: engine.infer(frame)) for name, engine in engines.items()}
        return {"depth": depth, "parameters": model.parameter_count(), **interleaved(forms, runs)}


def measure_shipped(runs: int) -> dict[str, Any]:
    """The default model: the engine alone at batch 1, and a whole 560×480 frame in, labels out."""
    segmenter = Segmenter.load()
    random = np.random.default_rng(0)
    height, width = segmenter.spec.input_size
    frame = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    picture = random.integers(0, 256, (480, 560, 3), dtype=np.uint8)
    times = interleaved({"engine": lambda: segmenter.engine.infer(frame), "frame": lambda: segmenter(picture)}, runs)
    return {
        "engine": segmenter.engine.name,
        "engine_p50_ms": times["p50_ms"]["engine"],
        "engine_p95_ms": times["p95_ms"]["engine"],
        "frame_p50_ms": times["p50_ms"]["frame"],
    }


if __name__ == "__main__":
    main()
