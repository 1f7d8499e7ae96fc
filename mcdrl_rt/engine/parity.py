"""How far an engine's labels are from another's: the figures that decide whether a built engine may be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mcdrl_rt.engine.base import LESION, Engine
from mcdrl_rt.types import UInt8Array


@dataclass(frozen=True)
class Parity:
    """Agreement of two engines over a set of frames.

    Args:
        label_flips: share of pixels whose label differs.
        mask_iou: intersection over union of the lesion masks, all frames pooled; 1 if neither finds any.
        frames: how many were compared.
        with_lesion: in how many of them the reference finds a lesion; without any, ``mask_iou`` says nothing.
    """

    label_flips: float
    mask_iou: float
    frames: int
    with_lesion: int = 0


def compare(engine: Engine, reference: Engine, frames: Iterable[UInt8Array]) -> Parity:
    """Run both on ``frames``, each (H, W, 3) uint8 at the model's input size."""
    flips = pixels = both = either = count = with_lesion = 0
    for frame in frames:
        one, other = (_labels(e, frame) for e in (engine, reference))
        flips += int((one != other).sum())
        pixels += one.size
        both += int(((one > 0) & (other > 0)).sum())
        either += int(((one > 0) | (other > 0)).sum())
        count += 1
        with_lesion += bool(other.any())
    return Parity(flips / max(1, pixels), both / either if either else 1.0, count, with_lesion)


def _labels(engine: Engine, frame: UInt8Array) -> UInt8Array:
    output = engine.infer(frame[None])
    return np.where(output.score[0] >= LESION, output.label[0], 0).astype(np.uint8)
