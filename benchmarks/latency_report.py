"""What ``latency.py`` found, as a table and as curves. No torch here: it reads the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

# arXiv 2508.05008v2, Table 5
PAPER: dict[str, Any] = {
    "what": "the paper's Table 5 (arXiv 2508.05008v2), on an NVIDIA A800, encoder and batch not stated",
    "depths": [1, 2, 3, 4, 5],
    "parameters": [12_400_000, 18_600_000, 24_900_000, 31_200_000, 37_500_000],
    "ms": [142, 178, 215, 252, 290],
}
PAPER_NAME = "A800, theirs"  # as the table and the plot say it
SPREAD = "±: the range of the medians of five parts of the run; images/s: of the median"
NARROWEST = 110  # columns of the table, where there is no terminal to ask


def show(result: dict[str, Any]) -> None:
    """The table on standard output."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=NARROWEST)
    for name, model in result["models"].items():
        if model["rows"]:
            console.print(_table(name, model))
        console.print(*_notes(model), sep="\n", highlight=False)
    console.print(SPREAD, f"MiB: {result['memory']}", f"{PAPER_NAME}: {PAPER['what']}", sep="\n", highlight=False)
    if shipped := result.get("shipped"):
        engine, frame = (shipped["p50_ms"][part] for part in ("engine", "frame"))
        words = f"engine {engine:.2f} ms, a whole 560×480 frame {frame:.2f} ms (p50)"
        console.print(f"the shipped model, {shipped['engine']}: {words}", highlight=False)


def _table(name: str, model: dict[str, Any]) -> Table:
    rows = model["rows"]
    batches = sorted({row["batch"] for row in rows})
    size, cells = model["input_size"], f"{model['selected']} of {model['tokens']} cells"
    rounds = [f"{min(row['rounds'] for row in rows if row['batch'] == batch)}" for batch in batches]
    title = f"{name} at {size}×{size}, {cells}, batch {batches[0]}, {' and '.join(rounds)} rounds"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("depth", justify="right")
    table.add_column("form", no_wrap=True)
    energy = any(row["joules"] for row in rows)
    table.add_column("p50, ms", justify="right", no_wrap=True)
    columns = ["p95", "p99", *(f"images/s ×{batch}" for batch in batches), "MiB"]
    for column in columns + (["joules"] if energy else []):
        table.add_column(column, justify="right", no_wrap=True)
    for row in (row for row in rows if row["batch"] == batches[0]):
        depth, parameters = row["depth"], row["parameters"] / 1e6
        labels = [f"{depth}", f"{parameters:.1f} M"]
        for i, form in enumerate(row["p50_ms"]):
            times = f"{row['p50_ms'][form]:.2f} ± {_number(row['spread_ms'][form], '{:.2f}')}"
            cells = [labels[i] if i < len(labels) else "", form, times]
            cells += [f"{row[p][form]:.2f}" for p in ("p95_ms", "p99_ms")]
            cells += [_images(rows, depth, batch, form) for batch in batches]
            cells += [_number(row["peak_mib"][form], "{:.0f}")]
            cells += [_number(row["joules"].get(form), "{:.3f}")] if energy else []
            table.add_row(*cells)
        table.add_row(*_theirs(depth), end_section=True)
    return table


def _theirs(depth: int) -> list[str]:
    """The paper's row of a depth, if it has one."""
    if depth not in PAPER["depths"]:
        return []
    i = PAPER["depths"].index(depth)
    return [f"[dim]{text}" for text in (f"{PAPER['parameters'][i] / 1e6:.1f} M", PAPER_NAME, f"{PAPER['ms'][i]}")]


def _images(rows: list[dict[str, Any]], depth: int, batch: int, form: str) -> str:
    row = next((row for row in rows if (row["depth"], row["batch"]) == (depth, batch)), None)
    return _number(row and row["images_per_s"].get(form), "{:.1f}")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _notes(model: dict[str, Any]) -> list[str]:
    """What depth costs, form by form, and what was not measured."""
    lines = []
    for form, block in model.get("ms_per_block", {}).items():
        growth = model["growth"][form]
        by = f"{growth['ratio'] - 1:+.1%} ± {_number(growth['spread'], '{:.1%}')}"
        more = f"{block:+.2f} ± {_number(model.get('ms_per_block_spread', {}).get(form), '{:.2f}')} ms"
        lines.append(f"  {form}: one more block {more}; depth {growth['from']} → {growth['to']}: {by}")
    for one in model["refused"]:
        lines.append(f"  not measured: {one['form']} at depth {one['depth']}, batch {one['batch']}: {one['why']}")
    return lines


def draw(result: dict[str, Any], path: Path) -> None:
    """Latency and throughput by depth, a column of panels for each encoder, the paper's curve in each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = {name: model for name, model in result["models"].items() if model["rows"]}
    figure, axes = pyplot.subplots(2, len(models), figsize=(1.5 + 4.2 * len(models), 7.6), squeeze=False, sharey="row")
    for column, (name, model) in enumerate(models.items()):
        first, most = (pick(row["batch"] for row in model["rows"]) for pick in (min, max))
        latency, throughput = axes[0][column], axes[1][column]
        _curves(latency, model, first, "p50_ms")
        _curves(throughput, model, most, "images_per_s")
        dashed = {"color": "0.45", "linestyle": "--", "marker": "s", "markersize": 4}
        theirs = f"{PAPER_NAME} (the paper's Table 5; images a second: 1 / latency)"
        latency.plot(PAPER["depths"], PAPER["ms"], label=theirs, **dashed)
        throughput.plot(PAPER["depths"], [1e3 / ms for ms in PAPER["ms"]], **dashed)
        latency.set_title(f"{name} at {model['input_size']}×{model['input_size']}")
        latency.set_ylabel(f"latency, batch {first}: p50, ms" if column == 0 else "")
        throughput.set_ylabel(f"throughput, batch {most}: images a second" if column == 0 else "")
        throughput.set_xlabel("causal blocks")
    figure.suptitle(_machine(result), fontsize=11)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _curves(axis: Any, model: dict[str, Any], batch: int, figure: str) -> None:
    from matplotlib.ticker import LogFormatter, LogLocator, MaxNLocator, NullFormatter

    rows = [row for row in model["rows"] if row["batch"] == batch]
    for form in dict.fromkeys(form for row in rows for form in row[figure]):
        known = [row for row in rows if form in row[figure]]
        depths, values = [row["depth"] for row in known], [row[figure][form] for row in known]
        spreads = [row.get("spread_ms", {}).get(form) or 0 for row in known]
        bars = [spread / 2 for spread in spreads] if figure == "p50_ms" else None
        axis.errorbar(depths, values, bars, marker="o", markersize=4, capsize=2, elinewidth=0.8, label=form)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(9, 9)))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(True, which="major", alpha=0.3)


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    if result["engine"] == "torch" and "gpu" in machine:
        return f"What depth costs: {machine['gpu']}"
    return f"What depth costs: {machine['processor']}, {machine['cores']} cores"
