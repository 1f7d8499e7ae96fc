"""Frames in: files and folders, capture devices, screens, network streams, pipes, and the synthetic endoscope.

A source hands out upright RGB frames with the timestamps its container gave them. A recording is decoded when
asked, in the caller's thread; what is live is read on a thread of its own, and outlives its losses.

    >>> with open_source("procedure.mp4") as source:
    ...     for frame in source:
    ...         show(frame.pixels, at=frame.pts_s)
    >>> source.problem
    'truncated: decoded 37 of about 53 frames; 41922 bytes or more are missing at its end'
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video.base import Source
from mcdrl_rt.video.decoder import Video
from mcdrl_rt.video.live import Live, Paced
from mcdrl_rt.video.names import plain, slash_missing
from mcdrl_rt.video.phantom import Phantom
from mcdrl_rt.video.playlist import Playlist, matching_files

__all__ = ["Source", "open_source"]

_PHANTOM_KEYS = ("site", "size", "frames", "seed", "fps")


def open_source(uri: str, *, live: bool = False, **options: str) -> Source:
    """Open a video and decode its first frame, so that what cannot be read fails here.

    Args:
        uri: one of

            - a path; a folder, a glob (``'case/*.mp4'``) or a numbered pattern (``frame%04d.png``), whose videos are
              played one after the other, or whose pictures are one video;
            - a URL (``rtsp://``, ``udp://``, ``http://`` …), or ``-`` for the standard input;
            - a capture device ``/dev/video0``; or ``screen``, or ``screen::1`` for another X display;
            - ``phantom``, with options as in ``phantom:site=blur,size=1920x1080,frames=300,seed=3,fps=30``, where size
              is WIDTHxHEIGHT as in ffmpeg, and which never ends without ``frames``.
        live: play what is not live by itself at its own pace, as if it came from a capture card; what comes by the
            standard input is live then.
        options: passed to FFmpeg, such as ``video_size="1920x1080", framerate="60"`` for a device; ``framerate`` is
            also that of pictures, 25 by default.

    Raises:
        SourceError: there is no such source, it is not a video, or not one frame of it can be decoded.
    """
    if not uri:
        raise SourceError("the name of the input is empty")
    if why := slash_missing(uri):
        raise SourceError(why)
    source = _open(plain(uri), live, options)
    return Paced(source) if live and not source.live else source


def _open(uri: str, live: bool, options: dict[str, str]) -> Source:
    if uri == "phantom" or uri.startswith("phantom:"):
        return _open_phantom(uri)
    if (files := matching_files(uri)) is not None:
        return Playlist(uri, files, options)
    if uri == "-" and live:
        return Live(Video(uri, options, live=True))
    video = Video(uri, options)
    if not video.live:
        return video
    again = {"fpsprobesize": "2"} | options  # the rate is known by then, and need not be found out again
    return Live(_as_it_happens(video), lambda: _as_it_happens(Video(uri, again)))


def _as_it_happens(video: Video) -> Source:
    """What comes in pieces comes in bursts: it is released at its own pace."""
    return Paced(video) if video.in_pieces else video


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
