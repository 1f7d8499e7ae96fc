"""One segment of a video file, read by itself: the frames, times and numbers it has when all of the file is read.

Decoding begins at the keyframe before the segment's own, so that what a decoder carries over a keyframe (the pictures
that an open group refers to, the neighbours of interlaced pictures) is there. A keyframe that does not come out first,
and whole, is damaged: then it is the one before that, and in the end the beginning of the file.

What a decoder puts in place of damaged pictures also depends on all it saw before. It is the same whenever this segment
is read, but may not be what ``open_source`` gives. Frames are numbered by the packets before them: numbers of frames
that are lost are left out.

    >>> with open_segment(index, segment) as source:                       # doctest: +SKIP
    ...     frames = list(source)                                          # doctest: +SKIP
    >>> tally = source.tally  # for index.verdict                            doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mcdrl_rt.errors import SourceError
from mcdrl_rt.video.container import open_container, video_stream
from mcdrl_rt.video.decoder import Video
from mcdrl_rt.video.index import Segment, VideoIndex
from mcdrl_rt.video.packets import Packets
from mcdrl_rt.video.timestamps import Timestamps
from mcdrl_rt.video.verdict import Tally

_KEYFRAMES_TRIED = 2
_MARGIN_S = 1  # some containers are searched by the time of decoding, which is before that of showing


def open_segment(index: VideoIndex, segment: Segment) -> Video:
    """Open a file to read one of its segments, which is one of ``cut``.

    What was wrong with the file is told by all segments together, ``index.verdict``: none has a ``problem`` of its own.

    Raises:
        SourceError: it can no longer be read.
    """
    before = [] if segment.start is None else [time for time in index.keyframes if time < segment.start]
    for keyframe in reversed(before[1:][-_KEYFRAMES_TRIED:]):  # the first one is the beginning
        with contextlib.suppress(SourceError, av.FFmpegError):
            part = _Part(index, segment, keyframe)
            if part.begins_well:
                return part
            part.close()
    return _Part(index, segment, None)


class _Part(Video):
    """One segment, decoded in one thread: several fill in what is damaged with whatever they find.

    Args:
        index: of the file.
        segment: of it.
        keyframe: the one to begin at, which is not in the segment; None for the beginning of the file.

    Attributes:
        begins_well: the first frame out of the decoder is the keyframe, whole.
    """

    _threads = "NONE"

    def __init__(self, index: VideoIndex, segment: Segment, keyframe: int | None) -> None:
        self._segment, self._keyframe = segment, keyframe
        self._sound = index.problem is None
        self._earliest = int(index.times[0]) if self._sound else 0
        self._seeks = keyframe is not None and _is_found(index, segment, keyframe)
        super().__init__(str(index.path), {})
        first = self._first
        self.begins_well = first is not None and first.pts == keyframe and not first.is_corrupt
        self.size, self.rate = index.format.size, index.format.rate
        self.color, self.pixel_aspect = index.format.color, index.format.pixel_aspect
        if self._sound:
            self.frame_count = len(index.within(segment))
        self._index = self._before = index.before(segment)
        self._first_time: int | None = None
        self._last_time: int | None = None

    @property
    def tally(self) -> Tally:
        """What became of the segment so far."""
        return dataclasses.replace(
            super().tally, frames=self._index - self._before, first=self._first_time, last=self._last_time
        )

    def _input(self) -> Iterator[Packet[VideoStream] | None]:
        if self._keyframe is None:
            return super()._input()
        if self._seeks:
            _seek(self._container, self._stream, self._keyframe, self._earliest)
        return _from_keyframe(self._packets, self._keyframe)

    def _next(self) -> VideoFrame | None:
        while (decoded := super()._next()) is not None:
            time = int(decoded.pts or 0)
            if self._segment.end is not None and time >= self._segment.end:
                return None
            if self._segment.holds(time):
                self._first_time = time if self._first_time is None else self._first_time
                self._last_time = time
                return decoded
        return None

    def _clock(self) -> Timestamps:
        return Timestamps(self.time_base, self.rate, self._sound)

    def _counts(self, packet: Packet[VideoStream] | None) -> bool:
        if packet is None or packet.pts is None:
            return self._segment.end is None
        return self._segment.holds(packet.pts)

    def _verdict(self) -> None:
        """What is missing of a file shows only in the whole."""


def _seek(container: InputContainer, stream: VideoStream, time: int, earliest: int) -> None:
    """Go to some place before a keyframe, not far away."""
    container.seek(max(earliest, time - round(_MARGIN_S / (stream.time_base or 1))), stream=stream)


def _from_keyframe(packets: Iterable[Packet[VideoStream] | None], time: int) -> Iterator[Packet[VideoStream] | None]:
    """The packets from a keyframe on."""

    def is_earlier(packet: Packet[VideoStream] | None) -> bool:
        return packet is not None and not (packet.is_keyframe and packet.pts == time)

    return itertools.dropwhile(is_earlier, packets)


def _is_found(index: VideoIndex, segment: Segment, keyframe: int) -> bool:
    """Whether seeking leads to the packets there are: FFmpeg may land too late, or count another time from there."""
    times = []
    with open_container(str(index.path), {}) as container:
        stream = video_stream(container, index.path.name)
        try:
            _seek(container, stream, keyframe, int(index.times[0]))
        except av.FFmpegError:
            return False
        for packet in _from_keyframe(Packets(container, stream), keyframe):
            if packet is None or packet.pts is None:
                break
            if packet.is_keyframe and segment.end is not None and packet.pts > segment.end:
                break
            if not packet.is_discard:
                times.append(packet.pts)
    span = Segment(0, keyframe, segment.end)
    return np.array_equal(sorted(time for time in times if span.holds(time)), index.within(span))
