"""What the endoscopist sees: lesions tinted and outlined, and a line (the HUD) that says what the model is doing.

Only lesions, their outlines and the HUD's strip are touched; all other pixels stay as the camera gave them.

    >>> shown = draw(frame.picture, segmentation, colors=spec.colors, hud=Hud(model=spec.name, age_ms=40.0))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar, cast

import cv2
import numpy as np

from mcdrl_rt.types import Native, Picture, Region, Segmentation, UInt8Array, size_of
from mcdrl_rt.video.font import font
from mcdrl_rt.video.planes import Layer, layers

Color = tuple[int, int, int]
P = TypeVar("P", bound=UInt8Array | Native)

_REGULAR, _BOLD = 400, 700
_PLATE: Color = (12, 14, 18)
_PLATE_OPACITY = 0.8
_TEXT: Color = (236, 238, 240)
_FAINT: Color = (184, 190, 198)
_STALE: Color = (255, 176, 64)
_MAX_ROWS = 2
_STALE_AGE_MS = 250.0  # a mask this old has come apart from what is on the screen


@dataclass(frozen=True)
class Hud:
    """What the line at the bottom edge says besides what the segmentation itself knows.

    Args:
        model: name of the model.
        age_ms: how long before this frame the shown mask's frame was captured; None leaves it out.
        note: a word on the state of the stream (``paused``, ``no signal``), shown in amber.
    """

    model: str
    age_ms: float | None = None
    note: str = ""


def draw(
    picture: P,
    segmentation: Segmentation,
    *,
    colors: Sequence[Color],
    hud: Hud | None = None,
    opacity: float = 0.35,
) -> P:
    """Draw the lesions, and the line at the bottom edge if there is a ``hud``.

    Args:
        picture: (H, W, 3) uint8, RGB, or planes; left alone.
        segmentation: its labels are (H, W), the frame's own size.
        colors: RGB of each class, in the order of ``segmentation.classes``.
        hud: what to write besides; None writes nothing at all.
        opacity: of the tint inside a lesion, 0…1; the outline is always opaque.

    Returns:
        A new one of the same kind.
    """
    out = cast(P, picture.copy())
    lesions, thickness = list(_lesions(segmentation)), max(2, round(min(segmentation.labels.shape) / 400))
    for label, box, mask in lesions:
        for layer in layers(out, colors[label - 1]):
            rows, columns = (slice(side.start // layer.step, side.stop // layer.step) for side in box.slices)
            _tint(layer.values[rows, columns], layer.color, opacity, mask[:: layer.step, :: layer.step])
    for label, box, mask in lesions:
        _outline(layers(out, colors[label - 1]), box, mask, thickness)
    if hud is not None:
        draw_hud(out, segmentation, hud, colors)
    return out


def draw_hud(out: Picture, segmentation: Segmentation | None, hud: Hud, colors: Sequence[Color]) -> None:
    """Write the line at the bottom edge into ``out``, for ``draw`` and for who drew the lesions otherwise.

    Without a segmentation it names the model and gives the note.
    """
    if segmentation is None:
        _write(out, [_Item(hud.model, color=_FAINT, importance=2), *_note(hud)])
    else:
        _write(out, _items(segmentation, hud, colors))


def _lesions(segmentation: Segmentation) -> Iterator[tuple[int, Region, UInt8Array]]:
    """Each class that is present: its label, a box around it, and its mask (0 or 255) inside the box.

    The box's edges are even, but for those at the edge of an odd frame: planes of colour have half the pixels.
    """
    rows, columns = segmentation.labels.shape
    for label, box in segmentation.boxes.items():
        top, left = box.top // 2 * 2, box.left // 2 * 2
        bottom, right = (-(-last // 2) * 2 for last in (box.top + box.height, box.left + box.width))
        even = Region(top, left, min(rows, bottom) - top, min(columns, right) - left)
        yield label, even, segmentation.mask(label, even)


def _tint(patch: UInt8Array, color: Sequence[float], opacity: float, mask: UInt8Array | None = None) -> None:
    """Blend a colour into a patch in place, where the mask is set."""
    blended = cv2.LUT(patch, _blends(tuple(color), opacity))
    if mask is None:
        patch[:] = blended
    else:
        cv2.copyTo(blended, mask, patch)


@lru_cache(maxsize=64)
def _blends(color: tuple[float, ...], opacity: float) -> UInt8Array:
    """(1, 256, channels): what each grey level becomes with a colour over it."""
    share = np.float32(opacity)
    blends = np.add.outer(np.arange(256) * (1 - share), np.asarray(color, np.float32) * share)
    return np.rint(blends).astype(np.uint8)[None]


def _outline(on: Sequence[Layer], box: Region, mask: UInt8Array, thickness: int) -> None:
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(box.left, box.top))
    # a mask comes from a coarse grid: half a line's width of freedom hides its steps, and draws six times faster
    smooth = [cv2.approxPolyDP(contour, thickness / 2, closed=True) for contour in contours]
    for values, step, color in on:
        # with two binary places where there are half the pixels: the middle of pixel x is at x / 2 − 1 / 4 there, but
        # of the first, where OpenCV would draw nothing, at 0
        places, lines = (0, smooth) if step == 1 else (2, [np.maximum(2 * contour - 1, 0) for contour in smooth])
        cv2.polylines(values, lines, True, color, -(-thickness // step), cv2.LINE_AA, places)


@dataclass(frozen=True)
class _Item:
    """One entry of the HUD: text, and the text it keeps room for, so that changing digits move nothing."""

    text: str
    room: str = ""
    color: Color = _TEXT
    weight: int = _REGULAR
    swatch: Color | None = None
    filled: bool = True
    importance: int = 9  # the least important goes first when the frame is narrow


def _items(segmentation: Segmentation, hud: Hud, colors: Sequence[Color]) -> list[_Item]:
    """What the HUD says, from left to right; what changes its width comes last."""
    items = []
    for label, name in enumerate(segmentation.classes, start=1):
        seen = label in segmentation.boxes
        color, weight = (_TEXT, _BOLD) if seen else (_FAINT, _REGULAR)
        items.append(_Item(name, color=color, weight=weight, swatch=colors[label - 1], filled=seen))
    items.append(_Item(hud.model, color=_FAINT, importance=2))
    items.append(_Item(f"{segmentation.latency_ms:.1f} ms", room="000.0 ms", importance=8))
    if hud.age_ms is not None:
        color = _STALE if hud.age_ms > _STALE_AGE_MS else _TEXT
        items.append(_Item(f"age {hud.age_ms:.0f} ms", room="age 000 ms", color=color, importance=7))
    items += _note(hud)
    for rank, (name, share) in enumerate(segmentation.top_confounders(3)):
        items.append(_Item(f"{name} {share:.0%}", room=f"{name} 00%", color=_FAINT, importance=6 - rank))
    return items


def _note(hud: Hud) -> list[_Item]:
    return [_Item(hud.note, color=_STALE, weight=_BOLD, importance=10)] if hud.note else []


def _write(out: Picture, items: list[_Item]) -> None:
    """The HUD, on a dark plate along the bottom edge: one line, or two where the frame is narrow."""
    height, width = size_of(out)
    size = _font_size(height, width)
    rows = _rows(items, size, width)
    pitch = round(1.55 * size)
    top = height - pitch * len(rows)  # above the frame, where that is low
    for values, step, color in layers(out, _PLATE):
        plate = values[max(0, top) // 2 * 2 // step :]
        if plate.ndim == 3:  # what shines through is grey: there is colour only where it is meant
            plate[:] = cv2.cvtColor(cv2.cvtColor(plate, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        _tint(plate, color, _PLATE_OPACITY if step == 1 else 1)
    for number, row in enumerate(rows):
        left, baseline = size, top + number * pitch + round(0.5 * pitch + 0.36 * size)
        for item in row:
            _put(out, item, left, baseline, size)
            left += _width(item, size) + size


def _rows(items: list[_Item], size: int, width: int) -> list[list[_Item]]:
    """Items broken into lines; beyond two, the least important item goes."""
    rows: list[list[_Item]] = [[]]
    used = size
    for item in items:
        step = _width(item, size) + size
        if rows[-1] and used + step > width:
            rows.append([])
            used = size
        rows[-1].append(item)
        used += step
    if len(rows) <= _MAX_ROWS:
        return rows
    least = min(range(len(items)), key=lambda i: items[i].importance)
    return _rows(items[:least] + items[least + 1 :], size, width)


def _put(out: Picture, item: _Item, left: int, baseline: int, size: int) -> None:
    if item.swatch is not None:
        side = round(0.62 * size)
        for values, step, color in layers(out, item.swatch):
            corners = (left // step, (baseline - side) // step), ((left + side) // step, baseline // step)
            cv2.rectangle(values, *corners, color, -1 if item.filled else max(1, size // 12 // step))
        left += size
    whole, *halves = layers(out, item.color)
    cv2.putText(whole.values, item.text, (left, baseline), whole.color, font(), size, item.weight)
    if halves and item.color == _STALE:  # the others are as grey as the plate
        _color(halves, item, left, baseline, size)


def _color(halves: Sequence[Layer], item: _Item, left: int, baseline: int, size: int) -> None:
    """Colour where there are letters, on planes of half the pixels: at half their size, letters would lie elsewhere."""
    top, start = max(0, baseline - size) // 2 * 2, left // 2 * 2
    width = _text_width(item.text, size, item.weight)
    letters = np.zeros((3 * size // 4 * 2, width // 2 * 2 + 4), np.uint8)
    cv2.putText(letters, item.text, (left - start, baseline - top), (255,), font(), size, item.weight)
    half = cv2.resize(letters, (letters.shape[1] // 2, letters.shape[0] // 2), interpolation=cv2.INTER_AREA)
    for values, step, color in halves:
        patch = values[top // step :, start // step :][: half.shape[0], : half.shape[1]]
        if patch.size:  # a frame may be narrower than this
            share = half[: patch.shape[0], : patch.shape[1]] * np.float32(1 / 255)
            patch[:] = cv2.blendLinear(patch, np.full_like(patch, color), 1 - share, share)


def _font_size(height: int, width: int) -> int:
    """Pixels; read from across the room at any resolution, and never so small that it cannot be read at all."""
    return max(12, round(min(height / 42, width / 44)))


def _width(item: _Item, size: int) -> int:
    text = _text_width(item.room or item.text, size, item.weight)
    return text + (0 if item.swatch is None else size)


@lru_cache(maxsize=256)
def _text_width(text: str, size: int, weight: int) -> int:
    _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), font(), size, weight)
    return width
