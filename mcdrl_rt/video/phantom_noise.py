"""Periodic noise, the raw material of the phantom's walls, vessels and fluids."""

from __future__ import annotations

import functools

import numpy as np

from mcdrl_rt.types import FloatArray as Array


@functools.lru_cache(maxsize=32)
def tileable_noise(
    seed: int, falloff: float, shape: tuple[int, int] = (1024, 1024), low: float = 2.0
) -> Array:
    """Periodic noise (shape), zero mean and unit variance, amplitude ∝ frequency^−falloff above ``low`` cycles."""
    white = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    fy = np.fft.fftfreq(shape[0])[:, None] * shape[0]
    fx = np.fft.rfftfreq(shape[1])[None] * shape[1]
    frequency = np.hypot(fy, fx)
    gain = np.where(frequency < low, 0, np.maximum(frequency, 1) ** -falloff)
    noise = np.fft.irfft2(np.fft.rfft2(white) * gain, s=shape).astype(np.float32)
    noise = (noise - noise.mean()) / noise.std()
    noise.setflags(write=False)
    return noise
