"""Frame on the GPU to labels on the GPU: the models at every depth and batch, in every form.

A part of ``gpu.sh``. For each encoder: depth 1…5 at batch 1 and batch 1…64 at depth 3; then, for all of them, the other
depths at larger batches in the captured forms. What the time does not suffice for is left out and said. What one more
block costs is of a run of its own, in which the depths take turns: a row of one depth may fall into a slow second.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import torch
from families import GraphFamily
from part import Part
from resources import peak_mib
from timing import interleaved, slope, timed
from torch.utils.flop_counter import FlopCounterMode

from mcdrl_rt.model.mcdrl import pad_to_stride

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
        if not part.has_time(20):
            part.leave_out(encoder)
        else:
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
        # in digits, not decimals: a rehearsal on a CPU without bfloat16 has thousandths
        rates[str(dtype).removeprefix("torch.")] = float(f"{2 * size**3 / times['p50_ms']['product'] / 1e9:.4g}")
    return rates


class Measured:
    """One encoder under causal networks of several depths, random weights."""

    def __init__(self, part: Part, encoder: str, side: int, stride: int) -> None:
        self.part, self.encoder = part, encoder
        self.depths, self.batches, self.usual = TINY[1:] if part.rehearse else (DEPTHS, BATCHES, USUAL)
        self.family = GraphFamily(encoder, side, stride, self.depths, part.device)
        weights = {"fp32, literal": _mib(self.family.literal), "fp16": _mib(self.family.half)}
        self.values: dict[str, Any] = {"input_size": side, "weights_mib": weights, "rows": []}

    def measure(self) -> None:
        """What is asked first, saved row by row."""
        self.values["encoder_gflops"] = round(self.encoder_flops() / 1e9, 3)
        for depth in self.depths:
            self.row(depth, 1)
        self.per_block()
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
            self.part.leave_out(f"{self.encoder}, depth {depth}, batch {batch}")
            return
        built, memory = {}, {}
        for name, build in self.family.forms(depth, batch).items():
            if name.startswith("graph") or not captured_only:
                # one form that fails must not take the others with it
                ready = lambda n=name, b=build: built.__setitem__(n, b()) or built[n]()  # noqa: E731
                memory[name] = self.part.attempt(name, lambda r=ready: peak_mib(r, self.part.device))
                if memory[name] is None and not self.part.rehearse:
                    built.pop(name, None)
        runs, seconds = (2, 5.0) if self.part.rehearse else (150, 2.0)
        times = interleaved(built, runs, wait=self.part.wait, seconds=seconds)
        self.values["rows"].append({"depth": depth, "batch": batch, **times, "peak_mib": memory})
        p50 = ", ".join(f"{name} {value:.3f}" for name, value in times["p50_ms"].items())
        print(f"{self.encoder} depth {depth} batch {batch}: {p50} ms", flush=True)
        self.save()

    def encoder_flops(self) -> int:
        """Floating-point operations of the image encoder for one image."""
        encoder = self.family.literal.encoder
        images = pad_to_stride(self.family.frames(1).permute(0, 3, 1, 2).float() / 255, encoder.stride)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # one operator, whose operations nobody counts
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                encoder(images)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
        return counter.get_total_flops()

    def per_block(self) -> None:
        """Cost of one more causal block at batch 1, of the captured forms: all depths in turn."""
        if not self.part.has_time(5):
            self.part.leave_out(f"{self.encoder}, cost of a block")
            return
        forms = {depth: self.family.forms(depth, 1) for depth in self.depths}
        names = [name for name in forms[self.depths[0]] if name.startswith("graph")]
        built = {(name, depth): forms[depth][name]() for name in names for depth in self.depths}
        runs, seconds = (2, 5.0) if self.part.rehearse else (200, 3.0)
        times = timed(built, runs, wait=self.part.wait, seconds=seconds)
        p50 = {
            name: {depth: round(statistics.median(times[name, depth]), 4) for depth in self.depths} for name in names
        }
        self.values["p50_ms_by_depth"] = p50
        self.values["microseconds_per_block"] = {name: round(1e3 * slope(p50[name]), 1) for name in names}
        self.save()

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
