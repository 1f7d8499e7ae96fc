"""One connection to a network address: an encoder here, and a process that sends what it makes.

The process is ``relay.py``; for SRT it is the ffmpeg command, because PyAV's own FFmpeg has none (there the address,
with its pass phrase, is among the process's arguments). It ends with this one, however this one ends: ``tether.py``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import IO, cast

import av

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Picture, VideoFormat
from mcdrl_rt.video import relay, tether
from mcdrl_rt.video.encoder import Encoder, bit_rate
from mcdrl_rt.video.names import scheme

TIME_BASE = Fraction(1, 90_000)  # of MPEG-TS and RTP
# scheme -> FFmpeg's muxer
MUXERS = {"rtsp": "rtsp", "rtmp": "flv", "rtmps": "flv", "srt": "mpegts", "udp": "mpegts"}
_CONNECTED = {"connected", "progress=continue"}  # in the words of relay.py, of ffmpeg
_FFMPEG = (
    *("ffmpeg", "-hide_banner", "-loglevel", "error", "-progress", "pipe:1", "-stats_period", "0.2"),
    *("-probesize", "32", "-analyzeduration", "0", "-f", "nut", "-i", "pipe:0", "-c", "copy", "-f", "mpegts"),
)
_TETHER = (sys.executable, "-SP", str(Path(tether.__file__))) if sys.platform == "linux" else ()
_END_S = 3.0  # for the last packets to leave


class ConnectionLost(Exception):
    """It cannot be made, or is gone; the message says why, without the address."""


class Connection:
    """A connection being made, from the first frame sent on."""

    def __init__(self, url: str, codec: str, format: VideoFormat) -> None:
        self._settled = threading.Event()  # connected, or ended
        self._connected, self._words = False, "the connection was closed"
        command = _command(url)
        self._process = subprocess.Popen(
            [*_TETHER, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us: the last frames are still to be sent
        )
        self._input = cast(IO[bytes], self._process.stdin)
        threading.Thread(target=self._listen, name="listen", daemon=True).start()
        if command[0] != "ffmpeg":
            order = {"url": _with_packet_size(url), "muxer": MUXERS[scheme(url)], "options": _options(url)}
            with contextlib.suppress(OSError):  # shows at the first frame
                self._input.write(json.dumps(order).encode() + b"\n")
        self._container = av.open(self._input, "w", format="nut", container_options={"flush_packets": "1"})
        most = bit_rate(format.size, format.rate)
        limits = {"maxrate": str(most), "bufsize": str(most // 2)}
        self._encoder = Encoder(self._container, codec, format, TIME_BASE, live=True, options=limits)

    def send(self, picture: Picture, pts: int) -> None:
        """Encode a picture and hand it to the process; waits while that takes no more."""
        try:
            self._container.mux(self._encoder.encode(picture, pts))
            self._input.flush()
        except (av.FFmpegError, OSError):
            self.close()
            raise ConnectionLost(self._words) from None

    def wait(self, timeout_s: float | None, stop: threading.Event) -> None:
        """Wait until the first frame is on its way, ``timeout_s`` at most, and no longer once ``stop`` is set."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._settled.wait(0.05) and not stop.is_set():
            if deadline is not None and time.monotonic() > deadline:
                raise ConnectionLost(f"no answer for {timeout_s:.0f} s")
        if not self._connected:
            waiting = "nobody has called yet" if timeout_s is None else "no answer yet"
            raise ConnectionLost(self._words if self._settled.is_set() else waiting)

    def close(self) -> None:
        """Send what there is, hang up and end the process."""
        with contextlib.suppress(av.FFmpegError, OSError):  # there may be nobody any more to hang up on
            self._container.close()
        with contextlib.suppress(OSError):
            self._input.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._settled.wait(_END_S)

    def kill(self) -> None:
        """End the process at once; who waits in ``send`` is told that the connection is lost."""
        self._process.kill()
        self._process.wait()

    @property
    def problems(self) -> list[str]:
        """What became of frames that came in another size than the first."""
        return self._encoder.problems

    def _listen(self) -> None:
        """On a thread of its own: the process must never wait for us to hear it out."""
        with cast(IO[bytes], self._process.stdout) as output:
            for line in output:
                text = line.decode(errors="replace").strip()
                if text in _CONNECTED:
                    self._connected = True
                    self._settled.set()
                elif "=" not in text.partition(" ")[0]:  # ffmpeg's progress
                    self._words = _plain(text)
        self._connected = False
        self._settled.set()


def check_command(url: str) -> None:
    """Find out that this machine has what it takes to send to an address.

    Raises:
        SinkError: it has not.
    """
    if scheme(url) == "srt" and not shutil.which("ffmpeg"):
        raise SinkError("cannot write to srt://…: that needs the ffmpeg command, which is not installed here")


def _command(url: str) -> list[str]:
    return [*_FFMPEG, url] if scheme(url) == "srt" else [sys.executable, "-P", str(Path(relay.__file__))]


def _options(url: str) -> dict[str, str]:
    # over UDP a lost packet is a smeared picture: reliability first
    return {"rtsp_transport": "tcp"} if scheme(url) == "rtsp" else {}


def _with_packet_size(url: str) -> str:
    """Datagrams that hold whole packets of MPEG-TS, which is what receivers expect."""
    if scheme(url) != "udp" or "pkt_size=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}pkt_size=1316"


def _plain(text: str) -> str:
    """FFmpeg's cause without what it says before it, which may be the address."""
    words = text.rpartition(": ")[2]
    return words[:1].lower() + words[1:]
