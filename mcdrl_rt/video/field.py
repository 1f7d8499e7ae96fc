"""The endoscope's field of view to its edge, without what is written on it, so that all the rest can be blanked.

Processors draw a round, octagonal or rectangular picture into a black canvas, and write names, dates and numbers
around it, into its corners, or across its edge. ``region`` finds a generous box for the model; this finds the form, and
errs on the narrow side. What is written on the picture, bright or dark, is told from it by staying where it is while
the picture moves: that takes several frames, from different moments. In a single picture it is not found, nor what is
there for a few of the frames alone; in a video that hardly moves, whatever is as thin and bright as writing, and stays,
is taken for it, and nothing dark. A panel or an inset that touches the picture is not told from it, nor a second
picture that is as red as the first.

    >>> field = field_of([picture])                                        # doctest: +SKIP
    >>> field, moves = field_of_video(frames)                              # doctest: +SKIP
    >>> private = blanked(frame.pixels, field)                             # doctest: +SKIP
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import cv2
import numpy as np

from mcdrl_rt.types import BoolArray, UInt8Array
from mcdrl_rt.video.out_of_body import TISSUE, tissue_share

_LONGER_SIDE = 480  # cells of the grid a frame is measured on
_CONTRAST = 14  # grey levels between the surround and the darkest mucosa
_BRIGHTEST_SURROUND = 40
_EVEN, _MOST = 6, 0.6  # grey levels, share of the border: a surround may have any colour, if it has only one
_STROKES = 15  # cells: what is thinner is text, a ruler, an icon
_LARGE = 0.25  # of the largest patch: smaller ones are insets, larger ones parts of a picture that a dark lumen cuts
_LEAST = 0.05  # of the frame; where less is lit, it is too dark to say
_FULL = 0.97
_WRITTEN_SIDE = 960  # cells of the grid on which writing is looked for
_FRAMES = 8  # with fewer, nothing is known to stand still
_MOVED = 8.0  # grey levels between one frame and the next: the picture is another one
_STROKE_CONTRAST = 24  # grey levels
_OFTEN = 0.3  # share of the frames with a stroke in one place: digits of a clock come and go, reflections do not return
_OFTEN_DARK = 0.5  # vessels and folds are thin and dark as well, and return more often
_WINDOW, _STAYED = 8, 7  # frames one after another, and how many of them show what is written for a while
_ROOM = 9  # cells around strokes that belong to the text, and between its letters
_AGREED = 0.1  # share of the frames in which a place was in the picture: in the dark, its edge is not seen


def field_of(frames: Iterable[UInt8Array]) -> UInt8Array | None:
    """The field of view of a video: it does not move while an endoscope is plugged in.

    Args:
        frames: some of it, (H, W, 3) uint8, RGB, from beginning to end; of several sizes, the first counts. Those that
            may show a menu or a room count only where no other is there.

    Returns:
        (H, W) uint8, 255 inside and 0 outside and where something is written; where the picture fills most of the
        frames, all is inside but that. None where all are too dark to say.
    """
    size, survey = _survey(frames)
    return survey.field(size, survey.writing.moves) if size and survey.count else None


def field_of_video(frames: Iterable[UInt8Array], for_a_while: bool = False) -> tuple[UInt8Array | None, bool]:
    """As ``field_of``, of a whole video: where it hardly moves, what may be writing is taken for it.

    Args:
        frames: as ``field_of`` takes them.
        for_a_while: so is what stays for eight of them or more; they are seconds apart, so that no reflection does.

    Returns:
        The field, and whether its picture moves enough to tell writing from it.
    """
    size, survey = _survey(frames)
    return survey.field(size, True, for_a_while) if size and survey.count else None, survey.writing.moves


def _survey(frames: Iterable[UInt8Array]) -> tuple[tuple[int, int] | None, _Survey]:
    """The size of the first frame, and the survey of those that count."""
    size: tuple[int, int] | None = None
    bodies, others = _Survey(), _Survey()
    for rgb in frames:
        size = size or (int(rgb.shape[0]), int(rgb.shape[1]))
        if rgb.shape[:2] == size and (form := _measure(rgb)) is not None:
            share = tissue_share(rgb, form.astype(np.uint8))
            (others if share is None or share < TISSUE else bodies).take(rgb, form)
    return size, bodies if bodies.count else others


def blanked(rgb: UInt8Array, field: UInt8Array) -> UInt8Array:
    """The pixels, black outside of the field; all black where their size is another one.

    Args:
        rgb: (H, W, 3) uint8; not changed.
        field: (H, W) uint8, from ``field_of``.
    """
    if rgb.shape[:2] != field.shape:
        return np.zeros_like(rgb)
    return np.asarray(cv2.bitwise_and(rgb, rgb, mask=field), np.uint8)


class _Survey:
    """What several frames of one size say together."""

    def __init__(self) -> None:
        self.count = 0
        self._forms: list[BoolArray] = []
        self._full: list[BoolArray] = []  # a menu, a test picture, or an endoscope without a surround
        self.writing = _Writing()

    def take(self, rgb: UInt8Array, form: BoolArray) -> None:
        """Take a frame and what was measured on it."""
        self.count += 1
        self.writing.see(rgb)
        (self._full if form.mean() >= _FULL else self._forms).append(form)

    def field(self, size: tuple[int, int], without_writing: bool, for_a_while: bool = False) -> UInt8Array:
        """(H, W) uint8, 255 inside."""
        field = np.full(size, 255, np.uint8)
        if len(self._full) < len(self._forms):
            agreed = np.mean(self._forms, axis=0) >= max(_AGREED, 1 / len(self._forms))
            narrow = cv2.erode(agreed.astype(np.float32), np.ones((3, 3)), borderType=cv2.BORDER_REPLICATE)
            field[cv2.resize(narrow, size[::-1], interpolation=cv2.INTER_LINEAR) <= 0.5] = 0
        if without_writing:
            field[cv2.resize(self.writing.found(for_a_while), size[::-1], interpolation=cv2.INTER_NEAREST) > 0] = 0
        return field


class _Writing:
    """Looks for thin strokes that are where they were when the picture has become another one."""

    def __init__(self) -> None:
        self._last: UInt8Array | None = None
        self._moved, self._dark, self._all = _Strokes(_OFTEN), _Strokes(_OFTEN_DARK), _Strokes(_OFTEN)

    def see(self, rgb: UInt8Array) -> None:
        """Take a frame; one that looks like the last one says nothing, unless there is no other."""
        small = _small(rgb, _WRITTEN_SIDE).max(axis=2)
        bright, dark = (_strokes(small, kind) for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT))
        self._all.add(bright)
        if self._last is None or cv2.absdiff(small, self._last).mean() >= _MOVED:
            self._moved.add(bright)
            self._dark.add(dark)
            self._last = small

    @property
    def moves(self) -> bool:
        """Whether enough different frames were seen to know what stands still."""
        return self._moved.frames >= _FRAMES

    def found(self, for_a_while: bool) -> UInt8Array:
        """(h, w) uint8, 1 where something is written, or may be; of what is there ``for_a_while``, too."""
        often = self._moved.often | self._dark.often if self.moves else self._all.often
        if for_a_while and self.moves:
            often |= self._moved.stayed | self._dark.stayed
        return np.asarray(cv2.dilate(often.astype(np.uint8), np.ones((_ROOM, 2 * _ROOM))), np.uint8)


def _strokes(small: UInt8Array, kind: int) -> BoolArray:
    """(h, w), where something thin is brighter (top hat) or darker (black hat) than what is around it."""
    return np.asarray(cv2.morphologyEx(small, kind, np.ones((_ROOM, _ROOM))) > _STROKE_CONTRAST)


class _Strokes:
    """Counts in how many frames there is a stroke in a place, of all and of the last few."""

    def __init__(self, share: float) -> None:
        self._share = share  # of the frames, that is too much for a reflection or a vessel
        self.frames = 0
        self._counts: np.ndarray | int = 0
        self._lately: np.ndarray | int = 0
        self._last: deque[BoolArray] = deque()  # the frames that are in _lately
        self._stayed: np.ndarray | bool = False

    def add(self, strokes: BoolArray) -> None:
        """Take those of a frame, (h, w)."""
        self.frames += 1
        self._counts = self._counts + strokes.astype(np.int32)
        self._lately = self._lately + strokes.astype(np.int8)
        self._last.append(strokes)
        if len(self._last) > _WINDOW:
            self._lately = self._lately - self._last.popleft().astype(np.int8)
        self._stayed = self._stayed | (self._lately >= _STAYED)

    @property
    def often(self) -> BoolArray:
        """(h, w), where there is one too often."""
        return np.asarray(self._counts >= self._share * self.frames)

    @property
    def stayed(self) -> BoolArray:
        """(h, w), where there was one for a while, at some time."""
        return np.asarray(self._stayed, bool)


def _small(rgb: UInt8Array, longer_side: int) -> UInt8Array:
    scale = min(1.0, longer_side / max(rgb.shape[:2]))
    columns, rows = (max(1, round(side * scale)) for side in rgb.shape[1::-1])
    return np.asarray(cv2.resize(rgb, (columns, rows), interpolation=cv2.INTER_AREA), np.uint8)


def _measure(rgb: UInt8Array) -> BoolArray | None:
    """(h, w) bool on a small grid: the convex hull of the picture, without what is beside it; None in the dark."""
    small = _small(rgb, _LONGER_SIDE)
    lit = _lit(small)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_STROKES, _STROKES))
    # beyond the frame's edge a picture goes on: else opening would cut its corners there
    framed = cv2.copyMakeBorder(lit, *(_STROKES,) * 4, cv2.BORDER_REPLICATE)
    opened = cv2.morphologyEx(framed, cv2.MORPH_OPEN, disc)[_STROKES:-_STROKES, _STROKES:-_STROKES]
    _, labels, stats, _ = cv2.connectedComponentsWithStats(np.ascontiguousarray(opened))
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not areas.size or areas.sum() < _LEAST * lit.size:
        return None
    picture = _picture(small, labels, areas)
    form = np.zeros(lit.shape, np.uint8)
    cv2.fillConvexPoly(form, cv2.convexHull(np.argwhere(picture)[:, ::-1].astype(np.int32)), 1)
    # a picture has notches: a lumen at its edge, where it is dark, and a corner that an inset takes, where text may be
    whole = _without_holes(picture)
    beside = cv2.dilate(np.asarray(lit & ~whole, np.uint8), np.ones((_ROOM, _ROOM)))
    return (form > 0) & ((beside == 0) | (whole > 0))


def _lit(small: UInt8Array) -> UInt8Array:
    """(h, w) uint8, 1 where it is not the surround: whatever is dark, or the one colour along most of the border."""
    border = np.concatenate([small[0], small[-1], small[:, 0], small[:, -1]]).astype(np.int16)  # (n, 3)
    usual = np.median(border, axis=0)
    if (np.abs(border - usual).max(axis=1) <= _EVEN).mean() >= _MOST:
        return (np.abs(small - usual).max(axis=2) > _CONTRAST).astype(np.uint8)
    levels = border.max(axis=1)  # not luma: mucosa in shadow is dark red
    dark = levels[levels <= _BRIGHTEST_SURROUND]
    return (small.max(axis=2) > (int(np.median(dark)) if dark.size else 0) + _CONTRAST).astype(np.uint8)


def _picture(small: UInt8Array, labels: np.ndarray, areas: np.ndarray) -> UInt8Array:
    """(h, w) uint8, 1 on the patches that are the picture: the large ones that are as red as tissue, or the largest."""
    large = [number + 1 for number in np.flatnonzero(areas >= _LARGE * areas.max())]
    shares = [tissue_share(small, (labels == number).astype(np.uint8)) or 0.0 for number in large]
    red = [number for number, share in zip(large, shares, strict=True) if share >= TISSUE]
    return np.isin(labels, red or [int(areas.argmax()) + 1]).astype(np.uint8)


def _without_holes(patches: UInt8Array) -> UInt8Array:
    """The patches and what they enclose, a lumen say."""
    outlines, _ = cv2.findContours(patches, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros_like(patches)
    cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED)
    return filled
