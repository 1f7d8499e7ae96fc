"""Timing of alternatives: in turn, so that a drift of the machine meets all of them, and compared within one run.

The order is another one in every round: what one form leaves behind (a cache, threads that still spin) meets all.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

PERCENTILES = (50, 95, 99)
PARTS = 5  # of a run, whose medians say how steady it was
FEWEST = 3  # values of which a spread can be told
# torch's OpenMP threads spin on for some milliseconds when they are done: what ran next took 15 % longer
SETTLE_S = 0.02
Name = TypeVar("Name")


def interleaved(
    forms: dict[str, Callable[[], Any]],
    runs: int,
    *,
    warm_up: int = 5,
    wait: Callable[[], Any] = lambda: None,
    seconds: float = float("inf"),
    settle_s: float = 0.0,
) -> dict[str, Any]:
    """Time the forms in turn; see ``timed`` for the arguments and ``figures`` for what it returns."""
    return figures(timed(forms, runs, warm_up=warm_up, wait=wait, seconds=seconds, settle_s=settle_s))


def timed(
    forms: Mapping[Name, Callable[[], Any]],
    runs: int,
    *,
    warm_up: int = 5,
    wait: Callable[[], Any] = lambda: None,
    seconds: float = float("inf"),
    least: int = 1,
    settle_s: float = 0.0,
) -> dict[Name, list[float]]:
    """Time the forms in turn, A B C B C A …, after a warm-up.

    Args:
        forms: what to call, by name.
        runs: rounds that count, at most.
        warm_up: rounds that do not.
        wait: called inside the timed span after each form: a device's synchronisation.
        seconds: no round is begun after so long.
        least: rounds that count, however long they take.
        settle_s: pause before each form; see ``SETTLE_S``.

    Returns:
        Milliseconds by form, one of each round.
    """
    times: dict[Name, list[float]] = {name: [] for name in forms}
    order, generator = list(forms), random.Random(0)
    began = time.perf_counter()
    for round_ in range(runs + warm_up):
        generator.shuffle(order)
        for name in order:
            time.sleep(settle_s)
            started = time.perf_counter()
            forms[name]()
            wait()
            if round_ >= warm_up:
                times[name].append((time.perf_counter() - started) * 1e3)
        if round_ - warm_up >= least - 1 and time.perf_counter() - began > seconds:
            break
    return times


def figures(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Milliseconds by form for each percentile (``p50_ms`` …), the spread of the p50, and the number of rounds.

    ``paired`` has, for every two forms, the median over rounds of their ratio within a round, and its spread: what
    slows a whole round down is not in it.
    """
    percentiles = {
        f"p{q}_ms": {name: round(float(np.percentile(values, q)), 4) for name, values in times.items()}
        for q in PERCENTILES
    }
    spreads = {name: rounded(spread(values)) for name, values in times.items()}
    pairs = {f"{one} by {other}": paired(times[one], times[other]) for one in times for other in times if one != other}
    return {**percentiles, "spread_ms": spreads, "rounds": min(map(len, times.values())), "paired": pairs}


def paired(one: Sequence[float], other: Sequence[float]) -> dict[str, float | None]:
    """The median over rounds of a ratio within a round, and its spread."""
    ratios = [a / b for a, b in zip(one, other, strict=True)]
    return {"ratio": round(float(np.median(ratios)), 4), "spread": rounded(spread(ratios))}


def spread(values: Sequence[float]) -> float | None:
    """How far a median is to be trusted: the range of the medians of ``PARTS`` consecutive parts of the run.

    Half of it is too little: two runs, one after the other on a quiet machine, lay farther apart in nine ratios of 36.
    Of fewer than ``FEWEST`` values nothing can be told: None.
    """
    if len(values) < FEWEST:
        return None
    medians = [float(np.median(part)) for part in np.array_split(values, min(PARTS, len(values)))]
    return max(medians) - min(medians)


def rounded(value: float | None) -> float | None:
    """To four digits, if there is a value."""
    return None if value is None else round(value, 4)


def slope(steps: dict[int, float]) -> float:
    """What one more step costs: the slope of the least-squares line through (step, cost)."""
    return float(np.polyfit(list(steps), list(steps.values()), 1)[0])


def span(values: Sequence[float]) -> list[float]:
    """Median, least and most of a figure's values in several rounds: a run may be as far from the next."""
    return [round(float(value), 4) for value in (np.median(values), min(values), max(values))]
