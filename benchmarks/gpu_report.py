"""What the GPU benchmark's figures say: against their bars, and as plots. No torch here: it reads ``gpu.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LARGEST = "ViT-L-14"


def bars(parts: dict[str, Any]) -> dict[str, Any]:
    """Each bar: what was measured, what it must be, and whether it is met (None where it was not measured)."""
    model = parts.get("latency", {}).get("models", {}).get(LARGEST, {})
    row = _row(model, depth=3, batch=1).get("p50_ms", {})
    fused, eager = row.get("graph fused"), row.get("eager fp32")
    speedup = eager / fused if fused and eager else None
    kernels = parts.get("kernels", {})
    first = next((k["select_intervene"] for k in kernels.get("microseconds", []) if k["batch"] == 1), {})
    ratio = first["torch, fp16"] / first["fused"] if {"torch, fp16", "fused"} <= first.keys() else None
    measured = [
        ("ViT-L/14, depth 3, batch 1, p50 ms", fused, "<=", 2.0),
        ("the same, times faster than the paper's equations in eager fp32", speedup, ">=", 5.0),
        ("microseconds for one more block", model.get("microseconds_per_block", {}).get("graph fused"), "<=", 20.0),
        ("select_intervene, times faster than torch fp16", ratio, ">=", 5.0),
        ("batch 64, share of the matrix ceiling", model.get("throughput", {}).get("share_of_ceiling"), ">=", 0.5),
        ("kernels within their error bounds", kernels.get("within_bounds"), "is", True),
        ("the operators are the native ones", kernels.get("native"), "is", True),
        ("shipped model, share of labels that differ", _agreement(parts, "label_flips"), "<=", 0.005),
        ("shipped model, mask IoU", _agreement(parts, "mask_iou"), ">=", 0.99),
        ("tests that need a GPU", parts.get("tests", {}).get("passed"), "is", True),
        ("compute-sanitizer finds nothing", parts.get("sanitizer", {}).get("clean"), "is", True),
    ]
    return {
        what: {"value": value, "bar": f"{sign} {bar}", "met": _met(value, sign, bar)}
        for what, value, sign, bar in measured
    }


def _met(value: Any, sign: str, bar: Any) -> bool | None:
    if value is None:
        return None
    return bool({"<=": value <= bar, ">=": value >= bar, "is": value is bar}[sign])


def _agreement(parts: dict[str, Any], name: str) -> float | None:
    return parts.get("path", {}).get("agreement", {}).get(name)


def _row(model: dict[str, Any], depth: int, batch: int) -> dict[str, Any]:
    rows = model.get("rows", [])
    return next((row for row in rows if (row["depth"], row["batch"]) == (depth, batch)), {})


def plot(parts: dict[str, Any], folder: Path) -> list[Path]:
    """Latency by depth and by batch, a panel for each encoder; the paths written."""
    import matplotlib

    matplotlib.use("Agg")
    models = {name: model for name, model in parts.get("latency", {}).get("models", {}).items() if model.get("rows")}
    if not models:
        return []
    batches = [row for model in models.values() for row in model["rows"] if row["batch"] > 1]
    usual = batches[0]["depth"] if batches else 1  # the depth whose batches come first
    paths = [folder / "latency-by-depth.png", folder / "latency-by-batch.png"]
    _panels(models, "depth", lambda row: row["batch"] == 1, "causal blocks, batch 1", paths[0])
    _panels(models, "batch", lambda row: row["depth"] == usual, f"batch, {usual} causal blocks", paths[1])
    return paths


def _panels(models: dict[str, Any], by: str, wanted: Any, label: str, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(models), figsize=(4 * len(models), 3.6), squeeze=False)
    for axis, (name, model) in zip(axes[0], models.items(), strict=True):
        rows = sorted((row for row in model["rows"] if wanted(row)), key=lambda row: row[by])
        for form in dict.fromkeys(form for row in rows for form in row["p50_ms"]):
            points = [(row[by], row["p50_ms"][form]) for row in rows if form in row["p50_ms"]]
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=form)
        axis.set(title=name, xlabel=label, ylabel="p50, ms", yscale="log")
        if by == "batch":
            axis.set_xscale("log", base=2)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
