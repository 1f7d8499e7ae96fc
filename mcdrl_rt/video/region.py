"""Where in the frame the endoscope's picture is, so that its black surround stays out of the model's input.

Processors draw the picture into a larger black canvas, with patient data beside it. This module finds the
bounding box of the lit field of view, to crop by (never to squash). It errs on the generous side: a black margin
costs a little resolution, a lesion cropped away costs the lesion.

    >>> track = RegionTracker()
    >>> rows, columns = track(frame.pixels).slices
    >>> picture = frame.pixels[rows, columns]
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import cv2
import numpy as np

from mcdrl_rt.types import BoolArray, Picture, Region, UInt8Array, size_of
from mcdrl_rt.video import planes

Size = tuple[int, int]  # (height, width)
Look = Callable[[], UInt8Array]  # gives the pixels a region is measured on, when they are needed

_SAMPLES = 160  # cells along the longer side of the grid we look at: a cell is 12 px at 1080p
_CONTRAST = 14  # grey levels between the surround and the darkest mucosa we insist on
_BRIGHTEST_SURROUND = 40  # a border brighter than this is picture, not surround
_KEEP_SHARE = 0.02  # patches at least this large, relative to the largest, belong to the picture
_MIN_LIT = 0.08  # less of the frame lit than this says nothing about the field of view
_FULL = 0.97  # a box this large is the full frame: cropping it would only add jitter


def find_region(picture: Picture) -> Region:
    """Bounding box of the lit field of view.

    Args:
        picture: (H, W, 3) uint8, RGB, or planes.

    Returns:
        The box, with a margin of one grid cell (1/160 of the longer side); the full frame when the picture fills
        it, or when too little is lit to tell.
    """
    size = size_of(picture)
    return find_region_by(size, lambda: planes.sampled(picture, *sampled(size)))


def find_region_by(size: Size, look: Look) -> Region:
    """``find_region`` of a frame that lies elsewhere, on a GPU say.

    Args:
        size: (height, width) of the frame.
        look: called for the pixels that ``sampled(size)`` names, (h, w, 3) uint8, RGB: all that is looked at.
    """
    return _measure(size, look()) or _full(size)


def sampled(size: Size) -> tuple[slice, slice]:
    """The rows and columns that are looked at in a frame of ``size``, at most 160 of each."""
    step = _step(size)
    rows, columns = (slice(min(step // 2, side - 1), None, step) for side in size)
    return rows, columns


def crop_and_resize(picture: Picture, region: Region, size: tuple[int, int]) -> UInt8Array:
    """The field of view at a model's input size (height, width); the rest of preprocessing is inside every engine."""
    large = region.height * region.width > 4 * size[0] * size[1]
    return planes.scaled(picture, lambda part: _resize(part, size, large), region)


def _resize(picture: UInt8Array, size: tuple[int, int], large: bool) -> UInt8Array:
    """A picture (h, w) or (h, w, 3) at a size (height, width), each pixel the mean of what it covers.

    OpenCV takes means of 2×2 pixels in a small part of the time that others take: ``large`` pictures, and planes of
    them, are halved, and what is left is interpolated to twice the size first. That is a fifth of a grey level off, on
    average.
    """
    height, width = size
    while picture.shape[0] >= 2.5 * height and picture.shape[1] >= 2.5 * width:
        picture = _halved(picture)
    rows, columns = picture.shape[:2]
    if large and rows <= 5 * height and columns <= 5 * width:  # of longer ones, interpolation passes over pixels
        return _halved(np.asarray(cv2.resize(picture, (2 * width, 2 * height)), np.uint8))
    how = cv2.INTER_AREA if rows * columns > height * width else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), dtype=np.uint8)


def _halved(picture: UInt8Array) -> UInt8Array:
    """Half as high and wide; the last odd row or column is a speck, and left out."""
    rows, columns = picture.shape[0] // 2, picture.shape[1] // 2
    even = picture[: 2 * rows, : 2 * columns]
    return np.asarray(cv2.resize(even, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


class RegionTracker:
    """The region of a running video: steady, cheap, and never shrunk by a dark moment.

    A field of view does not move while an endoscope is plugged in, so the region is the union of the last
    ``memory`` boxes: it grows as soon as more is seen to be lit and shrinks only when all of the memory agrees.

    Args:
        every: measure one frame in this many (the others cost nothing).
        memory: measurements that must agree before the region shrinks; 20 times 15 frames are 10 s at 30 fps.
    """

    def __init__(self, every: int = 15, memory: int = 20) -> None:
        self._every = every
        self._boxes: deque[Region] = deque(maxlen=memory)
        self._size = (0, 0)
        self._frames = 0
        self._region = Region(0, 0, 0, 0)

    def __call__(self, picture: Picture) -> Region:
        """The region for this frame.

        Args:
            picture: (H, W, 3) uint8, RGB, or planes.
        """
        size = size_of(picture)
        return self.follow(size, lambda: planes.sampled(picture, *sampled(size)))

    def follow(self, size: Size, look: Look) -> Region:
        """The region for a frame that lies elsewhere; see ``find_region_by``. Most frames are not looked at."""
        if size != self._size:
            self._restart(size)
        # until something lit has been seen every frame is measured: a procedure starts in the dark
        if not self._boxes or self._frames % self._every == 0:
            self._update(look())
        self._frames += 1
        return self._region

    def _restart(self, size: Size) -> None:
        self._size = size
        self._boxes.clear()
        self._frames = 0
        self._region = _full(size)

    def _update(self, pixels: UInt8Array) -> None:
        box = _measure(self._size, pixels)
        if box is None:  # darkness says nothing of where the picture ends
            return
        first = not self._boxes
        self._boxes.append(box)
        seen = _union(self._boxes)
        ready_to_shrink = len(self._boxes) == self._boxes.maxlen and _much_smaller(seen, self._region)
        self._region = seen if first or ready_to_shrink else _union([self._region, seen])


def _step(size: Size) -> int:
    return max(1, -(-max(size) // _SAMPLES))


def _measure(size: Size, pixels: UInt8Array) -> Region | None:
    """The lit box in a frame of ``size`` whose sampled ``pixels`` these are; None when too dark to say."""
    (height, width), step = size, _step(size)
    # the brightest channel, not luma: mucosa in shadow is dark red, and luma all but ignores red
    level = pixels.max(axis=2)  # (h, w)
    picture = _picture(level > _surround(level) + _CONTRAST)
    if picture is None:
        return None
    rows, columns = np.flatnonzero(picture.any(axis=1)), np.flatnonzero(picture.any(axis=0))
    # one cell of margin: the true edge lies between the last lit sample and the first dark one
    top, left = max(0, (int(rows[0]) - 1) * step), max(0, (int(columns[0]) - 1) * step)
    bottom, right = min(height, (int(rows[-1]) + 2) * step), min(width, (int(columns[-1]) + 2) * step)
    if (bottom - top) * (right - left) >= _FULL * height * width:
        return _full(size)
    return Region(top, left, bottom - top, right - left)


def _surround(level: UInt8Array) -> int:
    """Grey level of the surround: what is dark along the frame's border (0 when none of it is)."""
    border = np.concatenate([level[0], level[-1], level[:, 0], level[:, -1]])
    dark = border[border <= _BRIGHTEST_SURROUND]
    return int(np.median(dark)) if dark.size else 0


def _picture(lit: BoolArray) -> BoolArray | None:
    """The lit patches that make up the endoscope's picture, without text, icons and noise beside it."""
    if lit.mean() < _MIN_LIT:
        return None
    # opening removes what is thinner than 3 cells: letters, rulers, single noisy samples
    opened = cv2.morphologyEx(lit.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if count < 2 or areas.max() < _MIN_LIT * lit.size:
        return None
    # a dark lumen may cut the picture in two, so every patch of some size counts, not only the largest
    keep = np.flatnonzero(areas >= _KEEP_SHARE * areas.max()) + 1
    return np.isin(labels, keep)


def _full(size: Size) -> Region:
    return Region(0, 0, *size)


def _union(boxes: deque[Region] | list[Region]) -> Region:
    top, left = min(b.top for b in boxes), min(b.left for b in boxes)
    bottom, right = max(b.top + b.height for b in boxes), max(b.left + b.width for b in boxes)
    return Region(top, left, bottom - top, right - left)


def _much_smaller(box: Region, than: Region) -> bool:
    """Whether a side shrank by more than 4 %: less is noise at the edge, not worth a jump."""
    return box.height < 0.96 * than.height or box.width < 0.96 * than.width
