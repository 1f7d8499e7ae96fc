"""How the picture moves from frame to frame, so that a mask found on one frame can be shown on a later one.

Dense optical flow (DIS, Kroeger et al. 2016) of a small green picture, once forward and once backward: where the two
disagree, the flow is not to be believed. It knows nothing of what moves, and nothing of lesions; a mask is moved as
its own tissue moves, so several lesions go several ways.

    >>> motion = Motion()
    >>> for frame in frames:                                                            # doctest: +SKIP
    ...     motion.follow(frame.picture, frame.index)                                   # doctest: +SKIP
    >>> labels = motion.move(segmentation.labels, index_it_was_found_on)                # doctest: +SKIP
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from mcdrl_rt.types import BoolArray, FloatArray, Picture, Region, UInt8Array, size_of
from mcdrl_rt.video.planes import scaled

HISTORY = 24  # frames a mask may be old
_CELLS = 36_000  # of the small picture, 253×142 of a 16:9 frame: more is slower and hardly better
_AGREE = 1.0  # cells that forward and backward flow may differ by
_FOLLOWED = 0.3  # share of lit cells that agree; 0.6 and more from frame to frame, 0.2 at most across a cut
_ALIKE = 0.3  # correlation of detail with the moved frame before: 0.6 and more, or 0 where the picture went away
_TRUSTED = 0.4  # share of a mask's cells that agree: with less, moving it helps and harms in turn
_LIT = 30  # grey level of the brightest channel below which there is no tissue to see
_SEEN = 0.05  # share of the picture that must be lit
_NARROWEST = 16  # cells; of less, DIS makes memory faults (OpenCV 5.0: two patches at its finest scale)

_ABSENT: Any = None  # OpenCV's type stubs do not know that an array may be left out; remap takes an empty one amiss


@dataclass(frozen=True, slots=True)
class Flow:
    """Where the cells of a frame came from.

    Args:
        back: (h, w, 2) float32, cells to the right and down from each cell of the later frame to its place on the
            earlier one.
        sure: (h, w) bool, where forward and backward flow agreed all the way.
    """

    back: FloatArray
    sure: BoolArray

    def carry(self, values: FloatArray) -> FloatArray:
        """What was at (h, w[, C]) cells of the earlier frame, where it is on the later one."""
        return _sample(values, _grid(0, 0, *self.sure.shape[::-1]) + self.back)


class _Look(NamedTuple):
    """The small picture of one frame."""

    number: int
    green: UInt8Array  # red is bright and flat in mucosa, blue is noisy; vessels are seen in green
    detail: FloatArray  # what is left of it without slow changes of light
    lit: BoolArray


class Motion:
    """The motion of the last ``HISTORY`` frames of a video; not thread-safe.

    A cut, darkness or another size of frame ends what is known: then nothing from before can be moved.
    """

    def __init__(self) -> None:
        # the fastest preset, but one scale finer: a mask 4 frames old overlaps with the phantom's truth by .92, not .88
        self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._dis.setFinestScale(1)
        self._size = (0, 0)
        self._last: _Look | None = None
        self._steps: deque[tuple[int, Flow]] = deque(maxlen=HISTORY)  # index of a frame, and the flow to the next
        self._grid: FloatArray = _grid(0, 0, 0, 0)

    @property
    def cells(self) -> tuple[int, int]:
        """(rows, columns) of the small picture the flow is known on."""
        return int(self._grid.shape[0]), int(self._grid.shape[1])

    def follow(self, picture: Picture, index: int) -> None:
        """Take the next frame.

        Args:
            picture: (H, W, 3) uint8, RGB, or planes.
            index: greater than that of the frame before.
        """
        look, size = _look(picture, index), size_of(picture)
        if size != self._size:
            self._size, self._last = size, None
            self._grid = _grid(0, 0, *look.green.shape[::-1])
        step = self._step(self._last, look) if self._last is not None else None
        if self._last is None or step is None:
            self._steps.clear()
        else:
            self._steps.append((self._last.number, step))
        self._last = look

    def move(self, labels: UInt8Array, index: int) -> UInt8Array | None:
        """Labels found on frame ``index`` as they lie on the newest one.

        Args:
            labels: (H, W) uint8, of the frames' own size.
            index: of the frame they were found on.

        Returns:
            (H, W) uint8; ``labels`` itself where there is nothing to move; None where the motion since then is not
            known well enough to show them.
        """
        if self._last is None:
            return None
        flow = self.between(index, self._last.number)
        if flow is None or index == self._last.number or not labels.any():
            return labels if flow is not None else None
        return self._warp(labels, flow)

    def between(self, earlier: int, later: int) -> Flow | None:
        """The flow that leads from frame ``later`` back to frame ``earlier``; None where it is not known."""
        known = [index for index, _ in self._steps] + ([self._last.number] if self._last is not None else [])
        if earlier not in known or later not in known or earlier > later:
            return None
        place, sure = self._grid, np.ones(self._grid.shape[:2], bool)
        for index, step in reversed(self._steps):
            if earlier <= index < later:
                sure &= _remap(step.sure.view(np.uint8), place, cv2.INTER_NEAREST).view(bool)
                place = place + _sample(step.back, place)
        return Flow(place - self._grid, sure)

    def _calculate(self, one: UInt8Array, other: UInt8Array) -> FloatArray:
        return np.asarray(self._dis.calc(one, other, _ABSENT), np.float32)

    def _step(self, before: _Look, now: _Look) -> Flow | None:
        """The flow from one frame to the next; None if the picture is another one."""
        if min(now.lit.shape) < _NARROWEST or np.count_nonzero(now.lit) < _SEEN * now.lit.size:
            return None
        forward, back = self._calculate(before.green, now.green), self._calculate(now.green, before.green)
        place = self._grid + back
        apart = back + _sample(forward, place)
        sure = np.asarray(cv2.inRange(apart, (-_AGREE, -_AGREE), (_AGREE, _AGREE))) > 0
        if np.count_nonzero(sure & now.lit) < _FOLLOWED * np.count_nonzero(now.lit):
            return None
        # a flat picture (no signal, lens on the wall) agrees with itself everywhere, but it shows nothing of the last
        then = _sample(before.detail, place) * now.lit
        likeness = float(np.vdot(then, now.detail))
        if not likeness > _ALIKE * float(np.linalg.norm(then) * np.linalg.norm(now.detail * now.lit)):
            return None
        return Flow(back, sure)

    def _warp(self, labels: UInt8Array, flow: Flow) -> UInt8Array | None:
        """The labels moved; None where too little of the flow under them is sure."""
        # the cells to which a label may move
        near = _remap(_cells(labels, flow.sure.shape), self._grid + flow.back, cv2.INTER_NEAREST)
        moved = np.zeros_like(labels)
        if not near.any():  # out of sight
            return moved
        if flow.sure[near > 0].mean() < _TRUSTED:
            return None
        size = (int(labels.shape[0]), int(labels.shape[1]))
        # a label that does not move must stay to the pixel: so the way is scaled up, not the place
        back = flow.back * np.divide(size[::-1], self.cells[::-1]).astype(np.float32)
        for box in boxes_of(near, size):  # most of the frame has no label: it costs nothing
            here = _grid(box.left, box.top, box.left + box.width, box.top + box.height)
            moved[box.slices] = _remap(labels, here + enlarged(back, size, box), cv2.INTER_NEAREST)
        return moved


def boxes_of(cells: UInt8Array, size: tuple[int, int]) -> list[Region]:
    """The pixels of a frame of ``size`` around each connected patch of cells that are not zero, a cell generous."""
    cell = np.divide(size[::-1], cells.shape[::-1])  # in pixels, across and down
    found = []
    for left, top, width, height, _ in cv2.connectedComponentsWithStats(cells)[2][1:]:
        first = np.maximum(0, np.floor((left - 1, top - 1) * cell)).astype(int)
        after = np.minimum(size[::-1], np.ceil((left + width + 1, top + height + 1) * cell)).astype(int)
        found.append(Region(int(first[1]), int(first[0]), int(after[1] - first[1]), int(after[0] - first[0])))
    return found


def enlarged(values: FloatArray, size: tuple[int, int], box: Region) -> FloatArray:
    """Values (h, w[, C]) of a frame's cells at each pixel of a box of it, between which it interpolates."""
    cell = np.divide(size[::-1], values.shape[1::-1])
    to_cells = np.column_stack([np.diag(1 / cell), (np.array([box.left, box.top]) + 0.5) / cell - 0.5])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REPLICATE
    return np.asarray(cv2.warpAffine(values, to_cells, (box.width, box.height), flags=how, borderMode=border))


def _cells(labels: UInt8Array, size: tuple[int, ...]) -> UInt8Array:
    """(h, w), not zero in each cell that has a label in it or just beside it, be it a single pixel."""
    reach = [2 * -(-side // cells) + 1 for side, cells in zip(labels.shape, size, strict=True)]
    grown = cv2.dilate(labels, np.ones(reach, np.uint8))
    return np.asarray(cv2.resize(grown, size[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)


def _sample(values: FloatArray, place: FloatArray) -> FloatArray:
    """Values (h, w[, C]) at places (rows, columns, 2), x and y in cells, between which it interpolates."""
    return np.asarray(_remap(values, place, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE))


def _remap(values: Any, place: Any, how: int, border: int = cv2.BORDER_CONSTANT) -> Any:
    return cv2.remap(values, place, _ABSENT, how, borderMode=border)


def _look(frame: Picture, index: int) -> _Look:
    height, width = size_of(frame)
    scale = min(1.0, (_CELLS / (height * width)) ** 0.5)
    columns, rows = max(1, round(width * scale)), max(1, round(height * scale))

    def resize(pixels: UInt8Array) -> UInt8Array:
        if 2 * columns < pixels.shape[1]:  # four pixels to a cell say enough
            pixels = np.asarray(cv2.resize(pixels, (2 * columns, 2 * rows), interpolation=cv2.INTER_NEAREST), np.uint8)
        return np.asarray(cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)

    picture = scaled(frame, resize)
    green = np.ascontiguousarray(picture[..., 1])
    detail = green.astype(np.float32)
    detail -= cv2.blur(detail, (15, 15))
    return _Look(index, green, detail, np.asarray(cv2.inRange(picture, (0, 0, 0), (_LIT, _LIT, _LIT))) == 0)


def _grid(left: int, top: int, right: int, bottom: int) -> FloatArray:
    """(bottom − top, right − left, 2) float32, x and y of every place."""
    x, y = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)
    return np.dstack(np.meshgrid(x, y))
