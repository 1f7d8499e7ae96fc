"""What every output has in common: the class ``Sink``, times that only run forwards, and causes in plain words."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Self

import av

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Frame, Shown, VideoFormat
from mcdrl_rt.unfinished import begun

_LATE_S = 1.0  # a file this far behind its own clock does not hurry to catch up
_LEAP_S = 10.0  # without a frame: nobody waits for longer than that, as in ``live.Paced``


class Sink(ABC):
    """Where processed frames go.

    A sink may keep a frame's pixels for a moment after ``write`` has returned: nobody may draw on them any more.

    Attributes:
        frames: number of frames written so far.
        dropped: frames that were taken, and could not be sent on.
        down: why nothing that is written arrives just now; empty while it does.
        lost: once closed, why the last that was written is not there; empty where it is.
    """

    frames: int = 0
    dropped: int = 0
    down: str = ""
    lost: str = ""

    @abstractmethod
    def write(self, shown: Shown) -> None:
        """Write one frame.

        Raises:
            SinkError: it cannot be written: the disk is full, say. The output is closed by then.
        """

    def close(self) -> None:  # noqa: B027 (a sink without a file has nothing to finish)
        """Finish the output and let it appear under its name; safe to call twice, and after ``abort``.

        Raises:
            SinkError: it cannot be finished.
        """

    def abort(self) -> None:  # noqa: B027
        """Give up: a video file is discarded, and what had its name before is untouched."""

    def hurry(self) -> None:  # noqa: B027
        """Wait for no frame's turn for long any more: the end was asked for. From any thread, and again and again."""

    @property
    def problem(self) -> str | None:
        """What the user should know about the output, in one line; None when all is well."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class Timeline:
    """Places frames on the grid of times that an output can store, and turns away those that have no place on it.

    Args:
        time_base: seconds from one time of the grid to the next.
        from_zero: the first frame's time is zero in the output.
        keep_all: a frame that would need a place between two of the grid gets the next one, and is not turned away.

    Attributes:
        origin_s: time of the source that is zero in the output; known from the first frame on.
        dropped: frames whose time did not come after that of the frame before.
        crowded: frames for which the grid has no time of their own.
        late_s: the most that a frame's place is after its time.
    """

    def __init__(self, time_base: Fraction, from_zero: bool, keep_all: bool = False) -> None:
        self.time_base, self._from_zero, self._keep_all = time_base, from_zero, keep_all
        self.origin_s = Fraction(0)
        self.dropped = self.crowded = 0
        self.late_s = Fraction(0)
        self._last: tuple[int, Fraction] | None = None  # place given, and the latest time seen

    def place(self, frame: Frame) -> int | None:
        """The frame's time in units of ``time_base``; None if it must not be written."""
        time_s = frame.pts * frame.time_base
        if self._last is None and (self._from_zero or time_s < 0):
            self.origin_s = time_s  # no container keeps frames before zero: MP4 would lose them
        pts = round((time_s - self.origin_s) / self.time_base)
        if self._last is not None and pts <= self._last[0]:
            # re-timing it would be a lie, and no container takes time that runs backwards
            if time_s <= self._last[1]:
                self.dropped += 1
                return None
            if not self._keep_all:
                self.crowded += 1
                self._last = self._last[0], time_s
                return None
            pts = self._last[0] + 1
        self._last = pts, time_s
        self.late_s = max(self.late_s, pts * self.time_base + self.origin_s - time_s)
        return pts

    @property
    def length_s(self) -> Fraction:
        """Time of the newest frame in the output."""
        return self._last[0] * self.time_base if self._last else Fraction(0)

    @property
    def problems(self) -> list[str]:
        """What became of the frames turned away."""
        problems = []
        if self.dropped:
            problems.append(f"{self.dropped} frames not written: their timestamps do not increase")
        if self.crowded:
            problems.append(
                f"{self.crowded} frames not written: they follow each other faster than this format can tell apart; "
                "write .mp4 or .mov, which keep every time exactly"
            )
        if self.late_s > 2 * self.time_base:
            problems.append(
                f"some frames are shown up to {float(self.late_s):.3f} s late: they follow each other faster than this "
                "format can tell apart"
            )
        return problems


class Pace:
    """Lets the frames of a file out at their own times, for receivers that show what comes when it comes.

    A frame that would be due after more than ten seconds without one is due at once.
    """

    def __init__(self, format: VideoFormat) -> None:
        self._live = format.live  # the world sets the pace of a live source
        self._start = float("-inf")  # when the frame of time 0 left
        self._hurried = threading.Event()

    def wait(self, frame: Frame) -> None:
        """Wait until it is the frame's turn."""
        if self._live:
            return
        now = time.monotonic()
        early_s = self._start + frame.pts_s - now
        if not -_LATE_S <= early_s <= _LEAP_S:
            self._start, early_s = now - frame.pts_s, 0.0
        if early_s <= _LATE_S:
            time.sleep(max(0.0, early_s))
        elif self._hurried.wait(early_s):
            self._start = time.monotonic() - frame.pts_s

    def hurry(self) -> None:
        """End a wait of more than a second, and begin none: what is left still leaves frame by frame."""
        self._hurried.set()


def partial_path(target: Path, fresh: bool = False) -> Path:
    """Where a file is written until it is whole; removed if the process has to end at once.

    A ``fresh`` one is none that is there: a recording that was cut off, by a process of the same number.
    """
    partial = target.with_name(f".{target.stem}.partial-{os.getpid()}{target.suffix}")
    return begun(next(name for name in numbered(partial) if not (fresh and name.exists())))


def numbered(path: Path) -> Iterator[Path]:
    """Names for what must not replace another: ``a.mp4``, ``a-2.mp4``, ``a-3.mp4`` …"""
    yield path
    for number in itertools.count(2):
        yield path.with_stem(f"{path.stem}-{number}")


def check_folder(target: Path, partial: Path) -> None:
    """Find out that a file can be made at ``target``, without making it; ``partial``, beside it, is made.

    Raises:
        SinkError: it cannot.
    """
    folder = target.absolute().parent
    if not folder.exists():
        raise SinkError(f"cannot write {target}: the folder {folder} does not exist; create it first")
    if not folder.is_dir():
        raise SinkError(f"cannot write {target}: {folder} is not a folder")
    if target.is_dir():
        raise SinkError(f"cannot write {target}: it is a folder; name a file inside it")
    try:  # asking for permissions says little (root, read-only mounts): try it
        partial.open("ab").close()
    except OSError as error:
        why = "no new files are allowed there" if error.errno == errno.ENOENT else reason(error)
        raise SinkError(f"cannot write in the folder {folder}: {why}") from None


def reason(error: Exception) -> str:
    """The cause in plain words, without FFmpeg's numbers and without addresses, which may hold a password."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if number == errno.EFBIG:
        return "the file is larger than this system allows"
    if isinstance(error, av.error.EncoderNotFoundError | av.codec.codec.UnknownCodecError):
        return "this FFmpeg lacks the encoder"
    text = str(getattr(error, "strerror", None) or error)
    return text[:1].lower() + text[1:]
