"""The frames an engine is calibrated with and checked on: the user's own, or synthetic ones where there are none."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom import SITES, Phantom
from mcdrl_rt.video.pictures import Pictures
from mcdrl_rt.video.playlist import PICTURES, VIDEOS
from mcdrl_rt.video.region import crop_and_resize, find_region
from mcdrl_rt.video.source import open_source

_FEW = 4  # times as many frames as are wanted are found sooner by reading all
REAL_FRAMES = 200  # more change neither a calibration nor a verdict, and take longer


def synthetic_frames(size: tuple[int, int], count: int = 10) -> list[UInt8Array]:
    """Synthetic endoscopy at a model's input size: two frames of every imaging site, by default."""
    frames = []
    for i in range(count):
        pixels = Phantom((288, 352), site=SITES[i % len(SITES)], seed=i).render(10 * i).pixels
        frames.append(crop_and_resize(pixels, find_region(pixels), size))
    return frames


def real_frames(path: Path, size: tuple[int, int], count: int = REAL_FRAMES) -> list[UInt8Array]:
    """Up to ``count`` frames of a picture, a video or a folder of them, spread evenly, as the model will see them.

    Args:
        path: a file, or a folder that is looked through with all its subfolders; what is no picture is passed over.
        size: the model's input size.

    Raises:
        SourceError: there is no such path, or no picture in it.
    """
    if not path.exists():
        raise SourceError(f"no such file or folder: {path}")
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEOS | PICTURES and p.is_file())
    if not files:
        raise SourceError(f"{path} holds no picture and no video")
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)]
    shares = np.diff(np.linspace(0, count, len(files) + 1).round().astype(int))
    frames = [frame for file, share in zip(files, shares, strict=True) for frame in _frames_of(file, size, int(share))]
    if not frames:
        raise SourceError(f"no picture or video in {path} can be read")
    return frames


def _frames_of(file: Path, size: tuple[int, int], count: int) -> list[UInt8Array]:
    """Up to ``count`` frames of one file, spread evenly over it; none of what cannot be read."""
    try:
        with open_source(str(file)) as source:
            first = next(iter(source), None)
            frames = source.frame_count or 0
        if first is None or frames < _FEW * count:
            return _decimated(file, size, count)
        with contextlib.closing(Pictures(file, Fraction(0))) as pictures:
            places = (np.arange(count) + 0.5) / count
            found = [pictures(first.pts_s + float(place * frames / source.rate)) for place in places]
        return [crop_and_resize(one, find_region(one), size) for one in found if one is not None]
    except (SourceError, av.FFmpegError):
        return []


def _decimated(file: Path, size: tuple[int, int], count: int) -> list[UInt8Array]:
    """The same by reading all of it, whether or not it says how much that is."""
    kept: list[UInt8Array] = []
    step = 1
    with open_source(str(file)) as source:
        for index, frame in enumerate(source):
            if index % step == 0:
                kept.append(crop_and_resize(frame.picture, find_region(frame.picture), size))
            if len(kept) == 2 * count:
                kept, step = kept[::2], 2 * step
    return [kept[i] for i in np.linspace(0, len(kept) - 1, min(count, len(kept))).round().astype(int)]
