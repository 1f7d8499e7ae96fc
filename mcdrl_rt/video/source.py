"""Frames in, from anything FFmpeg opens: files, capture devices, network streams, and the synthetic endoscope.

A source hands out upright RGB frames with the timestamps its container gave them. It is not a queue: it decodes
when asked, in the caller's thread; only what is live by itself is read in a thread of its own.

    >>> with open_source("procedure.mp4") as source:
    ...     for frame in source:
    ...         show(frame.pixels, at=frame.pts_s)
    >>> source.problem
    'truncated: decoded 37 of about 53 frames'
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video.address import locate
from mcdrl_rt.video.base import Source
from mcdrl_rt.video.container import Container
from mcdrl_rt.video.live import Live
from mcdrl_rt.video.pace import Paced
from mcdrl_rt.video.phantom import Phantom
from mcdrl_rt.video.pictures import open_files

_PHANTOM_KEYS = ("site", "size", "frames", "seed", "fps")


def open_source(uri: str, *, live: bool = False, **options: str) -> Source:
    """Open a video and decode its first frame, so that what cannot be read fails here.

    Args:
        uri: a path; a folder, a glob ``case/*.mp4`` or a pattern ``frame%04d.png`` of recordings or pictures that
            follow each other; a capture device ``/dev/video0``; a URL (``rtsp://``, ``http://`` …); ``screen``, or
            ``screen::1`` for another display; ``-`` for standard input; or ``phantom``, with options as in
            ``phantom:site=blur,size=1920x1080,frames=300,seed=3,fps=30``, where size is WIDTHxHEIGHT as in ffmpeg,
            and which never ends without ``frames``.
        live: play what would wait for us, such as a file, at its own pace, as if a capture card delivered it.
        options: passed to FFmpeg, such as ``video_size="1920x1080", framerate="60", input_format="mjpeg"`` for a
            device; ``framerate`` is also that of pictures (25).

    A device, a screen or a network stream that is lost is opened anew for as long as it takes; until then its last
    picture is shown greyed (``Frame.signal``), on the same clock.

    Raises:
        SourceError: there is no such source, it is not a video, or not one frame of it can be decoded.
    """
    if not uri:
        raise SourceError("the name of the input is empty")
    if uri == "phantom" or uri.startswith("phantom:"):
        source: Source = _open_phantom(uri)
    else:
        source = open_files(uri, options) or _open_container(uri, options)
    return Paced(source) if live and not source.live else source


def _open_container(uri: str, options: dict[str, str]) -> Source:
    address = locate(uri, options)

    def connect() -> Source:
        container = Container(address)
        # what comes in pieces of seconds is shown steadily: else each pause between two looked like a loss
        return Paced(container) if container.live and container.in_pieces else container

    source = connect()
    return Live(source, connect) if source.live else source


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
