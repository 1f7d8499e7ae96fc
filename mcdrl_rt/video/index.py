"""What a video file consists of, and where it can be cut: found by reading it through, and decoding next to nothing.

Segments are intervals of time that begin with a keyframe. Each can be read by itself, ``segment.open_segment``, and
together they give the frames of the whole file, bit for bit.

    >>> index = index_of(Path("procedure.mp4"))                            # doctest: +SKIP
    >>> cut(index, segment_s=60)                                           # doctest: +SKIP
    (Segment(number=0, start=None, end=768000), Segment(number=1, start=768000, end=None))
"""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import VideoFormat
from mcdrl_rt.video.container import open_container, video_stream
from mcdrl_rt.video.decoder import Video
from mcdrl_rt.video.output import reason
from mcdrl_rt.video.packets import Packets
from mcdrl_rt.video.verdict import Expected, Tally

TimeArray = NDArray[np.int64]
_AT_ONCE = 16 << 20  # bytes


@dataclass(frozen=True)
class Segment:
    """The frames shown from ``start`` on, before ``end``: times in units of the file's time base.

    Args:
        number: its place in the file, from 0.
        start: None for whatever comes first.
        end: None for whatever comes last.
    """

    number: int
    start: int | None
    end: int | None

    def holds(self, time: int) -> bool:
        """Whether a frame of that time is in it."""
        return (self.start is None or self.start <= time) and (self.end is None or time < self.end)


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """The frames and keyframes of one file.

    Args:
        path: of the file.
        format: of its frames.
        expected: what its container promises.
        times: (F,) int64, when each frame is shown, rising; a frame that cannot be decoded has one too.
        keyframes: those of the times at which decoding can begin: nothing from there on is shown before it.
        problem: why it cannot be cut, for people; None when it can be.
    """

    path: Path
    format: VideoFormat
    expected: Expected
    times: TimeArray
    keyframes: tuple[int, ...]
    problem: str | None

    def within(self, segment: Segment) -> TimeArray:
        """The times of a segment's frames."""
        begin = 0 if segment.start is None else int(np.searchsorted(self.times, segment.start))
        end = len(self.times) if segment.end is None else int(np.searchsorted(self.times, segment.end))
        return self.times[begin:end]

    def before(self, segment: Segment) -> int:
        """How many frames come before a segment."""
        return 0 if segment.start is None else int(np.searchsorted(self.times, segment.start))

    def verdict(self, tallies: Iterable[Tally]) -> str | None:
        """What was wrong with the file, in one line, given the tallies of all of its segments in their order."""
        return self.expected.verdict(sum(tallies, Tally()))


def index_of(path: Path) -> VideoIndex:
    """Read a file through.

    Raises:
        SourceError: it is no video, or not one frame of it can be decoded.
    """
    with Video(str(path), {}) as video:
        first = next((frame.pts for frame in video), None)
        format, expected = video.format, video.expected
    if first is None:
        raise SourceError(f"cannot decode {path.name}: no frame of it is a picture; the file is damaged")
    scan, trial, stopped = _scanned(path)
    if stopped:
        read_through(path)
        scan, trial, _ = _scanned(path)  # it may have been the disk, for a moment
    # what is shown before the first frame that can be decoded needs what was never recorded
    times = np.array(sorted(time for time in scan.times if time >= first), np.int64)
    keyframes = tuple(time for time in scan.keyframes if time >= first)
    problem = "it has B-frames, and does not say when they are shown" if scan.numbered else scan.fault
    if (np.diff(times) == 0).any():
        problem = problem or "two of its pictures are shown at the same time"
    if trial.failed:
        problem = problem or "its pictures are refreshed bit by bit: decoding cannot begin at a keyframe"
    if not keyframes:
        problem = problem or "it has no keyframe"
    return VideoIndex(path, format, expected, times, keyframes, problem)


def read_through(path: Path) -> None:
    """Read a file without looking at it: FFmpeg does not tell a disk that fails from a file that is damaged.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            while file.read(_AT_ONCE):
                pass
    except OSError as error:
        raise SourceError(f"cannot read {path}: {reason(error)}") from None


def _scanned(path: Path) -> tuple[_Scan, _Trial, str | None]:
    """All packets of a file, seen; and why some could not be read."""
    with open_container(str(path), {}) as container:
        stream = video_stream(container, path.name)
        scan, trial, packets = _Scan(), _Trial(stream), Packets(container, stream)
        for packet in packets:
            if packet is not None and not packet.is_discard:  # what an edit list cuts off is decoded, but not shown
                scan.see(packet)
                trial.see(packet)
        # AVI has no room for times: FFmpeg numbers the packets where it cannot tell which is shown when
        scan.numbered = "avi" in container.format.name and bool(stream.codec_context.has_b_frames) and scan.in_order
    return scan, trial, packets.stopped


def cut(index: VideoIndex, segment_s: float) -> tuple[Segment, ...]:
    """Segments of at least ``segment_s`` seconds each (the last may be shorter), or a single one.

    The same file gives the same segments, always and everywhere.
    """
    starts: list[int] = []
    if index.problem is None:
        last = int(index.times[0])
        for keyframe in index.keyframes:
            if keyframe > last and (keyframe - last) * index.format.time_base >= segment_s:
                starts.append(keyframe)
                last = keyframe
    edges = itertools.pairwise([None, *starts, None])
    return tuple(Segment(number, start, end) for number, (start, end) in enumerate(edges))


def lead(index: VideoIndex, segment: Segment, seconds: float) -> Segment | None:
    """What is shown before one of the segments of ``cut``, for ``seconds`` at least or from the beginning on.

    Returns:
        It has no ``start`` where it is from the beginning; None before the first segment.
    """
    if segment.start is None:
        return None
    until = segment.start - seconds / index.format.time_base
    starts = [keyframe for keyframe in index.keyframes[1:] if keyframe <= until]
    return Segment(segment.number, starts[-1] if starts else None, segment.start)


class _Scan:
    """Sees all packets of a stream, in their order.

    Attributes:
        times: of all that say when they are shown.
        keyframes: times of those that everything before them is shown before.
        in_order: the packets come in the order they are shown in.
        fault: the first thing that makes their times unusable.
        numbered: FFmpeg made the times up.
    """

    def __init__(self) -> None:
        self.times = array("q")
        self.keyframes: list[int] = []
        self.in_order = True
        self.fault: str | None = None
        self.numbered = False
        self._highest: int | None = None
        self._dts: int | None = None
        self._floor: int | None = None  # the keyframe before the last one: a picture shown before it comes too late
        self._keyframe: int | None = None

    def see(self, packet: Packet[VideoStream]) -> None:
        """Take note of the next packet."""
        time = packet.pts
        if time is None:
            self.fault = self.fault or "not all of its packets say when they are shown"
            return
        if _is_before(packet.dts, self._dts) or _is_before(time, self._floor):
            self.fault = self.fault or "its clock jumps back"
        if packet.is_keyframe:
            self._floor, self._keyframe = self._keyframe, time
            if not _is_before(time, self._highest):
                self.keyframes.append(time)
        self.in_order &= not _is_before(time, self._highest)
        self._highest = time if self._highest is None else max(time, self._highest)
        self._dts = self._dts if packet.dts is None else packet.dts
        self.times.append(time)


class _Trial:
    """Begins decoding at a few keyframes of a stream: the second, the fourth, the eighth …"""

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._keyframe: int | None = None  # that is to come out first
        self._number = 0
        self._came_first: list[bool] = []

    @property
    def failed(self) -> bool:
        """No keyframe came out first: one may be damaged, but not all."""
        return bool(self._came_first) and not any(self._came_first)

    def see(self, packet: Packet[VideoStream]) -> None:
        """Take the next packet."""
        self._number += packet.is_keyframe
        if packet.is_keyframe and self._number > 1 and self._number.bit_count() == 1:
            self._keyframe = packet.pts
            self._stream.codec_context.flush_buffers()
        if self._keyframe is None:
            return
        with contextlib.suppress(av.FFmpegError):
            for frame in self._stream.decode(packet):
                self._came_first.append(frame.pts == self._keyframe)
                self._keyframe = None
                return


def _is_before(time: int | None, other: int | None) -> bool:
    return time is not None and other is not None and time < other
