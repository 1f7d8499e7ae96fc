"""What every engine is: one input, one output, whatever runs underneath."""

from __future__ import annotations

from typing import NamedTuple, Protocol

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
    """

    spec: ModelSpec
    name: str

    def infer(self, frames: UInt8Array) -> RawOutput:
        """Segment frames (B, H, W, 3) uint8 RGB, (H, W) = ``spec.input_size``.

        The arrays returned belong to the caller.

        Raises:
            EngineError: the runtime failed.
        """
        ...
