"""Where frames go: one entry for files, network addresses, video devices, masks and records.

    >>> with open_sink("out.mp4", source.format) as sink:
    ...     for frame in source:
    ...         sink.write(Shown(frame))
"""

from __future__ import annotations

from pathlib import Path

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Shown, VideoFormat
from mcdrl_rt.video.encoder import codec_name
from mcdrl_rt.video.file import FORMATS, VideoFile
from mcdrl_rt.video.loopback import Loopback
from mcdrl_rt.video.masks import Masks
from mcdrl_rt.video.names import MASKS, redacted, scheme, slash_missing
from mcdrl_rt.video.output import Sink
from mcdrl_rt.video.push import MUXERS, Push
from mcdrl_rt.video.records import Records

__all__ = ["Sink", "open_sink"]


def open_sink(
    uri: str,
    format: VideoFormat,
    *,
    codec: str | None = None,
    audio: Path | None = None,
    stream: str = "",
) -> Sink:
    """Open an output, so that whatever can be wrong with it shows before any processing.

    Args:
        uri: one of
            a path ending in .mp4 .m4v .mov .mkv .avi .webm;
            an address: rtsp:// rtmp:// rtmps:// srt:// udp://;
            a loopback device, /dev/video9;
            ``masks:FOLDER``, a PNG of class ids for each frame;
            a path ending in .jsonl, or ``-`` for the standard output: a line of JSON for each frame;
            ``null`` to count frames and keep none.
        format: of the frames to come; take the source's own. Frames of another size are scaled into it, with black
            bars. H.264 and MPEG-4 need even sides: an odd one gains one row or column, a copy of the last. VP9 cannot
            say the shape of its pixels. A live source's first frame is at 0.
        codec: of a file or an address: ``libx264``, ``libvpx-vp9``, ``mpeg4``, lossless ``ffv1`` …; ``auto`` for a
            hardware encoder where one works; by default what suits the place.
        audio: a video or sound file whose sound goes into a file with the pictures; other outputs have no sound.
        stream: name of the stream, for the lines of JSON.

    Raises:
        SinkError: the place, the extension or the codec does not allow writing.
    """
    if not uri:
        raise SinkError("the name of the output is empty; name a file, or null")
    if why := slash_missing(uri):
        raise SinkError(why)
    if uri == "null":
        return _NullSink()
    if uri == "-" or uri.endswith(".jsonl"):
        return Records(uri, stream)
    if uri.startswith(MASKS):
        return Masks(uri.removeprefix(MASKS), format)
    if uri.startswith("/dev/video"):
        return Loopback(uri, format)
    if kind := scheme(uri):
        if kind not in MUXERS:
            known = " ".join(f"{name}://" for name in MUXERS)
            raise SinkError(f"cannot write to {redacted(uri)}: an address must begin with one of {known}")
        return Push(uri, codec, format)
    target = Path(uri)
    return VideoFile(target, codec_name(codec, _default_codec(target)), format, audio)


class _NullSink(Sink):
    """Counts frames: to measure, and to try a pipeline out."""

    def write(self, shown: Shown) -> None:
        self.frames += 1


def _default_codec(target: Path) -> str:
    try:
        return FORMATS[target.suffix.lower()][1]
    except KeyError:
        known = " ".join(FORMATS)
        raise SinkError(
            f"cannot write {target}: the name must end in one of {known} .jsonl, or be an address, masks:FOLDER, "
            "- or null"
        ) from None
