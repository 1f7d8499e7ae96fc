"""Opening a file, device or address with FFmpeg, and saying plainly why it does not open."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from mcdrl_rt.errors import SourceError
from mcdrl_rt.video.names import legible, redacted, scheme

OPEN_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 10.0  # between packets of a file behind a network
LIVE_TIMEOUT_S = 3.0  # between packets of a stream: whoever watches it is better served by a new connection

_MOST_PER_S, _MOST_WITH_PAUSES = 240, 60  # frames: more are hardly an endoscope's
_FEWER = Fraction(5, 2)  # than that, and interlaced video, which may count fields, would seem to pause
INDEX_LAST = (
    "an MP4 whose index comes last, and here it is read only once; save it as a file first, or put its index first: "
    "ffmpeg -i IN.mp4 -c copy -movflags +faststart OUT.mp4"
)
# FFmpeg's demuxers that turn any bytes into a picture: a text file is not a video
_NOT_VIDEO = {"tty", "bin", "xbin", "adf", "idf"}
_TAGGED = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_NO_TIMESTAMPS = 0x80  # AVFMT_NOTIMESTAMPS
_LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "tcp", "mms"}


@dataclass(frozen=True)
class _Place:
    """What FFmpeg is asked for.

    Args:
        file: its name for the input.
        demuxer: None where it finds out.
        options: for demuxer and protocol.
        timeout: seconds to open, and between packets; None where there is nothing to wait for.
    """

    file: str
    demuxer: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    timeout: tuple[float, float] | None = None


def open_container(uri: str, options: dict[str, str]) -> InputContainer:
    """The opened container, or a SourceError that a person can act on."""
    place = _place(uri)
    try:
        return av.open(
            place.file,
            format=place.demuxer,
            options=place.options | options,
            timeout=place.timeout,
            metadata_errors="replace",  # a title in a strange encoding is no reason to refuse the video
        )
    except av.FFmpegError as error:
        raise SourceError(f"cannot open {display_name(uri)}: {_open_advice(error, uri)}") from None


def video_stream(container: InputContainer, name: str) -> VideoStream:
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


def nominal_rate(stream: VideoStream) -> Fraction:
    """Frames per second while frames come: the average, where that is the rate of anything; 25 if nothing is known."""
    average, guessed = stream.average_rate, stream.guessed_rate
    if not average or not guessed:
        known = average or guessed or Fraction(25)
        return known if known <= _MOST_PER_S else Fraction(25)  # a clock's, not a rate
    made_up = average > _MOST_PER_S and guessed < average  # DV says how finely it counts
    # what goes on after a pause, at a rate that its times agree on; clocks that tremble agree on ever finer ones
    pauses = _FEWER * average < guessed <= _MOST_WITH_PAUSES
    return guessed if made_up or pauses else average


def frame_count(container: InputContainer, stream: VideoStream, rate: Fraction) -> int | None:
    """What the container states, without what an edit list hides; else its duration times the rate.

    Only where the stream has no duration of its own is that the container's, whose sound may be longer.
    """
    if stream.frames and has_index(container):
        return sum(not entry.is_discard for entry in stream.index_entries)
    if stream.frames:
        return int(stream.frames)
    if (duration_s := own_duration_s(stream)) is not None:
        return round(duration_s * rate)
    return round(Fraction(container.duration, 1_000_000) * rate) if container.duration else None


def own_duration_s(stream: VideoStream) -> Fraction | None:
    """Seconds of this stream, whatever else is in the container; None where it does not say."""
    # where FFmpeg has not seen a stream begin yet, and in Matroska, it may take that of all for it
    own = stream.start_time is not None and "matroska" not in stream.container.format.name
    if own and stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    found = _TAGGED.fullmatch(stream.metadata.get("DURATION", ""))  # Matroska
    if found is None:
        return None
    hours, minutes, seconds = found.groups()
    return (int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)) or None


def is_live(uri: str, container: InputContainer) -> bool:
    """Devices, screens and streams are live; what has an end, such as a file behind http, waits.

    An answer by http without duration or length may go on for ever: it is live.
    """
    kind = scheme(uri)
    ends = bool(container.duration) or (container.size > 0 and not in_pieces(container))
    return _is_device(uri) or _is_screen(uri) or kind in _LIVE_SCHEMES or (bool(kind) and not ends)


def has_times(container: InputContainer) -> bool:
    """Whether it says when its pictures are to be shown; not so bare pictures and bare H.264."""
    kind = container.format
    return not (kind.flags & _NO_TIMESTAMPS or kind.name.endswith("_pipe"))  # jpeg_pipe and the like count pictures


def in_pieces(container: InputContainer) -> bool:
    """Whether it comes in files of some seconds each, HLS or DASH."""
    return not {"hls", "dash"}.isdisjoint(container.format.name.split(","))


def has_index(container: InputContainer) -> bool:
    """Whether it has an index, without which nothing of it can be read, and which may be at its end."""
    return "mp4" in container.format.name.split(",")


def is_file(uri: str) -> bool:
    """Whether it is a plain file here, which can be read from any place, and twice."""
    return not scheme(uri) and Path(uri).is_file()


def may_be_away(uri: str) -> bool:
    """Whether it may be away for a while: what is on a network, or a device."""
    return _is_device(uri) or scheme(uri) not in ("", "file")


def display_name(uri: str) -> str:
    """What to call a source in messages: URLs without user, password and query, paths in full."""
    if uri == "-":
        return "standard input"
    return redacted(uri)


def short_name(uri: str) -> str:
    """``display_name``, of a file without its folder."""
    return display_name(uri) if scheme(uri) or uri == "-" or _is_screen(uri) else legible(Path(uri).name)


def ffmpeg_reason(error: av.FFmpegError, waited_s: float) -> str:
    """FFmpeg's words without its numbers, and without the URL, which may hold a password."""
    if isinstance(error, av.error.ExitError):  # how a time limit shows
        return f"no data for {waited_s:.0f} s"
    text = str(error.strerror or type(error).__name__).strip()
    return text[:1].lower() + text[1:]


def _place(uri: str) -> _Place:
    limits = (OPEN_TIMEOUT_S, LIVE_TIMEOUT_S)
    if uri == "-":
        return _Place("pipe:0")
    if _is_screen(uri):
        return _Place(*_screen(uri), {"framerate": "30"}, limits)
    if _is_device(uri):
        return _Place(uri, "v4l2", timeout=limits)
    kind = scheme(uri)
    if kind in _LIVE_SCHEMES:
        # over UDP a lost packet is a smeared picture: reliability first
        reliable = {"rtsp_transport": "tcp"} if kind.startswith("rtsp") else {}
        return _Place(uri, None, {"flags": "low_delay"} | reliable, limits)
    if kind:
        return _Place(uri, timeout=(OPEN_TIMEOUT_S, READ_TIMEOUT_S))
    _check_file(Path(uri))
    # "file:" keeps FFmpeg from reading a colon in a file's name as a protocol
    return _Place(f"file:{Path(uri).absolute()}")


def _screen(uri: str) -> tuple[str, str]:
    """The screen's name and the demuxer that films it on this system; ``screen::1`` is the X display ``:1``."""
    display = uri.partition(":")[2]
    if sys.platform == "win32":
        return display or "desktop", "gdigrab"
    if sys.platform == "darwin":
        return display or "Capture screen 0:none", "avfoundation"
    display = display or os.environ.get("DISPLAY", "")
    if not display:
        raise SourceError("cannot film the screen: there is no display here; name one, such as screen::1")
    return display, "x11grab"


def _check_file(path: Path) -> None:
    """Say what FFmpeg would say badly."""
    if not path.exists():
        raise SourceError(f"no such file: {path}")
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError(f"{path} is empty (0 bytes); was the recording or the copy interrupted?")


def _open_advice(error: av.FFmpegError, uri: str) -> str:
    if isinstance(error, av.error.PermissionError):
        return "permission denied; check that you may read it"
    if isinstance(error, av.error.ProtocolNotFoundError) and scheme(uri) == "srt":
        return "this FFmpeg has no SRT; take ffmpeg -i srt://… -c copy -f mpegts - | mcdrl-rt stream --input -"
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        return "not a video, or a recording cut off before its index was written"
    why = ffmpeg_reason(error, OPEN_TIMEOUT_S)
    if _is_device(uri):
        return f"{why}; is the capture device connected, and free? (ls /dev/video*)"
    if _is_screen(uri):
        return f"{why}; is there such a display, and may you see it? (echo $DISPLAY)"
    if scheme(uri):
        return f"{why}; check the address and that the stream is running"
    return why


def _kinds(container: InputContainer) -> str:
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    return " and ".join(kinds) or "still pictures"


def _is_device(uri: str) -> bool:
    return uri.startswith("/dev/video")


def _is_screen(uri: str) -> bool:
    return uri == "screen" or uri.startswith("screen:")
