"""One picture in the colours of another: no two processors, lamps and colons look alike.

Mean and spread of lightness and colour (CIE Lab, after Reinhard et al. 2001) move towards another picture's of the
training set, as SANet does between polyp pictures (arXiv 2108.00882), and a little at random beyond: a site that was
never seen has colours that none of the training sites has.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from mcdrl_rt.types import FloatArray, UInt8Array

_DARK = 20  # pixels below this lightness are surround, not tissue
_BLACK = 10  # and below this, of the brightest colour, without doubt
_DRIFT = np.array([6, 5, 5], np.float32)  # standard deviation of what is added to the mean, in 8-bit Lab
_STRETCH = 0.2  # and of the logarithm of what the spread is multiplied by


class Tone(NamedTuple):
    """Mean and standard deviation of the lit pixels of a picture in 8-bit Lab, (3,) each."""

    mean: FloatArray
    spread: FloatArray


def tone(pixels: UInt8Array) -> Tone:
    """The tone of a picture (H, W, 3) uint8 RGB."""
    return _tone_of(np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), np.uint8))


def restyle(rng: np.random.Generator, pixels: UInt8Array, other: Tone) -> UInt8Array:
    """A picture (H, W, 3) uint8 RGB moved towards another's tone, by a random part of the way."""
    lab = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB), np.uint8)
    own, share = _tone_of(lab), np.float32(rng.uniform())
    mean = own.mean + share * (other.mean - own.mean) + rng.normal(size=3).astype(np.float32) * _DRIFT
    spread = own.spread + share * (other.spread - own.spread)
    spread = spread * np.exp(rng.normal(0, _STRETCH, 3).astype(np.float32))
    levels = np.arange(256, dtype=np.float32)[:, None]
    moved = (levels - own.mean) * (spread / np.maximum(own.spread, 1)) + mean  # what each level becomes, (256, 3)
    table = np.clip(moved, 0, 255).astype(np.uint8)[:, None]
    return np.asarray(cv2.cvtColor(cv2.LUT(lab, table), cv2.COLOR_LAB2RGB), np.uint8)


def with_surround(pixels: UInt8Array, before: UInt8Array) -> UInt8Array:
    """A picture in other colours, (H, W, 3) uint8 RGB, with what was black ``before`` as it was then."""
    brightest = before.max(axis=2).astype(np.float32)
    changed = np.clip((brightest - _BLACK) / (2 * _DARK), 0, 1)  # little by little: no edge where there was none
    return np.asarray(cv2.blendLinear(pixels, before, changed, 1 - changed), np.uint8)


def _tone_of(lab: UInt8Array) -> Tone:
    lit = cv2.compare(lab[..., 0], _DARK, cv2.CMP_GT)
    mean, spread = cv2.meanStdDev(lab, mask=lit if cv2.countNonZero(lit) >= 100 else None)
    return Tone(mean[:, 0].astype(np.float32), spread[:, 0].astype(np.float32))
