"""Histogram: percentiles are NumPy's to a per cent, memory stays, and a reader beside the writer sees no nonsense."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.stream.histogram import HIGHEST_MS, LOWEST_MS, Histogram

TIMES = st.lists(st.floats(LOWEST_MS, HIGHEST_MS), min_size=1, max_size=200)


def filled(times: list[float]) -> Histogram:
    histogram = Histogram()
    for milliseconds in times:
        histogram.add(milliseconds)
    return histogram


@settings(max_examples=200, deadline=None)
@given(TIMES, st.floats(0, 100))
def test_percentiles_are_those_of_numpy(times: list[float], q: float) -> None:
    assert filled(times).percentile(q) == pytest.approx(float(np.percentile(times, q)), rel=0.0051)


@settings(max_examples=100, deadline=None)
@given(TIMES)
def test_count_total_and_maximum_are_exact(times: list[float]) -> None:
    histogram = filled(times)
    assert (histogram.count, histogram.maximum) == (len(times), max(times))
    assert histogram.total == pytest.approx(math.fsum(times), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(TIMES, st.lists(st.floats(LOWEST_MS, HIGHEST_MS), max_size=12))
def test_cumulative_counts_what_is_at_most_an_edge(times: list[float], edges: list[float]) -> None:
    edges = [*sorted(edges), math.inf]
    counted = filled(times).cumulative(edges)
    assert counted == sorted(counted)
    assert counted[-1] == len(times)
    for edge, count in zip(edges, counted, strict=True):  # to half of a bucket's width
        assert sum(t <= edge * 0.994 for t in times) <= count <= sum(t <= edge * 1.006 for t in times)


def test_nothing_added_is_nothing_known() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.total, histogram.maximum) == (0, 0.0, 0.0)
    assert math.isnan(histogram.percentile(50))
    assert histogram.cumulative([1.0, math.inf]) == [0, 0]


def test_what_is_out_of_range_counts_at_the_end_of_it() -> None:
    histogram = filled([0.0, -1.0, 1e9])  # a clock that stands still; one set back; a fortnight
    assert histogram.cumulative([2 * LOWEST_MS, 0.9 * HIGHEST_MS, math.inf]) == [2, 2, 3]
    assert histogram.percentile(100) == pytest.approx(HIGHEST_MS, rel=0.01)
    assert histogram.maximum == 1e9


def test_memory_does_not_grow_with_the_stream() -> None:
    histogram = Histogram()
    before = sys.getsizeof(histogram._counts)
    for index in range(50_000):
        histogram.add(index % 977)
    assert sys.getsizeof(histogram._counts) == before < 20_000
    assert set(vars(histogram)) == {"total", "maximum", "_counts"}


def test_a_reader_sees_every_sample_once_and_none_twice() -> None:
    histogram, ended = Histogram(), threading.Event()

    def write() -> None:
        for _ in range(100_000):
            histogram.add(5.0)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = [0]
    while not ended.is_set():
        (count,) = histogram.cumulative([math.inf])
        seen.append(count)
        assert count == 0 or histogram.percentile(99) == pytest.approx(5.0, rel=0.0051)
    writer.join()
    assert seen == sorted(seen)
    assert histogram.count == 100_000
