"""Imaging conditions made to order: what each confounder of the dictionary looks like, drawn on a real picture.

The dictionary names conditions ("motion blur", "narrow-band imaging" …), but no data set at hand says which picture
shows which. Applying a condition ourselves gives pictures whose condition is known: to augment with, to caption for
contrastive pretraining, and to test whether the confounder readout reads.

    >>> blurred, labels = apply_condition("motion blur", np.random.default_rng(0), pixels, labels)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from mcdrl_rt.errors import SpecError
from mcdrl_rt.types import FloatArray, UInt8Array

PLAIN = "white-light imaging"  # what a picture shows to which nothing was done
NARROW = "narrow-band imaging"
# the phantom's sites as conditions of the dictionary
PHANTOM_CONDITIONS: dict[str, tuple[str, ...]] = {
    "white-light": (PLAIN,),
    "narrow-band": (NARROW,),
    "dim": ("dim lighting", "uneven lighting"),
    "blur": ("defocus", "bubbles"),
    "blood": ("blood", "mucus"),
}
Picture = tuple[UInt8Array, UInt8Array]  # pixels (H, W, 3) RGB and labels (H, W)


def apply_condition(name: str, rng: np.random.Generator, pixels: UInt8Array, labels: UInt8Array) -> Picture:
    """Draw the condition ``name`` at a random strength.

    Args:
        name: one of ``mcdrl_rt.model.prompts.CONFOUNDERS``.
        rng: decides strength and place.
        pixels: (H, W, 3) uint8, RGB; left alone.
        labels: (H, W) uint8; moves with the pixels where the condition is one of distance or angle.

    Raises:
        SpecError: nothing is known of this condition.
    """
    if name in _OPTICAL:
        return _OPTICAL[name](rng, pixels), labels
    if name in _GEOMETRIC:
        matrix = _GEOMETRIC[name](rng, pixels.shape[:2], labels)
        return _warp(pixels, labels, matrix)
    raise SpecError(f"no picture of the condition {name!r}; known: {', '.join(sorted(CONDITIONS))}")


def draw_conditions(names: Sequence[str], rng: np.random.Generator, rate: float) -> tuple[str, ...]:
    """Which conditions to apply to a picture: none, or with probability ``rate`` one, now and then two of ``names``."""
    choices = [name for name in names if name in DRAWABLE]
    count = int(rng.random() < rate) + int(rng.random() < rate * 0.2)
    return tuple(str(name) for name in rng.choice(choices, size=min(count, len(choices)), replace=False))


def shown_conditions(shown: Sequence[str], names: Sequence[str]) -> FloatArray:
    """Which of the dictionary's ``names`` (M,) a picture shows: each of ``shown`` 1; where none is, plain imaging.

    In narrow-band light nothing is plain.
    """
    known = [name for name in shown if name in names] or [PLAIN]
    if NARROW in known:
        known = [name for name in known if name != PLAIN]
    return np.array([float(name in known) for name in names], np.float32)


def _to_uint8(light: FloatArray) -> UInt8Array:
    return np.asarray(np.clip(light, 0, 255), np.uint8)


def _scaled(pixels: UInt8Array, gain: float | FloatArray) -> UInt8Array:
    return _to_uint8(pixels * np.float32(1) * gain)


def _motion_blur(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    length = int(max(pixels.shape) * rng.uniform(0.04, 0.1)) | 1
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D((length / 2 - 0.5, length / 2 - 0.5), rng.uniform(0, 180), 1)
    kernel = cv2.warpAffine(kernel, turn, (length, length))
    return np.asarray(cv2.filter2D(pixels, -1, kernel / kernel.sum()), np.uint8)


def _defocus(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    radius = max(2, round(max(pixels.shape) * rng.uniform(0.010, 0.025)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2).astype(np.float32)
    return np.asarray(cv2.filter2D(pixels, -1, disc / disc.sum()), np.uint8)


def _dim(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    gain = rng.uniform(0.22, 0.5)
    noise = rng.normal(0, 4, pixels.shape).astype(np.float32)
    return _to_uint8(pixels * np.float32(gain) + noise)


def _bright(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    return _scaled(pixels, rng.uniform(1.4, 2.1))


def _narrow_band(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    """Light of 415 and 540 nm only: blood dark brown, mucosa pale cyan; the processor shows 540 as red."""
    red, green, blue = (pixels[..., i] * np.float32(1) for i in range(3))
    mucosa, deep = 0.4 * green + 0.6 * blue, 0.25 * red + 0.75 * green
    picture = np.stack([deep * rng.uniform(0.6, 0.85), mucosa * rng.uniform(1.0, 1.2), mucosa * 1.05], axis=2)
    return _to_uint8(picture * rng.uniform(0.9, 1.3))


def _uneven(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    height, width = pixels.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    slope = (np.cos(angle) * columns + np.sin(angle) * rows) / 1.4  # −1…1
    gain = 0.75 + rng.uniform(0.5, 0.8) * slope
    return _scaled(pixels, np.clip(gain, 0.12, 2.0)[..., None].astype(np.float32))


def _clouds(rng: np.random.Generator, size: tuple[int, int], share: float, grain: float = 0.06) -> FloatArray:
    """Smooth blobs (H, W) in 0…1 over about ``share`` of the picture."""
    noise = cv2.GaussianBlur(rng.normal(size=size).astype(np.float32), (0, 0), max(2.0, grain * max(size)))
    edge = np.quantile(noise, 1 - share)
    return np.asarray(np.clip((noise - edge) / (noise.std() * 0.4), 0, 1), np.float32)


def _blend(pixels: UInt8Array, cover: FloatArray, color: tuple[float, float, float], opacity: float) -> UInt8Array:
    """Cover pixels with a translucent film; what lies under it still shades it."""
    shade = cv2.GaussianBlur(pixels, (0, 0), 3).mean(axis=2, keepdims=True) / np.float32(140)
    film = np.asarray(color, np.float32) * np.clip(shade, 0.25, 1.5)
    alpha = np.float32(opacity) * cover[..., None]
    return _to_uint8(pixels * (1 - alpha) + film * alpha)


def _blood(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    color = (rng.uniform(110, 170), rng.uniform(5, 25), rng.uniform(5, 25))
    return _blend(pixels, _clouds(rng, pixels.shape[:2], rng.uniform(0.1, 0.3)), color, rng.uniform(0.65, 0.9))


def _mucus(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    color = (rng.uniform(200, 225), rng.uniform(190, 215), rng.uniform(110, 160))
    return _blend(pixels, _clouds(rng, pixels.shape[:2], rng.uniform(0.12, 0.3), 0.04), color, rng.uniform(0.5, 0.75))


def _bubbles(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    picture = pixels.copy()
    side = max(pixels.shape)
    heart = rng.uniform(0.2, 0.8, 2) * pixels.shape[1::-1]
    for _ in range(int(rng.integers(25, 60))):
        x, y = (int(v) for v in rng.normal(heart, 0.16 * side))
        radius = max(2, int(side * rng.uniform(0.008, 0.03)))
        cv2.circle(picture, (x, y), radius, (225, 220, 205), 1, cv2.LINE_AA)
        cv2.circle(picture, (x - radius // 3, y - radius // 3), max(1, radius // 4), (255, 255, 255), -1, cv2.LINE_AA)
    return np.asarray(cv2.addWeighted(picture, 0.75, pixels, 0.25, 0), np.uint8)


def _specular(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    glare = np.zeros(pixels.shape[:2], np.float32)
    side = max(pixels.shape)
    for _ in range(int(rng.integers(12, 40))):
        centre = tuple(int(v) for v in rng.uniform(0.1, 0.9, 2) * pixels.shape[1::-1])
        axes = tuple(max(1, int(side * rng.uniform(0.004, 0.022))) for _ in range(2))
        cv2.ellipse(glare, centre, axes, rng.uniform(0, 180), 0, 360, 1.0, -1, cv2.LINE_AA)
    halo = cv2.GaussianBlur(glare, (0, 0), side * 0.01)
    return _to_uint8(pixels + 255 * np.maximum(glare, halo)[..., None])


def _artifacts(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    """Fields of two moments combed together, or a picture compressed too hard."""
    if rng.random() < 0.5:
        shift = int(max(pixels.shape) * rng.uniform(0.015, 0.04)) + 1
        combed = pixels.copy()
        combed[1::2] = np.roll(pixels, shift, axis=1)[1::2]
        return combed
    quality = int(rng.integers(4, 12))
    _, coded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(coded, cv2.IMREAD_UNCHANGED), np.uint8)


def _lesion_centre(size: tuple[int, int], labels: UInt8Array) -> tuple[float, float]:
    """(x, y) of what is looked at: the lesion, or the middle."""
    found = cv2.moments(labels, binaryImage=True)
    if not found["m00"]:
        return size[1] / 2, size[0] / 2
    return found["m10"] / found["m00"], found["m01"] / found["m00"]


def _zoom(size: tuple[int, int], centre: tuple[float, float], scale: float) -> FloatArray:
    """Scale about ``centre``, which moves half of the way to the middle of the picture."""
    target = ((centre[0] + size[1] / 2) / 2, (centre[1] + size[0] / 2) / 2)
    shift = (target[0] - scale * centre[0], target[1] - scale * centre[1])
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]], np.float32)


def _close_up(rng: np.random.Generator, size: tuple[int, int], labels: UInt8Array) -> FloatArray:
    return _zoom(size, _lesion_centre(size, labels), rng.uniform(1.6, 2.4))


def _tangential(rng: np.random.Generator, size: tuple[int, int], labels: UInt8Array) -> FloatArray:
    """The picture's plane tilted away at one side."""
    height, width = size
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    near, far = rng.uniform(0.0, 0.1), rng.uniform(0.28, 0.4)
    tilted = np.array(
        [(far, 0.15), (1 - far, 0.15), (1 + near, 1), (-near, 1)],  # in shares of width and height
        np.float32,
    )
    tilted *= np.array([width, height], np.float32)
    turn = int(rng.integers(4))
    return np.asarray(cv2.getPerspectiveTransform(np.roll(corners, turn, 0), np.roll(tilted, turn, 0)), np.float32)


def _warp(pixels: UInt8Array, labels: UInt8Array, matrix: FloatArray) -> Picture:
    size = (pixels.shape[1], pixels.shape[0])
    edge = cv2.BORDER_REFLECT_101  # a black one the runtime would cut away, and undo what was drawn
    warped = cv2.warpPerspective(pixels, matrix, size, flags=cv2.INTER_LINEAR, borderMode=edge)
    moved = cv2.warpPerspective(labels, matrix, size, flags=cv2.INTER_NEAREST, borderMode=edge)
    return np.asarray(warped, np.uint8), np.asarray(moved, np.uint8)


_OPTICAL: dict[str, Callable[[np.random.Generator, UInt8Array], UInt8Array]] = {
    "motion blur": _motion_blur,
    "dim lighting": _dim,
    NARROW: _narrow_band,
    "mucus": _mucus,
    "uneven lighting": _uneven,
    PLAIN: lambda rng, pixels: pixels,
    "blood": _blood,
    "bright lighting": _bright,
    "image artifacts": _artifacts,
    "specular reflection": _specular,
    "defocus": _defocus,
    "bubbles": _bubbles,
}
_GEOMETRIC: dict[str, Callable[[np.random.Generator, tuple[int, int], UInt8Array], FloatArray]] = {
    "a close-up view": _close_up,
    "a tangential view": _tangential,
}
CONDITIONS: tuple[str, ...] = (*_OPTICAL, *_GEOMETRIC)
"""All that can be drawn. A distant view cannot: what is black around a shrunk picture the runtime cuts away, and a
picture that is mirrored there is no distant one."""
DRAWABLE = frozenset(CONDITIONS) - {PLAIN}
"""Those that change a picture."""
