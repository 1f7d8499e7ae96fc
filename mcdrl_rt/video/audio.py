"""Sound that goes with the pictures: a recording's audio, copied packet by packet into the file made of it.

Nothing is re-encoded, except what the container cannot hold or players do not play in it (PCM in MP4, AAC in WebM).
Times are those of the recording, shifted as the pictures' are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet

_PCM = ("pcm_s16le", "pcm_u8")
_MOV = ("aac", "mp3", "ac3", "eac3", "alac")
# muxer -> codecs that players play in it, and the encoder for all others; Matroska holds anything
_COPIED = {
    "mp4": (*_MOV, "opus"),
    "mov": (*_MOV, *_PCM, "pcm_s16be", "pcm_s24le"),
    "webm": ("opus", "vorbis"),
    "avi": ("mp3", "ac3", *_PCM),
}
_ENCODERS = {"webm": "libopus", "avi": "libmp3lame"}
_OVERLAP_S = 1  # of sound that comes twice, where nothing is lost
_LOOK_FAR = {"probesize": f"{64 << 20}", "analyzeduration": "300000000"}  # bytes, which are held in memory, and µs
_RATE = 48_000  # where an encoder does not take the recording's own; all take this one
_BITS_PER_CHANNEL = 64_000
_MIXED = (*range(1, 9), 10, 12, 14, 16, 24)  # numbers of channels that FFmpeg mixes into two


class Audio:
    """All audio streams of a file, on their way into another.

    A file that cannot be opened, or has no sound, is one without sound: the pictures are what matters here.

    Attributes:
        problems: what was left out, and why.
    """

    def __init__(self, path: Path) -> None:
        self.problems: list[str] = []
        self._tracks: dict[int, _Track] = {}
        self._waiting: Packet[AudioStream] | None = None  # read, and too early to be written
        self._packets: Iterator[Packet[AudioStream]] = iter(())
        self._streams: list[AudioStream] = []
        self._source: InputContainer | None = None
        try:
            self._source = _open(path)
        except (av.FFmpegError, OSError):
            self.problems.append(f"without sound: {path.name} could not be opened for it")
            return
        for stream in self._source.streams.audio:
            if stream.codec_context is None:
                self.problems.append("a sound track was left out: this FFmpeg does not know its format")
            elif not _is_known(stream):
                self.problems.append("a sound track was left out: it is announced, and nothing of it was found")
            else:
                self._streams.append(stream)

    def common_scale(self, scale: int) -> int:
        """Units per second in which this sound's times are whole, and so are those in 1/``scale`` s."""
        return math.lcm(scale, *(stream.rate for stream in self._streams))

    def add_to(self, container: OutputContainer, muxer: str) -> None:
        """Add a stream for each of the file's to ``container``, whose header is not written yet."""
        for stream in self._streams:
            if _is_copied(stream, muxer):
                self._tracks[stream.index] = _Track(stream, container, muxer)
            elif (channels := _usual_channels(stream)) in _MIXED:
                self._tracks[stream.index] = _Track(stream, container, muxer, channels)
            else:
                self.problems.append(f"a sound track was left out: {channels} channels cannot be mixed into two")
        self._streams = [stream for stream in self._streams if stream.index in self._tracks]
        if self._streams:
            self._packets = self._read()

    def write_until(self, time_s: Fraction | None, origin_s: Fraction) -> None:
        """Write the sound before ``time_s``, a time of the file, where ``origin_s`` of it is zero in the output.

        None is its own end.
        """
        while (packet := self._waiting or next(self._packets, None)) is not None:
            self._waiting = packet
            if time_s is not None and cast(int, packet.pts) * packet.time_base >= time_s:
                return
            self._waiting = None
            self._tracks[packet.stream_index].write(packet, origin_s)

    def finish(self) -> None:
        """Write what the encoders hold back; no sound comes after it."""
        for track in self._tracks.values():
            track.finish()
            if track.problem:
                self.problems.append(track.problem)
        self.close()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._tracks, self._packets, self._waiting, self._streams = {}, iter(()), None, []
        if self._source is not None:
            self._source.close()

    def _read(self) -> Iterator[Packet[AudioStream]]:
        """Packets in the order of the file; damage ends the sound, not the pictures."""
        assert self._source is not None
        try:
            for packet in self._source.demux(self._streams):
                if packet.size and packet.pts is not None:
                    yield cast("Packet[AudioStream]", packet)
        except (av.FFmpegError, OSError):
            self.problems.append("the sound ends early: the rest of it is damaged")


def _open(path: Path) -> InputContainer:
    """Open a file; sound that begins late is looked for further than FFmpeg looks by itself."""
    url = f"file:{path.absolute()}"
    source = av.open(url)
    if all(map(_is_known, source.streams.audio)):
        return source
    source.close()
    return av.open(url, options=_LOOK_FAR)


def _is_known(stream: AudioStream) -> bool:
    """Whether some of a stream was found; one whose codec FFmpeg lacks is known for that."""
    context = stream.codec_context
    return context is None or bool(context.sample_rate)


class _Track:
    """One audio stream: copied, or re-encoded where its number of ``channels`` is given.

    Attributes:
        problem: what is missing of it; None while nothing is.
    """

    def __init__(
        self, source: AudioStream, container: OutputContainer, muxer: str, channels: int | None = None
    ) -> None:
        self._container = container
        # the first packets of AAC lie before zero, to warm the decoder up; only these can say so
        self._before_zero = muxer in ("mp4", "mov")
        self._last_dts: int | None = None
        self.problem: str | None = None
        self._copied = channels is None
        if channels is None:
            self._stream = container.add_stream_from_template(source)
        else:
            name = _ENCODERS.get(muxer, "aac")
            rate = source.rate if source.rate in (av.Codec(name, "w").audio_rates or ()) else _RATE
            layout = "mono" if channels == 1 else "stereo"
            self._stream = cast(AudioStream, container.add_stream(name, rate=rate, layout=layout))
            self._stream.codec_context.bit_rate = _BITS_PER_CHANNEL * self._stream.channels
        if language := source.metadata.get("language"):  # the rest may name a person, a device, a place
            self._stream.metadata["language"] = language

    def write(self, packet: Packet[AudioStream], origin_s: Fraction) -> None:
        """Write a packet, or what it becomes; one that cannot be decoded is skipped."""
        if self._copied:
            self._copy(packet, round(origin_s / packet.time_base))
            return
        with contextlib.suppress(av.error.InvalidDataError):
            for frame in packet.decode():
                self._encode(frame, origin_s)

    def finish(self) -> None:
        """Write what the encoder holds back."""
        if not self._copied:
            self._container.mux(self._encoded(None))

    def _copy(self, packet: Packet[AudioStream], shift: int) -> None:
        dts = packet.pts if packet.dts is None else packet.dts
        packet.pts, packet.dts = cast(int, packet.pts) - shift, cast(int, dts) - shift
        if self._last_dts is not None and packet.dts <= self._last_dts:  # no container takes that
            if (self._last_dts - packet.dts) * packet.time_base > _OVERLAP_S:
                self.problem = "sound was left out where its clock goes back"
            return
        if packet.pts < 0 and not self._before_zero:
            return
        self._last_dts = packet.dts
        packet.stream = self._stream
        self._container.mux(packet)

    def _encode(self, frame: AudioFrame, origin_s: Fraction) -> None:
        if frame.pts is None or frame.time_base is None:
            return
        frame.pts -= round(origin_s / frame.time_base)
        if frame.pts >= 0:
            self._container.mux(self._encoded(frame))

    def _encoded(self, frame: AudioFrame | None) -> list[Packet[AudioStream]]:
        """What a frame becomes; nothing, where FFmpeg cannot mix its channels, or PyAV not go on with others."""
        try:
            return self._stream.encode(frame)
        except (av.FFmpegError, ValueError):
            self.problem = "sound was left out where its channels or rate are not those it began with"
            return []


def _is_copied(source: AudioStream, muxer: str) -> bool:
    codec = source.codec_context.codec.canonical_name
    return codec in _COPIED.get(muxer, (codec,))


def _usual_channels(source: AudioStream) -> int:
    """The number of channels of a stream to be decoded, which are in a usual order from now on.

    A list of channels in another order, as QuickTime may have, is freed twice by PyAV 18: with each frame, and with
    this look at it. So it must be replaced before anything else happens.
    """
    context = source.codec_context
    layout = context.layout
    count = layout.nb_channels
    context.layout = f"{count} channels" if " channels (" in layout.name else layout.name
    return count
