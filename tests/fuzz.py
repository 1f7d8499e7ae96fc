"""Damaged copies of real clips, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mcdrl_rt.types import UInt8Array


def mutants(clips: Sequence[Path], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` damaged copies of clips, each with a file name that tells its container and what was done to it."""
    rng = np.random.default_rng(seed)
    damages = (_flip, _scribble, _cut, _remove, _splice)
    for number in range(count):
        clip = clips[rng.integers(len(clips))]
        data = np.frombuffer(clip.read_bytes(), np.uint8).copy()
        damage = damages[number % len(damages)]
        other = np.frombuffer(clips[rng.integers(len(clips))].read_bytes(), np.uint8)
        yield f"{number}{damage.__name__}{clip.suffix}", damage(rng, data, other).tobytes()


def _flip(rng: np.random.Generator, data: UInt8Array, other: UInt8Array) -> UInt8Array:
    """A few single bits, half of the time in the first kilobyte, where headers are."""
    end = len(data) if rng.random() < 0.5 else 1024
    places = rng.integers(0, min(end, len(data)), rng.integers(1, 64))
    data[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return data


def _scribble(rng: np.random.Generator, data: UInt8Array, other: UInt8Array) -> UInt8Array:
    """A stretch of noise."""
    start = int(rng.integers(len(data)))
    stretch = data[start : start + int(rng.integers(1, 2000))]
    stretch[:] = rng.integers(0, 256, len(stretch))
    return data


def _cut(rng: np.random.Generator, data: UInt8Array, other: UInt8Array) -> UInt8Array:
    """An end that is missing."""
    return data[: int(rng.integers(len(data)))]


def _remove(rng: np.random.Generator, data: UInt8Array, other: UInt8Array) -> UInt8Array:
    """A stretch that is missing."""
    start = int(rng.integers(len(data)))
    return np.concatenate([data[:start], data[start + int(rng.integers(1, 4000)) :]])


def _splice(rng: np.random.Generator, data: UInt8Array, other: UInt8Array) -> UInt8Array:
    """Part of another clip, of another size or container, in the place of the end."""
    return np.concatenate([data[: int(rng.integers(len(data)))], other[int(rng.integers(len(other))) :]])
