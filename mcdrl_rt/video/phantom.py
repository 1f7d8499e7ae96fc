"""Synthetic endoscopy: a colon that is rendered, not recorded, with the exact mask of every polyp in it.

A pattern source for demonstrations, streaming tests and training where no patient data may go. It is no simulator
of disease: shapes and colours are plausible, their statistics are not those of any clinic. Every frame is a pure
function of the arguments and its index.

    >>> phantom = Phantom((480, 640), site="mixed", seed=7)
    >>> frame = phantom.render(90)
    >>> frame.pixels.shape, frame.mask.shape
    ((480, 640, 3), (480, 640))
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom_camera import Lens, Path, aim, make_lens
from mcdrl_rt.video.phantom_polyp import Array, Polyp
from mcdrl_rt.video.phantom_scene import Camera, Scene, Surface, build_scene
from mcdrl_rt.video.phantom_tissue import (
    ALBEDO_STEPS,
    RELIEF_STEPS,
    SITE_BY_NAME,
    SITES,
    TILE_LENGTH,
    Site,
    bake_tissue,
    relief_tile,
    tissue_tile,
)

__all__ = ["SITES", "Phantom", "PhantomFrame", "random_sample"]

MIN_SIDE = 64
MAX_SIDE = 8192
_MIXED_S = 3.0  # seconds a "mixed" phantom stays at one site
_NOISE_SIDE = 1024  # more than any detail grid
_RELIEF = 0.26  # root-mean-square slope of the fine relief


@dataclass(frozen=True, slots=True)
class PhantomFrame:
    """One rendered picture and its truth.

    Args:
        pixels: (H, W, 3) uint8, RGB.
        mask: (H, W) uint8 class labels, 0 background and 1 polyp; the visible part only.
        site: the site it was rendered at.
    """

    pixels: UInt8Array
    mask: UInt8Array
    site: str


class Phantom:
    """An endless, repeatable ride through a synthetic colon.

    Args:
        size: (height, width) of the frames in pixels, both from 64 to 8192.
        site: one of ``SITES``, or "mixed" to go through all of them, a few seconds each.
        seed: decides tube, polyps, colours, camera path and the shape of the field of view.
        fps: frames per second, > 0.
        frames: number of frames when iterated over; None is endless. ``render`` takes any index all the same.
        polyps: number of polyps in one period of the tube (about a minute's ride); None lets the seed decide.
        surround: black corners as in a real endoscope's picture; without them the lens fills the frame.

    Raises:
        SourceError: an argument outside these ranges.
    """

    def __init__(
        self,
        size: tuple[int, int] = (480, 640),
        site: str = "white-light",
        seed: int = 0,
        fps: float = 30,
        frames: int | None = None,
        polyps: int | None = None,
        surround: bool = True,
    ) -> None:
        _check(size, site, fps, frames, polyps)
        self.size, self.site, self.seed, self.fps, self.frames = size, site, seed, fps, frames
        rng = np.random.default_rng(seed)
        usual = int(rng.integers(7, 11))  # drawn in any case: the number of polyps must change nothing else
        self._scene = build_scene(seed, usual if polyps is None else polyps)
        self._lens = make_lens(size, surround, int(rng.integers(3)))
        self._path = Path.draw(rng)
        self._sites = tuple(SITE_BY_NAME[name] for name in (SITES if site == "mixed" else (site,)))
        self._tissues = {each.name: tissue_tile(each, seed) for each in self._sites}

    def __len__(self) -> int:
        """Number of frames; a TypeError where there is no end."""
        if self.frames is None:
            raise TypeError("a phantom without frames= is endless and has no length")
        return self.frames

    def __iter__(self) -> Iterator[PhantomFrame]:
        index = 0
        while self.frames is None or index < self.frames:
            yield self.render(index)
            index += 1

    def site_at(self, index: int) -> str:
        """Name of the site that frame ``index`` is rendered at."""
        return self._sites[int(index / self.fps / _MIXED_S) % len(self._sites)].name

    def render(self, index: int) -> PhantomFrame:
        """Frame ``index`` ≥ 0, the same whichever frames were rendered before."""
        if index < 0:
            raise SourceError(f"phantom frame index must be 0 or more, not {index}")
        site = SITE_BY_NAME[self.site_at(index)]
        camera = self._path.camera(self._scene, index / self.fps)
        return _picture(self._scene, camera, self._lens, site, self._tissues[site.name], (self.seed, index))


def random_sample(
    rng: np.random.Generator, size: tuple[int, int], site: str | None = None, surround: bool | None = None
) -> PhantomFrame:
    """One training picture: random tube, camera and site; about three quarters show a polyp.

    Args:
        rng: all randomness comes from it.
        size: (height, width) in pixels, both from 64 to 8192.
        site: one of ``SITES``; None draws one.
        surround: black corners; None draws (three in four have them).

    Returns:
        The picture and its mask. Polyps, where visible, mostly cover 0.5 % to 25 % of the picture.

    Raises:
        SourceError: a size or a site outside these ranges.
    """
    chosen = SITE_BY_NAME[str(rng.choice(SITES)) if site is None else _known(site)]
    _check(size, chosen.name, 30, None, None)
    seed = int(rng.integers(2**31))
    lens = make_lens(size, bool(rng.random() < 0.75) if surround is None else surround, int(rng.integers(3)))
    wanted = rng.random() < 0.77
    scene = build_scene(seed, 6 if wanted else 0)
    tissue = bake_tissue(chosen, seed, coarse=True)  # a patient of its own every time: nothing to cache
    for attempt in range(4):
        camera = aim(rng, scene) if wanted else Path.draw(rng).camera(scene, float(rng.uniform(0, 60)))
        frame = _picture(scene, camera, lens, chosen, tissue, (seed, attempt))
        if not wanted or 0.003 <= frame.mask.mean() <= 0.3:
            break
    return frame


def _check(size: tuple[int, int], site: str, fps: float, frames: int | None, polyps: int | None) -> None:
    """Refuse arguments that make no phantom, in one line."""
    if len(size) != 2 or min(size) < MIN_SIDE or max(size) > MAX_SIDE:
        raise SourceError(f"phantom size must be (height, width) of {MIN_SIDE} to {MAX_SIDE} pixels each, not {size}")
    if site != "mixed":
        _known(site)
    if not fps > 0:
        raise SourceError(f"phantom fps must be greater than 0, not {fps}")
    for name, value in (("frames", frames), ("polyps", polyps)):
        if value is not None and value < 0:
            raise SourceError(f"phantom {name} must be None or 0 and more, not {value}")


def _known(site: str) -> str:
    """The site's name, if there is such a site."""
    if site not in SITE_BY_NAME:
        raise SourceError(f"unknown phantom site {site!r}; choose one of {', '.join(SITES)} (or mixed)")
    return site


def _picture(
    scene: Scene, camera: Camera, lens: Lens, site: Site, tissue: UInt8Array, key: tuple[int, int]
) -> PhantomFrame:
    """Trace, paint, add the sensor's faults, and put the lens's box into the frame."""
    surface = scene.trace(lens.rays, camera)
    light = _paint(scene, camera, surface, lens, site, tissue)
    if site.blur:
        light = cv2.GaussianBlur(light, (0, 0), site.blur * lens.detail[0] / 1000)
    picture = _develop(light, lens, site, key)
    top, left, height, width = lens.box
    pixels = np.zeros((*lens.size, 3), np.uint8)
    pixels[top : top + height, left : left + width] = cv2.resize(picture, (width, height))
    mask = np.zeros(lens.size, np.uint8)
    member = cv2.resize(surface.inside, (width, height)) > 0
    mask[top : top + height, left : left + width] = member * lens.inside
    return PhantomFrame(pixels, mask, site.name)


def _develop(light: Array, lens: Lens, site: Site, key: tuple[int, int]) -> Array:
    """Sensor noise, then a tone curve that rolls highlights off, as a camera's does."""
    noise = _noise()
    rows, cols = lens.detail
    top, left = np.random.default_rng(key).integers(0, [noise.shape[0] - rows, noise.shape[1] - cols])
    light += np.float32(site.noise / 255) * noise[top : top + rows, left : left + cols]
    tone = cv2.exp(-light)
    np.subtract(1, tone, out=tone)
    tone *= lens.field
    return cv2.convertScaleAbs(tone)


@functools.lru_cache(maxsize=1)
def _noise() -> Array:
    """(_NOISE_SIDE, _NOISE_SIDE, 3) noise, mostly of brightness, of which every frame shows another window."""
    white = np.random.default_rng(61).standard_normal((_NOISE_SIDE, _NOISE_SIDE, 4), dtype=np.float32)
    planes = cv2.split(cv2.GaussianBlur(white, (3, 3), 0.5))
    return cv2.merge([1.2 * planes[3] + 0.6 * plane for plane in planes[:3]])


def _paint(
    scene: Scene, camera: Camera, surface: Surface, lens: Lens, site: Site, tissue: UInt8Array
) -> Array:
    """(rows, cols, 3) light that reaches the sensor: albedo × shading + highlights."""
    size = lens.detail[::-1]
    lit = cv2.split(cv2.resize(_shading(camera, surface, lens, site), size))
    x, y, along = cv2.split(cv2.resize(cv2.merge(list(surface.local)), size))
    angle = cv2.phase(x, y).reshape(lens.detail)
    albedo = _lookup(tissue, angle * (1 / (2 * np.pi)), along * (1 / TILE_LENGTH))
    texture = _lookup(relief_tile(), angle * (4 / (2 * np.pi)), along * (4 / TILE_LENGTH))
    relief = [np.float32(1 / RELIEF_STEPS) * (plane - np.float32(128)) for plane in texture]
    red, green, blue, wet = (np.float32(1 / ALBEDO_STEPS) * plane for plane in albedo)
    _tint([red, green, blue], relief[2], surface, scene.near(camera), site)
    light, shine = _bumpy(lit, relief)
    shine *= wet
    return cv2.merge([red * light + shine, green * light + shine, blue * light + shine])


def _lookup(tile: UInt8Array, around: Array, along: Array) -> Sequence[Array]:
    """Sample a (side + 1, side + 1, 4) uint8 tile at coordinates counted in tiles; four planes."""
    side = np.float32(tile.shape[0] - 1)
    rows = (around - np.floor(around)) * side
    cols = (along - np.floor(along)) * side
    return cv2.split(cv2.remap(tile, cols, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _shading(camera: Camera, surface: Surface, lens: Lens, site: Site) -> Array:
    """(h, w, 4) diffuse light, and the normal, around-tube and along-tube parts of the view vector."""
    view = -(camera.axes.astype(np.float32) @ lens.rays.reshape(3, -1)).reshape(lens.rays.shape)
    normal = surface.normal
    facing = (normal * view).sum(axis=0)
    lamp = (camera.axes[:, :2] @ np.array(site.lamp)).astype(np.float32)
    to_lamp = view * surface.depth + lamp[:, None, None]
    squared = (to_lamp * to_lamp).sum(axis=0)
    cosine = (normal * to_lamp).sum(axis=0) / np.sqrt(squared)
    soft = (1 - site.shade) + np.float32(site.shade) * np.abs(cosine) ** np.float32(0.8)  # tissue scatters
    diffuse = np.float32(2.7 * site.exposure) * soft / (0.42 + 0.55 * squared)
    diffuse *= 1 - np.float32(0.35) * surface.crease
    x, y, _ = surface.local
    radius = np.sqrt(x * x + y * y) + np.float32(1e-3)
    around = (x * view[1] - y * view[0] - facing * (x * normal[1] - y * normal[0])) / radius
    along = view[2] - facing * normal[2]  # both without their part along the normal: they must lie in the surface
    shading = cv2.merge([diffuse, facing, around, along])
    return cv2.GaussianBlur(shading, (3, 3), 0)  # one ray is several pixels: without it silhouettes are serrated


def _bumpy(lit: Sequence[Array], relief: Sequence[Array]) -> tuple[Array, Array]:
    """Diffuse light with the fine relief in it, and wet gloss where the relief turns the surface to the lens."""
    diffuse, facing, around, along = lit
    a, b, _, grain = relief
    bump = a * around + b * along
    tilt = np.sqrt(1 + np.float32(_RELIEF**2) * (a * a + b * b))
    turned = (facing + np.float32(_RELIEF) * bump) / tilt
    patchy = np.float32(0.9945) - np.float32(0.0065) * grain  # the film of water is not everywhere
    gloss = np.clip((turned - patchy) * np.float32(220), 0, 1) * np.minimum(diffuse * 2, 4)
    return diffuse * (1 + np.float32(0.03) * grain + np.float32(0.11) * bump), gloss


def _tint(
    albedo: Sequence[Array], pits: Array, surface: Surface, polyps: Sequence[Polyp], site: Site
) -> None:
    """Give the polyps their own colour and pit pattern, in place; vessels fade beneath."""
    left, top, width, height = cv2.boundingRect((surface.owner > 0).astype(np.uint8))
    if width == 0:
        return
    size = pits.shape[::-1]
    scale_x, scale_y = size[0] / surface.owner.shape[1], size[1] / surface.owner.shape[0]
    rows = slice(int(top * scale_y), int((top + height) * scale_y) + 1)
    cols = slice(int(left * scale_x), int((left + width) * scale_x) + 1)
    colors = np.zeros((256, 4), np.float32)
    for number, polyp in enumerate(polyps, start=1):
        colors[number] = [*(np.array(site.channels) @ polyp.tint), polyp.pits]
    owner = cv2.resize(surface.owner, size, interpolation=cv2.INTER_NEAREST)[rows, cols]
    weight = np.clip(cv2.resize(surface.inside, size)[rows, cols] * 0.31 + 0.31, 0, 1)
    shade = 1 - np.float32(0.4) * colors[:, 3][owner] * pits[rows, cols]
    for channel, plane in enumerate(albedo):
        plane[rows, cols] += weight * (colors[:, channel][owner] * shade - plane[rows, cols])
