"""Dice over latency drawn: sizes and precisions on the left, α, depth and other checkpoints on the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")
COLORS = {"fp32": "#4878a8", "bf16": "#e08214", "fp16": "#e08214", "int8": "#35978f"}
_MARKS = {"alpha": ("^", "#7b3294"), "depth": ("s", "#b35806"), "checkpoint": ("D", "#666666")}
_DICE = {"dice_unseen": "Dice, unseen sites", "dice_held_out": "Dice, held-out part"}


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the plot of a result of ``accuracy_speed.py``."""
    rows = result["forms"]
    figure = Figure(figsize=(13, 9), layout="constrained")
    panels = figure.subplots(2, 2)
    for (left, right), dice in zip(panels, _DICE, strict=True):
        _sizes(left, [row for row in rows if row["group"] == "size"], dice)
        _others(right, [row for row in rows if row["group"] != "size" or row["shipped"]], dice)
        left.set_ylabel(_DICE[dice])
    front = sorted((row for row in rows if row["pareto"] and row["group"] == "size"), key=lambda row: row["ms"][0])
    panels[0][0].plot(
        [row["ms"][0] for row in front], [row["dice_unseen"] for row in front], color="#222222", linewidth=5,
        alpha=0.12, zorder=1, label="nothing is faster and better",
    )  # fmt: skip
    panels[0][0].legend(fontsize=9, loc="lower right")
    panels[0][0].set_title("input size × precision")
    panels[0][1].set_title("α, depth, other checkpoints")
    for axes in panels.flat:
        axes.margins(0.08, 0.1)
        axes.grid(True, color="#eeeeee")
        axes.set_xlabel("engine alone, one frame, ms")
    images = ", ".join(f"{count} images of {name}" for name, count in result["images"].items())
    machine = result["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores; {images}"
    bars = "bars: 95 % of the Dice's difference from shipped"
    figure.suptitle(f"Accuracy against latency ({where}); {bars}", fontsize=11)
    figure.savefig(path, dpi=120)


def _sizes(axes: Axes, rows: Sequence[dict[str, Any]], dice: str) -> None:
    for precision in dict.fromkeys(row["precision"] for row in rows):
        below = precision != rows[0]["precision"]  # where others than the first have their names
        line = sorted((row for row in rows if row["precision"] == precision), key=lambda row: row["input_size"])
        color = COLORS[precision]
        x, y = [row["ms"][0] for row in line], [row[dice] for row in line]
        axes.plot(x, y, "o-", color=color, linewidth=1.2, markersize=5, label=precision, zorder=3)
        for row in line:
            _interval(axes, row, dice, color)
            axes.annotate(
                row["title"], (row["ms"][0], row[dice]), xytext=(5, -11) if below else (-5, 5), fontsize=8,
                textcoords="offset points", color=color, ha="left" if below else "right",
            )  # fmt: skip
    _star(axes, rows, dice)


def _others(axes: Axes, rows: Sequence[dict[str, Any]], dice: str) -> None:
    start, end = min(row["ms"][1] for row in rows), max(row["ms"][2] for row in rows)
    for row in rows:
        if row["shipped"]:
            continue
        mark, color = _MARKS[row["group"]]
        _interval(axes, row, dice, color)
        middle, low, high = row["ms"]
        axes.errorbar(
            middle, row[dice], xerr=[[middle - low], [high - middle]], fmt=mark, color=color, elinewidth=0.7, capsize=2
        )
        left = middle > start + 0.75 * (end - start)  # else it would run out of the picture
        axes.annotate(
            row["title"], (middle, row[dice]), xytext=(-6, 5) if left else (6, -11), textcoords="offset points",
            fontsize=8, ha="right" if left else "left",
        )  # fmt: skip
    _star(axes, rows, dice)


def _interval(axes: Axes, row: dict[str, Any], dice: str, color: str) -> None:
    """A bar as long as what is not known of a form's Dice on unseen sites: of its difference from the shipped one."""
    if dice == "dice_unseen" and not row["shipped"]:
        value, low, high = row["unseen_against_shipped"]
        axes.errorbar(
            row["ms"][0], row[dice], [[value - low], [high - value]], color=color, elinewidth=0.7, alpha=0.5, zorder=2
        )


def _star(axes: Axes, rows: Sequence[dict[str, Any]], dice: str) -> None:
    for row in rows:
        if row["shipped"]:
            x, y = row["ms"][0], row[dice]
            axes.plot(x, y, "*", color="#d7191c", markersize=16, markeredgecolor="white", zorder=5)
            axes.annotate(
                "shipped", (x, y), xytext=(8, 9), textcoords="offset points", fontsize=9, color="#d7191c",
                fontweight="bold",
            )  # fmt: skip
