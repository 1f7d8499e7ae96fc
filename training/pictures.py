"""Pictures and masks as files hold them; what would be taken for something else is refused."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.length import is_cut_off

NOISE = 32  # levels a mask's black and white may be off: some were JPEG before
FEW = 6  # levels of a mask that has no noise, a few labels among them
RIPPLE = 8  # levels that JPEG puts between neighbours of one level
AREA = 0.001  # share of a mask: levels that fill as much of it are no edge
BETWEEN = 0.1  # share of a mask that may be neither black nor white: smooth edges have 0.07 at most
COMPRESSION = 259  # the tag of a TIFF that says how it is compressed


def read_pixels(path: Path) -> UInt8Array:
    """Pixels (H, W, 3) uint8 RGB of an image file.

    Raises:
        SourceError: it cannot be read.
    """
    if _is_tiff(path):
        return np.asarray(_read_tiff(path).to_ndarray(format="rgb24"), np.uint8)
    return np.asarray(cv2.cvtColor(_decode(path, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), np.uint8)


def read_mask(path: Path) -> UInt8Array:
    """A mask (H, W) uint8, 128 or more where there is lesion.

    Raises:
        SourceError: it cannot be read, or is not in black and white.
    """
    channels = cv2.split(read_pixels(path))
    mask = np.asarray(reduce(cv2.max, channels), np.uint8)
    is_coloured = bool((mask - reduce(cv2.min, channels) > NOISE).any())
    if problem := _problem(path, mask, is_coloured):
        raise SourceError(f"{path} {problem}")
    return mask


def _problem(path: Path, mask: UInt8Array, is_coloured: bool) -> str | None:
    """What a mask is, beside black and white."""
    with path.open("rb") as file:
        is_jpeg = file.read(2) == b"\xff\xd8"  # of 8 bits, without alpha, and never quite black and white
    if not is_jpeg:
        bits, has_alpha = bits_and_alpha(path)
        if bits > 8:
            return f"has {bits} bits: save masks with 8, lesion as 255 and the rest as 0"
        if has_alpha:
            return "is transparent in part: save masks without alpha, lesion as 255 and the rest as 0"
    if is_coloured:  # two labels of one brightness would be one lesion
        return "is in colour: label maps are not supported, save lesion as 255 and the rest as 0"
    if 0 < (most := int(mask.max())) < 128:
        return f"marks nothing: lesion is 128 or more, its highest value is {most}"
    if levels := _levels_between(mask, is_jpeg):
        some = f"between 0 and {most} ({', '.join(map(str, levels[:3]))})"
        return f"has levels {some}: label maps are not supported, save lesion as 255 and the rest as 0"
    return None


def _levels_between(mask: UInt8Array, is_jpeg: bool) -> list[int]:
    """The levels of a mask that are no lesion, nor none, nor a smooth edge or noise: such as labels are."""
    counts = np.bincount(mask.ravel(), minlength=256)
    is_exact = not is_jpeg and np.count_nonzero(counts) <= FEW
    lowest, ripple, side = (1, 0, 3) if is_exact else (NOISE, RIPPLE, 5)
    window = np.ones((side, side), np.uint8)
    flat = cv2.dilate(mask, window) - cv2.erode(mask, window) <= ripple  # an edge, however smooth, has no such pixel
    between = counts[lowest : int(mask.max()) - NOISE]
    filled = np.bincount(mask[flat], minlength=256)[lowest : int(mask.max()) - NOISE]
    if filled.sum() <= AREA * mask.size and (is_exact or between.sum() <= BETWEEN * mask.size):
        return []
    return [lowest + int(level) for level in np.argsort(-between, kind="stable") if between[level]]


def bits_and_alpha(path: Path) -> tuple[int, bool]:
    """Bits of a channel, and whether an image is transparent, but not everywhere alike."""
    if _is_tiff(path):
        frame = _read_tiff(path)
        components = frame.format.components
        has_alpha = any(one.is_alpha for one in components) and np.ptp(frame.to_ndarray(format="rgba")[..., 3]) > 0
        return max(one.bits for one in components), bool(has_alpha)
    raw = _decode(path, cv2.IMREAD_UNCHANGED)
    return 8 * raw.itemsize, raw.ndim == 3 and raw.shape[2] == 4 and bool(np.ptp(raw[..., 3]) > 0)


def _is_tiff(path: Path) -> bool:
    """Whether FFmpeg is to read an image: a TIFF, but for JPEG in one, of which it makes one colour without a word."""
    return path.suffix.lower() in (".tif", ".tiff") and _compression(path) not in (6, 7)


def _compression(path: Path) -> int:
    """How the first image of a TIFF is compressed; 0 where it does not say."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    place = int.from_bytes(data[4:8], order)
    for entry in range(place + 2, place + 2 + 12 * int.from_bytes(data[place : place + 2], order), 12):
        if int.from_bytes(data[entry : entry + 2], order) == COMPRESSION:
            return int.from_bytes(data[entry + 8 : entry + 10], order)
    return 0


def _read_tiff(path: Path) -> av.VideoFrame:
    """What FFmpeg reads of a TIFF: OpenCV 5 reads ClinicDB's as grey, for their extra samples."""
    try:
        with av.open(f"file:{path.absolute()}") as container:
            return next(container.decode(video=0))
    except (av.FFmpegError, StopIteration, OSError) as error:
        what = "damaged, no image, or of a compression that is not supported"
        raise SourceError(f"cannot read {path}: {what}; save it as PNG") from error


def _decode(path: Path, flags: int) -> np.ndarray:
    """What OpenCV reads of an image file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error as error:
        raise SourceError(f"cannot read {path}: damaged, or of more pixels than OpenCV takes") from error
    if pixels is None or is_cut_off(data):  # of which OpenCV reads what there is, and makes up the rest
        raise SourceError(f"cannot read {path}: damaged, or no image")
    return pixels
