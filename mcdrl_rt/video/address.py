"""What the name of an input means: what FFmpeg is told to open, how, and what people are told of it.

    >>> locate("rtsp://surgeon:secret@theatre-3/live").name
    'rtsp://…@theatre-3/live'
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import av

from mcdrl_rt.errors import SourceError

_LIVE_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "srt", "tcp", "mms"}
_TIMEOUT_S = (10.0, 10.0)  # to open, and between packets
_LIVE_TIMEOUT_S = (10.0, 3.0)  # a stream that is silent for this long is opened anew
_LOW_LATENCY = {"fflags": "nobuffer"}
_FILE_HINT = "the file, or the disk it is on, may be damaged"


@dataclass(frozen=True)
class Address:
    """Where a video comes from.

    Args:
        name: what to call it in messages; credentials removed.
        url: what FFmpeg opens.
        format: FFmpeg's demuxer, where it is not to be guessed.
        options: for demuxer and protocol.
        timeout_s: to open, and between packets; None where there is nothing to wait for.
        live: the world does not wait; None where only the opened container tells.
        hint: what to look after when it cannot be opened.
    """

    name: str
    url: str
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    timeout_s: tuple[float, float | None] | None = None
    live: bool | None = False
    hint: str = ""

    def advice(self, error: av.FFmpegError) -> str:
        """Why it could not be opened, and what to do."""
        if isinstance(error, av.error.PermissionError):
            return "permission denied; check that you may read it"
        cut_off = isinstance(error, av.error.EOFError) and self.url.startswith("file:")
        if isinstance(error, av.error.InvalidDataError) or cut_off:
            return "not a video, or a recording cut off before its index was written"
        if isinstance(error, av.error.ProtocolNotFoundError):
            piped = f"ffmpeg -i {scheme_of(self.url)}://… -c copy -f mpegts - | mcdrl-rt stream --input - …"
            unknown = f"PyAV's FFmpeg does not speak {scheme_of(self.url)}"
            return f"{unknown}; check the address, or let another ffmpeg receive it: {piped}"
        if isinstance(error, av.error.ExitError) and self.timeout_s:  # how a time limit shows
            reason = f"no data for {self.timeout_s[0]:.0f} s"
        else:
            reason = reason_of(error)
        return f"{reason}; {self.hint}" if self.hint else reason


def reason_of(error: av.FFmpegError) -> str:
    """FFmpeg's words without its numbers, and without the URL, which may hold a password."""
    text = str(error.strerror or type(error).__name__).strip()
    return text[:1].lower() + text[1:]


def locate(uri: str, options: dict[str, str] | None = None) -> Address:
    """Where ``uri`` is and how it is opened; ``options`` go to FFmpeg and outweigh what is usual here.

    Raises:
        SourceError: there is no such file, or no screen, or nothing can be read from standard input.
    """
    given = options or {}
    if uri == "-":
        return _standard_input(given)
    if uri.startswith("/dev/video"):
        hint = "is the capture device connected, and free? (ls /dev/video*)"
        return Address(uri, uri, "v4l2", _LOW_LATENCY | given, _LIVE_TIMEOUT_S, live=True, hint=hint)
    if uri == "screen" or uri.startswith("screen:"):
        return _screen(uri.partition(":")[2], given)
    if scheme_of(uri):
        return _network(uri, given)
    path = Path(uri)
    _check_file(path)
    # "file:" keeps FFmpeg from reading a colon in a file's name as a protocol
    # and this, from reading a picture's name as a pattern of many
    return Address(path.name, f"file:{path.absolute()}", options={"pattern_type": "none"} | given, hint=_FILE_HINT)


def scheme_of(uri: str) -> str:
    """``rtsp`` of ``rtsp://…``; empty for all that is no URL."""
    return uri.partition("://")[0].lower() if "://" in uri else ""


def _network(uri: str, given: dict[str, str]) -> Address:
    scheme = scheme_of(uri)
    name, hint = _redacted(uri), "check the address and that the stream is running"
    if scheme == "file":
        return Address(name, uri, options=given, hint=_FILE_HINT)
    if scheme not in _LIVE_SCHEMES:
        # FFmpeg asks for a live playlist (HLS) again and again; opened anew, it would begin with what is past
        timeout_s = (_TIMEOUT_S[0], None) if ".m3u8" in uri else _TIMEOUT_S
        return Address(name, uri, None, given, timeout_s, live=None, hint=hint)
    usual = _LOW_LATENCY | {"flags": "low_delay"}
    if scheme.startswith("rtsp"):
        usual["rtsp_transport"] = "tcp"  # over UDP a lost packet is a smeared picture: reliability first
    if scheme == "udp":
        usual["overrun_nonfatal"] = "1"  # packets we were too slow for are lost, not the stream
    return Address(name, uri, None, usual | given, _LIVE_TIMEOUT_S, live=True, hint=hint)


def _screen(display: str, given: dict[str, str]) -> Address:
    usual = {"framerate": "30"}
    if sys.platform == "win32":
        return Address("screen", display or "desktop", "gdigrab", usual | given, live=True)
    if sys.platform == "darwin":
        hint = "may this program record the screen? (System Settings, Privacy & Security)"
        return Address("screen", display or "Capture screen 0", "avfoundation", usual | given, live=True, hint=hint)
    display = display or os.environ.get("DISPLAY", "")
    if not display:
        raise SourceError("cannot capture the screen: DISPLAY is not set; name the display, as in screen::0")
    usual["draw_mouse"] = "0"
    hint = "is there such a display, and may you see it? (xdpyinfo)"
    return Address(f"screen {display}", display, "x11grab", usual | given, live=True, hint=hint)


def _standard_input(given: dict[str, str]) -> Address:
    if sys.stdin is None or sys.stdin.isatty():
        raise SourceError("standard input is a terminal; pipe a video into it")
    return Address("standard input", "pipe:0", options=given, hint="pipe a video into it")


def _check_file(path: Path) -> None:
    """Say what FFmpeg would say badly."""
    if not path.exists():
        raise SourceError(f"no such file: {path}")
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError(f"{path} is empty (0 bytes); was the recording or the copy interrupted?")


def _redacted(uri: str) -> str:
    """A URL without user, password and query."""
    address, mark, query = re.fullmatch(r"([^?#]*)([?#]?)(.*)", uri, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in query:  # an address, or the rest of a password with a question mark in it: say neither
        return f"{scheme_of(uri)}://…"
    # up to the last @: a password may hold a slash, or another @
    return re.sub(r"://.*@", "://…@", address, flags=re.DOTALL) + (f"{mark}…" if mark else "")
