"""What a benchmark leaves behind: a plot, a result to keep, and one JSON line at the end of what it prints."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

from mcdrl_rt.errors import McdrlError

RESULTS = Path(__file__).parent / "results"
_DRAWN = (".png", ".svg", ".pdf")


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """The options of every benchmark that draws."""
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw it: .png, .svg or .pdf")
    parser.add_argument("--save", metavar="NAME", help="also write benchmarks/results/NAME.json")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Before minutes of measuring: can what is asked for be written?

    Raises:
        McdrlError: it cannot.
    """
    plot, name = arguments.plot, arguments.save
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise McdrlError("a plot needs Matplotlib: pip install 'mcdrl-rt[train]'")
    if plot is not None and plot.suffix.lower() not in _DRAWN:
        raise McdrlError(f"a plot's name ends in {', '.join(_DRAWN)}, not {str(plot)!r}")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise McdrlError(f"no folder {plot.absolute().parent} for the plot")
    if name is not None and (not name or Path(name).name != name):
        raise McdrlError(f"--save is a name for benchmarks/results, without folder, not {name!r}")


def finish(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Keep the result if that was asked for, and print it."""
    if arguments.save:
        (RESULTS / f"{arguments.save}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
