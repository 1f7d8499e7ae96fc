"""The frames an engine is calibrated with and checked on: the user's own, or synthetic ones where there are none."""

from __future__ import annotations

import contextlib
import logging
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Picture, UInt8Array
from mcdrl_rt.video.found import files_in, folders_in
from mcdrl_rt.video.phantom import SITES, Phantom
from mcdrl_rt.video.pictures import Pictures
from mcdrl_rt.video.playlist import PICTURES, VIDEOS
from mcdrl_rt.video.region import crop_and_resize, find_region
from mcdrl_rt.video.source import open_source

_FEW = 4  # times as many frames as are wanted are found sooner by reading all
REAL_FRAMES = 200  # more change neither a calibration nor a verdict, and take longer
# what data sets call their folders of masks: those are pictures, too, but none that a model will ever see
MASK_FOLDERS = frozenset(
    {"mask", "masks", "gt", "ground truth", "ground_truth", "groundtruth", "labels", "annotations"}
)
_log = logging.getLogger("mcdrl_rt")


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
        path: a file, or a folder, which is looked through with all its subfolders and those that links lead to. What
            is hidden, what ``process`` made, folders of masks and what is no picture are passed over.
        size: the model's input size.

    Raises:
        SourceError: there is no such path, or no picture in it.
    """
    files, passed = _files_of(path)
    if not files:
        those = f"; {passed} passed over: hidden, masks or results" if passed else ""
        raise SourceError(f"{path} holds no picture and no video{those}")
    files = [files[i] for i in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)]
    shares = np.diff(np.linspace(0, count, len(files) + 1).round().astype(int))
    found = [_frames_of(file, size, int(share)) for file, share in zip(files, shares, strict=True)]
    frames = [frame for some in found for frame in some]
    if not frames:
        raise SourceError(f"no picture or video in {path} can be read")
    if len(found) + passed > 1:
        facts = [f"{len(frames)} frames of {sum(map(bool, found))} files in {path}"]
        facts += [f"{passed} passed over: hidden, masks or results"] * bool(passed)
        facts += [f"{found.count([])} of {len(found)} files could not be read"] * ([] in found)
        _log.info("%s", "; ".join(facts))
    return frames


def _files_of(path: Path) -> tuple[list[Path], int]:
    """The files to look at, and the number of those that are passed over, though they are pictures or videos."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SourceError(f"no such file or folder: {path}") from error
    except OSError as error:
        raise SourceError(f"cannot read {path}: {str(error.strerror).lower()}") from error
    if not path.is_dir():
        return [path], 0
    folders, lost = folders_in(path)
    if lost:
        _log.warning("cannot look into %s", ", ".join(map(str, lost)))
    kinds = VIDEOS | PICTURES
    meant = [folder for folder in folders if MASK_FOLDERS.isdisjoint(map(str.lower, folder.relative_to(path).parts))]
    files = [file for file in files_in(meant, kinds) if os.path.isfile(file)]  # nobody may be writing to a pipe
    there = (file for file in path.rglob("*") if file.suffix.lower() in kinds and os.path.isfile(file))
    return files, len(set(map(os.path.realpath, there)).difference(map(os.path.realpath, files)))


def _frames_of(file: Path, size: tuple[int, int], count: int) -> list[UInt8Array]:
    """Up to ``count`` frames of one file, spread evenly over it; none of what cannot be read."""
    try:
        with open_source(str(file)) as source:
            first = next(iter(source), None)
            few = (source.frame_count or 0) < _FEW * count
        if first is None or file.suffix.lower() in PICTURES:
            return [] if first is None else [_seen(first.picture, size)]
        found = [] if few else _by_time(file, size, count, first.pts_s)
        return found if len(found) == count else _decimated(file, size, count)
    except (SourceError, OSError, av.FFmpegError, ValueError):  # the last is of pictures that cannot be converted
        return []


def _by_time(file: Path, size: tuple[int, int], count: int, begins_s: float) -> list[UInt8Array]:
    """Frames found by their time, sooner than by reading a long file; fewer where it is not as long as it says."""
    with contextlib.closing(Pictures(file, Fraction(0))) as pictures:
        length_s = pictures.length_s or 0.0
        found = [pictures(begins_s + (place + 0.5) / count * length_s) for place in range(count)]
    return [_seen(one, size) for one in found if one is not None]


def _decimated(file: Path, size: tuple[int, int], count: int) -> list[UInt8Array]:
    """Frames found by reading all of the file, whether or not it says how much that is."""
    kept: list[UInt8Array] = []
    step = 1
    with open_source(str(file)) as source:
        for index, frame in enumerate(source):
            if index % step == 0:
                kept.append(_seen(frame.picture, size))
            if len(kept) == _FEW * count:
                kept, step = kept[::2], 2 * step
    count = min(count, len(kept))
    return [kept[int((place + 0.5) / count * len(kept))] for place in range(count)]


def _seen(picture: Picture, size: tuple[int, int]) -> UInt8Array:
    return crop_and_resize(picture, find_region(picture), size)
