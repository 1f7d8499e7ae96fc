"""What a window shows: the picture in its right shape, scaled, and over it what the window itself has to say.

    >>> canvas = compose(frame.pixels, (720, 1280), Notes(marks=("paused",)))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from mcdrl_rt.types import Region, UInt8Array
from mcdrl_rt.video.font import font

_REGULAR, _BOLD = 400, 700
_PLATE = (12, 14, 18)
_PLATE_OPACITY = 0.8
_TEXT = (236, 238, 240)
_AMBER = (255, 176, 64)


@dataclass(frozen=True, slots=True)
class Notes:
    """What is written over the picture.

    Args:
        marks: states that stay until they are ended (``paused``), in amber.
        message: an answer to the last key; empty for none.
        table: two columns in the middle: keys, and what they do.
    """

    marks: tuple[str, ...] = ()
    message: str = ""
    table: Sequence[tuple[str, str]] = ()


def fit(picture: tuple[int, int], size: tuple[int, int], pixel_aspect: Fraction = Fraction(1)) -> Region:
    """Where a picture of (height, width) pixels lies in a window of ``size``: as large as it can be, in the middle."""
    height, width = Fraction(picture[0]), picture[1] * pixel_aspect
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    return Region((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2, *inner)


def compose(
    pixels: UInt8Array, size: tuple[int, int], notes: Notes, pixel_aspect: Fraction = Fraction(1)
) -> UInt8Array:
    """The whole window, (*size, 3) uint8: the picture, black bars, and the notes.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        size: (height, width) of the window.
        notes: written at the window's own resolution, so that they are sharp.
        pixel_aspect: width of the picture's pixels by their height.
    """
    canvas = np.zeros((*size, 3), np.uint8)
    place = fit((pixels.shape[0], pixels.shape[1]), size, pixel_aspect)
    inside = canvas[place.slices]
    if inside.shape == pixels.shape:
        inside[:] = pixels
    else:
        # down to a half, linear misses no pixel, and takes a fifth of the time
        small = 2 * place.height < pixels.shape[0] or 2 * place.width < pixels.shape[1]
        way = cv2.INTER_AREA if small else cv2.INTER_LINEAR
        cv2.resize(pixels, (place.width, place.height), dst=inside, interpolation=way)
    _write(canvas, notes)
    return canvas


def _write(canvas: UInt8Array, notes: Notes) -> None:
    height, width = int(canvas.shape[0]), int(canvas.shape[1])
    size = max(13, round(min(height / 36, width / 40)))
    top = size
    for text, color in (*((mark, _AMBER) for mark in notes.marks), (notes.message, _TEXT)):
        if text:
            top += _line(canvas, text, color, top, size) + size // 3
    if notes.table:
        _table(canvas, notes.table, size)


def _line(canvas: UInt8Array, text: str, color: tuple[int, int, int], top: int, size: int) -> int:
    """A plate with a line of text at the left edge; its height."""
    room = canvas.shape[1] - 4 * size  # what is too long for the window is written smaller
    size = max(8, min(size, size * room // max(1, _width(text, size, _BOLD))))
    height = round(1.8 * size)
    _plate(canvas, top, size, height, _width(text, size, _BOLD) + 2 * size)
    _text(canvas, text, color, 2 * size, top + _baseline(height, size), size, _BOLD)
    return height


def _table(canvas: UInt8Array, table: Sequence[tuple[str, str]], size: int) -> None:
    left, right = (
        max(_width(row[column], size, weight) for row in table) for column, weight in ((0, _BOLD), (1, _REGULAR))
    )
    pitch = round(1.8 * size)
    height, width = pitch * len(table) + size, left + right + 5 * size
    top, start = (canvas.shape[0] - height) // 2, (canvas.shape[1] - width) // 2
    _plate(canvas, top, start, height, width)
    for index, (key, meaning) in enumerate(table):
        baseline = top + size // 2 + pitch * index + _baseline(pitch, size)
        _text(canvas, key, _AMBER, start + 2 * size, baseline, size, _BOLD)
        _text(canvas, meaning, _TEXT, start + left + 3 * size, baseline, size, _REGULAR)


def _plate(canvas: UInt8Array, top: int, left: int, height: int, width: int) -> None:
    """Darken a rectangle, as much of it as is in the window."""
    patch = canvas[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]
    if patch.size:
        patch[:] = cv2.convertScaleAbs(patch, alpha=1 - _PLATE_OPACITY)
        patch += np.rint(np.array(_PLATE) * _PLATE_OPACITY).astype(np.uint8)


def _text(
    canvas: UInt8Array, text: str, color: tuple[int, int, int], left: int, baseline: int, size: int, weight: int
) -> None:
    cv2.putText(canvas, text, (left, baseline), color, font(), size, weight)


def _baseline(height: int, size: int) -> int:
    return round(0.5 * height + 0.36 * size)


def _width(text: str, size: int, weight: int) -> int:
    return int(cv2.getTextSize((0, 0), text, (0, 0), font(), size, weight)[2])
