"""A sink on a thread of its own: one that fails or is slow does not take the others with it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from mcdrl_rt.errors import SinkError
from mcdrl_rt.stream.channel import Channel, Stopped
from mcdrl_rt.stream.telemetry import Telemetry
from mcdrl_rt.types import Shown
from mcdrl_rt.video.sink import Sink

QUEUE = 4  # frames that wait for a sink: enough to ride out a slow one
LIVE_QUEUE = 12  # where nobody can be made to wait: 0.4 s of video at 30 frames a second
STALL_S = 5.0  # that a sink takes nothing, before that is told
FINISH_S = 20.0  # that a sink which takes no frame is waited for by a live stream, or one asked to end


class Output:
    """One sink and the thread that writes to it, and in the end closes it: nobody else may.

    Args:
        name: for messages, without passwords.
        sink: opened.
        telemetry: takes the time that writing takes.
        live: nobody waits: where the sink is too slow, its oldest waiting frame is dropped.

    Attributes:
        failure: why nothing more is written.
    """

    def __init__(self, name: str, sink: Sink, telemetry: Telemetry, live: bool) -> None:
        self.name, self.sink = name, sink
        self.failure: BaseException | None = None
        self._telemetry = telemetry
        self._channel: Channel[Shown] = Channel(LIVE_QUEUE if live else QUEUE, drop_oldest=live)
        self._discarded = False
        self._hurried_s: float | None = None  # since when it is to hurry
        self._busy_s: float | None = None  # since when the sink is at work on one frame
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=f"write {name}", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Frames the sink had no time for, or could not send on."""
        return self._channel.dropped + self.sink.dropped

    @property
    def down(self) -> str:
        """Why nothing that is written arrives just now; empty while it does."""
        busy_s = self._busy_s
        if busy_s is not None and time.monotonic() - busy_s > STALL_S:
            return f"it has taken nothing for {STALL_S:.0f} s"
        return self.sink.down

    @property
    def lost(self) -> str:
        """Once all has ended, why what was written is not there, or not to its end; empty where it is."""
        return self.sink.lost if self.failure is None else str(self.failure) or type(self.failure).__name__

    def put(self, shown: Shown) -> None:
        """Hand over a frame; after a failure, nothing happens."""
        try:
            self._channel.put(shown)
        except Stopped:
            pass

    def hurry(self) -> None:
        """Say, again and again, that nobody has the patience: a sink that hangs is left behind after ``FINISH_S``.

        One that is being closed does not hang: gigabytes may be on their way to a slow disk. One that goes on after all
        ends as one that failed: a recording of what was live is kept.
        """
        self.sink.hurry()
        now, busy_s = time.monotonic(), self._busy_s
        self._hurried_s = self._hurried_s or now
        if busy_s is not None and now - max(self._hurried_s, busy_s) > FINISH_S:
            self.failure = SinkError(f"{self.name} has taken nothing for {FINISH_S:.0f} s; its last frames are lost")
            self._channel.stop()

    def finish(self, keep: bool) -> None:
        """No frame will come: what was handed over is written and the sink closed, or what was written thrown away."""
        if keep:
            self._channel.end()
        else:
            self._discarded = True
            self._channel.stop()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; whether it has come."""
        return self._ended.wait(timeout_s) or self.failure is not None

    def _run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self.failure = error
            self._channel.stop()
        finally:
            self._ended.set()

    def _write(self) -> None:
        try:
            while (shown := self._channel.get()) is not None:
                with self._busy(), self._telemetry.time("encode"):
                    self.sink.write(shown)
                self._telemetry.frame_out(shown.frame.capture_time_s)
        except Stopped as left_behind:
            if self._discarded:
                self.sink.abort()
            else:
                self.sink.__exit__(type(left_behind), left_behind)
        except BaseException as error:
            self.sink.__exit__(type(error), error)
            raise
        else:
            self.sink.close()

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        self._busy_s = time.monotonic()
        try:
            yield
        finally:
            self._busy_s = None
