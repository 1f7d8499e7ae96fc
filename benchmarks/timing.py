"""Timing of alternatives: in turn, so that a drift of the machine meets all of them, and compared within one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PERCENTILES = (50, 95, 99)


def interleaved(
    forms: dict[str, Callable[[], Any]],
    runs: int,
    *,
    warm_up: int = 5,
    wait: Callable[[], Any] = lambda: None,
    seconds: float = float("inf"),
) -> dict[str, Any]:
    """Time the forms in turn, A B C A B C …, after a warm-up.

    Args:
        forms: what to call, by name.
        runs: rounds that count, at most.
        warm_up: rounds that do not.
        wait: called inside the timed span after each form: a device's synchronisation.
        seconds: no round is begun after so long, but one is counted at least.

    Returns:
        Milliseconds by form for each percentile (``p50_ms`` …), and the number of rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in forms}
    began = time.perf_counter()
    for round_ in range(runs + warm_up):
        for name, form in forms.items():
            started = time.perf_counter()
            form()
            wait()
            if round_ >= warm_up:
                times[name].append((time.perf_counter() - started) * 1e3)
        if round_ >= warm_up and time.perf_counter() - began > seconds:
            break
    rounds = min(map(len, times.values()))
    figures = {
        f"p{q}_ms": {name: round(float(np.percentile(values, q)), 4) for name, values in times.items()}
        for q in PERCENTILES
    }
    return {**figures, "rounds": rounds}


def slope(steps: dict[int, float]) -> float:
    """What one more step costs: the slope of the least-squares line through (step, cost)."""
    return float(np.polyfit(list(steps), list(steps.values()), 1)[0])


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and most of a figure's values in several rounds: a run may be as far from the next."""
    return [round(float(value), 4) for value in (np.median(values), min(values), max(values))]
