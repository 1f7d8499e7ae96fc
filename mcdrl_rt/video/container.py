"""One opened file, device or stream, decoded in the caller's thread when a frame is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video.address import Address, reason_of
from mcdrl_rt.video.base import Source
from mcdrl_rt.video.convert import Converter, Deinterlacer, color_of, pixel_aspect, upright_size

# FFmpeg's demuxers that turn any bytes into a picture: a text file is not a video
_NOT_VIDEO = {"tty", "bin", "xbin", "adf", "idf"}
_SEGMENTED = {"hls", "dash"}
_MAX_READ_ERRORS = 20  # in a row: after that the file is taken to end here
_PLAUSIBLE_RATES = (1, 240)  # of something live: streams that do not know theirs state 90 000 or so
_USUAL_RATE = Fraction(25)


class Container(Source):
    """What FFmpeg opens, through PyAV.

    Args:
        address: from ``locate``.

    Raises:
        SourceError: it cannot be opened, is not a video, or not one frame of it can be decoded.

    Attributes:
        in_pieces: it comes in pieces of several seconds at a time (HLS).
    """

    def __init__(self, address: Address) -> None:
        self.name = address.name
        self._container = _open(address)
        try:
            self._start(address.live)
        except BaseException:
            self._container.close()
            raise

    def _start(self, live: bool | None) -> None:
        self._stream = _video_stream(self._container, self.name)
        self.in_pieces = self._container.format.name in _SEGMENTED
        self.live = _is_live(self._container) if live is None else live
        if self.live:
            self._stream.codec_context.flags |= av.codec.context.Flags.low_delay
        else:
            # frame threading delays output by one frame for each thread: fine for files only
            self._stream.thread_type = "AUTO"
        self.time_base = self._stream.time_base or Fraction(1, 90_000)
        self.rate = _rate(self._stream, self.live)
        self.frame_count = None if self.live else _frame_count(self._container, self._stream, self.rate)
        self._converter, self._deinterlacer = Converter(), Deinterlacer()
        self._index = 0
        self._errors = 0
        self._stopped: str | None = None
        self._first_pts: int | None = None
        self._last_pts: int | None = None
        self._shift = 0  # added to pts since they last jumped back
        self._jumps = 0
        self._frames: Iterator[VideoFrame] = self._progressive()
        # decoding, not opening, is what tells a video from a damaged one; it also gives the upright size
        self._first = next(self._frames, None)
        if self._first is None:
            raise SourceError(f"cannot decode {self.name}: no frame of it is readable; the file is damaged")
        self.color = color_of(self._first)
        self.pixel_aspect = pixel_aspect(self._stream, self._first)
        self.size = upright_size(self._first)

    def __iter__(self) -> Iterator[Frame]:
        while (decoded := self._next()) is not None:
            yield self._frame(decoded)
        self.problem = self._verdict()

    def close(self) -> None:
        """Release the file or device."""
        self._frames, self._first = iter(()), None  # a closed container must not be read again
        self._container.close()

    def _next(self) -> VideoFrame | None:
        first, self._first = self._first, None
        return first or next(self._frames, None)

    def _progressive(self) -> Iterator[VideoFrame]:
        for decoded in self._decode():
            decoded.pts, decoded.time_base = self._timestamp(decoded), self.time_base
            yield from self._deinterlacer.feed(decoded)
        yield from self._deinterlacer.flush()

    def _decode(self) -> Iterator[VideoFrame]:
        """Every frame that can be decoded; a corrupt packet costs that packet, not the rest."""
        for packet in self._packets():
            try:
                frames = self._stream.decode(packet)
            except av.FFmpegError:
                self._errors += 1
                continue
            yield from frames

    def _packets(self) -> Iterator[Packet[VideoStream] | None]:
        """Packets, then None to flush the decoder; reads on after an error, as long as anything comes."""
        errors_in_row = 0
        while errors_in_row < _MAX_READ_ERRORS:
            try:
                for packet in self._container.demux(self._stream):
                    if packet.size:  # PyAV marks the end by an empty packet
                        yield packet
                        errors_in_row = 0
                break
            except av.FFmpegError as error:
                self._stopped = reason_of(error)
                errors_in_row = _MAX_READ_ERRORS if self.live else errors_in_row + 1
        yield None

    def _frame(self, decoded: VideoFrame) -> Frame:
        frame = Frame(self._converter.pixels(decoded), int(decoded.pts or 0), self.time_base, self._index)
        self._index += 1
        self._errors += decoded.is_corrupt
        return frame

    def _timestamp(self, decoded: VideoFrame) -> int:
        """The frame's pts, moved on where it does not come after the previous frame's."""
        pts = self._given_time(decoded) + self._shift
        if self._last_pts is None:
            self._first_pts = pts
        elif pts <= self._last_pts:
            pts = self._moved_on(pts, self._last_pts)
        self._last_pts = pts
        return pts

    def _moved_on(self, pts: int, last: int) -> int:
        self._jumps += 1
        duration = self._duration()
        if last - pts <= 2 * duration:  # one frame out of place: the next one has a time of its own again
            return last + 1
        self._shift += last + duration - pts
        return last + duration

    def _given_time(self, decoded: VideoFrame) -> int:
        """The frame's pts; failing that its dts; failing that one frame duration after the previous frame."""
        for given in (decoded.pts, decoded.dts):
            if given is not None:
                return int(given)
        duration = decoded.duration or self._duration()
        return 0 if self._last_pts is None else self._last_pts - self._shift + max(1, duration)

    def _duration(self) -> int:
        """Units of one frame."""
        return max(1, round(1 / (self.rate * self.time_base)))

    def _verdict(self) -> str | None:
        """What to tell the user once the video has ended."""
        flaws = [self._shortage(), self._disorder()]
        return "; ".join(flaw for flaw in flaws if flaw) or None

    def _disorder(self) -> str | None:
        if not self._jumps:
            return None
        times = "once" if self._jumps == 1 else f"{self._jumps} times"
        return f"its clock jumped back, or stood still, {times}; time was made to go on"

    def _shortage(self) -> str | None:
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
        if self._first_pts is None or self._last_pts is None:
            return 0
        return round((self._last_pts - self._first_pts) * self.time_base * self.rate) + 1


def _open(address: Address) -> InputContainer:
    """The opened container, or a SourceError that a person can act on."""
    try:
        return av.open(
            address.url,
            format=address.format,
            options=address.options,
            timeout=address.timeout_s,
            metadata_errors="replace",  # titles in other encodings are no reason to refuse a video
        )
    except av.FFmpegError as error:
        raise SourceError(f"cannot open {address.name}: {address.advice(error)}") from None
    except ValueError as error:  # PyAV's: there is no such format here
        raise SourceError(f"cannot open {address.name}: {error}") from None


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """The main video stream; cover art of an audio file is none."""
    if container.format.name in _NOT_VIDEO:
        raise SourceError(f"{name} is not a video")
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not len(container.streams):
        raise SourceError(f"{name} has nothing in it; the file is damaged")
    if not streams:
        raise SourceError(f"{name} has no video, only {_kinds(container)}")
    if streams[0].codec_context is None:
        raise SourceError(f"{name} is in a video format that this FFmpeg cannot decode; convert it to H.264 first")
    return streams[0]


def _kinds(container: InputContainer) -> str:
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    return " and ".join(kinds) or "still pictures"


def _rate(stream: VideoStream, live: bool) -> Fraction:
    """Nominal frames per second."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and (not live or _PLAUSIBLE_RATES[0] <= rate <= _PLAUSIBLE_RATES[1]):
            return rate
    return _USUAL_RATE


def _frame_count(container: InputContainer, stream: VideoStream, rate: Fraction) -> int | None:
    """What the container states, else its duration times the rate."""
    if stream.frames:
        return int(stream.frames)
    if stream.duration and stream.time_base:
        return round(stream.duration * stream.time_base * rate)
    return round(Fraction(container.duration, 1_000_000) * rate) if container.duration else None


def _is_live(container: InputContainer) -> bool:
    """A file behind http has a size or a duration, and waits; a stream has neither."""
    in_pieces = container.format.name in _SEGMENTED
    return not container.duration and (in_pieces or container.size <= 0)
