"""Whether anything got worse: short runs of the benchmarks on this machine against the results that are stored.

    python benchmarks/check.py [--only latency rival precision pipeline]        # make bench-check

Only ratios within one run are compared, never times: one form by another, deep by shallow, the pipeline by the floor;
the lower, the better. A ratio may move by as much as the spreads of both runs allow, and by 5 % in any case; where
that is more than a half, one that moved less is not said to be as before: the machine is too unsteady. A result of
another kind of machine (processor, cores, GPU, fastest precision) only says which of two is the faster. Forms that a
stored result calls ``unsound`` are passed over. One line for each ratio, then one JSON line; the exit status is 1 where
something got worse or could not be run, 3 where nothing could be judged.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from outputs import Parser, run_main
from ratios import RATIOS, Ratio, alike

HERE = Path(__file__).parent
RESULTS = HERE / "results"
LEAST, MOST = 0.05, 0.5  # tolerances: what is always allowed, and from where on nothing can be said
SPREADS = 1.5  # of them together, that a ratio may move by
SHORT = {
    "latency": "--depths 1 5 --batches 1 --runs 15",
    "rival": "--runs 30",
    "precision": "--models RN50 --runs 10",
    "pipeline": "--seconds 4 --rounds 3",
}
NEEDS = {"rival": "segmentation_models_pytorch", "precision": "nncf"}


class Verdict(NamedTuple):
    """One ratio, then and now.

    Args:
        what: its name.
        stored, now: its values.
        tolerance: by what share it may move.
        verdict: ``as before``, ``better``, ``WORSE``, ``unsteady`` or ``not judged``.
    """

    what: str
    stored: float
    now: float
    tolerance: float
    verdict: str


def main() -> None:
    """Run, compare, and end with one JSON line."""
    parser = Parser(__doc__, keeps=False)
    parser.add_argument("--only", nargs="+", choices=tuple(SHORT), default=list(SHORT))
    given = parser.parse_args()
    verdicts: list[Verdict] = []
    failed: list[str] = []
    for name in given.only:
        package = NEEDS.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            print(f"{name}: left out, {package} is not installed")
            continue
        try:
            now = run(name)
        except RuntimeError as error:
            print(f"{name}: FAILED, {error}")
            failed.append(name)
            continue
        path, same_kind = choose(now, stored_results(name))
        if path is None:
            print(f"{name}: nothing to compare, no stored result has a ratio of this one")
            continue
        other = "" if same_kind else ", of another kind of machine: only which is the faster"
        print(f"{name}, against {path.name}{other}")
        found = compare(json.loads(path.read_text()), now, same_kind)
        verdicts += found
        for one in found:
            values = f"stored {one.stored:.3f}   now {one.now:.3f}   (may move by {one.tolerance:.0%})"
            print(f"  {one.verdict:<10}  {one.what}: {values}", flush=True)
    worse = [one.what for one in verdicts if one.verdict == "WORSE"]
    unsteady = sum(one.verdict == "unsteady" for one in verdicts)
    words = [f"{len(verdicts)} ratios, {len(worse)} got worse"]
    words += [f"{unsteady} too unsteady to judge"] if unsteady else []
    judged = [one for one in verdicts if one.verdict not in ("unsteady", "not judged")]
    words += [] if judged or failed else ["nothing was judged"]
    words += [f"failed: {', '.join(failed)}"] if failed else []
    print("; ".join(words))
    ratios = [one._asdict() for one in verdicts]
    told = {"worse": worse, "unsteady": unsteady, "failed": failed, "ratios": ratios}
    print(json.dumps({"benchmark": "check", **told}))
    if worse or failed:
        sys.exit(1)
    if not judged:
        sys.exit(3)


def run(name: str) -> dict[str, Any]:
    """The short form of a benchmark, in a process of its own.

    Raises:
        RuntimeError: it ended badly; its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HERE / f"{name}.py"), *SHORT[name].split()]
        if name == "precision":
            command += ["--frames", str(_synthetic(Path(folder)))]
        ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if ended.returncode != 0:
        raise RuntimeError((ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1])
    return json.loads(ended.stdout.splitlines()[-1])


def _synthetic(folder: Path) -> Path:
    """A second of video: how fast int8 is does not depend on what it was calibrated with."""
    from stream import write_clip

    write_clip(folder / "clip.mp4", "640x480", 25, 25)
    return folder / "clip.mp4"


def stored_results(name: str, folder: Path = RESULTS) -> dict[Path, dict[str, Any]]:
    """What is stored of a benchmark, by file."""
    found = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {path: result for path, result in found.items() if result.get("benchmark") == name}


def choose(now: dict[str, Any], stored: dict[Path, dict[str, Any]]) -> tuple[Path | None, bool]:
    """The stored result to compare with, and whether it is of this kind of machine.

    Of this kind before any other, then the one that has most ratios in common; None where none has any.
    """
    ratios = RATIOS[now["benchmark"]]
    ranks = {
        path: (alike(result, now), len(ratios(result).keys() & ratios(now).keys()))
        for path, result in stored.items()
    }
    usable = {path: rank for path, rank in ranks.items() if rank[1]}
    if not usable:
        return None, False
    best = max(usable, key=lambda path: usable[path])
    return best, usable[best][0]


def compare(stored: dict[str, Any], now: dict[str, Any], same_kind: bool) -> list[Verdict]:
    """A verdict for every ratio that both results have, on the same kind of machine or another."""
    ratios = RATIOS[now["benchmark"]]
    before, after, unsound = ratios(stored), ratios(now), stored.get("unsound", [])
    known = [what for what in after if what in before and not any(form in what for form in unsound)]
    return [judge(what, before[what], after[what], same_kind) for what in known]


def judge(what: str, before: Ratio, after: Ratio, same_kind: bool) -> Verdict:
    """Whether one ratio moved by more than its spreads allow."""
    tolerance = max(LEAST, SPREADS * (before.spread**2 + after.spread**2) ** 0.5)
    moved = after.value / before.value
    if not same_kind and before.value >= 1:
        verdict = "not judged"
    elif (moved if same_kind else after.value) > 1 + tolerance:
        verdict = "WORSE"
    elif tolerance > MOST:
        verdict = "unsteady"
    elif not same_kind:
        verdict = "as before"
    else:
        verdict = "better" if moved < 1 / (1 + tolerance) else "as before"
    return Verdict(what, round(before.value, 4), round(after.value, 4), round(tolerance, 4), verdict)


if __name__ == "__main__":
    run_main(main)
