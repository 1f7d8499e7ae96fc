"""What a procedure is read from: a video file or pictures, cut into segments."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from mcdrl_rt.errors import SourceError
from mcdrl_rt.offline.privacy import Deidentified, is_outside
from mcdrl_rt.types import UInt8Array, VideoFormat
from mcdrl_rt.video.decoder import Video
from mcdrl_rt.video.field import field_of_video
from mcdrl_rt.video.index import Segment, VideoIndex, cut, index_of, lead, read_through
from mcdrl_rt.video.out_of_body import OutOfBody
from mcdrl_rt.video.pictures import Pictures
from mcdrl_rt.video.playlist import PICTURES, Playlist, pictures_of
from mcdrl_rt.video.segment import open_segment
from mcdrl_rt.video.source import Source, open_source
from mcdrl_rt.video.verdict import Tally

_SAMPLES, _EVERY_S, _MOST_SAMPLES = 60, 5.0, 240  # to see what is written for a while, a long video takes more
_LONG_S = 60.0
_LEADS_S = (3.0, 12.0, 48.0)  # that are looked at before a segment, until it is known where it begins
_HARDLY = Fraction(1, 100)  # of a segment: where no keyframe may lie
_STILL = "its picture hardly moves: whatever on it may be writing was blanked, with some of what is beside it"


class Recording(ABC):
    """One procedure as it was recorded.

    Attributes:
        path: of the file, or of the folder of pictures.
        format: of its frames.
        frames: how many there are, for progress bars.
        length_s: from the first to the last; 0 of a set of pictures.
        sound: the file its sound is in, if it can have any.
    """

    path: Path
    format: VideoFormat
    frames: int | None
    length_s: float = 0.0
    sound: Path | None = None

    @abstractmethod
    def samples(self) -> Iterator[UInt8Array]:
        """Frames from beginning to end, of which it can be told where its picture is; none for a set of pictures."""

    @abstractmethod
    def segments(self, segment_s: float) -> tuple[Segment, ...]:
        """The same segments of the same recording, always."""

    def lead(self, segment: Segment, seconds: float) -> Segment | None:
        """What can be read of the time before one of them; see ``video.index.lead``."""
        return None

    @abstractmethod
    def open(self, segment: Segment) -> Source:
        """Read one of them.

        Raises:
            SourceError: it can no longer be read.
        """

    @abstractmethod
    def read_through(self, segment: Segment) -> None:
        """Make sure that a fault of one of them is the recording's, and not the disk's.

        Raises:
            SourceError: the disk's.
        """

    @abstractmethod
    def verdict(self, tallies: Iterable[Tally]) -> str | None:
        """What was wrong with it, given what became of its segments, in their order."""


def open_recording(path: Path, private: bool = False) -> Recording:
    """Look at a recording, without keeping it open.

    Args:
        path: a video, a picture or a folder of pictures.
        private: what would say who it is of is blanked, and its sound left out.

    Raises:
        SourceError: it cannot be read.
    """
    stills = path.is_dir() or path.suffix.lower() in PICTURES
    recording = _Pictures(path) if stills else _File(path)
    return _Private(recording) if private else recording


def expected_segments(path: Path, segment_s: float) -> int | None:
    """How many segments a recording may have, from what it says of its length; None if it says nothing."""
    try:
        with open_source(str(path.absolute())) as source:  # a folder may be called "screen"
            frames, rate = source.frame_count, source.format.rate
    except SourceError:
        return 1
    return frames and max(1, math.ceil(frames / (rate * Fraction(segment_s)) - _HARDLY))


def tally_of(source: Source) -> Tally:
    """What became of a segment that was read; pictures say it in their ``problem``."""
    if isinstance(source, Deidentified):
        return tally_of(source.source)
    return source.tally if isinstance(source, Video) else Tally()


class _File(Recording):
    def __init__(self, path: Path) -> None:
        self.path = self.sound = path
        self._index = index_of(path)
        self.format, self.frames = self._index.format, len(self._index.times)
        first, last = self._index.times[[0, -1]] if self.frames else (0, 0)
        self.length_s = float((int(last) - int(first)) * self.format.time_base)

    def samples(self) -> Iterator[UInt8Array]:
        wanted = int(min(max(_SAMPLES, self.length_s / _EVERY_S), _MOST_SAMPLES))
        keyframes = _spread(self._index, wanted)
        if len(keyframes) < _SAMPLES:  # then the way to the middle is through all of it
            step = max(1, len(self._index.times) // _SAMPLES)
            with open_source(str(self.path)) as source:
                yield from (frame.pixels for frame in itertools.islice(source, 0, None, step))
            return
        with contextlib.closing(Pictures(self.path, Fraction(0))) as pictures:
            for time in keyframes:
                if (picture := pictures(float(time * self.format.time_base))) is not None:
                    yield picture

    def segments(self, segment_s: float) -> tuple[Segment, ...]:
        return cut(self._index, segment_s)

    def lead(self, segment: Segment, seconds: float) -> Segment | None:
        return lead(self._index, segment, seconds)

    def open(self, segment: Segment) -> Source:
        return open_segment(self._index, segment)

    def read_through(self, segment: Segment) -> None:
        read_through(self.path)  # all of it: where in the file a segment lies is not known

    def verdict(self, tallies: Iterable[Tally]) -> str | None:
        return self._index.verdict(tallies)


def _spread(index: VideoIndex, count: int) -> list[int]:
    """Keyframes from beginning to end, as many as are wanted; fewer where some would lie close together."""
    if index.problem is not None:
        return []
    wanted = index.times[np.linspace(0, len(index.times) - 1, count).round().astype(int)]
    before = np.searchsorted(index.keyframes, wanted, side="right") - 1
    return [index.keyframes[number] for number in np.unique(before.clip(0))]


@functools.lru_cache(maxsize=4)
def _listed(path: Path, changed_ns: int) -> list[Path]:
    """The pictures there are since then; to list 100,000 takes seconds, and each segment asks."""
    return pictures_of(path)


class _Pictures(Recording):
    def __init__(self, path: Path) -> None:
        self.path, self._changed_ns = path, path.stat().st_mtime_ns
        with Playlist(path.name, self._files, {}) as source:
            self.format, self.frames = source.format, source.frame_count

    @property
    def _files(self) -> list[Path]:
        return _listed(self.path, self._changed_ns)

    def samples(self) -> Iterator[UInt8Array]:
        return iter(())

    def segments(self, segment_s: float) -> tuple[Segment, ...]:
        pictures, each = len(self._files), max(1, round(segment_s * self.format.rate))
        edges = [None, *range(each, pictures, each), None]  # a picture's time is its place
        return tuple(itertools.starmap(Segment, zip(itertools.count(), edges, edges[1:], strict=False)))

    def open(self, segment: Segment) -> Source:
        return Playlist(self.path.name, self._files, {}, slice(segment.start, segment.end))

    def read_through(self, segment: Segment) -> None:
        for file in self._files[segment.start : segment.end]:
            read_through(file)

    def verdict(self, tallies: Iterable[Tally]) -> str | None:
        return None


class _Private(Recording):
    """Another recording, of which nobody can tell whose it is."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.path, self.format, self.frames = recording.path, recording.format, recording.frames
        self.length_s = recording.length_s
        self._field: UInt8Array | None = None
        self._moves = True
        samples = recording.samples()  # one in memory at a time
        if (first := next(samples, None)) is not None:
            self._field, self._moves = field_of_video(itertools.chain([first], samples), recording.length_s >= _LONG_S)
            if self._field is None:  # it is dark from end to end: better black than a name
                self._field = np.zeros(self.format.size, np.uint8)

    def samples(self) -> Iterator[UInt8Array]:
        return self._recording.samples()

    def segments(self, segment_s: float) -> tuple[Segment, ...]:
        return self._recording.segments(segment_s)

    def open(self, segment: Segment) -> Source:
        outside = self._outside_before(segment)
        return Deidentified(self._recording.open(segment), self._field, outside)

    def _outside_before(self, segment: Segment) -> OutOfBody:
        """What has seen the frames before a segment, as many as it takes to know where it begins.

        Where they cannot be read, or none of so many tells, it may be outside.
        """
        outside = OutOfBody()
        for seconds in _LEADS_S:
            if self._field is None or (lead := self._recording.lead(segment, seconds)) is None:
                return OutOfBody()
            outside = OutOfBody(from_start=lead.start is None)
            try:
                with self._recording.open(lead) as source:
                    for frame in source:
                        is_outside(outside, frame, self._field)
                    if tally_of(source).stopped:
                        return OutOfBody(from_start=False)
            except SourceError:
                return OutOfBody(from_start=False)
            if outside.is_known:
                break
        return outside

    def read_through(self, segment: Segment) -> None:
        self._recording.read_through(segment)

    def verdict(self, tallies: Iterable[Tally]) -> str | None:
        problems = (self._recording.verdict(tallies), None if self._moves else _STILL)
        return "; ".join(filter(None, problems)) or None
