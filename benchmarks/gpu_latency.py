"""Frame on the GPU to labels on the GPU: the models at every depth and batch, in every form.

A part of ``gpu.sh``. For each encoder: depth 1…5 at batch 1 and batch 1…64 at depth 3; then, for all of them, the other
depths at larger batches in the captured forms. What the time does not suffice for is left out and said.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import forms
import torch
from part import Part
from timing import interleaved, slope
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mcdrl_rt.engine.tensors import Capture
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.fused import fuse
from mcdrl_rt.model.half import to_half
from mcdrl_rt.model.mcdrl import build_model, pad_to_stride

ENCODERS = (("ViT-L-14", 224, 0), ("mcdrl-small", 288, 16), ("ViT-B-16", 224, 0), ("RN50", 224, 0))
DEPTHS, BATCHES, USUAL = (1, 2, 3, 4, 5), (1, 2, 4, 8, 16, 32, 64), 3
TINY = (("mcdrl-small", 64, 16),), (1, 2), (1, 2), 1


def main() -> None:
    """Measure encoder by encoder, the most important first."""
    part = Part.from_arguments(__doc__)
    encoders = TINY[0] if part.rehearse else ENCODERS
    size = 128 if part.rehearse else 8192
    part.save(ceiling_tflops=ceiling(part, size), models={})
    models: list[Measured] = []
    for encoder, side, stride in encoders:
        if part.has_time(20):
            model = part.attempt(encoder, lambda e=encoder, n=side, s=stride: Measured(part, e, n, s))
            if model is not None:
                models.append(model)
                part.attempt(encoder, model.measure)
    for model in models:
        part.attempt(f"{model.encoder}, more", model.measure_more)
    if not part.rehearse:
        part.save(ceiling_tflops_afterwards=ceiling(part, size))


def ceiling(part: Part, size: int) -> dict[str, float]:
    """Rate of one large matrix product on random numbers, in 10¹² operations a second, by type."""
    rates = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = (torch.randn(size, size, device=part.device).to(dtype) for _ in range(2))
        product = {"product": functools.partial(torch.matmul, a, b)}
        times = interleaved(product, 20, warm_up=3, wait=part.wait, seconds=2)
        rates[str(dtype).removeprefix("torch.")] = round(2 * size**3 / times["p50_ms"]["product"] / 1e9, 2)
    return rates


class Measured:
    """One encoder under causal networks of several depths, random weights."""

    def __init__(self, part: Part, encoder: str, side: int, stride: int) -> None:
        self.part, self.encoder, self.side = part, encoder, side
        self.depths, self.batches, self.usual = TINY[1:] if part.rehearse else (DEPTHS, BATCHES, USUAL)
        torch.manual_seed(0)
        self.literal = build_model(forms.spec_of(encoder, side, max(self.depths), stride)).eval()
        folded = FoldedMCDRL(self.literal)
        halves = (to_half(form).to(part.device) for form in (fuse(folded), folded))
        self.half, plain = (half.to(memory_format=torch.channels_last) for half in halves)
        self.literal.to(part.device)
        self.unfused = forms.unfused(plain)
        self.models = (self.literal, self.half, self.unfused)
        self.blocks = [model.network.blocks for model in self.models]
        weights = {"fp32, literal": _mib(self.literal), "fp16": _mib(self.half)}
        self.values: dict[str, Any] = {"input_size": side, "weights_mib": weights, "rows": []}

    def measure(self) -> None:
        """What is asked first, saved row by row."""
        self.values["encoder_gflops"] = round(self.encoder_flops() / 1e9, 3)
        for depth in self.depths:
            self.row(depth, 1)
        self.values["microseconds_per_block"] = self.per_block()
        for batch in self.batches[1:]:
            self.row(self.usual, batch)
        self.values["throughput"] = self.throughput()
        self.save()

    def measure_more(self) -> None:
        """The other depths at larger batches, in the captured forms."""
        for depth in self.depths:
            for batch in (8, 64) if depth != self.usual else ():
                if batch in self.batches:
                    self.row(depth, batch, captured_only=True)

    def row(self, depth: int, batch: int, captured_only: bool = False) -> None:
        """One depth and batch, all forms in turn."""
        if not self.part.has_time(6):
            self.values.setdefault("left_out", []).append([depth, batch])
            return
        for model, blocks in zip(self.models, self.blocks, strict=True):
            forms.take_depth(model, blocks, depth)
        frames = self.frames(batch)
        built, memory = {}, {}
        for name, build in self.forms(frames).items():
            if name.startswith("graph") or not captured_only:
                # one form that fails must not take the others with it
                ready = lambda n=name, b=build: built.__setitem__(n, b()) or built[n]()  # noqa: E731
                memory[name] = self.part.attempt(name, lambda r=ready: self.part.peak_mib(r))
                if memory[name] is None and not self.part.rehearse:
                    built.pop(name, None)
        runs, seconds = (2, 5.0) if self.part.rehearse else (150, 2.0)
        times = interleaved(built, runs, wait=self.part.wait, seconds=seconds)
        self.values["rows"].append({"depth": depth, "batch": batch, **times, "peak_mib": memory})
        p50 = ", ".join(f"{name} {value:.3f}" for name, value in times["p50_ms"].items())
        print(f"{self.encoder} depth {depth} batch {batch}: {p50} ms", flush=True)
        self.save()

    def forms(self, frames: Tensor) -> dict[str, Callable[[], Callable[[], Any]]]:
        """What makes each form ready; calling what it gives runs it."""
        literal = forms.literal(self.literal, frames)

        @torch.no_grad()
        def eager_half() -> Tensor:
            return forms.labels(self.half(frames))[0]

        def captured(model: FoldedMCDRL) -> Callable[[], Any]:
            return Capture(lambda x: forms.labels(model(x)), frames).replay

        return {
            "eager fp32": lambda: lambda: literal().argmax(dim=1).to(torch.uint8),
            "eager fp16": lambda: eager_half,
            "graph unfused": lambda: captured(self.unfused),
            "graph fused": lambda: captured(self.half),
        }

    def frames(self, batch: int) -> Tensor:
        """Random frames on the device."""
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, self.side, self.side, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.part.device)

    def encoder_flops(self) -> int:
        """Floating-point operations of the image encoder for one image."""
        images = pad_to_stride(self.frames(1).permute(0, 3, 1, 2).float() / 255, self.literal.encoder.stride)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one operator, whose operations nobody counts
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self.literal.encoder(images)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return counter.get_total_flops()

    def per_block(self) -> dict[str, float]:
        """Cost of one more causal block at batch 1, by form."""
        single = [row for row in self.values["rows"] if row["batch"] == 1]
        if len(single) < 2:
            return {}
        names = single[0]["p50_ms"]
        return {name: round(1e3 * slope({row["depth"]: row["p50_ms"][name] for row in single}), 1) for name in names}

    def throughput(self) -> dict[str, float]:
        """At the largest batch: images a second, and the encoder's operations against the matrix products' rate."""
        row = max((r for r in self.values["rows"] if r["depth"] == self.usual), key=lambda r: r["batch"])
        images_per_s = row["batch"] / row["p50_ms"]["graph fused"] * 1e3
        tflops = images_per_s * self.values["encoder_gflops"] / 1e3
        share = tflops / self.part.values["ceiling_tflops"]["bfloat16"]
        figures = {"images_per_s": images_per_s, "encoder_tflops": tflops, "share_of_ceiling": share}
        return {"batch": row["batch"]} | {name: round(value, 4) for name, value in figures.items()}

    def save(self) -> None:
        """Leave what there is so far."""
        self.part.save(models=self.part.values["models"] | {self.encoder: self.values})


def _mib(model: torch.nn.Module) -> float:
    tensors = [*model.parameters(), *model.buffers()]
    return round(sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20, 1)


if __name__ == "__main__":
    main()
