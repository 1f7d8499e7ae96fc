"""Pictures as video codecs have them: 8-bit Y′CbCr of limited range, colour at half the resolution both ways (4:2:0).

A decoded frame keeps that form for as long as it may: to make RGB of all of it and Y′CbCr of that again takes longer
than all else that is done to it here, the model apart. What a model sees is made small first and RGB then; lesions are
drawn on each plane. Whatever nothing was drawn on reaches the encoder as it left the decoder. RGB of all of it is made
when somebody asks for ``pixels``.

The functions take RGB pixels as well, and do with them what is to be done with those.

    >>> planes = Planes.of(decoded, "bt709")                                               # doctest: +SKIP
    >>> for values, step, color in layers(planes.copy(), (255, 0, 0)):                     # doctest: +SKIP
    ...     cv2.circle(values, (50 // step, 50 // step), 20 // step, color)                # doctest: +SKIP
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import cv2
import numpy as np

from mcdrl_rt.types import FloatArray, Picture, Region, UInt8Array

if TYPE_CHECKING:  # pixels are segmented where there is no PyAV
    from av.video.frame import VideoFrame

Resize = Callable[[UInt8Array], UInt8Array]  # makes one size of any array (h, w) or (h, w, 3)

FORMAT = "yuv420p"
"""FFmpeg's name of what is kept here."""
LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""Share of red and of blue in luma, by matrix (ITU-R BT.601-7, BT.709-6, BT.2020-2)."""
_SWSCALE: dict[str, Any] = {"bt709": "ITU709", "bt601": "ITU601"}  # its names of the matrices that planes may have


def _to_ycc(red: float, blue: float) -> FloatArray:
    """(3, 4): RGB of 0…255 to Y′ of 16…235, Cb and Cr of 16…240."""
    luma = np.array([red, 1 - red - blue, blue])
    rows = [219 * luma, 112 * (np.array([0, 0, 1]) - luma) / (1 - blue), 112 * (np.array([1, 0, 0]) - luma) / (1 - red)]
    return np.column_stack([np.array(rows) / 255, [16, 128, 128]])


def _inverse(matrix: FloatArray) -> FloatArray:
    back = np.linalg.inv(matrix[:, :3])
    return np.column_stack([back, -back @ matrix[:, 3]])


_TO_YCC = {name: _to_ycc(*LUMA[name]) for name in _SWSCALE}
_TO_RGB = {name: _inverse(matrix) for name, matrix in _TO_YCC.items()}


class Planes:
    """One picture; to be drawn on (``layers``) only where it is a copy that nobody else has.

    Args:
        luma: (H, W) uint8, of even sides.
        blue, red: Cb and Cr, (H/2, W/2) uint8.
        matrix: ``bt709`` or ``bt601``.
    """

    def __init__(self, luma: UInt8Array, blue: UInt8Array, red: UInt8Array, matrix: str) -> None:
        self.luma, self.blue, self.red, self.matrix = luma, blue, red, matrix
        self._pixels: UInt8Array | None = None
        self._own: VideoFrame | None = None  # whose memory this is, until an encoder has it
        self._lock = threading.Lock()

    @classmethod
    def of(cls, decoded: VideoFrame, matrix: str) -> Planes:
        """The planes of a decoded frame of this form, where they lie."""
        luma, blue, red = _views(decoded)
        for plane in (luma, blue, red):
            plane.flags.writeable = False  # other frames may be decoded from this one
        return cls(luma, blue, red, matrix)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return int(self.luma.shape[0]), int(self.luma.shape[1])

    @property
    def pixels(self) -> UInt8Array:
        """(H, W, 3) uint8, RGB; made once, from whatever thread."""
        from av.video.reformatter import VideoReformatter

        with self._lock:
            if self._pixels is None:
                matrix = _SWSCALE[self.matrix]
                whole = self._own or self.copy()._own
                rgb = VideoReformatter().reformat(cast(Any, whole), format="rgb24", src_colorspace=matrix)
                self._pixels = cast(UInt8Array, rgb.to_ndarray())
            return self._pixels

    def frame(self) -> VideoFrame:
        """A frame of PyAV's of the caller's own, for an encoder; nobody may draw on these planes any more.

        That of a copy is handed out as it is, once; else its memory is another one.
        """
        with self._lock:
            own, self._own = self._own, None
        return own or self.copy().frame()

    def copy(self) -> Planes:
        """Another one alike."""
        from av.video.frame import VideoFrame

        height, width = self.size
        frame = VideoFrame(width, height, FORMAT)
        other = Planes(*_views(frame), self.matrix)
        other.luma[:], other.blue[:], other.red[:] = self.luma, self.blue, self.red
        other._own = frame
        return other


def scaled(picture: Picture, resize: Resize, region: Region | None = None) -> UInt8Array:
    """RGB of a picture, or of a region of it, made another size.

    Planes are resized each by itself, which is the same but for rounding, because the conversion is linear; where the
    region begins at an odd place, their colour is half a pixel off.
    """
    if isinstance(picture, np.ndarray):
        return resize(picture if region is None else picture[region.slices])
    planes = _planes(picture)
    place = region or Region(0, 0, *planes.size)
    half = _halved(place)
    return _rgb(resize(planes.luma[place.slices]), resize(planes.blue[half]), resize(planes.red[half]), planes.matrix)


def sampled(picture: Picture, rows: slice, columns: slice) -> UInt8Array:
    """RGB of these rows and columns alone."""
    if isinstance(picture, np.ndarray):
        return picture[rows, columns]
    planes = _planes(picture)
    height, width = planes.size
    near = np.ix_(np.arange(height)[rows] // 2, np.arange(width)[columns] // 2)
    return _rgb(planes.luma[rows, columns], planes.blue[near], planes.red[near], planes.matrix)


class Layer(NamedTuple):
    """One of the arrays that a picture consists of, to draw on.

    Args:
        values: (h, w, 3) of RGB, or (h, w) of one plane; uint8.
        step: pixels of the picture to one of its own, across and down: 1, or 2 for planes of colour.
        color: what is drawn, as numbers of this array.
    """

    values: UInt8Array
    step: int
    color: tuple[float, ...]


def layers(picture: Picture, color: tuple[int, int, int]) -> list[Layer]:
    """The arrays of a picture, and what an RGB colour is in each: what is mixed there is mixed in RGB as well."""
    if isinstance(picture, np.ndarray):
        return [Layer(picture, 1, color)]
    planes = _planes(picture)
    luma, blue, red = _in_ycc(color, planes.matrix)
    return [Layer(planes.luma, 1, (luma,)), Layer(planes.blue, 2, (blue,)), Layer(planes.red, 2, (red,))]


@lru_cache
def _in_ycc(color: tuple[int, int, int], matrix: str) -> tuple[float, ...]:
    """Y′, Cb and Cr of an RGB colour."""
    return tuple(float(value) for value in _TO_YCC[matrix] @ (*color, 1))


def _rgb(luma: UInt8Array, blue: Any, red: Any, matrix: str) -> UInt8Array:
    """RGB (h, w, 3) of planes of one size."""
    return np.asarray(cv2.transform(cv2.merge([luma, blue, red]), _TO_RGB[matrix]), np.uint8)


def _halved(region: Region) -> tuple[slice, slice]:
    """Where a region lies in the planes of colour."""
    bottom, right = region.top + region.height, region.left + region.width
    return slice(region.top // 2, (bottom + 1) // 2), slice(region.left // 2, (right + 1) // 2)


def _planes(picture: Any) -> Planes:
    assert isinstance(picture, Planes)
    return picture


def _views(frame: VideoFrame) -> tuple[UInt8Array, UInt8Array, UInt8Array]:
    """The three planes of a frame in its own memory, which is kept for as long as they are."""
    luma, blue, red = (
        np.frombuffer(cast(Any, p), np.uint8).reshape(-1, p.line_size)[: p.height, : p.width] for p in frame.planes
    )
    return luma, blue, red
