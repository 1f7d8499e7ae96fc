"""How long a user waits: import, help, the first frame out. One JSON line at the end.

    python benchmarks/startup.py [--runs 5] [--save NAME]

Each figure is the median over whole processes; the first frame is timed with the engine already built.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from machine import describe
from outputs import Parser, check_outputs, count, finish, run_main

FIRST_FRAME = "stream --input phantom:size=640x480,frames=1 --output null --json"


def main() -> None:
    """Run the measurements and print them."""
    parser = Parser(__doc__)
    parser.add_argument("--runs", type=count, default=5)
    arguments = parser.parse_args()
    check_outputs(arguments)
    runs = arguments.runs
    cli = [sys.executable, "-m", "mcdrl_rt.cli"]
    commands = {
        "python": [sys.executable, "-c", "pass"],
        "import mcdrl_rt": [sys.executable, "-c", "import mcdrl_rt"],
        "mcdrl-rt --help": [*cli, "--help"],
        "mcdrl-rt stream, one frame": [*cli, *FIRST_FRAME.split()],
    }
    subprocess.run(commands["mcdrl-rt stream, one frame"], check=True, capture_output=True)  # builds the engine
    medians = {name: statistics.median(_time(command) for _ in range(runs)) for name, command in commands.items()}
    seconds = {name: round(median, 3) for name, median in medians.items()}
    for name, value in seconds.items():
        print(f"{name:<28} {value:6.3f} s")
    result = {"benchmark": "startup", "runs": runs, "median_s": seconds, "machine": describe()}
    finish(result, arguments)


def _time(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    run_main(main)
