"""The look of the phantom: what five imaging sites do to mucosa, vessels, fluids and light.

Textures only, as tiles over (angle around the tube, distance along it); ``phantom`` lays them on the geometry of
``phantom_scene``. Albedo is linear reflectance per channel, so narrow-band imaging is a true remapping of channels
(blue light shows capillaries, green light the veins under them, red is not recorded), not a tint of the picture.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import cv2
import numpy as np

from mcdrl_rt.video.phantom_noise import tileable_noise
from mcdrl_rt.video.phantom_polyp import Array
from mcdrl_rt.video.phantom_scene import TUBE_LENGTH

TILE = 1024  # texels around the tube, and along half a period
TILE_LENGTH = TUBE_LENGTH / 2
ALBEDO_STEPS = 210.0  # uint8 steps for an albedo of 1
RELIEF_STEPS = 32.0  # uint8 steps for one standard deviation, 128 being 0: bytes sample much faster than floats
_WHITE = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_NARROW = ((0.0, 1.2, 0.0), (0.0, 0.68, 0.52), (0.0, 0.12, 0.95))


@dataclass(frozen=True, slots=True)
class Site:
    """How one endoscopy unit's pictures look.

    Args:
        name: what ``SITES`` lists.
        channels: (3, 3) rows R, G, B of the picture from the R, G, B the tissue reflects.
        exposure: gain of the light; 1 is a well-lit picture.
        lamp: offset of the light from the lens in lumen radii (right, down): off-centre light is uneven.
        shade: 0…1, how dark surfaces turn that face away.
        blur: standard deviation of defocus, in thousandths of the picture's height.
        noise: standard deviation of sensor noise, in 8-bit steps.
        capillaries, veins: strength of the two layers of vessels.
        bubbles, blood, mucus: share of the wall covered.
    """

    name: str
    channels: tuple[tuple[float, float, float], ...] = _WHITE
    exposure: float = 1.0
    lamp: tuple[float, float] = (0.05, -0.03)
    shade: float = 0.82
    blur: float = 0.0
    noise: float = 2.0
    capillaries: float = 0.16
    veins: float = 0.8
    bubbles: float = 0.0
    blood: float = 0.0
    mucus: float = 0.02


_ALL_SITES = (
    Site("white-light"),
    Site("narrow-band", channels=_NARROW, exposure=1.15, capillaries=0.5, veins=0.75, noise=2.5),
    Site("dim", exposure=0.42, lamp=(0.35, 0.2), shade=0.97, noise=5.0, veins=0.35),
    Site("blur", blur=7.0, bubbles=0.4, noise=1.5, mucus=0.05),
    Site("blood", blood=0.16, mucus=0.16, bubbles=0.08),
)
SITE_BY_NAME: dict[str, Site] = {site.name: site for site in _ALL_SITES}
SITES: tuple[str, ...] = tuple(SITE_BY_NAME)


@functools.lru_cache(maxsize=1)
def relief_tile() -> Array:
    """(TILE + 1, TILE + 1, 4) uint8: slope of the fine relief around and along, pit pattern, grain."""
    bumps = 0.85 * tileable_noise(11, 3.0, low=12) + 0.15 * tileable_noise(13, 3.2, low=40)
    around = np.roll(bumps, -1, 0) - np.roll(bumps, 1, 0)
    along = np.roll(bumps, -1, 1) - np.roll(bumps, 1, 1)
    pits = np.clip(tileable_noise(17, 3.0, low=44) * 0.5 + 0.5, 0, 1)
    grain = 0.8 * tileable_noise(19, 1.9, low=3) + 0.5 * tileable_noise(20, 0.8, low=20)
    planes = np.dstack([around / around.std(), along / along.std(), pits, grain])
    return _wrapped(planes * np.float32(RELIEF_STEPS) + 128)


@functools.lru_cache(maxsize=10)
def tissue_tile(site: Site, seed: int) -> Array:
    """(TILE + 1, TILE + 1, 4) uint8: ``bake_tissue`` at full resolution, kept for the next frame."""
    return bake_tissue(site, seed)


def bake_tissue(site: Site, seed: int, coarse: bool = False) -> Array:
    """Paint one patient's wall.

    Args:
        site: decides the strength of vessels and fluids, and the channels they are recorded in.
        seed: one patient.
        coarse: at half the resolution and a quarter of the time.

    Returns:
        (side + 1, side + 1, 4) uint8: albedo R, G, B times ``ALBEDO_STEPS``, and wetness 0…1 likewise.
    """
    rng = np.random.default_rng(seed)
    step = 2 if coarse else 1
    albedo = _mucosa(rng, step)
    _stain(albedo, _shift(rng, _veins(), step), site.veins, (0.28, 0.62, 0.5))
    _stain(albedo, _shift(rng, _capillaries(), step), site.capillaries, (0.12, 0.6, 0.75))
    _cover(albedo, _film(rng, site.mucus, 31, step), (0.8, 0.6, 0.22), 0.6)
    blood = _film(rng, site.blood, 37, step)
    _cover(albedo, blood, (0.36, 0.02, 0.015), 0.95)
    if site.bubbles:
        _bubbles(rng, albedo, site.bubbles)
    albedo = cv2.transform(albedo, np.array(site.channels, np.float32))
    return _wrapped(cv2.merge([albedo, 0.75 + 0.25 * blood]) * np.float32(ALBEDO_STEPS))


def _mucosa(rng: np.random.Generator, step: int) -> Array:
    """(side, side, 3) albedo of bare mucosa, one patient's colour with slow and fine variation."""
    base = np.array([[0.95, 0.36, 0.24], [0.95, 0.42, 0.22], [0.9, 0.36, 0.31], [0.95, 0.5, 0.34]])
    color = rng.dirichlet(np.ones(4)) @ base
    slow, fine = (_shift(rng, tileable_noise(seed, fall), step) for seed, fall in ((23, 2.0), (29, 1.2)))
    contrast = ((0.035, 0.015), (0.1, 0.035), (0.1, 0.04))
    return cv2.merge([np.float32(c) * (1 + np.float32(s) * slow + np.float32(f) * fine)
                      for c, (s, f) in zip(color, contrast, strict=True)])  # fmt: skip


def _stain(albedo: Array, cover: Array, strength: float, absorbed: tuple[float, float, float]) -> None:
    """Absorb each channel's share of light where a vessel lies, in place."""
    for channel, share in enumerate(absorbed):
        albedo[..., channel] *= 1 - np.float32(strength * share) * cover


def _cover(albedo: Array, cover: Array, color: tuple[float, float, float], opacity: float) -> None:
    """Lay a translucent fluid over the wall, in place."""
    weight = np.float32(opacity) * cover
    for channel, value in enumerate(color):
        albedo[..., channel] += weight * (np.float32(value) - albedo[..., channel])


def _film(rng: np.random.Generator, share: float, seed: int, step: int) -> Array:
    """Cover 0…1 of a fluid: the highest ``share`` of a noise with streaks in it, thin at the rim."""
    pools = _shift(rng, tileable_noise(seed, 1.9), step)
    if share == 0:
        return np.zeros_like(pools)
    side = pools.shape[0]
    streaks = np.roll(cv2.resize(pools[:, : side // 8], (side, side)), int(rng.integers(side)), 0)
    depth = pools + np.float32(0.25) * streaks
    level = np.float32(np.quantile(depth[::8, ::8], 1 - share))
    return np.sqrt(np.clip((depth - level) * np.float32(1.4), 0, 1))


def _bubbles(rng: np.random.Generator, albedo: Array, share: float) -> None:
    """Clusters of foam: thin bright rims, clear middles and a highlight each, in place."""
    side = albedo.shape[0]
    rims, shine = np.zeros((side, side), np.uint8), np.zeros((side, side), np.uint8)
    clusters = rng.uniform(0.04, 0.96, (14, 2)) * side
    for _ in range(int(700 * share)):
        x, y = np.clip(clusters[rng.integers(14)] + rng.normal(0, side / 30, 2), 14, side - 14).astype(int)
        radius = max(2, int(np.exp(rng.uniform(np.log(3), np.log(20))) * side / TILE))
        cv2.circle(rims, (int(x), int(y)), radius, 0, -1)
        cv2.circle(rims, (int(x), int(y)), radius, int(rng.integers(110, 230)), 1, cv2.LINE_AA)
        dot = (int(x - radius * 0.4), int(y - radius * 0.4))
        cv2.circle(shine, dot, max(1, radius // 5), 255, -1, cv2.LINE_AA)
    _cover(albedo, rims.astype(np.float32) / 255, (0.95, 0.9, 0.85), 0.8)
    _cover(albedo, shine.astype(np.float32) / 255, (4.0, 4.0, 4.0), 0.9)


@functools.lru_cache(maxsize=1)
def _veins() -> Array:
    """(TILE, TILE) 0…1 cover of branching submucosal veins."""
    rng = np.random.default_rng(41)
    pad = TILE // 4
    canvas = np.zeros((TILE + 2 * pad, TILE + 2 * pad), np.uint8)
    for _ in range(26):
        _branch(rng, canvas, rng.uniform(pad, TILE + pad, 2), rng.uniform(0, 6.28), rng.uniform(3.2, 6.0))
    for axis in (0, 1):  # fold what grew over the edge back in, so that the tile repeats
        canvas = np.moveaxis(canvas, axis, 0)
        canvas[TILE : TILE + pad] = np.maximum(canvas[TILE : TILE + pad], canvas[:pad])
        canvas[pad : 2 * pad] = np.maximum(canvas[pad : 2 * pad], canvas[TILE + pad :])
        canvas = np.moveaxis(canvas, 0, axis)
    cover = cv2.GaussianBlur(canvas[pad:-pad, pad:-pad], (0, 0), 1.1).astype(np.float32) / 255
    return cover


def _branch(rng: np.random.Generator, canvas: Array, at: Array, heading: float, width: float) -> None:
    """Draw one wandering vessel and, recursively, its thinner branches."""
    path = [at]
    for _ in range(int(rng.integers(8, 20))):
        heading += rng.normal(0, 0.28)
        path.append(path[-1] + 13 * np.array([np.cos(heading), np.sin(heading)]))
        if width > 1.2 and rng.random() < 0.24:
            _branch(rng, canvas, path[-1], heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1), width * 0.62)
    points = np.array(path)
    level = int(min(255, 90 + 38 * width))
    line = (points * 8).astype(np.int32)
    cv2.polylines(canvas, [line], False, level, max(1, round(width)), cv2.LINE_AA, 3)


@functools.lru_cache(maxsize=1)
def _capillaries() -> Array:
    """(TILE, TILE) 0…1 cover of the fine surface network: creases of a band-limited noise."""
    lines = [1 - np.abs(tileable_noise(seed, 2.6, low=low)) * 2.2 for seed, low in ((43, 14), (47, 26))]
    patchy = np.clip(0.6 + 0.5 * tileable_noise(53, 2.0), 0, 1)
    return (np.clip(np.maximum(lines[0], 0.7 * lines[1]), 0, 1) ** 1.5 * patchy).astype(np.float32)


def _shift(rng: np.random.Generator, tile: Array, step: int) -> Array:
    """Every ``step``-th texel of the tile, rolled to a random place: the same veins, another patient."""
    small = cv2.resize(tile, (TILE // step, TILE // step), interpolation=cv2.INTER_AREA) if step > 1 else tile
    return np.roll(small, tuple(rng.integers(0, TILE // step, 2)), (0, 1))


def _wrapped(tile: Array) -> Array:
    """As uint8, with one more row and column: bilinear sampling then needs no wrapping border (which is slow)."""
    return cv2.copyMakeBorder(np.clip(tile, 0, 255).astype(np.uint8), 0, 1, 0, 1, cv2.BORDER_WRAP)
