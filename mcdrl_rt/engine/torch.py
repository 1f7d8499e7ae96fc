"""PyTorch: the reference every engine is held against, and the way to run a checkpoint without building anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.types import UInt8Array


class TorchEngine:
    """The folded model in eager float32.

    Args:
        model: the deployed form.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        EngineError: there is no such device.
    """

    def __init__(self, model: FoldedMCDRL, device: str = "cpu") -> None:
        if device != "cpu" and device.partition(":")[0] != "cuda":
            raise EngineError(f"the torch engine runs on cpu, cuda or cuda:N, not on {device!r}")
        try:
            self._device = torch.device(device)
            self._model = model.eval().to(self._device)
        except (RuntimeError, AssertionError) as error:
            raise EngineError(f"torch has no device {device!r} here: {str(error).splitlines()[0]}") from error
        self.spec = model.spec
        self.name = f"torch fp32 {device}"

    @classmethod
    def from_checkpoint(cls, path: Path, device: str = "cpu") -> TorchEngine:
        """Load a checkpoint; see ``load_checkpoint`` for what it raises."""
        return cls(FoldedMCDRL(load_checkpoint(path)), device)

    @torch.inference_mode()
    def infer(self, frames: UInt8Array) -> RawOutput:
        """See ``Engine.infer``."""
        try:
            outputs = self._model(torch.from_numpy(np.ascontiguousarray(frames)).to(self._device))
        except RuntimeError as error:
            raise EngineError(f"torch failed on a frame: {str(error).splitlines()[0]}") from error
        return RawOutput(*(tensor.cpu().numpy() for tensor in outputs[:4]))
