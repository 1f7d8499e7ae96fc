"""A live source that outlives its signal: frames go on, greyed, until pictures come again.

A thread reads, and reopens what is lost; the frames are handed over by the iterating thread, which is never kept
waiting for longer than it takes to call the signal lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import cv2
import numpy as np

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame, UInt8Array
from mcdrl_rt.video.base import Source

_WAITING = 4  # frames read and not yet taken
_PATIENCE_S = 0.5  # without a frame before the signal counts as lost, or
_PATIENCE_FRAMES = 3  # this many frame intervals, whichever is longer
_CATCHING_UP = 0.8  # seconds that late frames take to come for each second of theirs, if they were held up on the way
_FIRST_RETRY_S, _LAST_RETRY_S = 0.2, 3.0
_CLOSE_S = 1.0  # the reader may be deep in FFmpeg; it ends by itself when that lets go
_DIM = 0.4  # brightness of a picture that is no longer true


class Live(Source):
    """Reads a live source in a thread of its own, and opens it anew when it is lost.

    While the signal is lost, the last picture comes again and again, greyed and with ``signal=False``, at the nominal
    rate. Afterwards ``pts`` go on from there by the time that went by, whatever the new connection counts in.

    Args:
        source: opened; closed by the reader.
        reopen: opens it again, or raises SourceError.
    """

    live = True

    def __init__(self, source: Source, reopen: Callable[[], Source]) -> None:
        self._take_facts(source)
        self._interval_s = float(1 / self.rate)
        self._patience_s = max(_PATIENCE_S, _PATIENCE_FRAMES * self._interval_s)
        self._step = max(1, round(1 / (self.rate * self.time_base)))
        self._reader = _Reader(source, reopen)
        self._connection = 0
        self._shift = 0  # from the connection's pts to ours
        self._real: Frame | None = None  # the last frame with a signal, as it was handed out
        self._grey: UInt8Array | None = None  # its picture while the signal is lost
        self._last_pts: int | None = None
        self._shown_s = 0.0  # when the last frame was handed out
        self._first_late: Frame | None = None  # of those that came after their time was shown grey
        self._index = 0
        self._losses = self._late = 0
        self._reader.start()

    def __iter__(self) -> Iterator[Frame]:
        self._reader.count_drops()
        while not self._reader.closed.is_set():
            arrived = self._reader.take(*self._deadlines())
            if arrived is None and self._reader.closed.is_set():
                return
            frame = self._without_signal() if arrived is None else self._with_signal(*arrived)
            self.dropped = self._reader.dropped + self._late
            if frame is not None:
                yield frame

    def close(self) -> None:
        """Stop reading; does not wait for a reader that is deep in FFmpeg."""
        self._reader.stop()

    def _deadlines(self) -> tuple[float, float]:
        """Until when to wait for a frame while connected, and while not."""
        if self._real is None:
            return float("inf"), float("inf")  # the first frame is there: opening has decoded it
        soon = self._shown_s + self._interval_s
        return (soon if self._grey is not None else self._real.capture_time_s + self._patience_s), soon

    def _with_signal(self, frame: Frame, connection: int) -> Frame | None:
        """A frame that was read, on our clock; None for one whose time has passed."""
        pts = round(frame.pts * frame.time_base / self.time_base)
        if connection != self._connection:
            self.reconnections += connection - self._connection
            self._connection = connection
            self._losses += self._grey is None  # it was gone for less than a frame
            self._take_note()
            self._shift = self._now(frame.capture_time_s) - pts
        elif self._last_pts is not None and pts + self._shift <= self._last_pts:
            if self._is_catching_up(frame):
                self._late += 1
                return None
            self._shift = self._now(frame.capture_time_s) - pts  # the stream's clock stood still meanwhile
        self._first_late = self._grey = None
        self._real = self._next(replace(frame, pts=pts + self._shift, time_base=self.time_base))
        return self._real

    def _is_catching_up(self, frame: Frame) -> bool:
        """Whether late frames come faster than their time goes by: they will be on time soon, and keep their times."""
        first = self._first_late = self._first_late or frame
        video_s = frame.pts_s - first.pts_s
        passed_s = frame.capture_time_s - first.capture_time_s
        return video_s < _PATIENCE_FRAMES * self._interval_s or passed_s < _CATCHING_UP * video_s

    def _without_signal(self) -> Frame:
        assert self._real is not None
        if self._grey is None:
            self._losses += 1
            self._take_note()
            self._grey = _greyed(self._real.pixels)
        now = time.monotonic()
        return self._next(Frame(self._grey, self._now(now), self.time_base, capture_time_s=now, signal=False))

    def _take_note(self) -> None:
        self.note = f"the signal was lost {_times(self._losses)}; reconnected {_times(self.reconnections)}"

    def _now(self, time_s: float) -> int:
        """Our pts at a time after the last real frame; always after the last one handed out."""
        if self._real is None or self._last_pts is None:
            return 0
        elapsed = round((time_s - self._real.capture_time_s) / float(self.time_base))
        return max(self._real.pts + elapsed, self._last_pts + max(1, self._step // 2))

    def _next(self, frame: Frame) -> Frame:
        frame = replace(frame, index=self._index)
        self._index += 1
        self._last_pts, self._shown_s = frame.pts, time.monotonic()
        return frame


class _Reader(threading.Thread):
    """The thread that reads, reopens, and keeps the newest few frames.

    Attributes:
        closed: set when nothing more is wanted.
        dropped: frames given up since somebody takes them.
    """

    def __init__(self, source: Source, reopen: Callable[[], Source]) -> None:
        super().__init__(name="read", daemon=True)
        self.closed = threading.Event()
        self.dropped = 0
        self._source, self._reopen = source, reopen
        self._frames: deque[tuple[Frame, int]] = deque()
        self._changed = threading.Condition()
        self._counting = False
        self._connected = True
        self._failure: BaseException | None = None

    def count_drops(self) -> None:
        """From here on somebody takes frames; what was given up before was nobody's."""
        self._counting = True

    def take(self, patient: float, impatient: float) -> tuple[Frame, int] | None:
        """The oldest frame and the number of its connection; None when the time is up, or all is over.

        Args:
            patient, impatient: until when to wait (``time.monotonic()``) while connected, and while not.
        """
        with self._changed:
            while not self._frames and not self.closed.is_set():
                if self._failure is not None:
                    raise self._failure
                left = (patient if self._connected else impatient) - time.monotonic()
                if left <= 0:
                    return None
                self._changed.wait(min(left, 1.0))
            return self._frames.popleft() if self._frames else None

    def stop(self) -> None:
        """End, and wait a moment for the thread to be gone."""
        self.closed.set()
        with self._changed:
            self._frames.clear()
            self._changed.notify_all()
        self.join(_CLOSE_S)

    def run(self) -> None:
        """The thread's own work; ``stop`` ends it."""
        source: Source | None = self._source
        connection = 0
        try:
            while source is not None:
                self._read(source, connection)
                source = self._open_again()
                connection += 1
        except BaseException as error:  # a bug: it must not look like a signal that is lost for good
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _read(self, source: Source, connection: int) -> None:
        """Hand over all that comes; returns when nothing more does, or nothing more is wanted."""
        with source:
            for frame in source:
                if self.closed.is_set():
                    return
                self._put(frame, connection)
        with self._changed:
            self._connected = False
            self._changed.notify_all()

    def _put(self, frame: Frame, connection: int) -> None:
        with self._changed:
            self._connected = True
            if len(self._frames) >= _WAITING:
                self._frames.popleft()
                self.dropped += self._counting
            self._frames.append((frame, connection))
            self._changed.notify_all()

    def _open_again(self) -> Source | None:
        """Try until it can be opened, less and less often; None once nothing more is wanted."""
        wait_s = _FIRST_RETRY_S
        while not self.closed.wait(wait_s):
            try:
                return self._reopen()
            except SourceError:
                wait_s = min(2 * wait_s, _LAST_RETRY_S)
        return None


def _greyed(pixels: UInt8Array) -> UInt8Array:
    """A picture without colour, and dark: nobody may take it for the present."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return np.repeat((grey * _DIM).astype(np.uint8)[:, :, None], 3, axis=2)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
