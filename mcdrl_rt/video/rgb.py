"""A decoded frame as an upright picture, whatever format, matrix and display turn it has."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, cast

import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from mcdrl_rt.types import Picture, UInt8Array
from mcdrl_rt.video.planes import FORMAT, Planes

_COLORS = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}  # AVColorSpace -> the name the sink takes
_HDR = {16: "bt2020-pq", 18: "bt2020-hlg"}  # AVColorTransferCharacteristic -> which BT.2020 it is
_BT601 = {5: "bt470bg", 6: "smpte170m"}  # AVColorPrimaries -> which BT.601 it is
_GUESSED = {"bt709": Colorspace.ITU709, "bt601": Colorspace.ITU601}  # for swscale
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_PLAIN = (1, 5, 6, _UNSPECIFIED)  # BT.709 and BT.601
_UPRIGHT = (False, 1, 1)  # as ``_orientation`` has it
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
# what capture cards and 10-bit video have: made 8-bit 4:2:0, as every encoder here wants it, far sooner than RGB
_CLOSE = frozenset(["nv12", "yuyv422", "uyvy422", "yuv422p", "yuv420p10le", "p010le", "yuv422p10le"])
_KINDS = 48  # of side data; more than FFmpeg has


class ToPicture:
    """Converts frame after frame; keeps swscale's context from one to the next.

    Args:
        lent: a frame's memory may belong to a device, which takes it back when it is closed: pictures are copies.

    How pictures are turned is looked up when their size changes, and on a small copy: to ask a frame of PyAV for its
    side data makes a cycle, and what is in a cycle keeps its memory until Python's collector finds it, minutes later.
    """

    def __init__(self, lent: bool = False) -> None:
        self._lent = lent
        self._reformatter, self._to_planes = VideoReformatter(), VideoReformatter()
        self._size = (0, 0)
        self._orientation = _UPRIGHT

    def __call__(self, decoded: VideoFrame) -> Picture:
        """The frame as it is to be shown: its planes where they may stay about as they are, else RGB pixels."""
        picture = self._picture(decoded)
        return picture.copy() if self._lent and decoded.format.name in (FORMAT, "rgb24") else picture

    def _picture(self, decoded: VideoFrame) -> Picture:
        if not _has_planes(decoded) or self._oriented(decoded) != _UPRIGHT:
            return self.pixels(decoded)
        usual = decoded.format.name == FORMAT
        return Planes.of(decoded if usual else self._to_planes.reformat(decoded, format=FORMAT), _matrix(decoded))

    def pixels(self, decoded: VideoFrame) -> UInt8Array:
        """(H, W, 3) uint8 pixels, as they are to be shown."""
        # an unspecified matrix must be guessed: swscale takes BT.601 for all, players BT.709 for HD.
        # Bilinear is swscale's fast path: 2 grey levels at most off the exact conversion, at a tenth of the time
        matrix = _GUESSED[_matrix(decoded)] if int(decoded.colorspace) == _UNSPECIFIED else None
        rgb = self._reformatter.reformat(decoded, format="rgb24", src_colorspace=matrix).to_ndarray()
        swapped, right, down = self._oriented(decoded)
        turned = rgb.swapaxes(0, 1) if swapped else rgb
        return np.ascontiguousarray(cast(UInt8Array, turned[::down, ::right]))

    def _oriented(self, decoded: VideoFrame) -> tuple[bool, int, int]:
        if self._size != (decoded.width, decoded.height):
            self._size, self._orientation = (decoded.width, decoded.height), _orientation(decoded)
        return self._orientation


def _has_planes(frame: VideoFrame) -> bool:
    """Whether a frame is of the form of ``Planes``, or about."""
    form = frame.format.name in (FORMAT, *_CLOSE) and frame.color_range != _FULL_RANGE
    return form and int(frame.colorspace) in _PLAIN and not (frame.width % 2 or frame.height % 2)


def color(frame: VideoFrame) -> str:
    """The YUV matrix of a frame, with BT.601's primaries or BT.2020's transfer function, in the sink's words."""
    matrix = _matrix(frame)
    if matrix == "bt2020":
        return _HDR.get(int(frame.color_trc), matrix)
    return _BT601.get(int(frame.color_primaries), matrix) if matrix == "bt601" else matrix


def _matrix(frame: VideoFrame) -> str:
    """The YUV matrix; where it is not said, what players assume: BT.709 for HD, else BT.601."""
    return _COLORS.get(int(frame.colorspace), "bt709" if frame.height >= 720 else "bt601")


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """(height, width) of a frame as it is shown."""
    return (frame.width, frame.height) if _orientation(frame)[0] else (frame.height, frame.width)


def pixel_aspect(stream: VideoStream, frame: VideoFrame) -> Fraction:
    """Width of a pixel by its height once the frame is upright; square where nothing is said."""
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    return 1 / aspect if _orientation(frame)[0] else aspect


def _orientation(frame: VideoFrame) -> tuple[bool, int, int]:
    """Whether a frame's axes change places to be shown, and the steps (1 or -1) to the right and down."""
    # it has the same side data, and its cycle holds little; nothing is made into a palette
    small = frame.reformat(width=16, height=16, format="gray")
    side_data = cast(dict[str, Any], _with_known_side_data(small).side_data)
    if "DISPLAYMATRIX" not in side_data:
        return False, 1, 1
    matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32)
    a, b, _, c, d = (int(value) for value in matrix[:5])
    # (x, y) is shown at (a·x + c·y, b·x + d·y): either the axes stay (a, d) or they change places (b, c)
    swapped = abs(b) > abs(a)
    right, down = (c, b) if swapped else (a, d)
    return swapped, -1 if right < 0 else 1, -1 if down < 0 else 1


def _with_known_side_data(frame: VideoFrame) -> VideoFrame:
    """A frame without the kinds of side data that FFmpeg has and PyAV does not: it fails to read any beside them."""
    graph = Graph()
    filters = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))]
    filters += [graph.add("sidedata", f"mode=delete:type={kind}") for kind in range(len(Type), _KINDS)]
    graph.link_nodes(*filters, graph.add("buffersink"))
    graph.configure()
    graph.vpush(frame)
    return graph.vpull()
