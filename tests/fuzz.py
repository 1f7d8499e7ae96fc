"""Damaged copies of real clips, the same ones for the same seed: what a source must take without a crash."""

from __future__ import annotations

import random
from collections.abc import Iterator


def damaged(clips: list[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """Copies with flipped bits, cut short, with pieces lost or doubled, or spliced with another clip.

    Args:
        clips: whole files, of several containers and sizes.
    """
    rng = random.Random(seed)
    for _ in range(count):
        data = bytearray(rng.choice(clips))
        for _ in range(rng.randint(1, 3)):
            data = rng.choice(_WAYS)(rng, data, clips)
        yield bytes(data)


def _flip(rng: random.Random, data: bytearray, clips: list[bytes]) -> bytearray:
    """Single bits; as often in the headers, where they do the most harm."""
    end = rng.choice((len(data), min(len(data), 1500)))
    for _ in range(rng.choice((1, 8, 100)) if end else 0):
        data[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return data


def _truncate(rng: random.Random, data: bytearray, clips: list[bytes]) -> bytearray:
    return data[: rng.randint(0, len(data))]


def _lose(rng: random.Random, data: bytearray, clips: list[bytes]) -> bytearray:
    start = rng.randint(0, len(data))
    return data[:start] + data[start + rng.randint(1, 2000) :]


def _double(rng: random.Random, data: bytearray, clips: list[bytes]) -> bytearray:
    start = rng.randint(0, len(data))
    return data[: start + rng.randint(1, 2000)] + data[start:]


def _overwrite(rng: random.Random, data: bytearray, clips: list[bytes]) -> bytearray:
    start, length = rng.randint(0, len(data)), rng.randint(1, 300)
    data[start : start + length] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))
    return data


def _splice(rng: random.Random, data: bytearray, clips: list[bytes]) -> bytearray:
    other = rng.choice(clips)
    return data[: rng.randint(0, len(data))] + other[rng.choice((0, rng.randint(0, len(other)))) :]


_WAYS = (_flip, _truncate, _lose, _double, _overwrite, _splice)
