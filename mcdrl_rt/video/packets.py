"""What a container holds of one stream, packet by packet, past what cannot be read of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from mcdrl_rt.video.container import READ_TIMEOUT_S, ffmpeg_reason

_MAX_READ_ERRORS = 20  # in a row: after that the file is taken to end here


class Packets:
    """Packets, then None to flush the decoder; reads on after an error, as long as anything comes.

    Args:
        container: read from wherever it is.
        stream: one of its streams.
        live: the first error is the end.
        limit_s: of what is live: it is over when nothing comes for so long.

    Attributes:
        count: of packets so far.
        stopped: why the last packet that could not be read could not; None while all could.
    """

    def __init__(
        self, container: InputContainer, stream: VideoStream, live: bool = False, limit_s: float | None = None
    ) -> None:
        self._container, self._stream, self._live, self._limit_s = container, stream, live, limit_s
        self.count = 0
        self.stopped: str | None = None

    def __iter__(self) -> Iterator[Packet[VideoStream] | None]:
        errors_in_row = 0
        while errors_in_row < _MAX_READ_ERRORS:
            try:
                for packet in self._in_time(self._container.demux(self._stream)):
                    if packet.size:  # PyAV marks the end by an empty packet
                        self.count += 1
                        yield packet
                        errors_in_row = 0
                break
            except av.FFmpegError as error:
                self.stopped = ffmpeg_reason(error, self._limit_s or READ_TIMEOUT_S)
                if self._live:
                    return  # what the decoder still holds is out of date
                errors_in_row += 1
        yield None

    def _in_time(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
        """The packets; of what is live, only as long as they come.

        When time is up FFmpeg hands out what its parser holds, and says only the next time that there is no more.
        """
        asked_s = time.monotonic()
        for packet in packets:
            if self._limit_s is not None and time.monotonic() - asked_s > 0.9 * self._limit_s:
                raise av.error.ExitError(0, "timed out")
            yield packet
            asked_s = time.monotonic()
