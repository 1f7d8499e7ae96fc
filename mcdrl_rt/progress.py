"""Progress, for people: a bar for one video, bars for an archive, and a word on each that has ended, or is to come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from mcdrl_rt.console import print_failure, print_json, report, say, stderr
from mcdrl_rt.errors import McdrlError, SourceError, fault

if TYPE_CHECKING:
    from mcdrl_rt.offline import Job, Outcome, Settings, Store
    from mcdrl_rt.stream.pipeline import Stream
    from mcdrl_rt.stream.telemetry import Summary

_LONGEST = 30  # characters of a name: a longer one would leave no room for the bar


@contextlib.contextmanager
def progress_bar(name: str, total: int | None, shown: bool) -> Iterator[Callable[[int], None] | None]:
    """A progress bar on standard error; the count of frames alone where the end is not known."""
    if not shown or not stderr.is_terminal:
        yield None
        return
    with _progress() as progress:
        task = progress.add_task(_short(name), total=total, count=f"0/{total or '?'}", fps="")
        yield lambda frames: _advance(progress, task, frames, total)


class Bars:
    """A bar for the procedure at work, and one for all of them, by the size of their files.

    Args:
        sizes: of all procedures, by their source.
        shown: False to show nothing, as where there is no terminal.
    """

    def __init__(self, sizes: Mapping[Path, int], shown: bool) -> None:
        self._sizes = dict(sizes)
        self._done = dict.fromkeys(sizes, 0)
        self._ended = set[Path]()
        self._frames, self._began_s = 0, time.monotonic()  # of all procedures, done now and not before an interruption
        self._progress = _progress() if shown and stderr.is_terminal else None
        self._total: Any = None
        self._tasks: dict[Path, Any] = {}

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
            if len(self._sizes) > 1:
                size = sum(self._sizes.values())
                self._total = self._progress.add_task("all", total=size, count=self._count(), fps="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def start(self, source: Path, frames: int | None) -> Callable[[int], None] | None:
        """Show a procedure; what is returned takes the number of its frames that are done."""
        if self._progress is None:
            return None
        progress = self._progress
        task = self._tasks[source] = progress.add_task(_short(source.name), total=frames, count="", fps="")
        reached: int | None = None

        def advance(done: int) -> None:
            nonlocal reached
            self._frames += done - (done if reached is None else reached)
            reached = done
            _advance(progress, task, done, frames)
            self._reach(source, self._sizes[source] * done // frames if frames else 0)

        return advance

    def end(self, source: Path) -> None:
        """A procedure has ended, however that was."""
        self._ended.add(source)
        if self._progress is not None and (task := self._tasks.pop(source, None)) is not None:
            self._progress.remove_task(task)
        self._reach(source, self._sizes[source])

    def _reach(self, source: Path, size: int) -> None:
        self._done[source] = size
        if self._progress is not None and self._total is not None:
            speed = self._frames / max(time.monotonic() - self._began_s, 1e-3)
            done = sum(self._done.values())
            self._progress.update(self._total, completed=done, count=self._count(), fps=_fps(speed))

    def _count(self) -> str:
        return f"{len(self._ended)} of {len(self._sizes)}"


def conclude(
    streams: Sequence[Stream], results: Sequence[Summary | BaseException], as_json: bool
) -> tuple[bool, bool]:
    """Say how each stream ended.

    Returns:
        Whether one failed or lost an output, and whether one has a flaw.
    """
    failed = flawed = False
    for stream, result in zip(streams, results, strict=True):
        if not isinstance(result, BaseException) and not result.frames_out and not result.stopped:
            result = SourceError(f"{stream.name} has no frames; nothing was written")
        if not isinstance(result, BaseException):
            report(result, as_json)
            for output, why in result.lost.items():
                say(f"{output} was lost: {why}", "error:", "bold red")
            failed, flawed = failed or bool(result.lost), flawed or bool(result.problem)
            continue
        if not isinstance(result, McdrlError):  # --log has all of it
            result = McdrlError(fault(result))
        failed = True
        about = "" if str(result).startswith(stream.name) or len(streams) == 1 else f"{stream.name}: "
        say(f"{about}{result}", "error:", "bold red")
        print_failure(stream.name, result, as_json)
    return failed, flawed


def follow(outcomes: Iterable[Outcome], bars: Bars, as_json: bool) -> tuple[bool, bool]:
    """Say what becomes of recorded procedures, each when it has ended, and at the end which of them failed.

    Args:
        outcomes: of all of them.
        bars: their progress.
        as_json: for programs, too.

    Returns:
        Whether one failed, and whether one has a flaw.
    """
    failed, flawed, count = list[str](), False, 0
    for outcome in outcomes:
        bars.end(outcome.job.source)
        source, count = outcome.job.title, count + 1
        if outcome.summary is None:
            failed.append(source)
            say(f"{outcome.error}", "error:", "bold red")
            print_failure(source, outcome.error, as_json)
            continue
        flawed |= bool(outcome.summary.problem)
        if outcome.before and not as_json:
            flaw = outcome.summary.problem
            say(f"{source}: already done{f', with a flaw: {flaw}' if flaw else ''}")
            if outcome.gone:
                again = f"to make it again, delete {outcome.job.summary.name} and the others"
                say(f"{source}: {', '.join(outcome.gone)} is gone since; {again}", "warning:", "yellow")
        else:
            report(outcome.summary, as_json, **{"before": True, "gone": outcome.gone} if outcome.before else {})
    if failed:
        say(f"{len(failed)} of {count} procedures failed:")
    for source in failed:
        say(f"  {source}")
    return bool(failed), flawed


def _progress() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    texts = [TextColumn(f"{{task.fields[{name}]}}") for name in ("count", "fps")]
    return Progress(TextColumn("{task.description}"), BarColumn(), *texts, TimeRemainingColumn(), console=stderr)


def _advance(progress: Any, task: Any, frames: int, total: int | None) -> None:
    speed = next((each.speed for each in progress.tasks if each.id == task), None)
    progress.update(task, completed=frames, count=f"{frames}/{total or '?'}", fps=_fps(speed))


def _fps(speed: float | None) -> str:
    return f"{speed:.0f} fps" if speed else ""


def _short(name: str) -> str:
    from rich.markup import escape

    return escape(name if len(name) <= _LONGEST else f"{name[:14]}…{name[-15:]}")


def list_results(job: Job, settings: Settings, store: Store | None, as_json: bool) -> bool:
    """Tell what a procedure would become, or why it would not, and whether it would."""
    from mcdrl_rt.video.names import legible

    if (problem := job.problem) is not None:
        say(problem, "error:", "bold red")
        print_failure(job.title, problem, as_json)
        return False
    results = [str(path) if store is None else store.address(path) for path in job.results(settings)]
    state = job.state if store is None or store.summary_of(job.summary) is None else "done"
    if as_json:
        print_json({"source": job.title, "results": results, "state": state})
    else:
        print("\n  ".join([f"{job.title} ({state})", *map(legible, results)]))
    return True
