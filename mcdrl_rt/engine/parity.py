"""How far an engine's labels are from another's: the figures that decide whether a built engine may be used."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mcdrl_rt.engine.base import LESION, Engine, RawOutput
from mcdrl_rt.types import FloatArray, UInt8Array


@dataclass(frozen=True)
class Parity:
    """Agreement of two engines over a set of frames.

    Args:
        label_flips: share of pixels whose label differs.
        mask_iou: intersection over union of the lesion masks, all frames pooled; 1 if neither finds any.
        frames: how many were compared.
        with_lesion: in how many of them the reference finds a lesion; without any, ``mask_iou`` says nothing.
        selected: share of grid cells that both select, or both do not.
        readout: half the sum of the differences of the confounders' weights, which sum to 1: 0…1.
    """

    label_flips: float
    mask_iou: float
    frames: int
    with_lesion: int = 0
    selected: float = 1.0
    readout: float = 0.0


def compare(engine: Engine, reference: Engine, frames: Iterable[UInt8Array], batch: int = 1) -> Parity:
    """Run both on ``frames``, each (H, W, 3) uint8 at the model's input size.

    Args:
        engine: to be judged.
        reference: what it is held to, frame by frame.
        frames: at least one.
        batch: so many are given to ``engine`` at a time.
    """
    flips = pixels = both = either = count = with_lesion = 0
    selected, readout = [], []
    for place, ours, theirs in _answers(engine, reference, frames, batch):
        one, other = _labels(ours, place), _labels(theirs, 0)
        selected.append(float((ours.selected[place].astype(bool) == theirs.selected[0].astype(bool)).mean()))
        readout.append(float(np.abs(_weights(ours, place) - _weights(theirs, 0)).sum() / 2))
        flips += int((one != other).sum())
        pixels += one.size
        both += int(((one > 0) & (other > 0)).sum())
        either += int(((one > 0) | (other > 0)).sum())
        count += 1
        with_lesion += bool(other.any())
    overlap = both / either if either else 1.0
    alike = (float(np.mean(selected)), float(np.mean(readout)))
    return Parity(flips / max(1, pixels), overlap, count, with_lesion, *alike)


def _answers(
    engine: Engine, reference: Engine, frames: Iterable[UInt8Array], batch: int
) -> Iterator[tuple[int, RawOutput, RawOutput]]:
    """For every frame its place in the engine's answer, that answer, and the reference's."""
    left = iter(frames)
    while some := list(itertools.islice(left, batch)):
        ours = engine.infer(np.stack(some))
        for place, frame in enumerate(some):
            yield place, ours, reference.infer(frame[None])


def _labels(output: RawOutput, place: int) -> UInt8Array:
    return np.where(output.score[place] >= LESION, output.label[place], 0).astype(np.uint8)


def _weights(output: RawOutput, place: int) -> FloatArray:
    weights = output.confounders[place].astype(np.float32)
    return weights / max(float(weights.sum()), 1e-9)
