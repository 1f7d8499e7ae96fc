"""One file, device or network stream, decoded frame by frame through PyAV."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from fractions import Fraction

import av
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video.base import Source
from mcdrl_rt.video.container import (
    LIVE_TIMEOUT_S,
    READ_TIMEOUT_S,
    frame_count,
    in_pieces,
    is_live,
    open_container,
    reason,
    short_name,
    video_stream,
)
from mcdrl_rt.video.deinterlace import Deinterlacer
from mcdrl_rt.video.rgb import ToRgb, color, pixel_aspect, upright_size
from mcdrl_rt.video.timestamps import Timestamps

_MAX_READ_ERRORS = 20  # in a row: after that the file is taken to end here
_CLOSE_S = 1.0  # that closing waits for a reader in FFmpeg


class Video(Source):
    """What one container holds; it decodes when asked, in the caller's thread, and ends where the container ends.

    Args:
        uri: as ``open_source`` takes it, but for folders, patterns and ``phantom``.
        options: for FFmpeg.
        live: it is live, though nothing shows that: a pipe.

    Attributes:
        in_pieces: it comes in files of some seconds each, at whatever speed (HLS, DASH).
    """

    def __init__(self, uri: str, options: dict[str, str], live: bool = False) -> None:
        self.live = live
        self.name = short_name(uri)
        self._in_ffmpeg = threading.Lock()
        self._container = open_container(uri, options)
        try:
            self._start(uri)
        except BaseException:
            self._container.close()
            raise

    def _start(self, uri: str) -> None:
        self._stream = video_stream(self._container, self.name)
        self.in_pieces = in_pieces(self._container)
        self._limit_s = LIVE_TIMEOUT_S if is_live(uri, self._container) else None
        self.live |= self._limit_s is not None
        if self.live:
            self._stream.codec_context.flags |= av.codec.context.Flags.low_delay
        else:
            # frame threading delays output by one frame for each thread: fine for files only
            self._stream.thread_type = "AUTO"
        self.time_base = self._stream.time_base or Fraction(1, 90_000)
        self.rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.frame_count = None if self.live else frame_count(self._container, self._stream, self.rate)
        self._to_rgb = ToRgb()
        self._deinterlacer = Deinterlacer(self.time_base)
        self._index = 0
        self._errors = 0
        self._stopped: str | None = None
        self._timestamps = Timestamps(self.time_base, self.rate)
        self._frames: Iterator[VideoFrame] = self._decode()
        # decoding, not opening, is what tells a video from a damaged one; it also gives the upright size
        self._first = next(self._frames, None)
        if self._first is None:
            why = self._stopped if self.live and self._stopped else "no frame of it is readable; the file is damaged"
            raise SourceError(f"cannot decode {self.name}: {why}")
        self.color = color(self._first)
        self.pixel_aspect = pixel_aspect(self._stream, self._first)
        self.size = upright_size(self._first)

    def __iter__(self) -> Iterator[Frame]:
        while (decoded := self._next()) is not None:
            try:
                frame = Frame(self._to_rgb(decoded), int(decoded.pts or 0), self.time_base, self._index)
            except (av.FFmpegError, ValueError):  # a format made up by damage
                self._errors += 1
                continue
            self._index += 1
            yield frame
        self.problem = self._verdict()

    def close(self) -> None:
        """Close the container; one that another thread is reading, and gets nothing from, is left to that thread."""
        if self._in_ffmpeg.acquire(timeout=_CLOSE_S):
            self._frames, self._first = iter(()), None  # a closed container must not be read again
            self._container.close()
            self._in_ffmpeg.release()

    def _next(self) -> VideoFrame | None:
        with self._in_ffmpeg:
            first, self._first = self._first, None
            return first or next(self._frames, None)

    def _decode(self) -> Iterator[VideoFrame]:
        """Every frame that can be decoded, its time set; a corrupt packet costs that packet, not the rest."""
        for packet in self._packets():
            try:
                for decoded in self._stream.decode(packet):
                    self._errors += decoded.is_corrupt
                    decoded.pts = self._timestamps(decoded)
                    yield from self._deinterlacer(decoded)
                if packet is None:
                    yield from self._deinterlacer.flush()
            except av.FFmpegError:
                self._errors += 1

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        """Packets, then None to flush the decoder; reads on after an error, as long as anything comes."""
        errors_in_row = 0
        while errors_in_row < _MAX_READ_ERRORS:
            try:
                for packet in self._in_time(self._container.demux(self._stream)):
                    if packet.size:  # PyAV marks the end by an empty packet
                        yield packet
                        errors_in_row = 0
                break
            except av.FFmpegError as error:
                self._stopped = reason(error, self._limit_s or READ_TIMEOUT_S)
                if self.live:
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

    def _verdict(self) -> str | None:
        """What to tell the user once the video has ended."""
        if jumps := self._timestamps.jumps:
            times = "once" if jumps == 1 else f"{jumps} times"
            return "; ".join(filter(None, (self._loss(), f"its clock jumped back {times}: time was counted on")))
        return self._loss()

    def _loss(self) -> str | None:
        expected = self.frame_count or 0
        # edit lists and estimates are a few frames off in sound files too, so a small shortage means nothing
        tolerance = 2 + expected // 20
        if expected - self._spanned() > tolerance:
            return f"truncated: decoded {self._index} {self._out_of(expected)}"
        if self._stopped:
            return f"ended early after {self._index} frames: {self._stopped}"
        # only a count that the container states can miss frames: an estimate assumes a constant rate
        missing = expected - self._index if self._stream.frames else 0
        lost = max(self._errors, missing if missing > tolerance else 0)
        if lost:
            return f"damaged: {lost} frames were lost or decoded with errors, {self._index} were decoded"
        return None

    def _out_of(self, expected: int) -> str:
        """How much there should have been: in frames where they were counted, else in seconds."""
        if self._stream.frames:
            return f"of about {expected} frames"
        return f"frames, {float(self._spanned() / self.rate):.1f} of about {float(expected / self.rate):.1f} s"

    def _spanned(self) -> int:
        """Frames that fit between the first one and the last one seen: gaps are not a missing end."""
        first, last = self._timestamps.first, self._timestamps.last
        if first and "matroska" in self._container.format.name:
            first = 0  # its duration is the time of its end, wherever it begins
        return 0 if first is None or last is None else round((last - first) * self.time_base * self.rate) + 1
