"""What a procedure is read from: a video file, cut into segments; or pictures, which are one segment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

from mcdrl_rt.types import VideoFormat
from mcdrl_rt.video.decoder import Video
from mcdrl_rt.video.index import Segment, cut, index_of
from mcdrl_rt.video.playlist import PICTURES
from mcdrl_rt.video.segment import open_segment
from mcdrl_rt.video.source import Source, open_source
from mcdrl_rt.video.verdict import Tally


class Recording(ABC):
    """One procedure as it was recorded.

    Attributes:
        path: of the file, or of the folder of pictures.
        format: of its frames.
        frames: how many there are, for progress bars.
        sound: the file its sound is in, if it can have any.
    """

    path: Path
    format: VideoFormat
    frames: int | None
    sound: Path | None = None

    @abstractmethod
    def segments(self, segment_s: float) -> tuple[Segment, ...]:
        """The same segments of the same recording, always."""

    @abstractmethod
    def open(self, segment: Segment) -> Source:
        """Read one of them.

        Raises:
            SourceError: it can no longer be read.
        """

    @abstractmethod
    def verdict(self, tallies: Iterable[Tally]) -> str | None:
        """What was wrong with it, given what became of its segments, in their order."""


def open_recording(path: Path) -> Recording:
    """Look at a recording, without keeping it open.

    Raises:
        SourceError: it cannot be read.
    """
    stills = path.is_dir() or path.suffix.lower() in PICTURES
    return _Pictures(path) if stills else _File(path)


def tally_of(source: Source) -> Tally:
    """What became of a segment that was read; pictures say it in their ``problem``."""
    return source.tally if isinstance(source, Video) else Tally()


class _File(Recording):
    def __init__(self, path: Path) -> None:
        self.path = self.sound = path
        self._index = index_of(path)
        self.format, self.frames = self._index.format, len(self._index.times)

    def segments(self, segment_s: float) -> tuple[Segment, ...]:
        return cut(self._index, segment_s)

    def open(self, segment: Segment) -> Source:
        return open_segment(self._index, segment)

    def verdict(self, tallies: Iterable[Tally]) -> str | None:
        return self._index.verdict(tallies)


class _Pictures(Recording):
    def __init__(self, path: Path) -> None:
        self.path = path
        with open_source(str(path)) as source:
            self.format, self.frames = source.format, source.frame_count

    def segments(self, segment_s: float) -> tuple[Segment, ...]:
        return (Segment(0, None, None),)

    def open(self, segment: Segment) -> Source:
        return open_source(str(self.path))

    def verdict(self, tallies: Iterable[Tally]) -> str | None:
        return None
