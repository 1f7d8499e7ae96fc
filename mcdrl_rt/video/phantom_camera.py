"""The phantom's endoscope: where it goes, where it looks, and what its lens lets through.

    >>> lens = make_lens((480, 640), surround=True, shape=0)
    >>> camera = Path.draw(np.random.default_rng(0)).camera(scene, time_s=2.5)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from mcdrl_rt.video.phantom_polyp import Array, Polyp
from mcdrl_rt.video.phantom_scene import TUBE_LENGTH, Camera, Scene

_FIELD_OF_VIEW = float(np.deg2rad(128))  # across the diagonal of the lens
_DETAIL_ROWS = 480  # texture and light are worked out on at most this many rows, …
_SHAPE_ROWS = 192  # … the geometry on at most this many; what is larger is scaled up


@dataclass(frozen=True, slots=True)
class Path:
    """A camera path as sums of slow waves, hence known at any time without walking there."""

    start: float
    speed: float  # lumen radii per second, net; negative is withdrawal
    phases: Array

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Path:
        """A random path."""
        speed = rng.choice([-1, 1]) * rng.uniform(0.1, 0.22)
        return cls(float(rng.uniform(0, TUBE_LENGTH)), float(speed), rng.uniform(0, 2 * np.pi, 12))

    def camera(self, scene: Scene, time_s: float) -> Camera:
        """Position and axes at ``time_s``."""

        def wave(k: int, hz: float) -> float:
            return float(np.sin(2 * np.pi * hz * time_s + self.phases[k]))

        z = (self.start + self.speed * time_s + 0.35 * wave(0, 0.09) + 0.06 * wave(1, 0.4)) % TUBE_LENGTH
        shake = 0.008 * np.array([wave(2, 1.9), wave(3, 2.3)])
        offset = np.array([0.22 * wave(4, 0.11), 0.22 * wave(5, 0.083)]) + shake
        look = np.array([0.42 * wave(6, 0.07), 0.36 * wave(8, 0.095)])
        look += 0.04 * np.array([wave(7, 0.5), wave(9, 0.6)])
        return _camera(scene, z, offset, look, 0.6 * wave(10, 0.03) + 0.05 * wave(11, 0.3))


def _camera(scene: Scene, z: float, offset: Array, look: Array, roll: float) -> Camera:
    """A camera near the centre line that looks along it, turned by ``look`` (right, down) and rolled; radians."""
    position = _point(scene, z) + np.append(offset, 0)
    ahead = _point(scene, z + 1.4) - _point(scene, z)
    forward = ahead / np.linalg.norm(ahead) + [np.tan(look[0]), np.tan(look[1]), 0]
    return Camera(position, _axes(forward, roll))


def _point(scene: Scene, z: float) -> Array:
    """(3,) the point of the centre line at z."""
    return np.array([*scene.center(z), z], dtype=float)


def _axes(forward: Array, roll: float) -> Array:
    """(3, 3) columns right, down, forward of a camera."""
    forward = forward / np.linalg.norm(forward)
    right = np.cross([np.sin(roll), np.cos(roll), 0], forward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def aim(rng: np.random.Generator, scene: Scene) -> Camera:
    """A camera that has one polyp somewhere in view, near or far, and no fold in between."""
    for _ in range(30):
        polyp: Polyp = scene.polyps[rng.integers(len(scene.polyps))]
        distance = np.clip(polyp.radius * np.exp(rng.uniform(np.log(1.0), np.log(12.0))) + 0.1, 0.25, 3.2)
        z = float(polyp.anchor[2] - distance * rng.uniform(0.4, 0.95))
        position = _point(scene, z) + np.append(rng.normal(0, 0.15, 2).clip(-0.3, 0.3), 0)
        to_polyp = polyp.bound + polyp.inward * polyp.radius - position
        if scene.clear(position, to_polyp):
            break
    ahead = _point(scene, z + 1.4) - position
    share = rng.uniform(0.45, 0.95)  # between the lumen in the middle and the polyp in the middle
    forward = share * to_polyp / np.linalg.norm(to_polyp) + (1 - share) * ahead / np.linalg.norm(ahead)
    shift = TUBE_LENGTH * np.floor(position[2] / TUBE_LENGTH)
    return Camera(position - [0, 0, shift], _axes(forward, float(rng.uniform(-np.pi, np.pi))))


@dataclass(frozen=True, slots=True)
class Lens:
    """All that depends on the frame's size and not on what is in front of the camera.

    Args:
        size: (height, width) of the frame.
        box: top, left, height, width of the part the lens lights up.
        rays: (3, h, w) unit vectors of the geometry grid in the camera's axes.
        field: (rows, cols, 3) 0…255 full scale within the field of view, with vignette, on the detail grid.
        inside: (height, width) uint8 of the box, 1 where the mask counts.
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    rays: Array
    field: Array
    inside: Array

    @property
    def detail(self) -> tuple[int, int]:
        """(rows, cols) of the detail grid."""
        return int(self.field.shape[0]), int(self.field.shape[1])


@functools.lru_cache(maxsize=16)
def make_lens(size: tuple[int, int], surround: bool, shape: int) -> Lens:
    """The lens for a frame of this size; ``shape`` is 0 octagon, 1 cropped circle, 2 square with cut corners."""
    height, width = size
    inner = min(width, round(1.25 * height)) if surround else width
    box = (0, (width - inner) // 2, height, inner)
    rows, cols = _at_most(_DETAIL_ROWS, height, inner)
    grid = _at_most(_SHAPE_ROWS, rows, cols)
    field = _field(rows, cols, shape) if surround else np.ones((rows, cols), np.float32)
    x, y = _plane(rows, cols)
    inside = (cv2.resize(field, (inner, height)) > 0.5).astype(np.uint8)
    vignette = (1 - 0.22 * (x * x + y * y) / (1 + (cols / rows) ** 2)).astype(np.float32)
    full = cv2.merge([255 * field * vignette] * 3)
    return Lens(size, box, _fisheye(*grid), full, inside)


def _at_most(limit: int, height: int, width: int) -> tuple[int, int]:
    """The size scaled down to at most ``limit`` rows and twice as many columns."""
    scale = min(1.0, limit / height, 2 * limit / width)
    return max(8, round(height * scale)), max(8, round(width * scale))


def _plane(rows: int, cols: int) -> tuple[Array, Array]:
    """Pixel centres, y in −1…1 and x to the same scale."""
    y = ((np.arange(rows) + 0.5) * 2 / rows - 1)[:, None]
    x = ((np.arange(cols) + 0.5) * 2 / cols - 1)[None] * (cols / rows)
    return x, y


def _fisheye(rows: int, cols: int) -> Array:
    """(3, rows, cols) float32 unit rays of an equidistant lens, as endoscopes have."""
    x, y = _plane(rows, cols)
    off_axis = np.hypot(x, y)
    angle = off_axis * (_FIELD_OF_VIEW / 2 / np.hypot(1, min(cols / rows, 1.4)))
    scale = np.sin(angle) / np.maximum(off_axis, 1e-6)
    return np.stack([x * scale, y * scale, np.cos(angle)]).astype(np.float32)


def _field(rows: int, cols: int, shape: int) -> Array:
    """(rows, cols) 0…1 cover of the field of view, soft over about two pixels."""
    x, y = _plane(rows, cols)
    x = np.abs(x) / (cols / rows)
    y = np.abs(y)
    edges = {
        0: np.minimum(np.minimum(0.985 - x, 0.99 - y), 1.6 - x - y),
        1: np.minimum(1.13 - np.hypot(x, y), 0.985 - y),
        2: np.minimum(np.minimum(0.96 - x, 0.96 - y), 1.72 - x - y),
    }[shape]
    return np.clip(edges * rows / 4 + 0.5, 0, 1).astype(np.float32)
