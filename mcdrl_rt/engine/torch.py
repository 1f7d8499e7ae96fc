"""PyTorch: the reference every engine is held against, and the way to run a checkpoint without building anything.

``TensorEngine`` is what all engines that speak torch have in common; ``TorchEngine`` is the reference, eager float32.
The fast forms are ``mcdrl_rt.engine.graph`` and ``mcdrl_rt.engine.aoti``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.types import ModelSpec, UInt8Array


class TensorEngine:
    """An engine whose network runs on torch tensors.

    Attributes:
        spec, name: as in ``Engine``.
        device: where ``run`` takes and leaves its tensors.
    """

    def __init__(self, spec: ModelSpec, name: str, device: torch.device) -> None:
        self.spec, self.name, self.device = spec, name, device

    def run(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The network alone, device to device; on a GPU nothing is waited for.

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
            raise EngineError(f"torch failed on a frame: it is {frames.shape}, not (B, {height}, {width}, 3)")
        try:
            outputs = self.run(upload(frames, self.device))
            return RawOutput(*download(outputs[:4], self.device))
        except RuntimeError as error:
            raise EngineError(f"torch failed on a frame: {str(error).splitlines()[0]}") from error


class TorchEngine(TensorEngine):
    """The folded model in eager float32.

    Args:
        model: the deployed form; moved to ``device``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        EngineError: there is no such device.
    """

    def __init__(self, model: FoldedMCDRL, device: str = "cpu") -> None:
        super().__init__(model.spec, f"torch fp32 {device}", find_device(device))
        self._model = model.eval().to(self.device)

    @classmethod
    def from_checkpoint(cls, path: Path, device: str = "cpu") -> TorchEngine:
        """Load a checkpoint; see ``load_checkpoint`` for what it raises."""
        return cls(FoldedMCDRL(load_checkpoint(path)), device)

    def run(self, frames: Tensor) -> tuple[Tensor, ...]:
        """See ``TensorEngine.run``."""
        return self._model(frames)


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
        raise EngineError(f"torch has no device {name!r} here: {str(error).splitlines()[0]}") from error


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
    return [host.numpy() for host in pinned]
