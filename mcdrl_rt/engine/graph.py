"""CUDA: the model in float16 with the fused operator, every launch of it captured in one CUDA graph.

A frame is then three things for the processor to ask of the GPU: copy in, replay, copy out. On a CPU the same code
runs without a graph, which is how the tests come to it.

    >>> engine = GraphEngine.from_checkpoint(path)                        # doctest: +SKIP
    >>> outputs = engine.run(frames)          # on the GPU, not waited for   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mcdrl_rt.engine.torch import TensorEngine, find_device
from mcdrl_rt.errors import EngineError
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.half import to_half
from mcdrl_rt.types import ModelSpec

Function = Callable[[Tensor], tuple[Tensor, ...]]
WARM_UP = 3  # calls before the capture: libraries choose their algorithms and allocate what they keep


class Capture:
    """A function of one tensor, its buffers fixed: recorded once, then replayed as a single launch.

    Args:
        function: without synchronisation and without a shape that depends on data.
        example: an input; shape, type and device are those of all to come.

    Attributes:
        input: the buffer the function reads; fill it and ``replay``, or call with a tensor to be copied into it.
    """

    def __init__(self, function: Function, example: Tensor) -> None:
        self.input = example.clone()
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if example.is_cuda:
            with torch.cuda.device(example.device), torch.no_grad():
                self._record()

    def __call__(self, value: Tensor) -> tuple[Tensor, ...]:
        """Outputs for ``value``; on a GPU the same buffers every time, which the next call overwrites."""
        self.input.copy_(value, non_blocking=True)
        return self.replay()

    @torch.no_grad()
    def replay(self) -> tuple[Tensor, ...]:
        """Outputs for what is in ``input``."""
        if self._graph is None:
            return self._function(self.input)
        self._graph.replay()
        return self._outputs

    def _record(self) -> None:
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True  # the fastest convolutions, found while warming up
        try:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._function(self.input)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # other threads may allocate meanwhile: a decoder's, or one that waits for an earlier frame
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._outputs = self._function(self.input)
            self._graph = graph
        finally:
            torch.backends.cudnn.benchmark = before


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
        try:
            # frames are (H, W, 3), so channels-last all the way: tensor cores take convolutions in no other order
            self._model = model.eval().to(self.device).to(memory_format=torch.channels_last)
            # a single frame at once, so that a stream's first takes no longer than the others
            self._captures = {1: Capture(self._model, example_frames(self.spec, 1, self.device))}
        except RuntimeError as error:
            raise EngineError(f"cannot ready {self.spec.name} on {device}: {str(error).splitlines()[0]}") from error

    @classmethod
    def from_checkpoint(cls, path: Path, device: str = "cuda") -> GraphEngine:
        """Load a checkpoint in half precision; see ``load_checkpoint`` for what it raises."""
        return cls(to_half(FoldedMCDRL(load_checkpoint(path))), device)

    def run(self, frames: Tensor) -> tuple[Tensor, ...]:
        """See ``TensorEngine.run``. The first call with a batch size other than 1 records its graph."""
        if len(frames) not in self._captures:
            self._captures[len(frames)] = Capture(self._model, frames)
        return self._captures[len(frames)](frames)


def example_frames(spec: ModelSpec, batch: int, device: torch.device) -> Tensor:
    """Black frames (B, H, W, 3) uint8, to make an engine ready with."""
    return torch.zeros((batch, *spec.input_size, 3), dtype=torch.uint8, device=device)


def precision(model: FoldedMCDRL) -> str:
    """``fp16`` or ``fp32``: what a model computes in."""
    return "fp16" if any(weight.dtype == torch.float16 for weight in model.parameters()) else "fp32"
