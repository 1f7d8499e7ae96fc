"""Polyps of the phantom: ellipsoids fused with one another, as signed distances to march rays through.

No tube, no camera, no colour beyond each polyp's own tint. Points are (3, N) float32 arrays in lumen radii.

    >>> polyp = grow_polyp(np.random.default_rng(0), anchor, inward)   # where it sits, and its way into the lumen
    >>> polyp.distance(points)                                         # (N,), negative inside
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # shapes and dtypes are in the docstrings

KINDS = ("flat", "sessile", "pedunculated")


@dataclass(frozen=True, slots=True)
class Ellipsoid:
    """An ellipsoid.

    Args:
        center: (3,).
        frame: (3, 3) unit rows, its axes.
        radii: (3,) half-widths along them.
        to_unit, weights: (3, 3) map to the unit sphere and (2, 3) weights of its squares; see ``make``.
    """

    center: Array
    frame: Array
    radii: Array
    to_unit: Array
    weights: Array

    @classmethod
    def make(cls, center: Array, frame: Array, radii: Array) -> Ellipsoid:
        """From centre, axes and half-widths, all as float32."""
        center, frame, radii = (np.asarray(each, np.float32) for each in (center, frame, radii))
        weights = np.stack([np.ones(3, np.float32), radii**-2])
        return cls(center, frame, radii, frame / radii[:, None], weights)

    def distance(self, points: Array) -> Array:
        """First-order signed distance (N,) to (3, N) points, exact on the surface."""
        unit = self.to_unit @ (points - self.center[:, None])
        unit *= unit
        level, steepness = np.sqrt(self.weights @ unit + np.float32(1e-9))
        return level * (level - 1) / steepness

    def slope(self, points: Array) -> Array:
        """Unit gradient (3, N) of ``distance``."""
        metric = (self.frame.T / self.radii**2) @ self.frame
        slope = metric @ (points - self.center[:, None])
        return slope / np.sqrt((slope * slope).sum(axis=0) + np.float32(1e-9))

    def entry(self, origin: Array, rays: Array, margin: float) -> Array:
        """Depth (N,) at which rays enter the ellipsoid widened by ``margin``; infinite where they miss it."""
        to_unit = self.frame / (self.radii + np.float32(margin))[:, None]
        ray, start = to_unit @ rays, to_unit @ (origin - self.center)
        square = (ray * ray).sum(axis=0)
        half = -(start @ ray) / square
        room = half * half - (start @ start - 1) / square
        entry = np.maximum(half - np.sqrt(np.maximum(room, 0)), np.float32(0.02))
        return np.where((room > 0) & (half > 0), entry, np.float32(np.inf))


@dataclass(frozen=True, slots=True)
class Polyp:
    """A union of ellipsoids fused with each other and with the wall.

    Args:
        anchor: (3,) where it sits on the wall.
        inward: (3,) unit normal of the wall there, into the lumen.
        radius: largest half-width, in lumen radii.
        bound, reach: center and radius of a sphere outside which it changes nothing.
        blend: width of the fillet to the wall.
        parts: the ellipsoids.
        tint: (3,) albedo of its surface before the site's light.
        pits: 0…1, how strongly the pit pattern shows.
    """

    anchor: Array
    inward: Array
    radius: float
    bound: Array
    reach: float
    blend: float
    parts: tuple[Ellipsoid, ...]
    tint: Array
    pits: float

    def distance(self, points: Array) -> Array:
        """Signed distance (N,) to (3, N) points, negative inside."""
        total = self.parts[0].distance(points)
        for part in self.parts[1:]:
            total = fuse(total, part.distance(points), 0.35 * self.radius)
        return total

    def slope(self, points: Array) -> Array:
        """Gradient (3, N) of ``distance``."""
        total, slope = self.parts[0].distance(points), self.parts[0].slope(points)
        for part in self.parts[1:]:
            other = part.distance(points)
            slope = fuse_slopes(total, slope, other, part.slope(points), 0.35 * self.radius)
            total = fuse(total, other, 0.35 * self.radius)
        return slope

    def entry(self, origin: Array, rays: Array) -> Array:
        """Depth (N,) at which (3, N) rays come near enough to be changed; infinite where they never do."""
        return np.minimum.reduce([part.entry(origin, rays, self.blend) for part in self.parts])

    def shifted(self, dz: float) -> Polyp:
        """The polyp's image one or more periods along the tube."""
        step = np.array([0, 0, dz], np.float32)
        parts = tuple(dataclasses.replace(part, center=part.center + step) for part in self.parts)
        return dataclasses.replace(self, anchor=self.anchor + step, bound=self.bound + step, parts=parts)


def fuse(a: Array, b: Array, width: float) -> Array:
    """Smooth minimum of two distances: the polynomial one, with a fillet of ``width``."""
    fillet = np.maximum(np.float32(width) - np.abs(a - b), 0)
    return np.minimum(a, b) - fillet * fillet * np.float32(0.25 / width)


def fuse_slopes(
    a: Array, a_slope: Array, b: Array, b_slope: Array, width: float
) -> Array:
    """Gradient of ``fuse(a, b, width)`` from the gradients of both."""
    share = np.clip(np.float32(0.5) + (b - a) * np.float32(0.5 / width), 0, 1)  # 1 where a is nearer
    return b_slope + (a_slope - b_slope) * share


def grow_polyp(rng: np.random.Generator, anchor: Array, inward: Array) -> Polyp:
    """A polyp at ``anchor`` (3,) on the wall, along ``inward`` (3,): one of ``KINDS``, with one to three lobes."""
    kind = str(rng.choice(KINDS, p=[0.25, 0.5, 0.25]))
    size = float(np.exp(rng.uniform(np.log(0.1), np.log(0.32))))
    lift, flatness = {"flat": (0.0, 0.36), "sessile": (0.22, 0.72), "pedunculated": (1.25, 0.9)}[kind]
    side = np.cross(inward, rng.normal(size=3))
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(inward, side), inward])  # rows are the polyp's own axes
    stretch = rng.uniform(0.72, 1.0)
    head = anchor + inward * lift * size
    parts = [(head, size, size * stretch, size * flatness)]
    if kind == "pedunculated":
        parts.append((anchor + inward * 0.6 * size, 0.38 * size, 0.38 * size, 1.1 * size))
    for _ in range(rng.integers(0, 3)):
        turn, share = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 0.7)
        shift = (np.cos(turn) * frame[0] + np.sin(turn) * frame[1]) * 0.6 * size
        parts.append((head + shift, share * size, share * size, share * size * flatness))
    solid = tuple(Ellipsoid.make(part[0], frame, np.array(part[1:])) for part in parts)
    tints = np.array([[0.9, 0.28, 0.2], [0.95, 0.46, 0.33], [0.8, 0.2, 0.15], [1.0, 0.62, 0.44]])
    middle = anchor + inward * 0.5 * lift * size
    tint = tints[rng.integers(len(tints))] * rng.uniform(0.92, 1.06, 3)
    return Polyp(
        anchor.astype(np.float32), inward.astype(np.float32), size, middle.astype(np.float32),
        size * (0.5 * lift + 1.45), 0.3 * size, solid, tint.astype(np.float32), float(rng.uniform(0.15, 1)),
    )  # fmt: skip
