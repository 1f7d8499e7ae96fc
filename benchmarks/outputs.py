"""What a benchmark leaves behind: a plot, a result to keep, one JSON line at the end; and one line where it cannot."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mcdrl_rt.console import run_program
from mcdrl_rt.errors import McdrlError

RESULTS = Path(__file__).parent / "results"
_DRAWN = (".png", ".svg", ".pdf")


def run_main(main: Callable[[], None]) -> None:
    """Run a program: what is wrong with what was asked for is said in one line, and Ctrl-C needs none of Python's.

    A reader of its output that is gone, ``head`` say, ends it quietly.
    """
    run_program(functools.partial(_run, main))


def _run(main: Callable[[], None]) -> None:
    try:
        main()
    except McdrlError as error:
        raise SystemExit(f"error: {error}") from None
    except BrokenPipeError:  # nobody reads it any more
        raise
    except OSError as error:
        raise SystemExit(f"error: {': '.join(filter(None, (error.filename, error.strerror or str(error))))}") from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None


class Parser(argparse.ArgumentParser):
    """The command line of a benchmark; it complains in one line.

    Args:
        description: the program's docstring.
        draws: there is a plot to be had.
        keeps: its result can be kept.
    """

    def __init__(self, description: str | None, draws: bool = False, keeps: bool = True) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        if draws:
            self.add_argument("--plot", type=Path, metavar="FILE", help=f"also draw it: {', '.join(_DRAWN)}")
        if keeps:
            self.add_argument("--save", metavar="NAME", help="also write benchmarks/results/NAME.json")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and leave."""
        self.exit(2, f"{self.prog}: {message}\n")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Before minutes of measuring: can what is asked for be written?

    Raises:
        McdrlError: it cannot.
    """
    plot, name = getattr(arguments, "plot", None), arguments.save
    if name is not None and (not name or Path(name).name != name):
        raise McdrlError(f"--save takes a name for benchmarks/results, not {name!r}")
    if plot is not None and plot.suffix.lower() not in _DRAWN:
        raise McdrlError(f"--plot draws {', '.join(_DRAWN)}, not {plot}")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise McdrlError("--plot needs Matplotlib: pip install matplotlib")
    if plot is not None:
        try_to_write(plot)
    if name is not None:
        try_to_write(RESULTS / f"{name}.json")


def check_file(path: Path | None) -> None:
    """Before anything is measured: is a file that was named there?

    Raises:
        McdrlError: it is not.
    """
    if path is not None and not path.is_file():
        raise McdrlError(f"there is no file {path}")


def check_minutes(minutes: float) -> None:
    """Can a video be so long?

    Raises:
        McdrlError: it cannot.
    """
    if not 0 < minutes < math.inf:
        raise McdrlError(f"--minutes is a number above 0, not {minutes:g}")


def try_to_write(path: Path) -> None:
    """Make sure that a file can be written, and leave all as it was.

    Raises:
        McdrlError: it cannot.
    """
    try:
        existed = path.exists()
        path.open("ab").close()
    except OSError as error:
        raise McdrlError(f"cannot write {path}: {error.strerror}") from error
    if not existed:
        path.unlink()


def finish(
    result: dict[str, Any], arguments: argparse.Namespace, draw: Callable[[dict[str, Any], Path], None] | None = None
) -> None:
    """Print the result, keep it and draw it if that was asked for."""
    print(json.dumps(result), flush=True)  # first: what was measured is not lost with a full disk
    if arguments.save:
        (RESULTS / f"{arguments.save}.json").write_text(json.dumps(result, indent=1) + "\n")
    if draw is not None and arguments.plot:
        draw(result, arguments.plot)


def count(text: str) -> int:
    """A number of an option, 1 at least."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is a whole number from 1 on, not {text!r}")
    return int(text)
