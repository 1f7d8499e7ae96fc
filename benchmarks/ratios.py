"""The ratios that the results of the benchmarks hold, each with its spread, and the kind of machine they are of."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple


class Ratio(NamedTuple):
    """One time by another, of the same run; the lower, the better.

    Args:
        value: the ratio of the medians, or the median of the rounds' ratios.
        spread: by what share of it that is to be trusted.
    """

    value: float
    spread: float


Ratios = dict[str, Ratio]
OTHERS = ("opencv", "supervision")  # what one would otherwise write


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two results are of the same kind of machine: what both tell of it must agree.

    The name of a processor is often that of many; the fastest precision and the family tell them apart.
    """
    first, second = _kind(one), _kind(other)
    return all(first[name] == second[name] for name in first.keys() & second.keys())


def _kind(result: dict[str, Any]) -> dict[str, Any]:
    machine = result["machine"]
    told = {name: machine[name] for name in ("processor", "family", "cores") if name in machine}
    fast = sorted(set(re.findall(r"\b(?:bf16|fp16)\b", json.dumps(result))))
    several = "fp32" in json.dumps(result)  # else nothing is said of precisions
    return {**told, "gpu": machine.get("gpu"), **({"fast": fast} if several else {})}


def of_latency(result: dict[str, Any]) -> Ratios:
    """Every form by the paper's equations and, compiled alike, folded by literal; the deepest by the shallowest."""
    found: Ratios = {}
    for name, model in result.get("models", {}).items():
        for row in (row for row in model["rows"] if row["batch"] == 1):
            first, *others = row["p50_ms"]
            pairs = [(other, first) for other in others]
            pairs += [(others[-1], other) for other in others[:-1]]
            found |= _pairs(f"{name}, depth {row['depth']}", row, pairs)
        for form, growth in model.get("growth", {}).items():
            what = f"{name}, {form}: depth {growth['to']} by depth {growth['from']}"
            found[what] = Ratio(growth["ratio"], _share(growth["spread"], growth["ratio"]))
    return found


def of_precision(result: dict[str, Any]) -> Ratios:
    """Every precision by eager torch, and by OpenVINO's own fp32."""
    found: Ratios = {}
    for row in result["models"]:
        torch, fp32, *faster = row["p50_ms"]
        pairs = [(form, torch) for form in (fp32, *faster)] + [(form, fp32) for form in faster]
        found |= _pairs(f"{row['model']}, depth {row['depth']}", row, pairs)
    return found


def of_rival(result: dict[str, Any]) -> Ratios:
    """Ours by the U-Net, in every precision."""
    found: Ratios = {}
    for precision, row in result["precisions"].items():
        found |= _pairs(f"openvino {precision}", row, [("mcdrl", "unet")])
    return found


def of_pipeline(result: dict[str, Any]) -> Ratios:
    """All but inference, and the whole, by the floor; the whole by what one would otherwise write."""
    rounds = result["seconds"]
    ours = "mcdrl-rt"
    pairs = [("pipeline", "floor"), (ours, "floor"), *((ours, name) for name in rounds if name.startswith(OTHERS))]
    found: Ratios = {}
    for one, other in pairs:
        ratios = [a / b for a, b in zip(rounds[one], rounds[other], strict=True)]
        value = statistics.median(ratios)
        found[f"{one} by {other}"] = Ratio(value, (max(ratios) - min(ratios)) / value)
    return found


RATIOS: dict[str, Callable[[dict[str, Any]], Ratios]] = {
    "latency": of_latency,
    "precision": of_precision,
    "rival": of_rival,
    "pipeline": of_pipeline,
}


def _pairs(what: str, row: dict[str, Any], pairs: list[tuple[str, str]]) -> Ratios:
    """Ratios of one run's forms: within its rounds, or, of older results, of the medians."""
    return {f"{what}: {one} by {other}": _ratio(row, one, other) for one, other in pairs}


def _ratio(row: dict[str, Any], one: str, other: str) -> Ratio:
    if pair := row.get("paired", {}).get(f"{one} by {other}"):
        return Ratio(pair["ratio"], _share(pair["spread"], pair["ratio"]))
    spread = (_spread(row, one) ** 2 + _spread(row, other) ** 2) ** 0.5
    return Ratio(row["p50_ms"][one] / row["p50_ms"][other], spread)


def _spread(row: dict[str, Any], form: str) -> float:
    """By what share a median is to be trusted; older results tell only how far out the slowest were."""
    p50 = row["p50_ms"][form]
    return _share(row["spread_ms"][form], p50) if "spread_ms" in row else row["p95_ms"][form] / p50 - 1


def _share(spread: float | None, value: float) -> float:
    """A spread as a share of the value; too few rounds to tell it say nothing at all."""
    return math.inf if spread is None else spread / value
