"""PyTorch: the reference every engine is held against, and the way to run a checkpoint without building anything.

The fast forms are ``mcdrl_rt.engine.graph`` and ``mcdrl_rt.engine.aoti``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcdrl_rt.engine.tensors import TensorEngine, failures, find_device
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import FoldedMCDRL


class TorchEngine(TensorEngine):
    """The folded model in eager float32.

    Args:
        model: the deployed form; moved to ``device``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        EngineError: there is no such device, no room on it, or this torch has no code for it.
    """

    def __init__(self, model: FoldedMCDRL, device: str = "cpu") -> None:
        super().__init__(model.spec, f"torch fp32 {device}", find_device(device))
        with failures(f"cannot ready {self.spec.name} on {device}"):
            self._model = model.eval().to(self.device)
        if self.device.type != "cpu":  # copying tells of neither kernels that are missing nor room
            self.infer(np.zeros((1, *self.spec.input_size, 3), np.uint8))

    @classmethod
    def from_checkpoint(cls, path: Path, device: str = "cpu") -> TorchEngine:
        """Load a checkpoint; see ``load_checkpoint`` for what it raises."""
        return cls(FoldedMCDRL(load_checkpoint(path)), device)

    def run(self, frames: Tensor) -> tuple[Tensor, ...]:
        """See ``TensorEngine.run``."""
        # by default, convolutions on a GPU round their inputs to ten bits: no reference
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return self._model(frames)
