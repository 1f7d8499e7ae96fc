"""What compilers make of the model: torch.compile and AOTInductor, captured in a graph, beside the graph alone.

A part of ``gpu.sh``. Compiling takes minutes, so this comes late, at depth 3 and batch 1 only; a rehearsal traces the
model and compiles nothing.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forms
import torch
from gpu_latency import ENCODERS, TINY
from part import Part
from timing import interleaved

from mcdrl_rt.engine.aoti import AotiEngine, build_aoti
from mcdrl_rt.engine.tensors import Capture
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.fused import fuse
from mcdrl_rt.model.half import to_half
from mcdrl_rt.model.mcdrl import build_model

DEPTH = 3


def main() -> None:
    """Compile and time, encoder by encoder."""
    warnings.simplefilter("ignore")  # compilers remark on much
    part = Part.from_arguments(__doc__)
    part.save(models={})
    largest, *others = ENCODERS  # the largest takes the compilers longest
    for encoder, side, stride in TINY[0] if part.rehearse else (*others, largest):
        if not part.has_time(60):
            part.leave_out(encoder)
        else:
            values = part.attempt(encoder, lambda e=encoder, n=side, s=stride: measure(part, e, n, s))
            if values:
                part.save(models=part.values["models"] | {encoder: values})
                print(f"{encoder}: {values['p50_ms']}", flush=True)


def measure(part: Part, encoder: str, side: int, stride: int) -> dict[str, Any]:
    """One encoder: seconds to compile and milliseconds to run, by form."""
    torch.manual_seed(0)
    folded = FoldedMCDRL(build_model(forms.spec_of(encoder, side, DEPTH, stride)))
    halves = (to_half(form).to(part.device) for form in (folded, fuse(folded)))
    half, fused = (half.to(memory_format=torch.channels_last) for half in halves)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, generator=generator).to(part.device)
    makers: dict[str, Callable[[], Callable[[], Any]]] = {
        "graph fused": lambda: Capture(lambda x: forms.labels(fused(x)), frames).replay,
        "torch.compile, graph": lambda: _compiled(part, half, frames),
    }
    if not part.rehearse:
        makers["AOTInductor, graph"] = lambda: _packaged(half, frames)
    built, seconds = {}, {}
    for name, make in makers.items():
        started = time.perf_counter()
        if built and not part.has_time(60):
            part.leave_out(f"{encoder}, {name}")
        elif (form := part.attempt(f"{encoder}, {name}", make)) is not None:
            built[name], seconds[name] = form, round(time.perf_counter() - started, 1)
    times = interleaved(built, 2 if part.rehearse else 150, wait=part.wait, seconds=4)
    return {"depth": DEPTH, "batch": 1, "seconds_to_make": seconds, **times}


def _compiled(part: Part, model: FoldedMCDRL, frames: torch.Tensor) -> Callable[[], Any]:
    backend = "eager" if part.rehearse else "inductor"
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    return Capture(lambda x: forms.labels(compiled(x)), frames).replay


def _packaged(model: FoldedMCDRL, frames: torch.Tensor) -> Callable[[], Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        build_aoti(model, path, frames.device.type)
        engine = AotiEngine(path, frames.device.type)  # loaded and captured: the file may go
    return lambda: forms.labels(engine.run(frames))


if __name__ == "__main__":
    main()
