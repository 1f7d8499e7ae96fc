"""One file, device or network stream, decoded frame by frame through PyAV."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video.base import Source
from mcdrl_rt.video.container import (
    INDEX_LAST,
    LIVE_TIMEOUT_S,
    OPEN_TIMEOUT_S,
    ffmpeg_reason,
    frame_count,
    has_index,
    has_times,
    in_pieces,
    is_file,
    is_live,
    nominal_rate,
    open_container,
    own_duration_s,
    short_name,
    video_stream,
)
from mcdrl_rt.video.deinterlace import Deinterlacer
from mcdrl_rt.video.length import bytes_missing, is_cut_off
from mcdrl_rt.video.packets import Packets
from mcdrl_rt.video.rgb import ToPicture, color, pixel_aspect, upright_size
from mcdrl_rt.video.timestamps import Arrivals, Clock, Timestamps
from mcdrl_rt.video.verdict import Expected, Tally

_CAN_BE_CUT_OFF = ("image2", "jpeg_pipe", "png_pipe")  # FFmpeg's readers of pictures of which ``is_cut_off`` can tell
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

    _threads: Literal["AUTO", "NONE"] = "AUTO"  # of the decoder

    def __init__(self, uri: str, options: dict[str, str], live: bool = False) -> None:
        self.live = live
        self.name = short_name(uri)
        self._in_ffmpeg = threading.Lock()
        self._container = open_container(uri, options)
        try:
            self._start(uri)
        except BaseException as error:
            self._container.close()
            if isinstance(error, av.FFmpegError):  # there is a picture, and FFmpeg has no way to make it RGB
                why = f"{ffmpeg_reason(error, OPEN_TIMEOUT_S)}; save it with the colours of BT.709 first"
                raise SourceError(f"cannot convert the pictures of {self.name}: {why}") from None
            raise

    def _start(self, uri: str) -> None:
        self._stream = video_stream(self._container, self.name)
        self.in_pieces = in_pieces(self._container)
        self.sound = bool(self._container.streams.audio)
        limit_s = LIVE_TIMEOUT_S if is_live(uri, self._container) else None
        self.live |= limit_s is not None
        if self.live:
            self._stream.codec_context.flags |= av.codec.context.Flags.low_delay
        else:
            # frame threading delays output by one frame for each thread: fine for files only
            self._stream.thread_type = self._threads
        # bare pictures come when they come: a container that tells no times has them made up, at 25 a second
        self._as_it_comes = self.live and not has_times(self._container)
        self.time_base = (not self._as_it_comes and self._stream.time_base) or Fraction(1, 90_000)
        self.rate = nominal_rate(self._stream)
        self._file = Path(uri) if is_file(uri) else None
        self.frame_count = None if self.live else frame_count(self._container, self._stream, self.rate)
        # a raw frame is the packet that it came in, which a device may have lent
        self._to_picture = ToPicture(lent=self.live or self._stream.codec_context.name == "rawvideo")
        self._deinterlacer = Deinterlacer(self.time_base)
        self._index = self._lost = self._last_stays = 0
        self._packets = Packets(self._container, self._stream, self.live, limit_s)
        self._timestamps = self._clock()
        self._frames: Iterator[VideoFrame] = self._decode()
        # decoding, not opening, is what tells a video from a damaged one; it also gives the upright size
        self._first = next(self._frames, None)
        if self._first is None:
            raise SourceError(f"cannot decode {self.name}: {self._why_nothing()}")
        self.color = color(self._first)
        self.pixel_aspect = pixel_aspect(self._stream, self._first)
        self.size = upright_size(self._first)

    def __iter__(self) -> Iterator[Frame]:
        while (decoded := self._next()) is not None:
            try:
                picture = self._to_picture(decoded)
            except (av.FFmpegError, ValueError):  # a format made up by damage
                self._lost += 1
                continue
            self._lost += decoded.is_corrupt
            index, self._index = self._index, self._index + 1
            self._last_stays = max(0, decoded.duration)
            duration_s = self._last_stays * self.time_base
            yield Frame(picture, int(decoded.pts or 0), self.time_base, index, duration_s=duration_s)
        self.problem = self._verdict()

    def _why_nothing(self) -> str:
        """Why there is not one frame."""
        if has_index(self._container) and not self._packets.count and self._file is None:
            return f"{INDEX_LAST}. Or nothing follows an index that comes first: then it was cut off"
        unread = "no frame of it is readable: it is damaged, or of a kind that this FFmpeg does not decode"
        return (self.live and self._packets.stopped) or unread

    @property
    def expected(self) -> Expected:
        """What the container promises."""
        kind = self._container.format.name
        # AVI counts empty packets too, which only say that the picture before them stays
        counted, from_zero = bool(self._stream.frames) and "avi" not in kind, "matroska" in kind
        frames = self.frame_count or 0
        missing = bytes_missing(self._file) if self._file else None  # now: it may have grown since it was opened
        if self.sound and not counted and own_duration_s(self._stream) is None:
            frames = 0  # what goes on for longer may be the sound
        rate = (counted and self._stream.average_rate) or self.rate  # at which the frames there are fill its time
        return Expected(frames, counted, rate, self.time_base, from_zero, missing or 0)

    @property
    def tally(self) -> Tally:
        """What became of the video so far."""
        clock, stopped = self._timestamps, self._packets.stopped
        return Tally(self._index, self._lost, clock.jumps, clock.first, clock.last, stopped, self._last_stays)

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
        for packet in self._input():
            try:
                for decoded in self._stream.decode(packet):
                    decoded.pts = self._timestamps(decoded)
                    yield from self._deinterlacer(decoded)
                if packet is None:
                    yield from self._deinterlacer.flush()
            except av.FFmpegError:
                self._lost += self._counts(packet)

    def _input(self) -> Iterator[Packet[VideoStream] | None]:
        """What the decoder is to see."""
        return iter(self._packets)

    def _clock(self) -> Clock:
        """What gives the frames their times."""
        return Arrivals(self.time_base) if self._as_it_comes else Timestamps(self.time_base, self.rate)

    def _counts(self, packet: Packet[VideoStream] | None) -> bool:
        """Whether the loss of a packet is to be told of; None is the end."""
        return True

    def _verdict(self) -> str | None:
        """What to tell the user once the video has ended."""
        if self._file and self._container.format.name in _CAN_BE_CUT_OFF:
            with contextlib.suppress(OSError):
                if is_cut_off(self._file.read_bytes()):
                    return "cut off: a part of it is made up"
        return self.expected.verdict(self.tally)
