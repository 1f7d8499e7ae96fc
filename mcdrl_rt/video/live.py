"""Sources that do not wait: capture devices and streams that come and go, and recordings played as if they were.

    >>> source = Live(Video("rtsp://tower/left", {}), lambda: Video("rtsp://tower/left", {}))     # doctest: +SKIP
    >>> for frame in source:                                                                      # doctest: +SKIP
    ...     show(frame.pixels if frame.signal else "no signal", at=frame.pts_s)
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame, Picture, UInt8Array, pixels_of
from mcdrl_rt.video.base import Source

_log = logging.getLogger("mcdrl_rt.video")
_BUFFER = 4  # frames that wait for a consumer: enough to ride out a slow one, few enough to stay current
_PATIENCE_S, _PATIENCE_FRAMES = 0.5, 3  # without a picture for the longer of the two, the signal counts as lost
_MOST_PER_S = 120  # greyed frames: where FFmpeg cannot tell a stream's rate it may say 90000
_JAM_S = 0.2  # of late pictures, before it is known whether they catch up
_CATCHING_UP = 0.8  # seconds that pictures held up on the way take to come, for each second of theirs
_LEAP_S = 10.0  # of video that took less: the sender's clock was set, or another recording begins
_YOUNG_S = 2.0  # that a new connection may begin with what its server kept, sent at once
_AHEAD_S = 0.2  # of the time that passed: more than its pictures come early by chance
_BACK_OFF_S = (0.2, 2.0)  # between attempts to connect again: at first, and at most
_BEHIND_S, _BEHIND_FOR_S = 2.0, 10.0  # later than they might come, and for so long: then that is told
_MINUTES = 5  # that pictures are compared with: clocks, too, part by seconds in an hour
_TOLD = 5  # reasons for one loss, at most
_JOIN_S = 1.0  # how long closing waits for a reader that FFmpeg may hold


class Paced(Source):
    """A recording, released at its own pace.

    The next frame is decoded before it is due. What is decoded too late is released at once, and so is what would be
    due after more than ten seconds without a picture; nothing is dropped.
    """

    def __init__(self, recording: Source) -> None:
        self._take_facts(recording)
        self.frame_count, self.live = recording.frame_count, True
        self._recording = recording
        self._closing = threading.Event()
        self._started_s: float | None = None  # when a frame of time 0 was due

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._recording:
            if self._started_s is None:
                self._started_s = time.monotonic() - frame.pts_s
            early_s = self._started_s + frame.pts_s - time.monotonic()
            if early_s > _LEAP_S:
                self._started_s, early_s = self._started_s - early_s, 0.0
            self._closing.wait(max(0.0, early_s))
            if self._closing.is_set():
                return
            yield dataclasses.replace(frame, capture_time_s=time.monotonic())
        self.problem = self._recording.problem

    def close(self) -> None:
        """End the wait for the next frame, and the recording."""
        self._closing.set()
        self._recording.close()


class _Arrival(NamedTuple):
    frame: Frame
    connection: int  # which one it came by: each has a clock of its own


class Live(Source):
    """A device or stream that is read on a thread of its own, and opened again whenever it is lost.

    Lost means that reading failed or ended, or that no picture came for half a second. Until pictures come again the
    last one is repeated, greyed and with ``signal`` False, at the nominal rate: the clock never stops, nor jumps back.

    Args:
        video: opened; this source closes it.
        reopen: opens it again, or raises SourceError; None where its end is the end: then it is not read before
            somebody wants its frames, and whoever sends it waits.
    """

    def __init__(self, video: Source, reopen: Callable[[], Source] | None = None) -> None:
        self._take_facts(video)
        self.live = True
        self._reopen = reopen
        self._clock = _Clock(self.time_base)
        self._interval_s = max(float(1 / self.rate), 1 / _MOST_PER_S)
        self._patience_s = max(_PATIENCE_S, _PATIENCE_FRAMES * self._interval_s)
        self._picture: Picture = np.zeros((*self.size, 3), np.uint8)  # the last one, greyed while the signal is lost
        self._signal = True
        self._index = self._losses = 0
        self._shown_s = time.monotonic()  # when the last frame was handed out
        self._changed = threading.Condition()
        self._arrivals: deque[_Arrival] = deque(maxlen=_BUFFER)
        self._connected, self._consumed, self._ended = True, False, False
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._verdict = ""  # what was wrong with what ended
        self._obstacles = set[str]()  # why it cannot be opened again, as far as that was told
        self._delay_s = _BACK_OFF_S[0]
        # a daemon: nothing can interrupt some of FFmpeg's calls, and they must not keep the program alive
        self._reader = threading.Thread(target=self._read, args=(video,), name="reader", daemon=True)
        self._unread: Source | None = video
        if reopen is not None:
            self._start()

    def __iter__(self) -> Iterator[Frame]:
        self._shown_s, self._consumed = time.monotonic(), True
        if self._unread is not None:
            self._start()
        while (frame := self._next()) is not None:
            yield frame

    def close(self) -> None:
        """End the iteration and the reader; a reader that FFmpeg holds is left to end by itself."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        if self._unread is not None:
            self._unread.close()
        else:
            self._reader.join(_JOIN_S)

    def _start(self) -> None:
        self._unread = None
        self._reader.start()

    # ---- the consumer's side ----

    def _next(self) -> Frame | None:
        """The next picture, or the last one greyed when it is time for one; None once closed or ended."""
        with self._changed:
            while not self._closing.is_set():
                if self._arrivals:
                    if (frame := self._seen(self._arrivals.popleft())) is not None:
                        return frame
                    self.dropped += 1
                    continue
                if self._failure is not None:
                    raise self._failure
                if self._ended:
                    told, self._verdict = self._verdict, ""
                    self.problem = "; ".join(filter(None, (self.problem, told))) or None
                    return None
                # while it may come any moment, patience; once it is known to be lost, the nominal rate
                patient = self._signal and self._connected
                due_s = self._shown_s + (self._patience_s if patient else self._interval_s)
                left_s = due_s - time.monotonic()
                if left_s <= 0:
                    # late by a little, the beat is kept; late by much, it begins anew
                    self._shown_s = max(due_s, time.monotonic() - self._interval_s)
                    return self._greyed()
                self._changed.wait(left_s)
        return None

    def _seen(self, arrival: _Arrival) -> Frame | None:
        """A picture on this source's clock; None if its time was shown grey, and now is near."""
        frame = arrival.frame
        pts = self._clock.of_picture(frame, arrival.connection, self._signal)
        if pts is None:
            return None
        self._picture, self._signal, self._shown_s = frame.picture, True, time.monotonic()
        return self._numbered(dataclasses.replace(frame, pts=pts, time_base=self.time_base))

    def _greyed(self) -> Frame:
        if self._signal:
            self._picture, self._signal = _grey(pixels_of(self._picture)), False
            self._losses += 1
            self.problem = f"the signal was lost {'once' if self._losses == 1 else f'{self._losses} times'}"
        return self._numbered(Frame(self._picture, self._clock.at(self._shown_s), self.time_base, signal=False))

    def _numbered(self, frame: Frame) -> Frame:
        index, self._index = self._index, self._index + 1
        return dataclasses.replace(frame, index=index)

    # ---- the reader's side ----

    def _read(self, video: Source | None) -> None:
        try:
            while video is not None:
                with video:  # closed by the thread that reads it
                    self._hand_over(video)
                    self._verdict = video.problem or ""
                video = self._connect(self._reopen) if self._reopen is not None else None
            with self._changed:
                self._ended = True
                self._changed.notify_all()
        except BaseException as error:  # a bug, for the consumer to raise
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _hand_over(self, video: Source) -> None:
        lag = _Lag()
        for frame in video:
            if self._closing.is_set():
                return
            if (behind_s := lag.see(frame)) is not None:
                what = "this machine or the network does not keep up; have it sent smaller, or less often"
                _log.warning("%s: its pictures come %.0f s late: %s", self.name, behind_s, what)
            with self._changed:
                self._connected, self._delay_s = True, _BACK_OFF_S[0]
                self.dropped += self._consumed and len(self._arrivals) == _BUFFER
                self._arrivals.append(_Arrival(frame, self.reconnections))
                self._changed.notify_all()

    def _connect(self, reopen: Callable[[], Source]) -> Source | None:
        """Open it again, however long that takes; None once closed."""
        with self._changed:
            self._connected = False
            self._changed.notify_all()
        while not self._closing.wait(self._delay_s):
            self._delay_s = min(2 * self._delay_s, _BACK_OFF_S[1])
            try:
                video = reopen()
            except SourceError as error:
                if str(error) not in self._obstacles and len(self._obstacles) < _TOLD:
                    self._obstacles.add(str(error))  # each once: a wrong password, say, or no such device
                    _log.warning("%s is not back: %s", self.name, error)
                continue
            self._obstacles.clear()
            self.reconnections += 1
            return video
        return None


class _Lag:
    """Notices that the pictures of one connection come later, and go on coming later, than they came before."""

    def __init__(self) -> None:
        # least time between a picture's own and that at which it was there, of each of the last minutes
        self._soonest_s = deque[tuple[int, float]](maxlen=_MINUTES)
        self._last_s = 0.0  # a picture's own time
        self._since_s: float | None = None
        self._told = False

    def see(self, frame: Frame) -> float | None:
        """Take the next picture; how late it is in seconds, once, when it is time to tell."""
        offset_s = frame.capture_time_s - frame.pts_s
        leaps = not 0 < frame.pts_s - self._last_s < _LEAP_S
        self._last_s = frame.pts_s
        if leaps:
            self._soonest_s.clear()
        minute = int(frame.capture_time_s // 60)
        if not self._soonest_s or self._soonest_s[-1][0] != minute:
            self._soonest_s.append((minute, offset_s))
        self._soonest_s[-1] = (minute, min(offset_s, self._soonest_s[-1][1]))
        behind_s = offset_s - min(least for _, least in self._soonest_s)
        if behind_s < _BEHIND_S:
            self._since_s = None
            return None
        self._since_s = frame.capture_time_s if self._since_s is None else self._since_s
        if self._told or frame.capture_time_s - self._since_s < _BEHIND_FOR_S:
            return None
        self._told = True
        return behind_s


class _Clock:
    """One clock for all connections: by the time that passes here, while there is no picture or the sender's leaps.

    So it is where another connection begins with a burst, of the seconds that a server keeps for whoever connects: else
    it would be ahead by as much, and more with every connection.
    """

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._shift = self._connection = 0
        self._young_until_s, self._bursts = float("-inf"), False  # of the connection
        self._last: int | None = None
        self._first_late: Frame | None = None  # of those that came after their time was shown grey
        self._anchor_s, self._anchor = time.monotonic(), 0  # a moment here, and what this clock showed then

    def of_picture(self, frame: Frame, connection: int, signal: bool) -> int | None:
        """The time of a picture; None for one that was held up on the way, when those behind it will be in time.

        Args:
            frame: the picture.
            connection: the number of the connection it came by.
            signal: there was no loss between it and the one before.
        """
        own = round(frame.pts * frame.time_base / self._time_base)
        new = connection != self._connection
        if not new and not signal and self._is_catching_up(frame, own):
            return None
        self._first_late = None
        if new:
            self._connection, self._bursts = connection, False
            self._young_until_s = frame.capture_time_s + _YOUNG_S
        if new or not signal or self._leaps(frame, own):
            self._shift = self._passed(frame.capture_time_s) - own
        pts = self._onwards(own + self._shift)
        if new or frame.capture_time_s > self._young_until_s:  # a burst shows over many pictures
            self._anchor_s, self._anchor = frame.capture_time_s, pts
        return pts

    def at(self, moment_s: float) -> int:
        """The time at a moment of ``time.monotonic()`` without a picture."""
        return self._onwards(self._passed(moment_s))

    def _is_catching_up(self, frame: Frame, own: int) -> bool:
        """Whether a late picture is one of many that come faster than their time goes by, as after a jam."""
        if self._last is None or own + self._shift > self._last:
            return False
        first = self._first_late = self._first_late or frame
        video_s, passed_s = frame.pts_s - first.pts_s, frame.capture_time_s - first.capture_time_s
        return passed_s < _JAM_S or passed_s < _CATCHING_UP * video_s

    def _leaps(self, frame: Frame, own: int) -> bool:
        """Whether far more of its time than of ours has passed since the picture before it, or any more in a burst."""
        ahead_s = (own + self._shift - self._passed(frame.capture_time_s)) * self._time_base
        if frame.capture_time_s > self._young_until_s:
            return self._last is not None and ahead_s > _LEAP_S
        self._bursts |= ahead_s > _AHEAD_S
        return self._bursts and ahead_s > 0

    def _passed(self, moment_s: float) -> int:
        return self._anchor + round(Fraction(moment_s - self._anchor_s) / self._time_base)

    def _onwards(self, pts: int) -> int:
        self._last = pts if self._last is None else max(pts, self._last + 1)
        return self._last


def _grey(pixels: UInt8Array) -> UInt8Array:
    """Desaturated and darkened: nobody takes it for the living picture."""
    return np.asarray(cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) // 2, cv2.COLOR_GRAY2RGB), np.uint8)
