"""Frames out, to a video file that appears under its name only when it is complete.

A file is written beside its target as ``.name.partial-PID.ext`` and renamed at the end; a failure or an abort
deletes it. Every frame keeps its own presentation time: exactly in MP4 and MOV, to the millisecond in Matroska and
WebM (their grid), to the frame in AVI (its grid, from zero). Times before zero are shifted to start there.

    >>> with open_sink("out.mp4", source.format) as sink:
    ...     for frame in source:
    ...         sink.write(Shown(frame))
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, cast

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Shown, UInt8Array, VideoFormat

_MILLISECOND = Fraction(1, 1000)
_H264 = "libx264"
# extension -> FFmpeg's muxer, codec unless asked otherwise
_FORMATS = {
    ".mp4": ("mp4", _H264),
    ".m4v": ("mp4", _H264),
    ".mov": ("mov", _H264),
    ".mkv": ("matroska", _H264),
    ".avi": ("avi", "mpeg4"),  # AVI cannot say which H.264 frame is shown when
    ".webm": ("webm", "libvpx-vp9"),
}
# color -> swscale's matrix, then FFmpeg's numbers for matrix, transfer and primaries (2: not specified, because
# BT.601 does not say which of two it means)
_COLORS = {"bt709": ("ITU709", 1, 1, 1), "bt601": ("ITU601", 6, 6, 2), "bt2020": ("BT2020", 9, 14, 9)}
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG, what every player expects of YUV video


@dataclass(frozen=True)
class _Codec:
    """How one encoder is used here."""

    options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    even: bool = False  # needs even sides
    tagged: bool = True  # can say which YUV matrix it used


_CODECS = {
    # visually lossless; "veryfast" makes files a fifth smaller for twice the time, which belongs to the model
    _H264: _Codec({"preset": "superfast", "crf": "18"}, even=True),
    "libvpx-vp9": _Codec({"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "crf": "24"}),
    "mpeg4": _Codec({"qmin": "2", "qmax": "4"}, even=True, tagged=False),
    "ffv1": _Codec(pix_fmt="bgr0"),  # RGB: lossless to the bit
}


class Sink(ABC):
    """Where processed frames go.

    Attributes:
        size: (height, width) of what is written.
        frames: number of frames written so far.
        dropped: frames not written because their time did not come after that of the frame before.
        crowded: frames not written because the container has no time of their own for them.
        rescaled: frames of another size than the first, scaled into it.
    """

    size: tuple[int, int]
    frames: int = 0
    dropped: int = 0
    crowded: int = 0
    rescaled: int = 0

    @abstractmethod
    def write(self, shown: Shown) -> None:
        """Write one frame.

        Raises:
            SinkError: it cannot be written: the disk is full, say. The partial file is gone by then.
        """

    def close(self) -> None:  # noqa: B027 (a sink without a file has nothing to finish)
        """Finish the output and let it appear under its name; safe to call twice, and after ``abort``.

        Raises:
            SinkError: it cannot be finished. The partial file is gone by then.
        """

    def abort(self) -> None:  # noqa: B027
        """Discard everything written; what had the target's name before is untouched."""

    @property
    def problem(self) -> str | None:
        """What the user should know about the output, in one line; None when all is well."""
        problems = []
        if self.dropped:
            problems.append(f"{self.dropped} frames not written: their timestamps do not increase")
        if self.crowded:
            problems.append(
                f"{self.crowded} frames not written: they follow each other faster than this format can tell apart; "
                "write .mp4 or .mov, which keep every time exactly"
            )
        if self.rescaled:
            height, width = self.size
            problems.append(f"{self.rescaled} frames were of another size and were scaled into {width}×{height}")
        return "; ".join(problems) or None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def open_sink(
    uri: str,
    format: VideoFormat,
    *,
    codec: str | None = None,
) -> Sink:
    """Open an output, so that whatever can be wrong with it shows before any processing.

    Args:
        uri: a path ending in .mp4 .m4v .mov .mkv .avi .webm, or ``null`` to count frames and keep none.
        format: of the frames to come; take the source's own. Frames of another size are scaled into it, with black
            bars. H.264 and MPEG-4 need even sides: an odd one gains one row or column, a copy of the last. VP9 cannot
            say the shape of its pixels. A live source's first frame is at 0.
        codec: ``libx264``, ``libvpx-vp9``, ``mpeg4``, lossless ``ffv1``; by default what suits the extension.

    Raises:
        SinkError: the place, the extension or the codec does not allow writing.
    """
    if uri == "null":
        return _NullSink(format.size)
    if "://" in uri:
        raise SinkError(f"cannot write to the network address {uri.partition('://')[0]}://…; name a file")
    if not uri:
        raise SinkError("the name of the output is empty; name a file, or null")
    target = Path(uri)
    muxer, default = _container_for(target)
    codec = codec or default
    if codec not in _CODECS:
        raise SinkError(f"unknown codec {codec!r}; use one of {', '.join(_CODECS)}")
    _check_place(target)
    return _VideoFile(target, muxer, codec, format)


class _NullSink(Sink):
    """Counts frames: to measure, and to try a pipeline out."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def write(self, shown: Shown) -> None:
        self.frames += 1


class _VideoFile(Sink):
    """A video file, through PyAV."""

    def __init__(self, target: Path, muxer: str, codec: str, format: VideoFormat) -> None:
        size, color = format.size, format.color
        self._target, self._codec = target, _CODECS[codec]
        self._partial = _partial_path(target)
        self._picture_size = size
        self.size = _even(size) if self._codec.even else size
        self._time_base = _grid(muxer, format.time_base, format.rate)
        if not self._codec.tagged:  # then use the one that players assume
            color = "bt709" if size[0] >= 720 else "bt601"
        self._matrix = _COLORS[color][0]
        # AVI counts frames from its start, so a late first frame would become hours of filler
        self._from_zero = format.live or muxer == "avi"
        self._origin: Fraction | None = None
        self._last: tuple[int, Fraction] | None = None  # pts written, and the latest time seen
        self._reformatter = VideoReformatter()
        self._done = False
        try:
            self._open(muxer, codec, format.rate, color, format.pixel_aspect)
        except BaseException as error:
            self.abort()  # whatever stopped it, Ctrl-C included: nothing half-written stays
            if isinstance(error, av.FFmpegError | OSError | ValueError):
                raise SinkError(f"cannot write {target}: {_reason(error)}") from None
            raise

    def _open(self, muxer: str, codec: str, rate: Fraction, color: str, pixel_aspect: Fraction) -> None:
        options = {}
        if muxer in ("mp4", "mov"):
            # the muxer would choose timescales of its own, and round every timestamp to them
            scale = str(self._time_base.denominator)
            options = {"video_track_timescale": scale, "movie_timescale": scale}
        # "file:" keeps FFmpeg from reading a colon in a file's name as a protocol
        self._container = av.open(f"file:{self._partial.absolute()}", "w", format=muxer, container_options=options)
        height, width = self.size
        stream = self._container.add_stream(
            codec, rate=rate, width=width, height=height, time_base=self._time_base
        )
        self._stream = cast(VideoStream, stream)
        context = self._stream.codec_context
        context.thread_count = 0  # as many as there are cores
        context.pix_fmt = self._codec.pix_fmt
        context.options = dict(self._codec.options)
        context.sample_aspect_ratio = pixel_aspect
        if muxer == "avi":  # without presentation times, frames must be stored in their order
            context.max_b_frames = 0
        if context.pix_fmt.startswith("yuv"):
            _, context.colorspace, context.color_trc, context.color_primaries = _COLORS[color]
            context.color_range = _LIMITED_RANGE
        self._container.start_encoding()  # opens the encoder and writes the header: errors show now

    def write(self, shown: Shown) -> None:
        frame = shown.frame
        time_s = frame.pts * frame.time_base
        pts = self._pts(time_s)
        if self._last is not None and pts <= self._last[0]:
            # re-timing it would be a lie, and no container takes time that runs backwards
            if time_s > self._last[1]:
                self.crowded += 1
                self._last = self._last[0], time_s
            else:
                self.dropped += 1
            return
        self._last = pts, time_s
        try:
            self._container.mux(self._stream.encode(self._encoded(frame.pixels, pts)))
        except (av.FFmpegError, OSError) as error:
            self.abort()
            raise SinkError(f"cannot write {self._target}: {_reason(error)}") from None
        self.frames += 1

    def close(self) -> None:
        if self._done:
            return
        if not self.frames:  # a video without frames cannot be opened by anything
            self.abort()
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            _flush_to_disk(self._partial)
            os.replace(self._partial, self._target)
        except BaseException as error:
            self.abort()
            if isinstance(error, av.FFmpegError | OSError):
                raise SinkError(f"cannot finish {self._target}: {_reason(error)}") from None
            raise
        self._done = True

    def abort(self) -> None:
        if self._done:
            return
        self._done = True
        try:
            if hasattr(self, "_container"):
                self._container.close()
        except (av.FFmpegError, OSError):
            pass  # it is being thrown away
        self._partial.unlink(missing_ok=True)

    def _pts(self, time_s: Fraction) -> int:
        if self._origin is None:  # no container keeps frames before zero: MP4 would lose them
            self._origin = time_s if self._from_zero or time_s < 0 else Fraction(0)
        return round((time_s - self._origin) / self._time_base)

    def _encoded(self, pixels: UInt8Array, pts: int) -> VideoFrame:
        """The frame as the encoder wants it: its size, its pixel format, its time."""
        self.rescaled += pixels.shape[:2] != self._picture_size
        pixels = _fit(pixels, self._picture_size, exact=self._codec.pix_fmt == "bgr0")
        below, right = self.size[0] - pixels.shape[0], self.size[1] - pixels.shape[1]
        if below or right:
            pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")
        rgb = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="rgb24")
        yuv = {"dst_colorspace": self._matrix, "dst_color_range": "MPEG"}
        kind: dict[str, Any] = yuv if self._codec.pix_fmt.startswith("yuv") else {}
        encoded = self._reformatter.reformat(rgb, format=self._codec.pix_fmt, **kind)
        encoded.pts, encoded.time_base = pts, self._time_base
        return encoded


def _container_for(target: Path) -> tuple[str, str]:
    try:
        return _FORMATS[target.suffix.lower()]
    except KeyError:
        known = " ".join(_FORMATS)
        raise SinkError(f"cannot write {target}: the name must end in one of {known}, or be 'null'") from None


def _check_place(target: Path) -> None:
    folder = target.absolute().parent
    if not folder.exists():
        raise SinkError(f"cannot write {target}: the folder {folder} does not exist; create it first")
    if not folder.is_dir():
        raise SinkError(f"cannot write {target}: {folder} is not a folder")
    if target.is_dir():
        raise SinkError(f"cannot write {target}: it is a folder; name a file inside it")
    try:  # asking for permissions says little (root, read-only mounts): try it
        _partial_path(target).open("ab").close()
    except OSError as error:
        reason = "no new files are allowed there" if error.errno == errno.ENOENT else _reason(error)
        raise SinkError(f"cannot write in the folder {folder}: {reason}") from None


def _partial_path(target: Path) -> Path:
    return target.with_name(f".{target.stem}.partial-{os.getpid()}{target.suffix}")


def _grid(muxer: str, time_base: Fraction, rate: Fraction) -> Fraction:
    """The unit of time the container stores."""
    if muxer == "avi":
        return 1 / rate.limit_denominator(1001)  # MPEG-4 counts in 16 bits
    if muxer in ("matroska", "webm"):
        return _MILLISECOND
    # MP4 stores whole units per second: a time base of 1001/30000 s is 1001 units of 1/30000 s
    return Fraction(1, time_base.denominator)


def _even(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def _fit(pixels: UInt8Array, size: tuple[int, int], exact: bool) -> UInt8Array:
    """Scale into ``size`` with black bars, keeping the shape of things; usually there is nothing to do.

    ``exact`` invents no value between two: what is written losslessly may be class ids.
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    fitted = np.zeros((*size, 3), np.uint8)
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(pixels, inner[::-1], interpolation=cv2.INTER_NEAREST if exact else smooth)
    fitted[top : top + inner[0], left : left + inner[1]] = scaled
    return fitted


def _flush_to_disk(path: Path) -> None:
    """Make sure the data is on disk before the name is: a power cut must not leave a named ruin."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    """The cause in plain words, without FFmpeg's numbers."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if number == errno.EFBIG:
        return "the file is larger than this system allows"
    if isinstance(error, av.error.EncoderNotFoundError | av.codec.codec.UnknownCodecError):
        return "this FFmpeg lacks the encoder"
    text = str(getattr(error, "strerror", None) or error)
    return text[:1].lower() + text[1:]
