"""From a decoded frame to what is shown: progressive, upright RGB."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from mcdrl_rt.types import UInt8Array

_COLORS = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020"}  # AVColorSpace -> the name the sink takes
_MATRICES = {"bt709": Colorspace.ITU709, "bt601": Colorspace.ITU601, "bt2020": Colorspace.BT2020}  # for swscale


class Converter:
    """Turns decoded frames into upright (H, W, 3) uint8 RGB; for one thread."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def pixels(self, decoded: VideoFrame) -> UInt8Array:
        """The frame as it is shown, in memory of its own."""
        # an unspecified matrix must be guessed: swscale takes BT.601 for all, players BT.709 for HD.
        # Bilinear is swscale's fast path: 2 grey levels at most off the exact conversion, at a tenth of the time
        matrix = _MATRICES[color_of(decoded)] if int(decoded.colorspace) == 2 else None
        rgb = self._reformatter.reformat(decoded, format="rgb24", src_colorspace=matrix).to_ndarray()
        return np.ascontiguousarray(_upright(decoded, cast(UInt8Array, rgb)))


class Deinterlacer:
    """Makes progressive frames of interlaced ones, one of each, with its time.

    Until the first interlaced frame comes by, frames pass untouched and nothing is built; from then on they are one
    frame late, because a frame's lines are made out of the next one's, too.
    """

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._shape: tuple[object, ...] = ()

    def feed(self, decoded: VideoFrame) -> Iterator[VideoFrame]:
        """What is ready once ``decoded`` is known; it must have a pts."""
        if self._graph is None and not decoded.interlaced_frame:
            yield decoded
            return
        shape = decoded.width, decoded.height, decoded.format.name, decoded.time_base
        if self._graph is None or shape != self._shape:
            yield from self.flush()
            self._graph, self._shape = _bwdif(decoded), shape
        self._graph.vpush(decoded)
        yield from self._ready()

    def flush(self) -> Iterator[VideoFrame]:
        """What is still in there."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._ready()
        self._graph = None

    def _ready(self) -> Iterator[VideoFrame]:
        assert self._graph is not None
        time_base = cast(Fraction, self._shape[-1])
        while True:
            try:
                frame = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            # the filter counts in half units, for those who want a frame of each field
            frame.pts = round((frame.pts or 0) * (frame.time_base or time_base) / time_base)
            frame.time_base = time_base
            yield frame


def _bwdif(like: VideoFrame) -> av.filter.Graph:
    """FFmpeg's best fast deinterlacer; frames not flagged as interlaced go through it as they are."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=like.width, height=like.height, format=like.format, time_base=cast(Fraction, like.time_base)
        ),
        graph.add("bwdif", mode="send_frame", deint="interlaced"),
        graph.add("buffersink"),
    ).configure()
    return graph


def color_of(frame: VideoFrame) -> str:
    """The YUV matrix of a frame; where it is not said, what players assume: BT.709 for HD, else BT.601."""
    return _COLORS.get(int(frame.colorspace), "bt709" if frame.height >= 720 else "bt601")


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """(height, width) of a frame once it is upright."""
    return (frame.width, frame.height) if _orientation(frame)[0] else (frame.height, frame.width)


def pixel_aspect(stream: VideoStream, frame: VideoFrame) -> Fraction:
    """Width of a pixel by its height once the frame is upright; square where nothing is said."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return 1 / aspect if _orientation(frame)[0] else aspect


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
