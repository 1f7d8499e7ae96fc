"""Frames in, from anything FFmpeg opens: files, capture devices, network streams, and the synthetic endoscope.

A source hands out upright RGB frames with the timestamps its container gave them. It is not a queue: it decodes
when asked, in the caller's thread.

    >>> with open_source("procedure.mp4") as source:
    ...     for frame in source:
    ...         show(frame.pixels, at=frame.pts_s)
    >>> source.problem
    'truncated: decoded 37 of about 53 frames'
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, cast

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame, UInt8Array, VideoFormat
from mcdrl_rt.video.phantom import Phantom

# FFmpeg's demuxers that turn any bytes into a picture: a text file is not a video
_NOT_VIDEO = {"tty", "bin", "xbin", "adf", "idf"}
_LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "tcp", "mms"}
_COLORS = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}  # AVColorSpace -> the name the sink takes
_MATRICES = {"bt709": Colorspace.ITU709, "bt601": Colorspace.ITU601, "bt2020": Colorspace.BT2020}  # for swscale
_TIMEOUT_S = (10.0, 10.0)  # to open, and between packets
_MAX_READ_ERRORS = 20  # in a row: after that the file is taken to end here
_PHANTOM_KEYS = ("site", "size", "frames", "seed", "fps")


class Source(ABC):
    """A video that can be read once, frame by frame.

    Attributes:
        name: short, for people; credentials removed.
        size: (height, width) of the first frame; a later frame may differ.
        time_base: seconds per unit of every frame's ``pts``.
        rate: nominal frames per second.
        frame_count: frames expected, an estimate for progress bars; None when unknown or endless.
        live: the world does not wait for us: drop the oldest frame rather than block.
        color: ``bt709``, ``bt601`` or ``bt2020``, the matrix to encode with again.
        pixel_aspect: width of a pixel by its height, as players should show it.
        dropped: frames of a live source that nobody took in time.
        reconnections: how often a live source was lost and came back.
        problem: after iteration, what was wrong with the video, in one line; None when nothing was.
    """

    name: str
    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    frame_count: int | None = None
    live: bool = False
    color: str = "bt709"
    pixel_aspect: Fraction = Fraction(1)
    dropped: int = 0
    reconnections: int = 0
    problem: str | None = None

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Frames in presentation order; a second iteration goes on where the first one stopped."""

    @property
    def format(self) -> VideoFormat:
        """All that a sink has to know."""
        return VideoFormat(self.size, self.time_base, self.rate, self.color, self.pixel_aspect, self.live)

    def close(self) -> None:  # noqa: B027 (the phantom has nothing to release)
        """Release the file or device; safe to call twice, from the thread that iterates."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_source(uri: str, **options: str) -> Source:
    """Open a video and decode its first frame, so that what cannot be read fails here.

    Args:
        uri: a path; a capture device ``/dev/video0``; a URL (``rtsp://``, ``http://`` …); or ``phantom``, with
            options as in ``phantom:site=blur,size=1920x1080,frames=300,seed=3,fps=30``, where size is WIDTHxHEIGHT
            as in ffmpeg, and which never ends without ``frames``.
        options: passed to FFmpeg, such as ``video_size="1920x1080", framerate="60"`` for a device.

    Raises:
        SourceError: there is no such source, it is not a video, or not one frame of it can be decoded.
    """
    if not uri:
        raise SourceError("the name of the input is empty")
    if uri == "phantom" or uri.startswith("phantom:"):
        return _open_phantom(uri)
    return _Video(uri, options)


class _Video(Source):
    """A file, device or network stream, through PyAV."""

    def __init__(self, uri: str, options: dict[str, str]) -> None:
        self.name = _display_name(uri) if _scheme(uri) else Path(uri).name
        self._container = _open_container(uri, options)
        try:
            self._start(uri)
        except BaseException:
            self._container.close()
            raise

    def _start(self, uri: str) -> None:
        self._stream = _video_stream(self._container, self.name)
        self.live = _is_live(uri, self._container)
        if self.live:
            self._stream.codec_context.flags |= av.codec.context.Flags.low_delay
        else:
            # frame threading delays output by one frame for each thread: fine for files only
            self._stream.thread_type = "AUTO"
        self.time_base = self._stream.time_base or Fraction(1, 90_000)
        self.rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        self.frame_count = None if self.live else _frame_count(self._container, self._stream, self.rate)
        self._reformatter = VideoReformatter()
        self._index = 0
        self._errors = 0
        self._stopped: str | None = None
        self._first_pts: int | None = None
        self._last_pts: int | None = None
        self._frames: Iterator[VideoFrame] = self._decode()
        # decoding, not opening, is what tells a video from a damaged one; it also gives the upright size
        self._first = next(self._frames, None)
        if self._first is None:
            raise SourceError(f"cannot decode {self.name}: no frame of it is readable; the file is damaged")
        self.color = _color(self._first)
        self.pixel_aspect = _pixel_aspect(self._stream, self._first)
        self.size = _upright(self._first, np.empty((self._first.height, self._first.width, 0), np.uint8)).shape[:2]

    def __iter__(self) -> Iterator[Frame]:
        while (decoded := self._next()) is not None:
            yield self._frame(decoded)
        self.problem = self._verdict()

    def close(self) -> None:
        self._frames, self._first = iter(()), None  # a closed container must not be read again
        self._container.close()

    def _next(self) -> VideoFrame | None:
        first, self._first = self._first, None
        return first or next(self._frames, None)

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
                self._stopped = _reason(error)
                errors_in_row = _MAX_READ_ERRORS if self.live else errors_in_row + 1
        yield None

    def _frame(self, decoded: VideoFrame) -> Frame:
        frame = Frame(self._pixels(decoded), self._timestamp(decoded), self.time_base, self._index)
        self._first_pts = frame.pts if self._first_pts is None else self._first_pts
        self._last_pts = frame.pts
        self._index += 1
        self._errors += decoded.is_corrupt
        return frame

    def _pixels(self, decoded: VideoFrame) -> UInt8Array:
        # an unspecified matrix must be guessed: swscale takes BT.601 for all, players BT.709 for HD.
        # Bilinear is swscale's fast path: 2 grey levels at most off the exact conversion, at a tenth of the time
        matrix = _MATRICES[_color(decoded)] if int(decoded.colorspace) == 2 else None
        rgb = self._reformatter.reformat(decoded, format="rgb24", src_colorspace=matrix).to_ndarray()
        return np.ascontiguousarray(_upright(decoded, cast(UInt8Array, rgb)))

    def _timestamp(self, decoded: VideoFrame) -> int:
        """The frame's pts; failing that its dts; failing that one frame duration after the previous frame."""
        for given in (decoded.pts, decoded.dts):
            if given is not None:
                return int(given)
        duration = decoded.duration or round(1 / (self.rate * self.time_base))
        return 0 if self._last_pts is None else self._last_pts + max(1, duration)

    def _verdict(self) -> str | None:
        """What to tell the user once the video has ended."""
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


class _PhantomSource(Source):
    """Synthetic endoscopy, for demonstrations and tests without patient data."""

    def __init__(self, phantom: Phantom, size: tuple[int, int], rate: Fraction, frames: int | None) -> None:
        self.name = "phantom"
        self.size, self.rate, self.frame_count = size, rate, frames
        self.time_base = 1 / rate
        self._phantom = phantom
        self._index = 0

    def __iter__(self) -> Iterator[Frame]:
        while self.frame_count is None or self._index < self.frame_count:
            index, self._index = self._index, self._index + 1
            yield Frame(self._phantom.render(index).pixels, index, self.time_base, index)


def _open_phantom(uri: str) -> Source:
    text = uri.partition(":")[2]
    pairs = [part.partition("=")[::2] for part in text.split(",") if part]
    unknown = [key for key, _ in pairs if key not in _PHANTOM_KEYS]
    if unknown:
        raise SourceError(f"phantom has no option {unknown[0]!r}; it takes {', '.join(_PHANTOM_KEYS)}")
    given = dict(pairs)
    try:
        width, height = (int(side) for side in given.get("size", "1280x720").split("x"))
        frames = int(given["frames"]) if "frames" in given else None
        rate, seed = Fraction(given.get("fps", "30")), int(given.get("seed", "0"))
        phantom = Phantom((height, width), given.get("site", "mixed"), seed, float(rate), frames)
    except (ValueError, ZeroDivisionError) as error:
        example = "phantom:site=blur,size=1920x1080,frames=300"
        raise SourceError(f"cannot make {uri!r}: {error}; an example is {example}") from None
    return _PhantomSource(phantom, (height, width), rate, frames)


def _open_container(uri: str, options: dict[str, str]) -> InputContainer:
    """The opened container, or a SourceError that a person can act on."""
    name, scheme = _display_name(uri), _scheme(uri)
    try:
        if uri.startswith("/dev/video"):
            low_latency = {"fflags": "nobuffer"}
            return av.open(uri, format="v4l2", options=low_latency | options, timeout=_TIMEOUT_S)
        if scheme:
            return av.open(uri, options=_network_options(scheme) | options, timeout=_TIMEOUT_S)
        _check_file(Path(uri))
        # "file:" keeps FFmpeg from reading a colon in a file's name as a protocol
        return av.open(f"file:{Path(uri).absolute()}", options=options)
    except av.FFmpegError as error:
        raise SourceError(f"cannot open {name}: {_open_advice(error, uri)}") from None


def _network_options(scheme: str) -> dict[str, str]:
    if scheme not in _LIVE_SCHEMES:
        return {}
    low_latency = {"fflags": "nobuffer", "flags": "low_delay"}
    # over UDP a lost packet is a smeared picture: reliability first
    return low_latency | ({"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {})


def _check_file(path: Path) -> None:
    """Say what FFmpeg would say badly."""
    if not path.exists():
        raise SourceError(f"no such file: {path}")
    if path.is_dir():
        raise SourceError(f"{path} is a folder; name a video file inside it")
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError(f"{path} is empty (0 bytes); was the recording or the copy interrupted?")


def _open_advice(error: av.FFmpegError, uri: str) -> str:
    if isinstance(error, av.error.PermissionError):
        return "permission denied; check that you may read it"
    if isinstance(error, av.error.InvalidDataError):
        return "not a video, or a recording cut off before its index was written"
    if uri.startswith("/dev/video"):
        return f"{_reason(error)}; is the capture device connected, and free? (ls /dev/video*)"
    if _scheme(uri):
        return f"{_reason(error)}; check the address and that the stream is running"
    return _reason(error)


def _reason(error: av.FFmpegError) -> str:
    """FFmpeg's words without its numbers, and without the URL, which may hold a password."""
    if isinstance(error, av.error.ExitError):  # how a time limit shows
        return f"no data for {_TIMEOUT_S[1]:.0f} s"
    text = str(error.strerror or type(error).__name__).strip()
    return text[:1].lower() + text[1:]


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """The main video stream; cover art of an audio file is none."""
    if container.format.name in _NOT_VIDEO:
        raise SourceError(f"{name} is not a video")
    pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        raise SourceError(f"{name} has no video, only {_kinds(container)}")
    if streams[0].codec_context is None:
        raise SourceError(f"{name} is in a video format that this FFmpeg cannot decode; convert it to H.264 first")
    return streams[0]


def _kinds(container: InputContainer) -> str:
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    return " and ".join(kinds) or "still pictures"


def _frame_count(container: InputContainer, stream: VideoStream, rate: Fraction) -> int | None:
    """What the container states, else its duration times the rate."""
    if stream.frames:
        return int(stream.frames)
    if stream.duration and stream.time_base:
        return round(stream.duration * stream.time_base * rate)
    return round(Fraction(container.duration, 1_000_000) * rate) if container.duration else None


def _color(frame: VideoFrame) -> str:
    """The YUV matrix of a frame; where it is not said, what players assume: BT.709 for HD, else BT.601."""
    return _COLORS.get(int(frame.colorspace), "bt709" if frame.height >= 720 else "bt601")


def _upright(frame: VideoFrame, pixels: UInt8Array) -> UInt8Array:
    """Pixels turned and mirrored as the frame's display matrix says."""
    swapped, right, down = _orientation(frame)
    turned = pixels.swapaxes(0, 1) if swapped else pixels
    return turned[::down, ::right]


def _orientation(frame: VideoFrame) -> tuple[bool, int, int]:
    """Whether a frame's axes change places to be shown, and the steps (1 or -1) to the right and down."""
    side_data = cast(dict[str, Any], frame.side_data)
    if "DISPLAYMATRIX" not in side_data:
        return False, 1, 1
    matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32)
    a, b, _, c, d = (int(value) for value in matrix[:5])
    # (x, y) is shown at (a·x + c·y, b·x + d·y): either the axes stay (a, d) or they change places (b, c)
    swapped = abs(b) > abs(a)
    right, down = (c, b) if swapped else (a, d)
    return swapped, -1 if right < 0 else 1, -1 if down < 0 else 1


def _pixel_aspect(stream: VideoStream, frame: VideoFrame) -> Fraction:
    """Width of a pixel by its height once the frame is upright; square where nothing is said."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return 1 / aspect if _orientation(frame)[0] else aspect


def _is_live(uri: str, container: InputContainer) -> bool:
    """Devices and streams are live; a file behind http has a duration, and waits."""
    scheme = _scheme(uri)
    return uri.startswith("/dev/video") or scheme in _LIVE_SCHEMES or (bool(scheme) and not container.duration)


def _scheme(uri: str) -> str:
    return uri.partition("://")[0].lower() if "://" in uri else ""


def _display_name(uri: str) -> str:
    """What to call a source in messages: URLs without user, password and query, paths in full."""
    if not _scheme(uri):
        return uri
    return re.sub(r"\?.*", "?…", re.sub(r"://[^/]*@", "://…@", uri))
