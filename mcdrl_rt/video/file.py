"""Video files, which appear under their name only when they are complete.

A file is written beside its target as ``.name.partial-PID.ext`` and renamed at the end; a failure or an abort
deletes it. Every frame keeps its own presentation time: exactly in MP4 and MOV, to the millisecond in Matroska and
WebM (their grid), to the frame in AVI (its grid, from zero). Times before zero are shifted to start there.

A live recording cannot be made again: it replaces no other file (``a-2.mp4`` where there is an ``a.mp4``), and what was
written of it survives. The partial file is a playable video at any moment, and on disk up to the last second: after a
crash or a power cut it is found beside the target (``ls -a``) and may be renamed. A full disk, or an error elsewhere in
the program, ends the file where it is. This holds for MP4, MOV, Matroska and WebM: AVI has its index at the end.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Shown, VideoFormat
from mcdrl_rt.unfinished import ended
from mcdrl_rt.video.audio import Audio
from mcdrl_rt.video.encoder import H264, Encoder
from mcdrl_rt.video.output import Sink, Timeline, check_folder, numbered, partial_path, reason

_MILLISECOND = Fraction(1, 1000)
_SYNC_S = 1.0  # what a power cut may cost
_MAX_TIMESCALE = 2**31 - 1
_SAME_ANYWHERE = {"threads": "4"}  # what x264 makes of a picture depends on them
_EXACT = ("mp4", "mov")  # keep any time exactly
# extension -> FFmpeg's muxer, codec unless asked otherwise
FORMATS = {
    ".mp4": ("mp4", H264),
    ".m4v": ("mp4", H264),
    ".mov": ("mov", H264),
    ".mkv": ("matroska", H264),
    ".avi": ("avi", "mpeg4"),  # AVI cannot say which H.264 frame is shown when
    ".webm": ("webm", "libvpx-vp9"),
}


@dataclass(frozen=True)
class _Whole:
    """How much of a live recording stands on its own: bytes of the file, seconds of video."""

    size: int
    length_s: Fraction


class VideoFile(Sink):
    """A video file, through PyAV.

    Args:
        target: its name in the end, with an extension of ``FORMATS``.
        codec: a key of ``encoder.CODECS``.
        format: of the frames to come.
        audio: a file whose sound goes with the pictures, on the same clock; with or without any.
        joinable: no picture is stored before one that is shown earlier, so that packets of several files can follow
            each other (``chunks.join``), none is left out because another is shown in the same millisecond, and the
            file is the same to the bit whatever cores there are.
            H.264 is an eighth larger for it, and done in two thirds of the time.
        grey: the pixels' channels are alike: FFV1 stores them as one, in a fifth of the time.

    Raises:
        SinkError: the place does not allow writing, or the container does not take the codec.
    """

    def __init__(
        self,
        target: Path,
        codec: str,
        format: VideoFormat,
        audio: Path | None = None,
        joinable: bool = False,
        grey: bool = False,
    ) -> None:
        self._target, self._partial, self._live = target, partial_path(target, fresh=format.live), format.live
        check_folder(target, self._partial)
        self._muxer = FORMATS[target.suffix.lower()][0]
        # AVI counts frames from its start, so a late first frame would become hours of filler
        from_zero = format.live or self._muxer == "avi"
        self._timeline = Timeline(_grid(self._muxer, format), from_zero, keep_all=joinable)
        self._frame_s = 1 / format.rate
        self._in_order = joinable or self._muxer == "avi"  # which has no presentation times
        self._audio: Audio | None = None
        self._whole: _Whole | None = None
        self._kept = target  # where the whole file is, in the end
        self._ended = threading.Event()
        try:
            self._open(codec, format, audio, grey, _SAME_ANYWHERE if joinable else {})
        except BaseException as error:
            self.abort()  # whatever stopped it, Ctrl-C included: nothing half-written stays
            if isinstance(error, av.FFmpegError | OSError | ValueError):
                raise SinkError(f"cannot write {target}: {reason(error)}") from None
            raise
        if self._live:
            threading.Thread(target=self._keep_on_disk, name="sync", daemon=True).start()

    def _open(self, codec: str, format: VideoFormat, audio: Path | None, grey: bool, encoding: dict[str, str]) -> None:
        self._audio = Audio(audio) if audio else None
        options = container_options(self._muxer, self._timeline.time_base, self._audio, format.live)
        # "file:" keeps FFmpeg from reading a colon in a file's name as a protocol
        url = f"file:{self._partial.absolute()}"
        self._container = av.open(url, "w", format=self._muxer, container_options=options)
        self._encoder = Encoder(
            self._container,
            codec,
            format,
            self._timeline.time_base,
            live=format.live,
            in_order=self._in_order,
            grey=grey,
            options=encoding,
        )
        self.size = self._encoder.size
        if self._audio:
            self._audio.add_to(self._container, self._muxer)
        if format.live and self._muxer in _EXACT:  # the header of fragments with none after it ends in a memory fault
            self._encoder.open()
        else:
            self._container.start_encoding()  # opens the encoder and writes the header: errors show now

    def write(self, shown: Shown) -> None:
        """Encode and write one frame, and the sound before it."""
        pts = self._timeline.place(shown.frame)
        if pts is None:
            return
        try:
            packets = self._encoder.encode(shown.frame.picture, pts, shown.frame.duration_s)
        except (av.FFmpegError, OSError) as error:
            raise self._failed("write", error, whole=True) from None
        try:
            self._container.mux(packets)
            if self._audio:
                self._audio.write_until(shown.frame.pts * shown.frame.time_base, self._timeline.origin_s)
            if self._live and packets and self._encoder.restarted:  # which ended the fragment before it
                self._whole = _Whole(self._partial.stat().st_size, self._timeline.length_s)
        except (av.FFmpegError, OSError) as error:
            raise self._failed("write", error) from None
        self.frames += 1

    def close(self) -> None:
        """Finish the file and rename it to its target."""
        if self._ended.is_set():
            return
        if not self.frames:  # a video without frames cannot be opened by anything
            self.abort()
            return
        try:
            self._container.mux(self._encoder.flush())
            if self._audio:
                origin_s = self._timeline.origin_s
                self._audio.write_until(origin_s + self._timeline.length_s + self._frame_s, origin_s)
                self._audio.finish()
            self._container.close()
            flush_to_disk(self._partial)
            if self._live:
                self._kept = _beside_others(self._partial, self._target)
            else:
                os.replace(self._partial, self._target)
        except (av.FFmpegError, OSError) as error:
            raise self._failed("finish", error) from None
        except BaseException:
            self.abort()
            raise
        self._ended.set()
        ended(self._partial)

    def abort(self) -> None:
        """Discard everything written; what had the target's name before is untouched."""
        if not self._ended.is_set():
            self._release()
            self._partial.unlink(missing_ok=True)
            ended(self._partial)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._live and kind is not None and issubclass(kind, Exception):
            with contextlib.suppress(SinkError):  # what went wrong first is what counts
                self.close()
        else:
            super().__exit__(kind, *rest)

    @property
    def problem(self) -> str | None:
        """Frames that could not be written, sound that was left out."""
        audio = self._audio.problems if self._audio else []
        elsewhere = [] if self._kept == self._target else [f"it is in {self._kept}: {self._target} was there already"]
        return "; ".join(self._timeline.problems + self._encoder.problems + audio + elsewhere) or None

    def _failed(self, verb: str, error: Exception, whole: bool = False) -> SinkError:
        """Give up, keeping what stands on its own of a live recording (``whole``: all that was written), and say so."""
        gone = not self._partial.exists()
        text = f"cannot {verb} {self._target}: {'the file was removed meanwhile' if gone else reason(error)}"
        if gone or self._whole is None or not self._whole.length_s:
            self.abort()
            return SinkError(text)
        finished = self._release() and whole
        kept = self._partial
        with contextlib.suppress(OSError):
            if not finished:
                os.truncate(self._partial, self._whole.size)
            flush_to_disk(self._partial)
            kept = _beside_others(self._partial, self._target)
        ended(self._partial)
        return SinkError(f"{text}; the first {float(self._whole.length_s):.0f} s are kept in {kept}")

    def _release(self) -> bool:
        """Let go of the file; whether it could be finished."""
        self._ended.set()
        finished = False
        with contextlib.suppress(av.FFmpegError, OSError):  # there is a worse problem, or it is being thrown away
            if hasattr(self, "_container"):
                self._container.close()
                finished = True
        if self._audio:
            self._audio.close()
        return finished

    def _keep_on_disk(self) -> None:
        """On a thread of its own, because a disk may take its time."""
        while not self._ended.wait(_SYNC_S):
            with contextlib.suppress(OSError):  # a full disk is noticed by who writes
                flush_to_disk(self._partial)


def _beside_others(partial: Path, target: Path) -> Path:
    """Give a recording its name, or, where that is taken, the next that is free: it replaces nothing."""
    for name in numbered(target):
        try:
            os.link(partial, name)
        except FileExistsError:
            continue
        except OSError:  # this file system has no links
            if os.path.lexists(name):
                continue
            os.replace(partial, name)
        partial.unlink(missing_ok=True)
        return name
    raise AssertionError("there is always a next number")


def _grid(muxer: str, format: VideoFormat) -> Fraction:
    """The unit of time the container stores."""
    if muxer == "avi":
        slowest = Fraction(1, 1001)
        return 1 / max(slowest, format.rate.limit_denominator(1001))  # MPEG-4 counts in 16 bits
    if muxer not in _EXACT:
        return _MILLISECOND
    # MP4 stores whole units per second: a time base of 1001/30000 s is 1001 units of 1/30000 s
    return Fraction(1, format.time_base.denominator)


def container_options(muxer: str, time_base: Fraction, audio: Audio | None, live: bool = False) -> dict[str, str]:
    """FFmpeg's options for a container whose pictures are shown at multiples of ``time_base``."""
    options = {"flush_packets": "1"} if live else {}
    if muxer in _EXACT:
        # the muxer would choose timescales of its own, and round every timestamp to them
        scale = time_base.denominator
        both = audio.common_scale(scale) if audio else scale
        options["video_track_timescale"] = str(scale)
        options["movie_timescale"] = str(both if both <= _MAX_TIMESCALE else scale)
        if live:  # fragments while it is written, an ordinary file in the end
            options["movflags"] = "hybrid_fragmented"
    elif live and muxer != "avi":
        options["cluster_time_limit"] = "500"  # ms: a cluster is on disk when the next one starts
    return options


def flush_to_disk(path: Path) -> None:
    """Make sure the data is on disk before the name is: a power cut must not leave a named ruin."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
