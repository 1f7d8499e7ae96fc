"""Several files as one source: videos one after the other, or numbered pictures as one video.

    >>> with open_source("case-12/*.mp4") as source:                       # doctest: +SKIP
    ...     for frame in source:                                           # doctest: +SKIP
    ...         show(frame.pixels, at=frame.pts_s)                         # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video.base import Source
from mcdrl_rt.video.decoder import Video
from mcdrl_rt.video.names import legible

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
VIDEOS = frozenset(
    f".{end}"
    for end in "mp4 m4v mov mkv avi webm mpg mpeg m2v vob ts mts m2ts wmv asf flv 3gp mxf dv ogv".split()
)

_NUMBERED = re.compile(r"%(?:0(\d+))?d")


def matching_files(uri: str) -> list[Path] | None:
    """The files that a folder, glob or numbered pattern stands for, frame10 after frame9; None for any other input.

    A folder gives its videos, or without any its pictures: what else lies there is not meant.

    Raises:
        SourceError: there is no such file.
    """
    path = Path(uri)
    if "://" in uri or path.is_file():  # a file may be called anything
        return None
    if path.is_dir():
        found = _of_kind(path, VIDEOS) or _of_kind(path, PICTURES)
        missing = f"{uri} holds no video and no pictures"
    elif glob.has_magic(uri):
        found = [Path(name) for name in glob.glob(uri, recursive=True) if Path(name).is_file()]
        missing = f"no file matches {uri}"
    elif _NUMBERED.search(path.name):
        found = _numbered(path)
        missing = f"no file is numbered like {uri}"
    else:
        return None
    if not found:
        raise SourceError(missing)
    return sorted(found, key=_natural)


def pictures_of(path: Path) -> list[Path]:
    """A picture, or all those of a folder, frame10 after frame9, whatever else lies there.

    Raises:
        SourceError: there is none.
    """
    found = _of_kind(path, PICTURES) if path.is_dir() else [path]
    if not found:
        raise SourceError(f"{path} holds no video and no pictures")
    return sorted(found, key=lambda file: (_natural(file), file.name))


class Playlist(Source):
    """Files played as one video whose clock goes on from file to file; an unreadable one is skipped, and told of.

    Args:
        name: what to call it.
        files: in order.
        options: for FFmpeg; ``framerate`` is that of pictures.
        part: of pictures, those to be shown, each with its time and number among them all; there may be none to see.
    """

    def __init__(self, name: str, files: list[Path], options: dict[str, str], part: slice | None = None) -> None:
        self.name = name
        self._options = dict(options)
        self._picture_rate = _frame_rate(self._options.pop("framerate", "25"))
        self._files = iter(list(enumerate(files))[part or slice(None)])
        self._keeps_places = part is not None
        self._file = ""  # the name of the current one, if it is a picture
        self._unreadable: list[str] = []
        self._problems: list[str] = []
        self._index = 0
        self._begins = self._time = Fraction(0)  # seconds at which the current file begins, and of the last frame
        self._first_pts: int | None = None  # of the current file, in its own units
        self._video = self._open_next()
        if self._video is not None:
            self._take_facts(self._video)
            self.name = name
        elif part is not None:
            self.size = (0, 0)  # of no frame
        else:
            several = f"cannot read any of the {len(files)} files of {name}; " if len(files) > 1 else ""
            raise SourceError(f"{several}{self._unreadable[0]}")
        if _is_picture(files[0]):
            self.rate, self.time_base, self.frame_count = self._picture_rate, 1 / self._picture_rate, len(files)
        else:
            self.time_base = Fraction(1, 90_000)  # fine enough for every file's own

    def __iter__(self) -> Iterator[Frame]:
        while self._video is not None:
            for frame in self._video:
                if self._keeps_places and self._first_pts is not None:
                    self._problems.append(f"{self._video.name}: only the first of its pictures was taken")
                    break
                yield self._placed(frame)
            self._end_file()
            self._video = self._open_next()
        self.problem = self._verdict()

    def close(self) -> None:
        """Close the file being played; no other follows."""
        self._files = iter(())
        if self._video is not None:
            self._video.close()

    def _open_next(self) -> Video | None:
        """The next file that opens, if any."""
        for place, file in self._files:
            self._first_pts = None
            try:
                video = Video(str(file), self._options)
            except SourceError as error:
                self._unreadable.append(str(error))
                continue
            if self._keeps_places:
                self._begins, self._index = place / self._picture_rate, place
            self._file = legible(file.name) if _is_picture(file) else ""
            if self._file:
                video.rate = self._picture_rate
            return video
        return None

    def _placed(self, frame: Frame) -> Frame:
        """A frame of the current file on this source's own clock."""
        if self._first_pts is None:
            self._first_pts = frame.pts
        self._time = self._begins + (frame.pts - self._first_pts) * frame.time_base
        index, self._index = self._index, self._index + 1
        pts = round(self._time / self.time_base)
        return dataclasses.replace(frame, pts=pts, time_base=self.time_base, index=index, file=self._file)

    def _end_file(self) -> None:
        assert self._video is not None
        if self._first_pts is not None:
            self._begins = self._time + 1 / self._video.rate
        if self._video.problem:
            self._problems.append(f"{self._video.name}: {self._video.problem}")
        self._video.close()

    def _verdict(self) -> str | None:
        problems = list(self._problems)
        if self._unreadable:
            which = self._unreadable if self._keeps_places else self._unreadable[:1]
            problems[:0] = [f"{len(self._unreadable)} of the files could not be read", *which]
        if self._keeps_places:  # a part of them: whoever puts the parts together tells as much as is wanted
            return "; ".join(problems) or None
        return "; ".join(problems[:3]) + ("; …" if len(problems) > 3 else "") or None


def _of_kind(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    with os.scandir(folder) as entries:  # there may be 100,000: nothing is asked for twice
        shown = (entry for entry in entries if not entry.name.startswith("."))
        kind = [entry for entry in shown if os.path.splitext(entry.name)[1].lower() in suffixes]
        # a link that leads in a circle is an error to one, and no file to the other
        return [folder / e.name for e in kind if ((folder / e.name).is_file() if e.is_symlink() else e.is_file())]


def _numbered(path: Path) -> list[Path]:
    """The files of a folder whose names are a printf pattern filled in; missing numbers are no end."""
    pattern, end = "", 0
    for number in _NUMBERED.finditer(path.name):
        pattern += re.escape(path.name[end : number.start()]) + rf"\d{{{int(number[1] or 1)},}}"
        end = number.end()
    matches = re.compile(pattern + re.escape(path.name[end:])).fullmatch
    return [file for file in path.parent.iterdir() if matches(file.name)] if path.parent.is_dir() else []


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURES


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts numbers by their value: (7, "") after (0, "frame") for ``frame7``."""
    return [(int(part), "") if part.isdecimal() else (0, part.lower()) for part in re.split(r"(\d+)", str(file))]


def _frame_rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise SourceError(f"framerate={text} is no frame rate; an example is framerate=25 or framerate=30000/1001")
    return rate
