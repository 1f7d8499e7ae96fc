"""Audio: a recording's sound is in the file made of it, packet by packet and at its own times."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import picture, read_pts

from mcdrl_rt.types import Frame, Shown, VideoFormat
from mcdrl_rt.video.chunks import Chunk, join
from mcdrl_rt.video.file import VideoFile
from mcdrl_rt.video.sink import open_sink
from mcdrl_rt.video.source import open_source

TICK = Fraction(1, 25)
RATE = 44_100
Sound = list[tuple[Fraction, bytes]]
_QUICKTIME = {7: 0x7D0007, 8: 0x800008}  # channels in an order of its own, as ffmpeg 5.1 writes 6.1 and 7.1


def write_recording(
    path: Path, codec: str, *, late_s: Fraction = Fraction(0), seconds: int = 3, frames: int | None = None
) -> Path:
    """A video with sound: a tone that rises, so that its samples tell the time; ``late_s`` after the pictures."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, width=64, height=48)
        video.codec_context.max_b_frames = 0
        rate = 48_000 if "opus" in codec else RATE
        audio = container.add_stream(codec, rate=rate, layout="mono")
        for index in range(25 * seconds if frames is None else frames):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = index, TICK
            container.mux(video.encode(frame))
        times = np.arange(rate * seconds) / rate
        tone = (np.sin(2 * np.pi * (300 + 200 * times) * times) * 8000).astype(np.int16)
        for start in range(0, len(tone), 1000):
            part = av.AudioFrame.from_ndarray(tone[None, start : start + 1000], format="s16", layout="mono")
            part.sample_rate, part.time_base, part.pts = rate, Fraction(1, rate), start + round(late_s * rate)
            container.mux(audio.encode(part))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def copy(source: Path, target: Path, frames: int | None = None) -> Path:
    """Through the sink, picture by picture, with the sound of the source."""
    with open_source(str(source)) as video, open_sink(str(target), video.format, audio=source) as sink:
        for frame in video:
            if frames is not None and frame.index >= frames:
                break
            sink.write(Shown(frame))
    assert sink.problem is None
    return target


def put_together(source: Path, target: Path) -> Path:
    """As a whole of parts, with the sound of the source."""
    parts = [target.with_stem(f"{target.stem}-{number}") for number in range(2)]
    with open_source(str(source)) as video:
        frames = list(video)
    chunks = []
    for part, some in zip(parts, (frames[: len(frames) // 2], frames[len(frames) // 2 :]), strict=True):
        with VideoFile(part, "libx264", video.format, joinable=True) as sink:
            for frame in some:
                sink.write(Shown(frame))
        chunks.append(Chunk(part, some[0].pts * some[0].time_base, len(some)))
    assert join(chunks, target, source) == []
    return target


def sound(path: Path) -> Sound:
    """Time and content of every audio packet."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size and p.pts is not None]


def samples(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of all samples, decoded; Matroska rounds a packet's time, so only the first one's counts."""
    starts, values = [], []
    with av.open(str(path)) as container:
        to_mono = av.AudioResampler("flt", "mono", 48_000)
        for decoded in container.decode(audio=0):
            for frame in to_mono.resample(decoded):
                starts.append(float(frame.pts * frame.time_base))
                values.append(frame.to_ndarray()[0])
    sound = np.concatenate(values)
    return starts[0] + np.arange(len(sound)) / 48_000, sound


def delay(before: Path, after: Path) -> float:
    """Seconds by which one file's sound comes after another's: where the rising tone fits best."""
    grid = np.arange(0.5, 2.5, 1 / 48_000)
    one, other = (np.interp(grid, *samples(path)) for path in (before, after))
    spectrum = np.fft.rfft(other) * np.conj(np.fft.rfft(one))
    fit = np.fft.irfft(spectrum / (np.abs(spectrum) + 1e-9), len(grid))
    lag = int(np.argmax(fit))
    return (lag if lag < len(grid) // 2 else lag - len(grid)) / 48_000


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_mp4_to_mp4_is_the_same_sound_to_the_bit(tmp_path: Path, suffix: str) -> None:
    source = write_recording(tmp_path / "a.mp4", "aac")
    target = copy(source, tmp_path / f"b.{suffix}")
    before, after = sound(source), sound(target)
    assert len(after) > 100
    assert after == [packet for packet in before if packet[0] < 3]
    assert read_pts(target) == [i * TICK for i in range(75)]


@pytest.mark.parametrize(("old", "new"), [("mkv", "mkv"), ("mp4", "mkv"), ("mkv", "mp4")])
def test_between_containers_packets_are_copied_and_times_kept_to_the_grid(tmp_path: Path, old: str, new: str) -> None:
    source = write_recording(tmp_path / f"a.{old}", "aac")
    target = copy(source, tmp_path / f"b.{new}")
    before = [packet for packet in sound(source) if 0 <= packet[0] < 3]
    after = [packet for packet in sound(target) if packet[0] >= 0]
    assert [content for _, content in after] == [content for _, content in before]
    assert max(abs(x - y) for (x, _), (y, _) in zip(after, before, strict=True)) <= Fraction(1, 1000)
    assert len(read_pts(target)) == 75


@pytest.mark.parametrize(
    ("codec", "old", "new", "expected"),
    [
        ("aac", "mp4", "webm", "opus"),
        ("aac", "mp4", "avi", "mp3float"),
        ("pcm_s16le", "mkv", "mp4", "aac"),
        ("pcm_s16le", "mkv", "mov", "pcm_s16le"),
        ("libopus", "mkv", "webm", "opus"),
        ("libmp3lame", "avi", "mp4", "mp3float"),
        ("libopus", "mkv", "mov", "aac"),
    ],
)
def test_what_a_container_cannot_hold_is_encoded_again_and_stays_in_time(
    tmp_path: Path, codec: str, old: str, new: str, expected: str
) -> None:
    source = write_recording(tmp_path / f"a.{old}", codec)
    target = copy(source, tmp_path / f"b.{new}")
    with av.open(str(target)) as container:
        assert container.streams.audio[0].codec_context.codec.name == expected
    assert abs(delay(source, target)) < 0.003
    assert 2.9 < samples(target)[0][-1] < 3.1


def test_late_sound_stays_late_and_a_late_video_shifts_both(tmp_path: Path) -> None:
    source = write_recording(tmp_path / "a.mp4", "aac", late_s=Fraction(7, 10))
    after = sound(copy(source, tmp_path / "b.mp4"))
    assert after[0][0] == sound(source)[0][0]
    with open_sink(str(tmp_path / "c.mkv"), VideoFormat((48, 64), TICK, Fraction(25)), audio=source) as sink:
        for index in range(50):  # of a clock that starts a second early
            sink.write(Shown(Frame(picture(index), index - 25, TICK, index)))
    shifted = sound(tmp_path / "c.mkv")
    assert abs(shifted[0][0] - after[0][0] - 1) < Fraction(2, 1000)


def test_stopped_early_sound_ends_with_the_pictures(tmp_path: Path) -> None:
    source = write_recording(tmp_path / "a.mp4", "aac")
    ends = [time for time, _ in sound(copy(source, tmp_path / "b.mp4", frames=30))]
    assert Fraction(30, 25) - Fraction(1024, RATE) <= ends[-1] < Fraction(30, 25)


@pytest.mark.parametrize("kind", ["silent", "missing", "text"])
def test_without_sound_there_are_the_pictures(tmp_path: Path, data_root: Path, kind: str) -> None:
    clip = next((data_root / "video").glob("*.mp4"))
    (tmp_path / "text").write_text("no sound in here")
    audio = clip if kind == "silent" else tmp_path / kind
    with open_sink(str(tmp_path / "b.mp4"), VideoFormat((48, 64), TICK, Fraction(25)), audio=audio) as sink:
        for index in range(10):
            sink.write(Shown(Frame(picture(index), index, TICK, index)))
    expected = None if kind == "silent" else f"without sound: {kind} could not be opened for it"
    assert sink.problem == expected
    assert len(read_pts(tmp_path / "b.mp4")) == 10


def test_damaged_sound_does_not_stop_the_pictures(tmp_path: Path) -> None:
    source = write_recording(tmp_path / "a.mkv", "aac")
    content = bytearray(source.read_bytes())
    damage = np.random.default_rng(0).integers(0, 256, len(content) // 3).astype(np.uint8).tobytes()
    content[len(content) // 3 : len(content) // 3 + len(damage)] = damage
    source.write_bytes(content)
    for name in ("b.mp4", "b.webm"):
        with open_sink(str(tmp_path / name), VideoFormat((48, 64), TICK, Fraction(25)), audio=source) as sink:
            for index in range(75):
                sink.write(Shown(Frame(picture(index), index, TICK, index)))
        assert len(read_pts(tmp_path / name)) == 75


def test_an_aborted_file_is_gone_with_its_sound(tmp_path: Path) -> None:
    source = write_recording(tmp_path / "a.mp4", "aac")
    sink = open_sink(str(tmp_path / "b.webm"), VideoFormat((48, 64), TICK, Fraction(25)), audio=source)
    sink.write(Shown(Frame(picture(0), 0, TICK)))
    sink.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("through", [copy, put_together])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_the_sound_of_a_transport_stream_goes_into_every_container(
    tmp_path: Path, suffix: str, through: Callable[[Path, Path], Path]
) -> None:
    source = write_recording(tmp_path / "a.ts", "aac", seconds=1)
    before, after = (samples(path)[1] for path in (source, through(source, tmp_path / f"b.{suffix}")))
    assert abs(len(before) - len(after)) <= 2 * 1024 * 48_000 / RATE
    assert np.abs(after).max() > 0.1


@pytest.mark.parametrize("frames", [25, 10])
def test_what_is_put_together_has_all_of_its_sound(tmp_path: Path, frames: int) -> None:
    source = write_recording(tmp_path / "a.mp4", "aac", seconds=1, frames=frames)
    assert sound(put_together(source, tmp_path / "b.mp4")) == sound(source)


@pytest.mark.parametrize("begins_s", [None, 20])
def test_sound_that_begins_late_is_kept_and_what_never_comes_left_out(tmp_path: Path, begins_s: int | None) -> None:
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, width=64, height=48)
        video.codec_context.max_b_frames = 0
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        for index in range(25 * 22):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = index, TICK
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in range(0, RATE, 1024) if begins_s else ():
            part = av.AudioFrame.from_ndarray(np.full((1, 1024), 4000, np.int16), format="s16", layout="mono")
            part.sample_rate, part.time_base, part.pts = RATE, Fraction(1, RATE), start + 20 * RATE
            container.mux(audio.encode(part))
        if begins_s:
            container.mux(audio.encode(None))
    with open_source(str(path)) as video_in, open_sink(str(tmp_path / "b.mp4"), video_in.format, audio=path) as sink:
        for frame in video_in:
            sink.write(Shown(frame))
    assert len(read_pts(tmp_path / "b.mp4")) == 25 * 22
    if begins_s:
        assert sink.problem is None
        assert abs(sound(tmp_path / "b.mp4")[0][0] - begins_s) < 0.1
    else:
        assert sink.problem == "a sound track was left out: it is announced, and nothing of it was found"


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 9, 16])
def test_any_number_of_channels_is_mixed_into_two_or_told_of(tmp_path: Path, channels: int) -> None:
    clip = tmp_path / "a.mov"
    with av.open(str(clip), "w") as container:
        video = container.add_stream("libx264", rate=25, width=64, height=48)
        layout = f"{channels}c" if channels != 9 else "9 channels"
        audio = container.add_stream("pcm_s16le", rate=RATE, layout=layout)
        for index in range(10):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            frame.pts, frame.time_base = index, TICK
            container.mux(video.encode(frame))
            tone = np.full((1, RATE // 25 * channels), 1000, np.int16)
            part = av.AudioFrame.from_ndarray(tone, format="s16", layout=layout)
            part.sample_rate, part.time_base, part.pts = RATE, Fraction(1, RATE), index * RATE // 25
            container.mux(audio.encode(part))
        container.mux(video.encode(None))
    if channels in _QUICKTIME:
        content, usual = clip.read_bytes(), b"chan\0\0\0\0\0\1\0\0"
        assert content.count(usual) == 1
        clip.write_bytes(content.replace(usual, b"chan\0\0\0\0" + _QUICKTIME[channels].to_bytes(4)))
    with open_source(str(clip)) as source, open_sink(str(tmp_path / "b.mp4"), source.format, audio=clip) as sink:
        for given in source:
            sink.write(Shown(given))
    with av.open(str(tmp_path / "b.mp4")) as result:
        mixed = [stream.channels for stream in result.streams.audio]
    if channels == 9:
        assert mixed == [] and sink.problem == "a sound track was left out: 9 channels cannot be mixed into two"
    else:
        assert mixed == [min(channels, 2)] and sink.problem is None
        assert np.abs(samples(tmp_path / "b.mp4")[1]).max() > 0.01


def test_sound_that_is_lost_where_a_clock_goes_back_is_told_of(tmp_path: Path) -> None:
    source = write_recording(tmp_path / "a.ts", "aac", seconds=2)
    first = source.read_bytes()
    source.write_bytes(first + first)  # a recorder that began anew
    target = tmp_path / "b.mp4"
    with open_source(str(source)) as video, open_sink(str(target), video.format, audio=source) as sink:
        for frame in video:
            sink.write(Shown(frame))
    assert sink.problem is not None and "sound was left out where its clock goes back" in sink.problem
