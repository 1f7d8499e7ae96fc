"""What all engines that run on torch tensors share: their base, the way to the device and back, and the CUDA graph.

Imported by engines that are compiled already, so nothing of the model or of its export is imported here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError, first_line
from mcdrl_rt.types import ModelSpec, UInt8Array

Function = Callable[[Tensor], tuple[Tensor, ...]]
_one_at_a_time = threading.Lock()  # captures, in this process: torch takes no more
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
            # and on this very stream: torch's own is of whichever device captured first
            with _one_at_a_time, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._outputs = self._function(self.input)
            self._graph = graph
        finally:
            torch.backends.cudnn.benchmark = before


class TensorEngine:
    """An engine whose network runs on torch tensors.

    Attributes:
        spec, name: as in ``Engine``.
        device: where ``run`` takes and leaves its tensors.
        turn: held from ``run`` until what it gave is copied, since the next call may overwrite that.
    """

    max_batch = 8  # as in ``Engine``: more at a time than this only makes each wait

    def __init__(self, spec: ModelSpec, name: str, device: torch.device) -> None:
        self.spec, self.name, self.device = spec, name, device
        self.turn = threading.Lock()

    def run(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The network alone, device to device; on a GPU nothing is waited for. By one thread at a time: see ``turn``.

        Args:
            frames: (B, H, W, 3) uint8 RGB on ``device``, (H, W) = ``spec.input_size``.

        Returns:
            What ``FoldedMCDRL.forward`` gives. The next call may overwrite it.
        """
        raise NotImplementedError

    @torch.no_grad()
    def infer(self, frames: UInt8Array) -> RawOutput:
        """See ``Engine.infer``."""
        if frames.ndim != 4 or frames.shape[1:] != (*self.spec.input_size, 3):
            height, width = self.spec.input_size
            raise EngineError(f"the engine failed on a frame: it is {frames.shape}, not (B, {height}, {width}, 3)")
        with self.turn, failures(f"{self.name} failed on a frame"):
            outputs = self.run(upload(frames, self.device))
            return RawOutput(*download(outputs[:4], self.device))


@contextlib.contextmanager
def failures(what: str) -> Iterator[None]:
    """What torch says of a device (no room, a kernel's fault) as an ``EngineError``: ``what``, and its first line."""
    try:
        yield
    except RuntimeError as error:
        raise EngineError(f"{what}: {first_line(error)}") from error


def find_device(name: str) -> torch.device:
    """The torch device of that name.

    Raises:
        EngineError: it is none we run on, or is not there.
    """
    if name != "cpu" and name.partition(":")[0] != "cuda":
        raise EngineError(f"the torch engine runs on cpu, cuda or cuda:N, not on {name!r}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise EngineError(f"torch has no device {name!r} here: {first_line(error)}") from error


def upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """A copy of an array on ``device``; on a GPU, the copying is only begun.

    Pinned memory comes from torch's own cache, which does not hand a block out again before a copy from it is done:
    the next upload may begin at once.
    """
    dtype = torch.from_numpy(np.empty(0, values.dtype)).dtype
    host = torch.empty(values.shape, dtype=dtype, pin_memory=device.type == "cuda")
    np.copyto(host.numpy(), values)
    return host.to(device, non_blocking=True)


def download(tensors: Sequence[Tensor], device: torch.device) -> list[NDArray[Any]]:
    """Tensors as arrays that belong to the caller: the one place where a GPU is waited for."""
    if device.type == "cpu":
        return [tensor.numpy() for tensor in tensors]
    pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for host, tensor in zip(pinned, tensors, strict=True):
        host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(device).synchronize()
    return [host.numpy().copy() for host in pinned]  # page-locked memory is not for keeping


def example_frames(spec: ModelSpec, batch: int, device: torch.device) -> Tensor:
    """Black frames (B, H, W, 3) uint8, to make an engine ready with."""
    return torch.zeros((batch, *spec.input_size, 3), dtype=torch.uint8, device=device)
