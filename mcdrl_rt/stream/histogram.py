"""How long something took, over a stream that may never end: counts in buckets, in memory that does not grow.

Buckets are 1 % wide, so that what is read from them is off by half of that. One thread adds; any thread may read:
a reader copies the counts first, and misses at most what is being added meanwhile.

    >>> times = Histogram()
    >>> for milliseconds in range(1, 100):
    ...     times.add(milliseconds)
    >>> times.count, times.maximum, round(times.percentile(50))
    (99, 99, 50)
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LOWEST_MS, HIGHEST_MS = 1e-3, 1e6  # a microsecond and a quarter of an hour; what lies beyond counts as these
_PER_E_FOLD = 1 / math.log(1.01)
_BUCKETS = math.ceil(math.log(HIGHEST_MS / LOWEST_MS) * _PER_E_FOLD)
_MIDDLES_MS = LOWEST_MS * np.exp((np.arange(_BUCKETS) + 0.5) / _PER_E_FOLD)


class Histogram:
    """Milliseconds, counted in logarithmic buckets.

    Attributes:
        total: the sum of all that was added, in milliseconds.
        maximum: the largest added, exact; 0 before the first.
    """

    def __init__(self) -> None:
        self.total = self.maximum = 0.0
        self._counts = array("Q", bytes(8 * _BUCKETS))

    def add(self, milliseconds: float) -> None:
        """Count one more; for one thread only."""
        index = 0
        if milliseconds > LOWEST_MS:
            index = min(int(math.log(milliseconds / LOWEST_MS) * _PER_E_FOLD), _BUCKETS - 1)
        self._counts[index] += 1
        self.total += milliseconds
        if milliseconds > self.maximum:
            self.maximum = milliseconds

    @property
    def count(self) -> int:
        """How many were added."""
        return int(self._copy().sum())

    def percentile(self, q: float) -> float:
        """What ``numpy.percentile`` says of all that was added, to half a per cent; NaN before the first.

        Args:
            q: 0…100.
        """
        counts = self._copy()
        if not counts.any():
            return math.nan
        reached = counts.cumsum()
        rank = q / 100 * (int(reached[-1]) - 1)  # from 0; between two samples, interpolate as NumPy does
        below, above = (_MIDDLES_MS[np.searchsorted(reached, whole, "right")] for whole in _around(rank))
        return float(min(below + (above - below) * (rank % 1), self.maximum))

    def cumulative(self, edges_ms: Sequence[float]) -> list[int]:
        """How many were at most each of the edges, which increase; ``math.inf`` counts all (Prometheus' ``le``).

        An edge inside a bucket takes or leaves all of it, by its middle.
        """
        reached = np.concatenate([[0], self._copy().cumsum()])
        return [int(reached[i]) for i in np.searchsorted(_MIDDLES_MS, edges_ms, "right")]

    def _copy(self) -> NDArray[np.int64]:
        return np.array(self._counts, np.int64)


def _around(rank: float) -> tuple[int, int]:
    return math.floor(rank), math.ceil(rank)
