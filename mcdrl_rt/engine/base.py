"""What every engine is: one input, one output, whatever runs underneath."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from mcdrl_rt.errors import EngineError
from mcdrl_rt.types import FloatArray, ModelSpec, UInt8Array

LESION = 128  # scores from here on are lesion


class RawOutput(NamedTuple):
    """The network's answer at its own input size (``FoldedMCDRL.forward``)."""

    score: UInt8Array  # (B, H, W), lesion from 128 on
    label: UInt8Array  # (B, H, W), best lesion class from 1
    confounders: FloatArray  # (B, M)
    selected: UInt8Array  # (B, h, w), 1 where a cell was selected


class Engine(Protocol):
    """A compiled model, ready to run.

    Attributes:
        spec: the model it was built from.
        name: runtime, precision and device, as shown to people: ``openvino bf16 CPU``.
        max_batch: frames it takes at a time, at most.
    """

    spec: ModelSpec
    name: str
    max_batch: int

    def infer(self, frames: UInt8Array) -> RawOutput:
        """Segment frames (B, H, W, 3) uint8 RGB, (H, W) = ``spec.input_size``.

        The arrays returned belong to the caller. Threads may share an engine: they wait for one another.

        Raises:
            EngineError: the runtime failed.
        """
        ...


def checked(output: RawOutput, spec: ModelSpec, batch: int) -> RawOutput:
    """``output`` itself, if it can be the answer to ``batch`` frames.

    Raises:
        EngineError: it has other shapes, or readouts that are no weights.
    """
    size, grid = (batch, *spec.input_size), (batch, *spec.grid)
    parts = (
        ("score", output.score.shape, size),
        ("label", output.label.shape, size),
        ("confounders", output.confounders.shape, (batch, len(spec.confounders))),
        ("selected", output.selected.shape, grid),
    )
    for name, shape, expected in parts:
        if shape != expected:
            raise EngineError(f"the engine's {name} has shape {shape}, not {expected}")
    if not (np.isfinite(output.confounders).all() and (output.confounders.sum(axis=1) > 0).all()):
        raise EngineError("the engine's confounder readout is not a number")
    return output
