"""Many files as one video: the pictures of a sequence, or recordings that follow each other."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video.address import locate, scheme_of
from mcdrl_rt.video.base import Source
from mcdrl_rt.video.container import Container

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".wmv"})
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
_TICK = Fraction(1, 90_000)  # the recordings' common unit: every usual frame rate is whole in it
_NAMED = 3  # unreadable files that are told by name


class Playlist(Source):
    """Files played one after the other, on one clock.

    A picture lasts one frame. A recording follows one frame after the last one's end; its frames may be of another
    size. A file that cannot be read is left out and told in ``problem``.

    Args:
        name: what to call it.
        files: in the order they are played.
        framerate: of pictures; None where the files are recordings with times of their own.
        options: for FFmpeg, for each file.

    Raises:
        SourceError: not one of the files can be read.
    """

    def __init__(self, name: str, files: list[Path], framerate: Fraction | None, options: dict[str, str]) -> None:
        self._files, self._options = files, options
        self._opened = self._index = 0
        self._flaws: list[str] = []
        self._last: int | None = None
        current = self._open_next()
        if current is None:
            raise SourceError(f"none of the {len(files)} files in {name} can be read; {self._flaws[0]}")
        self._current: Source | None = current
        self._take_facts(current)
        self.name = f"{name} ({len(files)} {'videos' if framerate is None else 'pictures'})"
        self.frame_count = None
        self.time_base = _TICK
        self._pictures = framerate is not None
        if framerate is not None:
            self.rate, self.time_base, self.frame_count = framerate, 1 / framerate, len(files)

    def __iter__(self) -> Iterator[Frame]:
        while (current := self._current) is not None:
            start: int | None = None
            for frame in current:
                start = self._start(frame, current) if start is None else start
                yield self._placed(frame, start)
            if current.problem:
                self._flaws.append(f"{current.name}: {current.problem}")
            current.close()
            self._current = self._open_next()
        if self._flaws:
            more = f"; and {len(self._flaws) - _NAMED} more" if len(self._flaws) > _NAMED else ""
            self.problem = "; ".join(self._flaws[:_NAMED]) + more

    def close(self) -> None:
        """Close the file that is open; no other is opened."""
        if self._current is not None:
            self._current.close()
        self._current, self._opened = None, len(self._files)

    def _open_next(self) -> Source | None:
        """The next file that can be opened."""
        while self._opened < len(self._files):
            file = self._files[self._opened]
            self._opened += 1
            try:
                return Container(locate(str(file), self._options))
            except SourceError as error:
                self._flaws.append(str(error))
        return None

    def _start(self, first: Frame, current: Source) -> int:
        """Where on our clock a recording begins whose first frame this is; the first one keeps its own times."""
        own = round(first.pts * first.time_base / self.time_base)
        if self._last is None:
            return 0
        return self._last + max(1, round(1 / (current.rate * self.time_base))) - own

    def _placed(self, frame: Frame, start: int) -> Frame:
        if self._pictures:
            pts = self._index
        else:
            pts = start + round(frame.pts * frame.time_base / self.time_base)
            pts = pts if self._last is None else max(pts, self._last + 1)
        placed = Frame(frame.pixels, pts, self.time_base, self._index, frame.capture_time_s)
        self._last = pts
        self._index += 1
        return placed


def open_files(uri: str, options: dict[str, str]) -> Source | None:
    """The many files that ``uri`` names, as one source; None where it names one thing.

    Args:
        uri: a folder, a glob (``case/*.mp4``) or a numbered pattern (``frame%04d.png``). Hidden files do not count.
            Where there are recordings, pictures beside them are left out.
        options: for FFmpeg; ``framerate`` is of pictures, 25 by default.

    Raises:
        SourceError: there is no such file, or none can be read.
    """
    path = Path(uri)
    if scheme_of(uri) or (path.exists() and not path.is_dir()):
        return None
    if path.is_dir():
        files, nothing = [*path.iterdir()], f"no video and no picture in the folder {uri}"
    elif re.search(r"%\d*d", path.name):
        files, nothing = _numbered(path), f"no file is named like {uri}"
    elif glob.has_magic(uri):
        files, nothing = [Path(name) for name in glob.glob(uri, recursive=True)], f"no file is named like {uri}"
    else:
        return None
    files = [file for file in files if file.is_file() and not file.name.startswith(".")]
    recordings = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
    chosen = recordings or pictures or ([] if path.is_dir() else files)
    if not chosen:
        raise SourceError(f"{nothing}; looked for {' '.join(sorted(VIDEO_SUFFIXES | PICTURE_SUFFIXES))}")
    name = path.name or str(path.absolute())
    if not recordings and pictures:
        own = {key: value for key, value in options.items() if key != "framerate"}
        return Playlist(name, _naturally(pictures), _framerate(options), own)
    return Playlist(name, _naturally(chosen), None, options)


def _framerate(options: dict[str, str]) -> Fraction:
    text = options.get("framerate", "25")
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise SourceError(f"cannot show pictures at a framerate of {text!r}; give a number, such as 25 or 30000/1001")
    return rate


def _numbered(pattern: Path) -> list[Path]:
    """Files whose name is the pattern with a number in it, as printf would write it."""
    before, digits, after = re.split(r"%(\d*)d", pattern.name, maxsplit=1)
    least = int(digits or 1)
    number = rf"(\d{{{least}}}|[1-9]\d{{{least},}})"
    named = re.compile(re.escape(before) + number + re.escape(after))
    folder = pattern.parent
    return [file for file in folder.iterdir() if named.fullmatch(file.name)] if folder.is_dir() else []


def _naturally(files: list[Path]) -> list[Path]:
    """Sorted as people count: frame9 before frame10."""
    return sorted(files, key=lambda file: [_natural(part) for part in file.parts])


def _natural(text: str) -> list[tuple[int, int, str]]:
    # every part is a (kind, number, text), so that a number can be compared with a text
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", text) if part]
