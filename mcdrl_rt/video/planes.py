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

import contextlib
import threading
from collections.abc import Callable, Iterator
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
    """One picture; to be drawn on (``layers``, ``drawing``) only where it is a copy that nobody else has.

    Args:
        luma: (H, W) uint8, of even sides.
        blue, red: Cb and Cr, (H/2, W/2) uint8.
        matrix: ``bt709`` or ``bt601``.
    """

    def __init__(self, luma: UInt8Array, blue: UInt8Array, red: UInt8Array, matrix: str) -> None:
        self.luma, self.blue, self.red, self.matrix = luma, blue, red, matrix
        self._pixels: UInt8Array | None = None
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
                rgb = VideoReformatter().reformat(self.frame(), format="rgb24", src_colorspace=matrix)
                self._pixels = cast(UInt8Array, rgb.to_ndarray())
            return self._pixels

    def frame(self) -> VideoFrame:
        """A frame of PyAV's of its own, for an encoder."""
        from av.video.frame import VideoFrame

        height, width = self.size
        frame = VideoFrame(width, height, FORMAT)
        for target, plane in zip(_views(frame), (self.luma, self.blue, self.red), strict=True):
            target[:] = plane
        return frame

    def copy(self) -> Planes:
        """Another one alike."""
        return Planes(self.luma.copy(), self.blue.copy(), self.red.copy(), self.matrix)


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
    luma, blue, red = (float(value) for value in _TO_YCC[planes.matrix] @ (*color, 1))
    return [Layer(planes.luma, 1, (luma,)), Layer(planes.blue, 2, (blue,)), Layer(planes.red, 2, (red,))]


@contextlib.contextmanager
def drawing(picture: Picture, box: Region) -> Iterator[UInt8Array]:
    """RGB (h, w, 3) of a box of even edges, to draw on; it is put back whole, and may differ by a level where it is not
    drawn on.
    """
    if isinstance(picture, np.ndarray):
        yield picture[box.slices]
        return
    planes = _planes(picture)
    half, size = _halved(box), (box.width, box.height)
    blue, red = (cv2.resize(plane[half], size, interpolation=cv2.INTER_NEAREST) for plane in (planes.blue, planes.red))
    rgb = _rgb(planes.luma[box.slices], blue, red, planes.matrix)
    yield rgb
    planes.luma[box.slices], *colors = cv2.split(cv2.transform(rgb, _TO_YCC[planes.matrix]))
    for plane, color in zip((planes.blue, planes.red), colors, strict=True):
        plane[half] = cv2.resize(color, (box.width // 2, box.height // 2), interpolation=cv2.INTER_AREA)


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


def _views(frame: VideoFrame) -> list[UInt8Array]:
    """The planes of a frame in its own memory, which is kept for as long as they are."""
    return [np.frombuffer(cast(Any, p), np.uint8).reshape(-1, p.line_size)[: p.height, : p.width] for p in frame.planes]
