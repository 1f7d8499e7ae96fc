"""The annotated video sent to a network address, as H.264 with little delay, reconnecting by itself.

Connecting, encoding and sending happen on a thread behind a short queue: ``write`` never waits for the network. While
the connection is away, or slower than the video, frames are dropped and counted; ``problem`` says how many. The first
picture sent is a black one, when the output is opened: it proves the address before anything else starts.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time

import av
import numpy as np

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Picture, Shown, VideoFormat
from mcdrl_rt.video.connection import MUXERS, TIME_BASE, Connection, ConnectionLost, check_command
from mcdrl_rt.video.encoder import H264, codec_name
from mcdrl_rt.video.names import redacted
from mcdrl_rt.video.output import Pace, Sink, Timeline, reason

__all__ = ["MUXERS", "Push"]

_QUEUE = 4  # frames: enough to ride out a slow one, few enough to stay current
_CONNECT_S = 10.0
_STALL_S = 10.0  # a connection that takes nothing for so long is dead
_RETRY_S = (0.5, 8.0)  # between attempts: at first, and at most
_LOOK_S = 0.1  # for the end, while nothing comes
_END_S = 4.0  # for the last frames to leave
_LISTENING = ("mode=listener", "listen=1")  # then it is others who call, some time


class Push(Sink):
    """A stream to ``rtsp://``, ``rtmp://``, ``rtmps://``, ``srt://`` or ``udp://``.

    Args:
        url: where to; user, password and key are in no message.
        codec: one for H.264, ``auto``, or None for libx264.
        format: of the frames to come; a file's are sent at their own pace.

    Attributes:
        frames: frames sent.
        reconnections: times the connection was made again.

    Raises:
        SinkError: there is no connection, 10 s after it was asked for.
    """

    def __init__(self, url: str, codec: str | None, format: VideoFormat) -> None:
        self._url, self._name, self._format = url, redacted(url), format
        self._codec = codec_name(codec, H264)
        if "264" not in self._codec:
            raise SinkError(f"cannot write {self._codec} to {self._name}: an address takes H.264: {H264} or auto")
        self._timeline, self._pace = Timeline(TIME_BASE, from_zero=True), Pace(format)
        self._first_pts = round(1 / (format.rate * TIME_BASE))  # after the black picture
        self.reconnections = 0
        self._lost_here = self._lost_there = 0  # before the queue, behind it: each counted by one thread
        self._queue: queue.Queue[tuple[Picture, int]] = queue.Queue(_QUEUE)
        self._stop = threading.Event()
        self._sending_since: float | None = None
        self._retry_at, self._retry_s = 0.0, _RETRY_S[0]
        self._listens = any(word in url for word in _LISTENING)
        self._why = "nobody has called yet" if self._listens else ""
        self._connection: Connection | None = None
        self._trying: Connection | None = None  # one that is being made
        self._earlier: list[str] = []  # what became of frames that went over the one before
        check_command(url)
        if not self._listens:
            self._open()
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)
        self._thread.start()

    def write(self, shown: Shown) -> None:
        """Queue one frame; where the queue is full, the oldest in it is dropped."""
        pts = self._timeline.place(shown.frame)
        if pts is None:
            return
        self._pace.wait(shown.frame)
        since, connection = self._sending_since, self._connection
        if connection is None and not self._listens:  # who listens is called when others like to
            connection = self._trying
        if since is not None and connection is not None and time.monotonic() - since > _STALL_S:
            connection.kill()
        item = (shown.frame.picture, self._first_pts + pts)
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            with contextlib.suppress(queue.Empty):  # the oldest gives way: what is shown is to be current
                self._queue.get_nowait()
                self._lost_here += 1
            self._queue.put_nowait(item)  # nobody else puts

    def close(self) -> None:
        """Send what is queued, and hang up; by force, where the network takes no more."""
        self._stop.set()
        for _ in range(2):
            self._thread.join(_END_S)
            if self._thread.is_alive() and (connection := self._connection or self._trying) is not None:
                connection.kill()

    def abort(self) -> None:
        """The same: what was sent is sent."""
        self.close()

    def hurry(self) -> None:
        """Send what there is, without a long wait for its turn."""
        self._pace.hurry()

    @property
    def dropped(self) -> int:  # type: ignore[override]
        """Frames not sent."""
        return self._lost_here + self._lost_there

    @property
    def down(self) -> str:  # type: ignore[override]
        """Why there is no connection; empty while there is one."""
        return "" if self._connection is not None else self._why

    @property
    def lost(self) -> str:  # type: ignore[override]
        """What did not arrive, where the connection was gone in the end; those who call a listener come and go."""
        gone = self._connection is None and self.dropped > 0 and not self._listens
        return (self.problem or "") if gone else ""

    @property
    def problem(self) -> str | None:
        """Frames that did not arrive, and why."""
        connection = self._connection
        problems = [*self._timeline.problems, *(connection.problems if connection else self._earlier)]
        if lost := self.dropped:
            why = f"no connection ({self._why})" if self._why else "the network is too slow for this video"
            again = f", connected again {self.reconnections} times" if self.reconnections else ""
            problems.append(f"{lost} frames not sent to {self._name}: {why}{again}")
        return "; ".join(problems) or None

    def _open(self) -> None:
        """Make the first connection, with a black picture."""
        try:
            self._connection = self._connect(np.zeros((*self._format.size, 3), np.uint8), 0)
        except (ConnectionLost, av.FFmpegError, OSError, ValueError) as error:
            why = str(error) if isinstance(error, ConnectionLost) else reason(error)
            advice = "check the address, and that it is being served"
            raise SinkError(f"cannot write to {self._name}: {why}; {advice}") from None

    def _run(self) -> None:
        while (item := self._next()) is not None:
            self._sending_since = time.monotonic()
            try:
                self._send(*item)
            except (ConnectionLost, av.FFmpegError, OSError, ValueError) as error:
                self._why = str(error) if isinstance(error, ConnectionLost) else reason(error)
                self._earlier = self._connection.problems if self._connection else self._earlier
                self._connection = None
                self._retry_at = time.monotonic() + self._retry_s
                self._retry_s = min(2 * self._retry_s, _RETRY_S[1])
                self._lost_there += 1
            self._sending_since = None
        if self._connection is not None:
            self._connection.close()

    def _send(self, picture: Picture, pts: int) -> None:
        """Send a frame, over a new connection if need be; one that comes while that must wait is dropped."""
        if self._connection is not None:
            self._connection.send(picture, pts)
        elif time.monotonic() < self._retry_at or self._stop.is_set():
            self._lost_there += 1
            return
        else:
            self._connection = self._connect(picture, pts)
            self.reconnections += self.frames > 0
            self._retry_s = _RETRY_S[0]
        self.frames += 1

    def _connect(self, picture: Picture, pts: int) -> Connection:
        connection = self._trying = Connection(self._url, self._codec, self._format)
        try:
            connection.send(picture, pts)
            self._sending_since = None  # what follows has a limit of its own
            connection.wait(None if self._listens else _CONNECT_S, self._stop)
        except BaseException:
            connection.kill()
            connection.close()
            raise
        finally:
            self._trying = None
        return connection

    def _next(self) -> tuple[Picture, int] | None:
        """The next frame; None once there is none and none will come."""
        while True:
            try:
                return self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                if self._stop.is_set():
                    return None
