"""Masks that hold still: each is averaged with those before it, which the flow brings to where they are now.

A model sees every frame for the first time, and on the fence it decides anew each time. The average calms that, at a
price that is measured (``benchmarks/steadiness.py``): a lesion appears one frame late and leaves one frame late, and an
outline is as fine as the flow's cells, not as the pixels. A mask that moves does not lag.

    >>> steady = Steady(motion)
    >>> labels = steady(segmentation.labels, index)       # for every new segmentation         # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from mcdrl_rt.types import FloatArray, UInt8Array
from mcdrl_rt.video.motion import Motion, boxes_of, enlarged

_SHOWN = 0.5  # share of the average from which a label is shown: less makes lesions larger, more smaller
_NEARBY = 31  # cells over which it is judged how sure the flow is: one by one they would cut masks to shreds
_FORGOTTEN = 0.02  # a class that is nowhere more than this is gone


class Steady:
    """Averages the masks of one video over time; not thread-safe.

    After a cut, or where the flow is not known, it begins again with the mask it is given.

    Args:
        motion: has followed every frame up to the one a mask was found on, at least.
        weight: of the newest mask, in (0, 1]; more than half shows a new lesion at once, 1 changes outlines only.
    """

    def __init__(self, motion: Motion, weight: float = 0.4) -> None:
        self._motion, self._weight = motion, weight
        self._index = -1
        self._soft: dict[int, FloatArray] = {}  # by label, (rows, columns) in 0…1

    def __call__(self, labels: UInt8Array, index: int) -> UInt8Array:
        """The labels, steadied.

        Args:
            labels: (H, W) uint8, as the model found them.
            index: of the frame they were found on, greater than the one before.

        Returns:
            (H, W) uint8, on that same frame; ``labels`` itself where there is nothing before to average with.
        """
        flow = self._motion.between(self._index, index)
        new = _in_cells(labels, self._motion.cells)
        self._index = index
        if flow is None:
            self._soft = new
            return labels
        # how much of the average is old, cell by cell: little where the flow may be wrong
        old = (1 - self._weight) * cv2.blur(flow.sure.astype(np.float32), (_NEARBY, _NEARBY))
        nothing = np.zeros(flow.sure.shape, np.float32)
        mixed = {}
        for label in new.keys() | self._soft.keys():
            before = flow.carry(self._soft[label]) if label in self._soft else nothing
            mixed[label] = new.get(label, nothing) * (1 - old) + before * old
        self._soft = {label: soft for label, soft in mixed.items() if soft.max() > _FORGOTTEN}
        return _shown(self._soft, (int(labels.shape[0]), int(labels.shape[1])))


def flicker(pairs: Iterable[tuple[UInt8Array, UInt8Array]]) -> float | None:
    """How much of a mask changes from one frame to the next, 0…1.

    Args:
        pairs: labels of a frame moved to the next (``Motion.move``), and that frame's own, both (H, W).

    Returns:
        1 − the mean intersection over union; None where no pair has a label. A pair without any does not count.
    """
    overlaps = []
    for before, after in pairs:
        if either := np.count_nonzero(before | after):
            overlaps.append(np.count_nonzero((before == after) & (after > 0)) / either)
    return 1 - float(np.mean(overlaps)) if overlaps else None


def _in_cells(labels: UInt8Array, size: tuple[int, int]) -> dict[int, FloatArray]:
    """How much of each cell each label covers, 0…1; four pixels of a cell are looked at."""
    rows, columns = size
    fine = np.asarray(cv2.resize(labels, (2 * columns, 2 * rows), interpolation=cv2.INTER_NEAREST))
    present = np.flatnonzero(np.bincount(fine.ravel(), minlength=1)[1:]) + 1
    return {
        int(label): cv2.resize((fine == label).astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        for label in present
    }


def _shown(soft: dict[int, FloatArray], size: tuple[int, int]) -> UInt8Array:
    """(H, W) uint8, the label with most of each pixel where that is enough."""
    labels = np.zeros(size, np.uint8)
    if not soft:
        return labels
    some = np.max(list(soft.values()), axis=0) > _SHOWN / 2
    for box in boxes_of(some.view(np.uint8), size):  # most of the frame has no label: it costs nothing
        most = np.full((box.height, box.width), _SHOWN, np.float32)
        for label, share in soft.items():
            here = enlarged(share, size, box)
            labels[box.slices][here > most] = label
            np.maximum(most, here, out=most)
    return labels
