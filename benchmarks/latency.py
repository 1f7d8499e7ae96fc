"""What each depth of the causal network costs on this machine, beside the paper's Table 5.

    python benchmarks/latency.py [--encoder mcdrl-small RN50] [--depths 1-5] [--batches 1 8] [--engine auto]
        [--precision auto] [--input-size N] [--runs N] [--plot FILE] [--save NAME]

For every encoder and depth, random weights (latency does not depend on them): the paper's equations in eager torch
float32; and compiled by the engine, in the same precision, the same equations and the folded form that ``mcdrl-rt``
runs. On an NVIDIA GPU: the equations in eager torch; the folded form in float16, eager and in a CUDA graph, and that
without the fused operator. All depths and forms take turns in one process, so a drift of the machine meets all of them.

By default, on a CPU: mcdrl-small at 288 and RN50 at 224, one frame at a time. Two cores take a minute with AVX-512 and
two with AVX2 only, most of it to export. (``--batches 1 8`` takes twice as long, and shows that eight frames at once
bring two cores a fifth more at most.) On a GPU: ViT-B-16 and ViT-L-14 as well, batches up to 64. A table for people,
then one JSON line; ``--plot`` draws it (.png, .svg or .pdf; ``pip install matplotlib``). ``precision.py`` measures
int8, which needs real frames.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from depths import Effort, measure
from families import Family, GraphFamily, OpenVinoFamily
from latency_report import PAPER, draw, show
from machine import describe
from outputs import Parser, check_outputs, finish, run_main
from resources import MEMORY
from timing import interleaved

from mcdrl_rt.errors import McdrlError
from mcdrl_rt.model.clip import SMALL

OWN = {SMALL: (288, 16)}  # side of the input in pixels, and pixels to a grid cell, where they are not the usual
USUAL = (224, 0)
MOST_BATCH, MOST_DEPTH = 256, 64


@dataclass(frozen=True)
class Plan:
    """What is measured where nothing else is asked for: most, and how much of it."""

    encoders: tuple[str, ...]
    batches: tuple[int, ...]
    effort: Effort


CPU = Plan((SMALL, "RN50"), (1,), Effort(40, (8.0, 8.0)))
GPU = Plan((SMALL, "RN50", "ViT-B-16", "ViT-L-14"), (1, 8, 64), Effort(150, (6.0, 6.0)))


def main() -> None:
    """Measure, print a table, and end with one JSON line."""
    parser = Parser(__doc__, draws=True)
    parser.add_argument("--encoder", nargs="+", metavar="NAME", help="open_clip configurations, or mcdrl-small")
    parser.add_argument("--depths", nargs="+", type=_numbers, default=[(1, 2, 3, 4, 5)], metavar="N or N-M")
    parser.add_argument("--batches", nargs="+", type=_numbers, metavar="N or N-M", help="frames at a time")
    parser.add_argument("--engine", choices=("auto", "openvino", "torch"), default="auto")
    parser.add_argument("--precision", default="auto", help="of OpenVINO: fp32, bf16, fp16")
    parser.add_argument("--input-size", type=int, metavar="N", help="of the square picture; by default the encoder's")
    parser.add_argument("--runs", type=int, help="rounds, at most")
    given = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # remarks on every layer it leaves as it is
    try:
        run(given)
    except McdrlError as error:
        parser.error(str(error))


def run(given: argparse.Namespace) -> None:
    """All that was asked for."""
    engine = given.engine if given.engine != "auto" else "torch" if torch.cuda.is_available() else "openvino"
    plan = GPU if engine == "torch" and torch.cuda.is_available() else CPU
    encoders = tuple(dict.fromkeys(given.encoder or plan.encoders))
    depths = tuple(sorted({depth for part in given.depths for depth in part}))
    batches = tuple(sorted({batch for part in given.batches or [plan.batches] for batch in part}))
    check(encoders, depths, batches, given)
    precision = resolve(engine, given.precision)
    effort = Effort(given.runs or plan.effort.runs, plan.effort.seconds)
    models = {}
    for encoder in encoders:
        side, stride = OWN.get(encoder, USUAL)
        began = time.perf_counter()
        say(f"{encoder}: making ready …")
        family = make(engine, encoder, (given.input_size or side, stride), depths, batches, precision)
        say(f"{encoder}: measuring, after {time.perf_counter() - began:.0f} s …")
        models[encoder] = measure(family, batches, effort)
        del family  # the next has the memory
    if not any(model["rows"] for model in models.values()):
        why = next(one["why"] for model in models.values() for one in model["refused"])
        raise McdrlError(f"nothing could be measured: {why}")
    result: dict[str, Any] = {"benchmark": "latency", "engine": engine, "precision": precision, "runs": effort.runs}
    result |= {"models": models, "paper": PAPER, "machine": describe()}
    result["memory"] = MEMORY["cuda" if plan is GPU else "cpu"]
    if engine == "openvino":
        result["shipped"] = measure_shipped(effort.runs)
    show(result)
    finish(result, given, draw)


def check(encoders: Sequence[str], depths: Sequence[int], batches: Sequence[int], given: argparse.Namespace) -> None:
    """Refuse what cannot be done, before anything long.

    Raises:
        McdrlError: in one line, what.
    """
    import open_clip

    known = open_clip.list_models()
    unknown = next((name for name in encoders if name not in known), None)
    size, runs = given.input_size, given.runs
    wrong: list[tuple[bool, str]] = [
        (unknown is not None, f"no encoder {unknown!r}; try RN50, ViT-B-16, ViT-L-14 or {SMALL}"),
        (not 1 <= min(depths) <= max(depths) <= MOST_DEPTH, f"--depths go from 1 to {MOST_DEPTH}"),
        (not 1 <= min(batches) <= max(batches) <= MOST_BATCH, f"--batches go from 1 to {MOST_BATCH}"),
        (size is not None and not 32 <= size <= 4096, f"--input-size is 32 to 4096 pixels, not {size}"),
        (runs is not None and runs < 1, f"--runs is at least 1, not {runs}"),
    ]
    for is_wrong, what in wrong:
        if is_wrong:
            raise McdrlError(what)
    check_outputs(given)


def resolve(engine: str, precision: str) -> str:
    """The precision of an engine, ``auto`` made plain.

    Raises:
        McdrlError: it has no such precision, or cannot be measured here.
    """
    if engine == "torch":
        if precision != "auto":
            raise McdrlError("--precision is for OpenVINO; torch is measured in fp32, and on a GPU in fp16 as well")
        return "fp16" if torch.cuda.is_available() else "fp32"
    if importlib.util.find_spec("openvino") is None:
        raise McdrlError("OpenVINO is not installed: pip install openvino, or choose --engine torch")
    if precision == "int8":
        raise McdrlError("int8 needs real frames: python benchmarks/precision.py --frames FOLDER measures it")
    from mcdrl_rt.engine.openvino import resolve_precision

    return resolve_precision(precision)


def make(
    engine: str, encoder: str, size: tuple[int, int], depths: Sequence[int], batches: Sequence[int], precision: str
) -> Family:
    """The forms of an encoder on an engine; ``size`` is the side of the input and the pixels to a grid cell."""
    if engine == "openvino":
        return OpenVinoFamily(encoder, *size, depths, batches, precision)
    return GraphFamily(encoder, *size, depths) if torch.cuda.is_available() else Family(encoder, *size, depths)


def measure_shipped(runs: int) -> dict[str, Any]:
    """The default model: the engine alone at batch 1, and a whole 560×480 frame in, labels out."""
    from mcdrl_rt import Segmenter

    segmenter = Segmenter.load(engine="openvino")
    random = np.random.default_rng(0)
    height, width = segmenter.spec.input_size
    frame = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    picture = random.integers(0, 256, (480, 560, 3), dtype=np.uint8)
    forms: dict[str, Callable[[], Any]] = {
        "engine": lambda: segmenter.engine.infer(frame),
        "frame": lambda: segmenter(picture),
    }
    return {"engine": segmenter.engine.name, **interleaved(forms, runs, seconds=3)}


def say(text: str) -> None:
    """A word for who waits; standard output is for results."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def _numbers(text: str) -> tuple[int, ...]:
    """``3`` or ``1-5``."""
    first, dash, last = text.partition("-")
    try:
        start, end = int(first), int(last if dash else first)
        # of a range that is too long, its ends say so to ``check``
        numbers = tuple(range(start, end + 1)) if end - start <= MOST_BATCH else (start, end)
    except ValueError:
        numbers = ()
    if not numbers:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor a range like 1-5")
    return numbers


if __name__ == "__main__":
    run_main(main)
