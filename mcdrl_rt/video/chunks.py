"""One video file out of several that were written apart: their packets, copied; nothing is encoded again.

The chunks come from ``VideoFile`` with ``joinable``, all with the same codec and for the same format. Their pictures
keep the times they have in the video that the chunks are of: exactly in MP4 and MOV, to the millisecond in Matroska.
Where it begins before zero, all are shifted to start there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from mcdrl_rt.errors import SinkError
from mcdrl_rt.unfinished import ended
from mcdrl_rt.video.audio import Audio
from mcdrl_rt.video.file import FORMATS, container_options, flush_to_disk
from mcdrl_rt.video.output import partial_path, reason

_DELETE = "delete it and start again"


@dataclass(frozen=True)
class Chunk:
    """A part of a video: where it lies, the time of its first frame in the whole, and how many frames it has."""

    path: Path
    start_s: Fraction
    frames: int


def join(chunks: Sequence[Chunk], target: Path, audio: Path | None = None) -> list[str]:
    """Write the file that the chunks make up, in their order; it appears when it is whole.

    Args:
        chunks: at least one.
        target: with the chunks' own extension.
        audio: the file whose sound goes with the pictures, as ``VideoFile`` takes it.

    Returns:
        What was left out of the sound, and why.

    Raises:
        SinkError: a chunk is damaged, or the target cannot be written.
    """
    partial = partial_path(target)
    sound = Audio(audio) if audio else None
    try:
        _write(chunks, partial, FORMATS[target.suffix][0], sound)
        flush_to_disk(partial)
        os.replace(partial, target)
    except (av.FFmpegError, OSError) as error:
        raise SinkError(f"cannot write {target}: {reason(error)}") from None
    finally:
        partial.unlink(missing_ok=True)
        ended(partial)
        if sound:
            sound.close()
    return sound.problems if sound else []


def _write(chunks: Sequence[Chunk], partial: Path, muxer: str, sound: Audio | None) -> None:
    origin_s = min(chunks[0].start_s, Fraction(0))
    with contextlib.ExitStack() as opened:
        first = opened.enter_context(_opened(chunks[0].path)).streams.video[0]
        grid = first.time_base or Fraction(1, 1000)
        # without, Matroska would have a random number in it: the same chunks give the same bytes. Added to the flags
        # that are on anyway: one of them makes of transport streams' AAC what MP4 takes
        options = container_options(muxer, grid, sound) | {"fflags": "+bitexact"}
        container = opened.enter_context(av.open(f"file:{partial.absolute()}", "w", muxer, container_options=options))
        stream = container.add_stream_from_template(first)
        stream.time_base = grid
        if sound:
            sound.add_to(container, muxer)
        last = -1
        for chunk in chunks:
            start = round((chunk.start_s - origin_s) / grid)
            last = _copy(chunk, container, stream, max(start, last + 1), sound, origin_s)
        if sound:
            sound.write_until(None, origin_s)  # it may go on when the pictures have ended
            sound.finish()


def _copy(
    chunk: Chunk, container: OutputContainer, stream: VideoStream, start: int, sound: Audio | None, origin_s: Fraction
) -> int:
    """Copy one chunk's packets, the first to be shown at ``start``; the time of the last, in the stream's unit."""
    first, last, frames = None, start, 0
    with _opened(chunk.path) as source:
        for packet in source.demux(video=0):
            if not packet.size or packet.pts is None:  # PyAV marks the end by an empty packet
                continue
            first = packet.pts if first is None else first
            last = start + packet.pts - first
            packet.pts = packet.dts = last
            time_s = origin_s + last * packet.time_base
            packet.stream = stream
            container.mux(packet)
            frames += 1
            if sound:
                sound.write_until(time_s, origin_s)
    if frames != chunk.frames:  # Matroska that was cut off ends as if that were all
        raise SinkError(f"{chunk.path} is damaged, {frames} of its {chunk.frames} frames are there; {_DELETE}")
    return last


def _opened(path: Path) -> InputContainer:
    try:
        return av.open(f"file:{path.absolute()}")
    except (av.FFmpegError, OSError) as error:
        raise SinkError(f"cannot read {path}: {reason(error)}; {_DELETE}") from None
