"""What the commands say to people and to programs, and what they hear from them: lines, bars, JSON, signals."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast

from rich.console import Console
from rich.text import Text

from mcdrl_rt.errors import McdrlError
from mcdrl_rt.unfinished import remove_all

if TYPE_CHECKING:
    from mcdrl_rt.stream.telemetry import Summary


_CLOSE_S, _LOG_S = 5.0, 1.0  # that workers, and a log, are waited for when the process leaves
_SWEEP_S = 0.1  # for other threads to make what they have begun
_STACK = 16 << 20  # bytes: what a first thread has, and more


class _Patient(io.TextIOBase):
    """Standard error, for as long as it is taken: on a terminal that is held (Ctrl-S) or hangs a write never ends.

    What is not taken within half a second is left out, and all that follows until it is taken again.
    """

    _PATIENCE_MS, _PIECE = 500, 256
    _held = False

    def write(self, text: str) -> int:
        """Write what is taken."""
        target = sys.stderr
        if target is None:
            return len(text)
        try:
            number = target.fileno()
        except (OSError, ValueError, AttributeError):  # not a file: nothing can hold it
            return target.write(text)
        data = text.encode(self.encoding, "replace")
        for start in range(0, len(data), self._PIECE):
            if not self._is_taken(number):
                break
            try:
                os.write(number, data[start : start + self._PIECE])
            except OSError:  # nobody reads it any more, which is no reason to lose a recording
                break
        return len(text)

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return sys.stderr is not None and sys.stderr.isatty()

    def fileno(self) -> int:
        """The system's number of it."""
        return sys.stderr.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """How text is encoded."""
        return getattr(sys.stderr, "encoding", None) or "utf-8"  # it may be closed, by whoever started us

    def _is_taken(self, number: int) -> bool:
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        self._held = not poll.poll(0 if self._held else self._PATIENCE_MS)
        return not self._held


stderr = Console(file=cast(IO[str], _Patient()))


def say(text: str, label: str = "", style: str = "") -> None:
    """A line for people, on standard error; never broken, and no bracket in it is taken for a colour."""
    stderr.print(Text.assemble((label, style), " " if label else "", text), soft_wrap=True)


class LogLines(logging.Handler):
    """Log records as plain lines, above a progress bar if there is one; not what a summary says better."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record."""
        label = "error:" if record.levelno >= logging.ERROR else ""
        if record.name != "mcdrl_rt.journal":
            say(self.format(record), label, "bold red")


def attended(command: Callable[[], object]) -> object:
    """Run a command on a thread of its own, while this one, the program's first, hears signals, whatever hangs.

    Python hears them on its first thread alone, between two of its own steps: a library that waits there for a camera
    would keep them waiting, and one that is being loaded would take what they raise for a fault of its own.

    Returns:
        What the command returned; 1 after an exception, which is printed.
    """
    on_signals(quit_now)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows lacks the last
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as nohup holds one off
            signal.signal(number, _heard)
    results = []
    threading.stack_size(_STACK)
    thread = threading.Thread(target=lambda: results.append(command()), name="command", daemon=True)
    thread.start()
    threading.stack_size(0)
    while thread.is_alive():
        thread.join(0.2)  # in slices: Windows hears nothing during a wait
    return results[0] if results else 1


def on_signals(handle: Callable[[int, Any], None]) -> None:
    """Answer Ctrl-C, a request to end, and the loss of the terminal so from now on; at first, with ``quit_now``."""
    global _handle
    _handle = handle


def at_quit(close: Callable[[], object]) -> None:
    """Have something done when the process is told to quit, if it can be done soon: ending workers, say."""
    _closers.append(close)


def quit_now(number: int, _: object) -> NoReturn:
    """Leave at once, discarding what was begun."""
    say("stopped")
    stderr.quiet = True  # what is broken off now need not be told
    for close in _closers:
        _try(close, _CLOSE_S)
    remove_all()
    time.sleep(_SWEEP_S)  # other threads go on: what one was about to make is there now
    remove_all()
    leave(128 + number)


def _try(action: Callable[[], object], seconds: float) -> None:
    """Do what may hang, and wait for it no longer than that."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)


def _heard(number: int, frame: object) -> None:
    _handle(number, frame)


_handle: Callable[[int, Any], None] = quit_now
_closers = list[Callable[[], object]]()


def leave(status: object) -> NoReturn:
    """End the process, as ``sys.exit`` does, whatever hangs: Python would wait for it, or be brought down by it."""
    left_behind = [thread for thread in threading.enumerate() if thread.daemon]
    if not left_behind or isinstance(status, str):
        sys.exit(status)  # type: ignore[arg-type]
    _try(logging.shutdown, _LOG_S)
    stderr.show_cursor()  # which a progress bar hides
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status if isinstance(status, int) else 0)


def run_program(main: Callable[[], object]) -> NoReturn:
    """Run a program of ours that is not the command, and end with its status.

    Where the reader of its output is gone, as ``head`` goes when it has what it wants, it ends quietly, and with 1.
    """
    status: object = 1
    try:
        status = main()
    except SystemExit as end:
        status = end.code
    except BrokenPipeError:
        if _is_read():  # of another pipe: a fault
            raise
    if not _is_read():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python, at its end, writes what is left
        status = 1
    sys.exit(status)  # type: ignore[arg-type]


def _is_read() -> bool:
    """Whether standard output has a reader, and what was printed reaches it."""
    if sys.stdout is None:
        return True
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # what is left is kept, and fails again
        return False
    try:
        handle = sys.stdout.fileno()
    except OSError:  # it is no file, as a notebook's is none
        return True
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()  # for output that keeps nothing, with PYTHONUNBUFFERED
    poll.register(handle, 0)
    return not poll.poll(0)


class Stop(threading.Event):
    """Set by the first signal, so that a stream ends and its output is kept; a second Ctrl-C quits.

    No other signal does: a terminal that is closed, and a machine that shuts down, want nothing discarded. ``timeout``
    signals a process and its group at once: that is one request, not two.
    """

    number = 0
    _since = float("-inf")
    ECHO_S = 0.5  # signals within this time are the same request

    def __call__(self, number: int, _: object) -> None:
        now = time.monotonic()
        if not self.number:  # it may be set already: a window has keys, too
            self.number, self._since = number, now
            self.set()
            say("stopping; a second Ctrl-C discards the output")
        elif number == signal.SIGINT and now - self._since > self.ECHO_S:
            quit_now(number, _)


@contextlib.contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """What is being done, and for how long, on a terminal."""
    if not stderr.is_terminal:
        yield lambda _: None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda text: progress.update(task, description=text)


def report(summary: Summary, as_json: bool, **more: object) -> None:
    """How a run went, in two lines and a warning, or in one line for programs, who are told ``more``."""
    if as_json:
        print_json(dataclasses.asdict(summary) | more)
        return
    stopped = "stopped after " if summary.stopped else ""
    counts = [f"{summary.frames_out} frames", f"{summary.frames_with_lesion} with a lesion"]
    counts += [f"{count} {what}" for count, what in _unusual(summary) if count]
    say(f"{summary.source} → {summary.output or 'nothing'}: {stopped}{', '.join(counts)}")
    times = [f"{summary.seconds:.1f} s, {summary.fps:.0f} fps, {summary.realtime:.1f}× real time; {summary.engine}"]
    if segment := summary.stages.get("segment"):
        usual, slow = (f"{segment[name]:.{0 if segment[name] >= 100 else 1}f}" for name in ("p50_ms", "p95_ms"))
        times.append(f"{usual} ms a frame (p95 {slow})")
    if summary.policy == "pass" and summary.mask_age:
        delay, age = summary.stages["video_delay"], summary.mask_age
        times.append(f"video delayed by {delay['p99_ms']:.0f} ms, masks {age['p99_ms']:.0f} ms old (p99)")
    say(f"  {', '.join(times)}")
    if summary.problem:
        say(summary.problem, "warning:", "yellow")


def _unusual(summary: Summary) -> list[tuple[int, str]]:
    """What is worth a word where it is not zero."""
    return [
        (summary.frames_without_overlay, "without overlay"),
        (summary.frames_dropped, "dropped"),
        (summary.frames_reused, "standing still"),
        (summary.frames_lost_signal, "without signal"),
        (summary.reconnections, "reconnections"),
        (summary.engine_restarts, "restarts of the engine"),
    ]


@contextlib.contextmanager
def failures(source: str, as_json: bool) -> Iterator[None]:
    """Tell programs, too, of what cannot be begun."""
    try:
        yield
    except (McdrlError, OSError) as error:
        print_failure(source, error, as_json)
        raise


def print_failure(source: str, error: object, as_json: bool) -> None:
    """The line for programs of an input that came to nothing: what it is called, and the error or its text."""
    if as_json:
        print_json({"source": source, "error": str(error)})


def print_json(line: dict[str, Any]) -> None:
    """A line for programs, on standard output; a reader that is gone does not end the work."""
    try:
        print(json.dumps(line), flush=True)
    except OSError as error:
        say(f"nobody reads standard output any more: {error.strerror}", "warning:", "yellow")
        sys.stdout = open(os.devnull, "w")
