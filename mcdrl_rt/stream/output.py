"""A sink on a thread of its own: one that fails or is slow does not take the others with it."""

from __future__ import annotations

import threading
import time

from mcdrl_rt.errors import SinkError
from mcdrl_rt.stream.channel import Channel, Stopped
from mcdrl_rt.stream.telemetry import Telemetry
from mcdrl_rt.types import Shown
from mcdrl_rt.video.names import redacted
from mcdrl_rt.video.sink import Sink

QUEUE = 4  # frames that wait for a sink: enough to ride out a slow one
LIVE_QUEUE = 12  # where nobody can be made to wait: 0.4 s of video at 30 frames a second
FINISH_S = 20.0  # that a live stream waits for a sink's last frames


class Output:
    """One sink and the thread that writes to it.

    Args:
        name: as the user gave it.
        sink: opened; ``finish`` closes it.
        telemetry: takes the time that writing takes.
        live: nobody waits: where the sink is too slow, its oldest waiting frame is dropped.

    Attributes:
        name: for messages, without passwords.
        failure: why nothing more is written.
    """

    def __init__(self, name: str, sink: Sink, telemetry: Telemetry, live: bool) -> None:
        self.name, self.sink = redacted(name), sink
        self.failure: BaseException | None = None
        self._telemetry, self._live = telemetry, live
        self._channel: Channel[Shown] = Channel(LIVE_QUEUE if live else QUEUE, drop_oldest=live)
        self._ended = threading.Event()
        threading.Thread(target=self._write, name=f"write {name}", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Frames the sink had no time for."""
        return self._channel.dropped

    def put(self, shown: Shown) -> None:
        """Hand over a frame; after a failure, nothing happens."""
        try:
            self._channel.put(shown)
        except Stopped:
            pass

    def finish(self, keep: bool) -> None:
        """Wait for what was handed over and close the sink; or throw away what was written."""
        if keep:
            self._channel.end()
        else:
            self._channel.stop()
        deadline_s = time.monotonic() + FINISH_S
        while not self._ended.wait(0.2):  # in slices, so that Ctrl-C is seen at once
            if self._live and time.monotonic() > deadline_s:
                self.failure = SinkError(f"{self.name} did not take its last frames within {FINISH_S:.0f} s")
                return
        try:
            if keep:
                self.sink.close()
            else:
                self.sink.abort()
        except Exception as error:
            self.failure = self.failure or error

    def _write(self) -> None:
        try:
            while (shown := self._channel.get()) is not None:
                with self._telemetry.time("encode"):
                    self.sink.write(shown)
                self._telemetry.frame_out(shown.frame.capture_time_s)
        except Stopped:
            pass
        except BaseException as error:
            self.failure = error
            self._channel.stop()
        finally:
            self._ended.set()
