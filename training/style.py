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
_DRIFT = np.array([6, 5, 5], np.float32)  # standard deviation of what is added to the mean, in 8-bit Lab
_STRETCH = 0.2  # and of the logarithm of what the spread is multiplied by


class Tone(NamedTuple):
    """Mean and standard deviation of the lit pixels of a picture in 8-bit Lab, (3,) each."""

    mean: FloatArray
    spread: FloatArray


def tone(pixels: UInt8Array) -> Tone:
    """The tone of a picture (H, W, 3) uint8 RGB."""
    return _tone_of(_lab(pixels))


def restyle(rng: np.random.Generator, pixels: UInt8Array, other: Tone) -> UInt8Array:
    """A picture (H, W, 3) uint8 RGB moved towards another's tone, by a random part of the way."""
    lab = _lab(pixels)
    own, share = _tone_of(lab), np.float32(rng.uniform())
    mean = own.mean + share * (other.mean - own.mean) + rng.normal(size=3).astype(np.float32) * _DRIFT
    spread = own.spread + share * (other.spread - own.spread)
    spread = spread * np.exp(rng.normal(0, _STRETCH, 3).astype(np.float32))
    moved = (lab - own.mean) * (spread / np.maximum(own.spread, 1)) + mean
    return np.asarray(cv2.cvtColor(np.clip(moved, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB), np.uint8)


def _lab(pixels: UInt8Array) -> FloatArray:
    return cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).astype(np.float32)


def _tone_of(lab: FloatArray) -> Tone:
    lit = lab[lab[..., 0] > _DARK]
    lit = lit if len(lit) >= 100 else lab.reshape(-1, 3)
    return Tone(lit.mean(axis=0), lit.std(axis=0))
