"""CUDA: the model in float16 with the fused operator, every launch of it captured in one CUDA graph.

A frame is then three things for the processor to ask of the GPU: copy in, replay, copy out. On a CPU the same code
runs without a graph, which is how the tests come to it.

    >>> engine = GraphEngine.from_checkpoint(path)                        # doctest: +SKIP
    >>> outputs = engine.run(frames)          # on the GPU, not waited for   # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mcdrl_rt.engine.tensors import Capture, TensorEngine, example_frames, failures, find_device
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.fused import fuse
from mcdrl_rt.model.half import to_half


class GraphEngine(TensorEngine):
    """A folded model in static buffers, one captured graph for each batch size it meets.

    Args:
        model: the deployed form in the precision wanted, ``to_half`` as a rule; moved to ``device``.
        device: ``cuda`` or ``cuda:N``; ``cpu`` runs the same without a graph.

    Raises:
        EngineError: there is no such device, or no room on it.
    """

    def __init__(self, model: FoldedMCDRL, device: str = "cuda") -> None:
        super().__init__(model.spec, f"torch {precision(model)} {device}", find_device(device))
        with failures(f"cannot ready {self.spec.name} on {device}"):
            # frames are (H, W, 3), so channels-last all the way: tensor cores take convolutions in no other order
            self._model = model.eval().to(self.device).to(memory_format=torch.channels_last)
            # a single frame at once, so that a stream's first takes no longer than the others
            self._captures = {1: Capture(self._model, example_frames(self.spec, 1, self.device))}

    @classmethod
    def from_checkpoint(cls, path: Path, device: str = "cuda") -> GraphEngine:
        """Load a checkpoint in half precision; see ``load_checkpoint`` for what it raises."""
        return cls(to_half(fuse(FoldedMCDRL(load_checkpoint(path)))), device)

    def run(self, frames: Tensor) -> tuple[Tensor, ...]:
        """See ``TensorEngine.run``. The first call with a batch size other than 1 records its graph."""
        if len(frames) not in self._captures:
            self._captures[len(frames)] = Capture(self._model, frames)
        return self._captures[len(frames)](frames)


def precision(model: FoldedMCDRL) -> str:
    """``fp16`` or ``fp32``: what a model computes in."""
    return "fp16" if any(weight.dtype == torch.float16 for weight in model.parameters()) else "fp32"
