"""The solid part of the phantom: a bent, folded tube with polyps on its wall, and rays that find them.

Geometry only, in NumPy and OpenCV: no colour, no site, no video (those are ``phantom``). One unit of length is the
radius of the lumen; the tube runs along z and repeats after ``TUBE_LENGTH``, so a camera may travel for ever.
Points are (3, N) or (3, h, w) float32 arrays.

    >>> scene = build_scene(seed=1, polyps=4)
    >>> surface = scene.trace(rays, camera)          # rays: (3, h, w) unit vectors in the camera's own axes
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mcdrl_rt.video.phantom_noise import tileable_noise
from mcdrl_rt.video.phantom_polyp import Array, Polyp, fuse, fuse_slopes, grow_polyp

TUBE_LENGTH = 12.0  # z period, in lumen radii
FAR = 9.0  # beyond this the lumen is black anyway
_ROWS, _COLS = 256, 1024  # wall samples around the tube, and along one period
_BEHIND = 2.0  # wide-angle rays look back past the camera; keeps texture columns positive
_LIPSCHITZ = 0.55  # folds are steeper than 45°, so the radial gap overstates the distance to them
_MASK_SOFTNESS = 0.03  # half-width of the membership ramp: a silhouette then falls midway between two rays


@dataclass(frozen=True, slots=True)
class Camera:
    """Where the endoscope is and looks.

    Args:
        position: (3,) float64, in tube coordinates, z in [0, TUBE_LENGTH).
        axes: (3, 3) float64, columns right, down and forward.
    """

    position: Array
    axes: Array


@dataclass(frozen=True, slots=True)
class Surface:
    """What each ray of an (h, w) grid meets.

    Args:
        local: (3, h, w) hit point in coordinates that follow the tube: across, across, along.
        normal: (3, h, w) unit normal towards the lumen.
        depth: (h, w) distance from the camera.
        crease: (h, w) 0…1, how deep the point lies in a furrow (ambient occlusion).
        inside: (h, w) −1…1; a ray belongs to a polyp where this is positive.
        owner: (h, w) uint8, 1 + index of the nearest polyp, 0 where none is near.
    """

    local: Array
    normal: Array
    depth: Array
    crease: Array
    inside: Array
    owner: Array


@dataclass(frozen=True, slots=True)
class Scene:
    """A tube and its polyps; build it with ``build_scene``.

    Args:
        wall: (256, columns, 4) radius, its slope around and along the tube, and crease depth.
        radius: (256, columns) the first of them alone: marching asks for nothing else, and asks often.
        bends: per transverse axis, (amplitude, angular frequency, phase) of the centre line.
        polyps: sorted by nothing in particular, anchors with z in [0, TUBE_LENGTH).
    """

    wall: Array
    radius: Array
    bends: tuple[tuple[float, float, float], tuple[float, float, float]]
    polyps: tuple[Polyp, ...]

    def center(self, z: Array | float) -> tuple[Array, Array]:
        """x and y of the tube's centre line at z."""
        (a, f, p), (b, g, q) = self.bends
        return a * np.sin(f * z + p), b * np.sin(g * z + q)

    def slope(self, z: Array | float) -> tuple[Array, Array]:
        """dx/dz and dy/dz of the centre line at z."""
        (a, f, p), (b, g, q) = self.bends
        return a * f * np.cos(f * z + p), b * g * np.cos(g * z + q)

    def straighten(self, points: Array) -> tuple[Array, Array, Array, Array]:
        """x, y, radius and angle (0…2π) of points about the centre line."""
        cx, cy = self.center(points[2])
        x, y = points[0] - cx, points[1] - cy
        radius, angle = cv2.cartToPolar(x, y)
        return x, y, radius.reshape(x.shape), angle.reshape(x.shape)

    def sample(self, angle: Array, z: Array) -> Array:
        """(h, w, 4) wall samples at (h, w) angle and z."""
        return self._lookup(self.wall, angle, z)

    @staticmethod
    def _lookup(texture: Array, angle: Array, z: Array) -> Array:
        """Bilinear samples of a wall texture."""
        rows = angle * np.float32(_ROWS / (2 * np.pi))
        cols = (z + np.float32(_BEHIND)) * np.float32(_COLS / TUBE_LENGTH)
        return cv2.remap(texture, cols, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def gap(self, points: Array) -> Array:
        """Radial distance from (3, h, w) points to the wall, positive inside the lumen."""
        _, _, radius, angle = self.straighten(points)
        return self._lookup(self.radius, angle, points[2]) - radius

    def clear(self, position: Array, way: Array) -> bool:
        """Whether nothing of the wall stands between ``position`` and ``position + way``."""
        steps = np.linspace(0, 1, 24)
        points = (position[:, None] + way[:, None] * steps).astype(np.float32)
        return bool(self.gap(points[:, None]).min() > 0)

    def near(self, camera: Camera) -> list[Polyp]:
        """Polyps (moved by whole periods) that could be seen from here, in the order of ``polyps``."""
        found = []
        for polyp in self.polyps:
            shift = TUBE_LENGTH * np.ceil((camera.position[2] - 1.0 - polyp.anchor[2]) / TUBE_LENGTH)
            moved = polyp.shifted(float(shift))
            if moved.anchor[2] - camera.position[2] < 4.5:
                found.append(moved)
        return found

    def trace(self, rays: Array, camera: Camera) -> Surface:
        """Follow (3, h, w) unit rays, given in the camera's axes, to what they meet."""
        rotated = _turn(camera.axes.astype(np.float32), rays)
        depth = self._march_all(rotated, camera, self._start(rotated, camera))
        found = _Found(self, rotated, camera, depth)
        for index, polyp in enumerate(self.near(camera)):
            found.add(polyp, index + 1)
        return found.surface()

    def _start(self, rays: Array, camera: Camera) -> Array:
        """A depth that is surely in front of the wall, from a coarse march over every fourth ray."""
        height, width = rays.shape[1:]
        coarse = np.ascontiguousarray(rays[:, ::4, ::4])
        depth = self._march(coarse, camera, np.full(coarse.shape[1:], 0.02, np.float32), 36)
        safe = cv2.erode(depth, np.ones((3, 3), np.uint8)) * np.float32(0.97) - np.float32(0.02)
        grown = cv2.resize(safe, (4 * safe.shape[1], 4 * safe.shape[0]), interpolation=cv2.INTER_NEAREST)
        return np.ascontiguousarray(grown[:height, :width])

    def _march(self, rays: Array, camera: Camera, depth: Array, steps: int) -> Array:
        """Step along every ray towards the wall."""
        origin = camera.position.astype(np.float32)[:, None, None]
        for _ in range(steps):
            depth = depth + np.float32(_LIPSCHITZ) * self.gap(origin + rays * depth)
            np.clip(depth, 0.02, FAR, out=depth)
        return depth

    def _march_all(self, rays: Array, camera: Camera, start: Array) -> Array:
        """A few steps for all rays, then more for ever fewer: those (at silhouettes) that have not arrived."""
        depth = self._march(rays, camera, start, 4)
        origin = camera.position.astype(np.float32)[:, None, None]
        flat, rows, some, now = depth.reshape(-1), np.arange(depth.size).reshape(depth.shape), rays, depth
        for steps in (6, 14):
            rest = rows[self.gap(origin + some * now) > np.float32(0.007) * now]
            if len(rest) == 0:
                break
            rows = _in_rows(rest)
            some = np.take(rays.reshape(3, -1), rows, axis=1)
            now = self._march(some, camera, flat[rows], steps)
            flat[rows] = now
        return depth


class _Found:
    """Hit points being collected: the wall first, then the rays that pass near a polyp."""

    def __init__(self, scene: Scene, rays: Array, camera: Camera, depth: Array) -> None:
        self.scene, self.rays = scene, rays
        self.origin = camera.position.astype(np.float32)
        self.depth = depth
        self.points, self.normal, self.crease = self._wall(rays, depth)
        self.inside = np.full(depth.shape, -1, np.float32)
        self.owner = np.zeros(depth.shape, np.uint8)

    def _wall(self, rays: Array, depth: Array) -> tuple[Array, Array, Array]:
        """Points, unit wall normals and crease depth of (3, h, w) rays at these depths."""
        points = self.origin[:, None, None] + rays * depth
        x, y, radius, angle = self.scene.straighten(points)
        wall = self.scene.sample(angle, points[2])
        radius = np.maximum(radius, np.float32(1e-3))
        cos, sin = x / radius, y / radius
        around = wall[..., 1] / radius
        sx, sy = self.scene.slope(points[2])
        normal = np.empty_like(points)
        normal[0] = -cos - around * sin
        normal[1] = -sin + around * cos
        normal[2] = wall[..., 2] - normal[0] * sx - normal[1] * sy
        normal /= np.sqrt((normal * normal).sum(axis=0))
        return points, normal, wall[..., 3]

    def add(self, polyp: Polyp, number: int) -> None:
        """March the rays that pass near the polyp again, with it and the wall fused; keep what is in front."""
        picked = np.flatnonzero(_near(polyp, self.rays, self.origin, self.depth))
        rays = np.take(self.rays.reshape(3, -1), picked, axis=1)
        entry = polyp.entry(self.origin, rays)
        early = entry < self.depth.reshape(-1)[picked]
        if not early.any():
            return
        picked = _in_rows(picked[early])
        rays = np.take(self.rays.reshape(3, -1), picked, axis=1)
        depth = self._approach(rays, _in_rows(entry[early]), polyp)
        points, normal, crease = self._wall(rays, depth)
        gap = np.float32(_LIPSCHITZ) * self.scene.gap(points)
        flat = points.reshape(3, -1)
        away = polyp.distance(flat).reshape(depth.shape)
        normal = fuse_slopes(gap, normal, away, polyp.slope(flat).reshape(points.shape), polyp.blend)
        normal /= np.maximum(np.sqrt((normal * normal).sum(axis=0)), np.float32(1e-6))
        inside = np.clip((gap - away) / np.float32(_MASK_SOFTNESS), -1, 1)
        owner = np.full(depth.shape, number, np.uint8)
        self._keep(picked, points, normal, {"depth": depth, "crease": crease, "inside": inside, "owner": owner})

    def _approach(self, rays: Array, depth: Array, polyp: Polyp) -> Array:
        """A few steps for all rays, then more for those that have not arrived."""
        depth, gap = self._steps(rays, depth, polyp, 3)
        late = np.flatnonzero(np.abs(gap) > 0.003 * depth)
        if len(late):
            late = _in_rows(late)
            flat = np.take(rays.reshape(3, -1), late, axis=1)
            depth.reshape(-1)[late], _ = self._steps(flat, depth.reshape(-1)[late], polyp, 9)
        return depth

    def _steps(self, rays: Array, depth: Array, polyp: Polyp, count: int) -> tuple[Array, Array]:
        """``count`` steps towards wall and polyp together; the new depth and the last gap."""
        for _ in range(count):
            points = self.origin[:, None, None] + rays * depth
            away = polyp.distance(points.reshape(3, -1)).reshape(depth.shape)
            gap = fuse(np.float32(_LIPSCHITZ) * self.scene.gap(points), away, polyp.blend)
            depth = np.clip(depth + np.float32(0.9) * gap, 0.02, FAR)
        return depth, gap

    def _keep(self, picked: Array, points: Array, normal: Array, rest: dict[str, Array]) -> None:
        """Store what was found at the flat indices ``picked`` wherever it is not behind an earlier polyp."""
        front = (self.owner.reshape(-1)[picked] == 0) | (rest["depth"] < self.depth.reshape(-1)[picked])
        chosen = picked[front]
        for name, values in rest.items():
            getattr(self, name).reshape(-1)[chosen] = values[front]
        self.points.reshape(3, -1)[:, chosen] = points[:, front]
        self.normal.reshape(3, -1)[:, chosen] = normal[:, front]

    def surface(self) -> Surface:
        """Everything found, in tube coordinates."""
        cx, cy = self.scene.center(self.points[2])
        local = np.stack([self.points[0] - cx, self.points[1] - cy, self.points[2]])
        return Surface(local, self.normal, self.depth, self.crease, self.inside, self.owner)


def _turn(matrix: Array, vectors: Array) -> Array:
    """A (3, 3) matrix applied to a (3, h, w) field of vectors."""
    return (matrix @ vectors.reshape(3, -1)).reshape(vectors.shape)


def _near(polyp: Polyp, rays: Array, origin: Array, depth: Array) -> Array:
    """(h, w) bool, rays that enter the polyp's sphere of influence before they meet the wall."""
    offset = origin - polyp.bound
    along = (offset @ rays.reshape(3, -1)).reshape(depth.shape)
    room = along * along - np.float32(offset @ offset - polyp.reach**2)
    return (room > 0) & (along < 0) & (-along - np.sqrt(np.maximum(room, 0)) < depth)


def _in_rows(picked: Array, width: int = 256) -> Array:
    """Indices as a (rows, 256) array, the last one repeated: OpenCV takes no rows longer than 32 767."""
    padding = -len(picked) % width
    return np.pad(picked, (0, padding), mode="edge" if len(picked) else "constant").reshape(-1, width)


def build_scene(seed: int, polyps: int) -> Scene:
    """A tube and ``polyps`` polyps; the tube is the same whatever the number of polyps."""
    tube_rng, polyp_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    wall = _build_wall(tube_rng)
    bends = tuple(
        (float(tube_rng.uniform(0.15, 0.5)), float(2 * np.pi * k / TUBE_LENGTH), float(tube_rng.uniform(0, 6.28)))
        for k in tube_rng.permutation([2, 3])
    )
    radius = np.ascontiguousarray(wall[..., 0])
    bare = Scene(wall, radius, (bends[0], bends[1]), ())
    first = polyp_rng.uniform(0, TUBE_LENGTH)
    placed = []
    for index in range(polyps):
        z = (first + (index + polyp_rng.uniform(-0.25, 0.25)) * TUBE_LENGTH / polyps) % TUBE_LENGTH
        placed.append(_place(polyp_rng, bare, float(z)))
    return Scene(wall, radius, bare.bends, tuple(placed))


def _build_wall(rng: np.random.Generator) -> Array:
    """(rows + 1, columns, 4) wall: radius, slopes and creases, long enough for any camera in one period."""
    angle = np.linspace(0, 2 * np.pi, _ROWS, endpoint=False, dtype=np.float32)[:, None]
    z = np.linspace(0, TUBE_LENGTH, _COLS, endpoint=False, dtype=np.float32)[None]
    swell = tileable_noise(3, 2.4, (_ROWS, _COLS))
    radius = 1 + 0.05 * np.cos(3 * angle + rng.uniform(0, 6.28) + 0.5 * np.sin(z * (2 * np.pi / TUBE_LENGTH)))
    radius = radius + 0.05 * np.roll(swell, tuple(rng.integers(0, _ROWS, 2)), (0, 1))
    place = rng.uniform(0, 1)
    while place < TUBE_LENGTH - 0.45:
        radius = radius - _fold(rng, angle, z, place)
        place += rng.uniform(0.5, 1.25)
    radius = np.maximum(radius, 0.45).astype(np.float32)
    around = (np.roll(radius, -1, 0) - np.roll(radius, 1, 0)) * (_ROWS / (4 * np.pi))
    along = (np.roll(radius, -1, 1) - np.roll(radius, 1, 1)) * (_COLS / (2 * TUBE_LENGTH))
    wide = np.pad(radius, 64, mode="wrap")
    crease = np.clip((radius - cv2.blur(cv2.blur(wide, (31, 31)), (31, 31))[64:-64, 64:-64]) * 6, 0, 1)
    period = cv2.merge([radius, around, along, crease])
    behind = round(_BEHIND * _COLS / TUBE_LENGTH)
    tiled = np.hstack([period[:, -behind:], period, period])
    return np.ascontiguousarray(np.vstack([tiled, tiled[:1]]))


def _fold(rng: np.random.Generator, angle: Array, z: Array, place: float) -> Array:
    """Height of one haustral fold: a crescent with a rounded triangular ridge, fading out around the tube."""
    lean = 0.3 * np.cos(angle - rng.uniform(0, 6.28)) + 0.07 * np.cos(3 * angle - rng.uniform(0, 6.28))
    away = (z - place - lean + TUBE_LENGTH / 2) % TUBE_LENGTH - TUBE_LENGTH / 2
    reach = 0.5 + 0.5 * np.cos(angle - rng.uniform(0, 6.28)) + 0.25 * np.cos(3 * angle - rng.uniform(0, 6.28))
    height = rng.uniform(0.16, 0.46) * np.clip(rng.uniform(-0.1, 0.3) + 0.95 * reach, 0, 1) ** 1.3
    ridge = np.clip(1.08 - np.sqrt((away / rng.uniform(0.15, 0.32)) ** 2 + 0.012), 0, 1)
    return height * ridge**1.25


def _place(rng: np.random.Generator, scene: Scene, z: float) -> Polyp:
    """A polyp somewhere around the wall at z."""
    angle = float(rng.uniform(0, 2 * np.pi))
    wall = scene.sample(np.full((1, 1), angle, np.float32), np.full((1, 1), z, np.float32))[0, 0]
    cx, cy = scene.center(z)
    outward = np.array([np.cos(angle), np.sin(angle), 0])
    anchor = np.array([cx, cy, z]) + outward * wall[0]
    inward = -outward + np.array([0, 0, 0.6 * wall[2]])  # on the flank of a fold it leans with the flank
    inward /= np.linalg.norm(inward)
    return grow_polyp(rng, anchor, inward)
