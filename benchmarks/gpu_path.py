"""A whole frame of video on the GPU, and the shipped model's labels there against the reference.

A part of ``gpu.sh``: the phantom's picture in a black surround, segmented by the embedded default in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from part import Part
from timing import interleaved

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.device import DeviceSegmenter
from mcdrl_rt.engine.graph import GraphEngine
from mcdrl_rt.engine.parity import compare
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom import SITES, Phantom

SIZES = {"1080p": (1080, 1920), "2160p": (2160, 3840)}


def main() -> None:
    """Agreement first, then time."""
    part = Part.from_arguments(__doc__)
    engine = GraphEngine.from_checkpoint(DEFAULT_CHECKPOINT, part.device.type)
    part.save(engine=engine.name)
    part.attempt("agreement", lambda: part.save(agreement=agreement(part, engine)))
    sizes = {"tiny": (96, 160)} if part.rehearse else SIZES
    for name, size in sizes.items():
        if not part.has_time(10):
            part.leave_out(name)
        elif figures := part.attempt(name, lambda s=size: measure(part, engine, s)):
            part.save(frames=part.values.get("frames", {}) | {name: figures})
            print(f"{name}: {figures['p50_ms']}", flush=True)


def agreement(part: Part, engine: GraphEngine) -> dict[str, Any]:
    """The engine's labels against float32 torch on the processor, over the phantom's sites."""
    count = 1 if part.rehearse else 20
    height, width = engine.spec.input_size
    frames = [Phantom((height, width), site=SITES[i % len(SITES)], seed=i).render(10 * i).pixels for i in range(count)]
    parity = compare(engine, TorchEngine.from_checkpoint(DEFAULT_CHECKPOINT), frames)
    return {"label_flips": parity.label_flips, "mask_iou": parity.mask_iou, "frames": parity.frames}


def measure(part: Part, engine: GraphEngine, size: tuple[int, int]) -> dict[str, Any]:
    """Milliseconds of the steps of one frame, from asking to the end of waiting."""
    rgb = picture(size)
    segmenter = DeviceSegmenter(engine).for_stream()
    on_device = torch.from_numpy(rgb).to(part.device)
    height, width = engine.spec.input_size
    network = torch.zeros((1, height, width, 3), dtype=torch.uint8, device=part.device)
    forms = {
        "network alone": lambda: engine.run(network),
        "frame on the device to labels there": lambda: segmenter.begin(on_device),
        "the same, and overlay": lambda: segmenter.begin(on_device, opacity=0.35),
        "frame on the host to labels there": lambda: segmenter.begin(rgb).finish(),
        "the same, and overlay there": lambda: segmenter.begin(rgb, opacity=0.35).finish(),
    }
    runs, warm_up = (1, 0) if part.rehearse else (100, 5)
    times = interleaved(forms, runs, warm_up=warm_up, wait=part.wait, seconds=8)
    return {"size": list(size), **times}


def picture(size: tuple[int, int]) -> UInt8Array:
    """A phantom's picture as an endoscopy processor shows it: beside a dark column."""
    rgb = np.zeros((*size, 3), np.uint8)
    width = size[1] * 2 // 3
    rgb[:, size[1] - width :] = Phantom((size[0], width), seed=1).render(20).pixels
    return rgb


if __name__ == "__main__":
    main()
