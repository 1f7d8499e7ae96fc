"""The roofline drawn: operations a second over operations a byte, a panel for each engine, a point for each part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

matplotlib.use("Agg")
COLORS = {"fp32": "#4878a8", "bf16": "#e08214", "int8": "#35978f"}
_SIDE = 4.2  # of a panel, in inches
_OFF = 1.5  # how far above its line a text begins


def draw(result: dict[str, Any], path: Path) -> None:
    """Write the plot of a result of ``roofline.py``."""
    engines = result["engines"]
    columns = len(result["ceilings"]["gops"])
    rows = -(-len(engines) // columns)
    figure = Figure(figsize=(_SIDE * columns, _SIDE * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for axes, engine in zip(panels, engines, strict=False):
        _panel(axes, engine, result["ceilings"])
    machine = result["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores"
    figure.suptitle(f"Parts of the model against the ceilings measured on this machine ({where})")
    figure.supxlabel("operations per byte moved")
    figure.supylabel("10⁹ operations per second")
    figure.savefig(path, dpi=130)


def _panel(axes: Axes, engine: dict[str, Any], ceilings: dict[str, Any]) -> None:
    precision = engine["engine"].split()[-1]
    gops = ceilings["gops"]
    copies = {int(mib): rate for mib, rate in ceilings["copy_gb_per_s_by_mib"].items()}
    x = np.geomspace(0.03, 3000, 200)
    for name, peak in gops.items():
        if name != precision:
            axes.axhline(peak, color="#cccccc", linewidth=0.8, linestyle="--", zorder=1)
            axes.text(2700, peak * 1.04, name, color="#999999", fontsize=7, ha="right", va="bottom")
    peak = gops[precision]
    for rate, where, style in ((copies[max(copies)], "memory", "-"), (max(copies.values()), "cache", ":")):
        axes.plot(x, np.minimum(peak, rate * x), color="#444444", linewidth=1.3, linestyle=style, zorder=2)
        axes.text(
            0.5, rate * 0.5 * _OFF, f"{where}, {rate:.0f} GB/s", fontsize=7, color="#444444", rotation_mode="anchor",
            rotation=np.degrees(np.arctan(rate * _OFF)), transform_rotates_text=True,
        )  # fmt: skip
    axes.text(2700, peak * 1.05, f"{precision}, {peak:.0f}", fontsize=8, ha="right", va="bottom", color="#222222")
    counted = {name: part for name, part in engine["parts"].items() if part["gop"] and part["ms"]}
    points = [(name, part["gop"] * 1e3 / part["mb"], part["gop"] * 1e3 / part["ms"]) for name, part in counted.items()]
    _label(axes, points, precision)
    middle, share = engine["frame_ms"][0], engine["share"][0]
    axes.set_title(f"{engine['engine']}: {middle:.1f} ms, {share:.0%} of its limit", fontsize=10)
    axes.set(xscale="log", yscale="log", xlim=(x[0], x[-1]))
    axes.grid(True, which="major", color="#eeeeee", linewidth=0.6)


def _label(axes: Axes, points: list[tuple[str, float, float]], precision: str) -> None:
    """Points with their names; those of the causal blocks lie close together and share one."""
    color = COLORS.get(precision, "#4878a8")
    named = [point for point in points if not point[0].startswith("block")]
    if blocks := [point for point in points if point[0].startswith("block")]:
        named.append((f"blocks 1…{len(blocks)}", *blocks[-1][1:]))
    for _, x, y in points:
        axes.plot(x, y, "o", color=color, markersize=6, markeredgecolor="white", zorder=3)
    for name, x, y in named:
        place = {"encoder": (-8, -3), "head": (8, -3)}.get(name, (7, -11))  # these two lie side by side under the roof
        side = "right" if place[0] < 0 else "left"
        axes.annotate(
            name, (x, y), xytext=place, textcoords="offset points", ha=side, fontsize=8, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip
