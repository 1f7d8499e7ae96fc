"""What each depth of the causal network costs: every form of every depth of one encoder, in the same rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from families import Family
from resources import energy_meter, joules, peak_mib
from timing import FEWEST, PARTS, SETTLE_S, figures, paired, rounded, slope, spread, timed

from mcdrl_rt.errors import first_line

Key = tuple[int, str]  # depth, and the form's name
ENERGY_S = 1.0  # that one form is repeated for, to read its energy


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        runs: rounds that count, at most.
        seconds: no round is begun after so long, for a batch of one and for each larger one.
    """

    runs: int
    seconds: tuple[float, float]


def measure(family: Family, batches: Sequence[int], effort: Effort) -> dict[str, Any]:
    """One encoder at every depth and batch: rows of figures by form, and at batch 1 what one more block costs."""
    found: dict[str, Any] = {
        "input_size": family.side,
        "tokens": family.literal.spec.tokens,
        "selected": family.literal.spec.selected,
        "width": family.literal.spec.embed_dim,
        "rows": [],
        "refused": [],
    }
    for batch in batches:
        built, memory, refused = _ready(family, batch)
        found["refused"] += refused
        if not built:
            continue
        # all have run once to be made ready; a round of a larger batch takes long
        warm_up, least, seconds = (1, PARTS, effort.seconds[0]) if batch == 1 else (0, FEWEST, effort.seconds[1])
        settle_s = SETTLE_S if family.device.type == "cpu" else 0.0
        times = timed(
            built, effort.runs, warm_up=warm_up, wait=family.wait, seconds=seconds, least=least, settle_s=settle_s
        )
        meter = energy_meter(family.device) if batch == 1 else None
        energy = {key: joules(form, family.wait, meter, ENERGY_S) for key, form in built.items()} if meter else {}
        for depth in dict.fromkeys(depth for depth, _ in built):
            row = {"depth": depth, "batch": batch, "parameters": family.parameters(depth)}
            row |= figures(_of_depth(times, depth))
            row["images_per_s"] = {name: round(batch / p50 * 1e3, 2) for name, p50 in row["p50_ms"].items()}
            row["peak_mib"] = _of_depth(memory, depth)
            row["joules"] = _of_depth(energy, depth)
            found["rows"].append(row)
        if batch == 1:
            found |= _costs_of_depth(times)
    return found


def _ready(family: Family, batch: int) -> tuple[dict[Key, Callable[[], Any]], dict[Key, Any], list[dict[str, Any]]]:
    """Every form of every depth, ready to be called; the memory of each; and those that cannot be had, with why."""
    built: dict[Key, Callable[[], Any]] = {}
    memory: dict[Key, float | None] = {}
    refused: dict[Key, str] = {}
    # the first depth twice: what libraries set up once is in no form's memory
    for depth in (family.depths[0], *family.depths):
        for name, make in family.forms(depth, batch).items():
            key = (depth, name)
            built.pop(key, None)
            try:
                memory[key] = peak_mib(lambda k=key, m=make: built.__setitem__(k, m()) or built[k](), family.device)
            except RuntimeError as error:  # no room on a GPU: the other forms are measured all the same
                for known in (built, memory):
                    known.pop(key, None)
                refused[key] = first_line(error)
    missing = [{"depth": d, "batch": batch, "form": name, "why": why} for (d, name), why in refused.items()]
    return built, memory, missing


def _of_depth(values: dict[Key, Any], depth: int) -> dict[str, Any]:
    return {name: value for (at, name), value in values.items() if at == depth}


def _costs_of_depth(times: dict[Key, list[float]]) -> dict[str, Any]:
    """By form: milliseconds for one more block, and by how much the deepest is slower than the shallowest.

    Each is the median over rounds of what it is within a round.
    """
    per_block: dict[str, float] = {}
    spreads: dict[str, float | None] = {}
    growth: dict[str, Any] = {}
    for name in dict.fromkeys(name for _, name in times):
        by_depth = {depth: values for (depth, form), values in times.items() if form == name}
        if len(by_depth) < 2:
            continue
        rounds = [dict(zip(by_depth, values, strict=True)) for values in zip(*by_depth.values(), strict=True)]
        slopes = [slope(milliseconds) for milliseconds in rounds]
        per_block[name], spreads[name] = round(statistics.median(slopes), 4), rounded(spread(slopes))
        shallow, deep = min(by_depth), max(by_depth)
        growth[name] = {"from": shallow, "to": deep, **paired(by_depth[deep], by_depth[shallow])}
    return {"ms_per_block": per_block, "ms_per_block_spread": spreads, "growth": growth}
