"""Sink: times survive, colours survive, and a file has its name only when it is whole."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import picture, read_pixels, read_pts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Frame, Shown, UInt8Array, VideoFormat
from mcdrl_rt.video.sink import open_sink
from mcdrl_rt.video.source import open_source

TICK = Fraction(1, 25)


def save(
    path: Path,
    pts: Sequence[int],
    time_base: Fraction = TICK,
    rate: Fraction = Fraction(25),
    codec: str | None = None,
    **format: Any,
) -> Path:
    with open_sink(str(path), VideoFormat((48, 64), time_base, rate, **format), codec=codec) as sink:
        for index, time in enumerate(pts):
            sink.write(Shown(Frame(picture(index), time, time_base, index)))
    return path


def difference(a: UInt8Array, b: UInt8Array) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v"])
@pytest.mark.parametrize(
    ("pts", "time_base", "rate"),
    [
        (range(25), TICK, Fraction(25)),
        (range(20), Fraction(1001, 30000), Fraction(30000, 1001)),
        (range(5000, 20000, 512), Fraction(1, 12800), Fraction(25)),
        ([0, 33, 67, 100, 200, 233, 1000], Fraction(1, 1000), Fraction(30)),
        ([7, 3003, 3004, 9000, 90001], Fraction(1, 90000), Fraction(30)),
        ([2_000_000_000_000 + 33333 * i for i in range(9)], Fraction(1, 1_000_000), Fraction(30)),
    ],
)
def test_times_survive_exactly(
    tmp_path: Path, suffix: str, pts: Sequence[int], time_base: Fraction, rate: Fraction
) -> None:
    path = save(tmp_path / f"a.{suffix}", pts, time_base, rate)
    assert read_pts(path) == [time * time_base for time in pts]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.integers(1, 20_000), max_size=12),
    start=st.integers(0, 10**6),
    tick=st.sampled_from([1000, 12_800, 30_000, 90_000]),
)
def test_any_times_survive_exactly(tmp_path: Path, steps: list[int], start: int, tick: int) -> None:
    pts = list(itertools.accumulate(steps, initial=start))
    path = save(tmp_path / "a.mp4", pts, Fraction(1, tick), Fraction(30))
    assert read_pts(path) == [Fraction(time, tick) for time in pts]


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_matroska_keeps_milliseconds(tmp_path: Path, suffix: str) -> None:
    time_base = Fraction(1001, 30000)
    times = read_pts(save(tmp_path / f"a.{suffix}", range(20), time_base, 1 / time_base))
    assert len(times) == 20
    assert max(abs(time - i * time_base) for i, time in enumerate(times)) <= Fraction(1, 2000)


def test_avi_keeps_frames_from_zero(tmp_path: Path) -> None:
    times = read_pts(save(tmp_path / "a.avi", [50, 51, 52, 54, 55]))
    assert times == [Fraction(i, 25) for i in (0, 1, 2, 4, 5)]


def test_time_may_be_shifted_to_zero_and_never_lies_before(tmp_path: Path) -> None:
    assert read_pts(save(tmp_path / "a.mp4", [1000, 1001, 1003], live=True)) == [0, TICK, 3 * TICK]
    assert read_pts(save(tmp_path / "b.mp4", [-2, -1, 0])) == [0, TICK, 2 * TICK]


def test_time_that_runs_backwards_is_dropped_and_reported(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "a.mp4"), VideoFormat((48, 64), TICK, Fraction(25))) as sink:
        for index, time in enumerate([0, 1, 1, 0, 2, 3]):
            sink.write(Shown(Frame(picture(index), time, TICK, index)))
        assert sink.frames == 4
        assert sink.problem == "2 frames not written: their timestamps do not increase"
    assert read_pts(tmp_path / "a.mp4") == [0, TICK, 2 * TICK, 3 * TICK]


def test_frames_closer_than_the_format_can_tell_are_reported_as_such(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "a.avi"), VideoFormat((48, 64), TICK / 10, Fraction(25))) as sink:
        for index, time in enumerate([0, 2, 10, 13, 13, 20]):
            sink.write(Shown(Frame(picture(index), time, TICK / 10, index)))
        assert sink.frames == 3
        assert sink.problem is not None
        assert "1 frames not written: their timestamps do not increase" in sink.problem
        assert "2 frames not written: they follow each other faster than this format" in sink.problem
    assert len(read_pts(tmp_path / "a.avi")) == 3


def test_frames_of_another_size_are_scaled_and_reported(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "a.mp4"), VideoFormat((48, 64), TICK, Fraction(25))) as sink:
        for index, pixels in enumerate([picture(0), np.zeros((96, 64, 3), np.uint8)]):
            sink.write(Shown(Frame(pixels, index, TICK, index)))
        assert sink.problem == "1 frames were of another size and were scaled into 64×48"
    assert [pixels.shape[:2] for pixels in read_pixels(tmp_path / "a.mp4")] == [(48, 64)] * 2


@pytest.mark.parametrize(
    ("color", "tags"),
    [
        ("bt709", (1, 1, 1)),
        ("bt601", (6, 6, 2)),
        ("smpte170m", (6, 6, 6)),
        ("bt470bg", (5, 6, 5)),
        ("bt2020", (9, 14, 9)),
        ("bt2020-pq", (9, 16, 9)),
        ("bt2020-hlg", (9, 18, 9)),
    ],
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_colours_survive_and_are_tagged(tmp_path: Path, suffix: str, color: str, tags: tuple[int, int, int]) -> None:
    path = save(tmp_path / f"a.{suffix}", range(5), color=color)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_trc, frame.color_primaries, frame.color_range) == (*tags, 1)
    with open_source(str(path)) as source:
        assert source.color == color
    shown = read_pixels(path)
    assert len(shown) == 5
    assert max(difference(pixels, picture(i)) for i, pixels in enumerate(shown)) < 5
    assert all(np.abs(pixels.mean((0, 1)) - picture(i).mean((0, 1))).max() < 3 for i, pixels in enumerate(shown))


def test_avi_without_tags_takes_the_matrix_players_assume(tmp_path: Path) -> None:
    shown = read_pixels(save(tmp_path / "a.avi", range(3), color="bt709"))
    assert np.abs(shown[0].mean((0, 1)) - picture(0).mean((0, 1))).max() < 4


def test_ffv1_is_lossless_at_odd_sizes(tmp_path: Path) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8)
    path = str(tmp_path / "a.mkv")
    with open_sink(path, VideoFormat((37, 53), TICK, Fraction(25)), codec="ffv1") as sink:
        sink.write(Shown(Frame(noisy, 0, TICK)))
    assert np.array_equal(read_pixels(tmp_path / "a.mkv")[0], noisy)


@pytest.mark.parametrize(("suffix", "expected"), [("mp4", (38, 54)), ("avi", (38, 54)), ("webm", (37, 53))])
def test_odd_sizes_gain_a_copy_of_the_last_row(tmp_path: Path, suffix: str, expected: tuple[int, int]) -> None:
    path, odd = str(tmp_path / f"a.{suffix}"), picture(1, (37, 53))
    with open_sink(path, VideoFormat((37, 53), TICK, Fraction(25))) as sink:
        sink.write(Shown(Frame(odd, 0, TICK)))
        assert sink.size == expected
    shown = read_pixels(tmp_path / f"a.{suffix}")[0]
    assert shown.shape == (*expected, 3)
    assert difference(shown[:37, :53], odd) < 6
    assert shown[-1].mean() > 80  # not a black line


def test_another_size_is_letterboxed(tmp_path: Path) -> None:
    white = np.full((96, 64, 3), 255, np.uint8)  # twice as tall as wide, relative to 48 x 64
    path = str(tmp_path / "a.mkv")
    with open_sink(path, VideoFormat((48, 64), TICK, Fraction(25)), codec="ffv1") as sink:
        sink.write(Shown(Frame(picture(0), 0, TICK)))
        sink.write(Shown(Frame(white, 1, TICK)))
    shown = read_pixels(tmp_path / "a.mkv")
    assert np.array_equal(shown[0], picture(0))
    assert (shown[1][:, 16:48] == 255).all()
    assert (shown[1][:, :16] == 0).all()
    assert (shown[1][:, 48:] == 0).all()


def test_null_counts() -> None:
    with open_sink("null", VideoFormat((48, 64), TICK, Fraction(25))) as sink:
        sink.write(Shown(Frame(picture(0), 0, TICK)))
    assert (sink.frames, sink.problem) == (1, None)


def test_the_name_appears_only_when_the_file_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    with open_sink(str(target), VideoFormat((48, 64), TICK, Fraction(25))) as sink:
        sink.write(Shown(Frame(picture(0), 0, TICK)))
        assert not target.exists()
        assert [path.name for path in tmp_path.iterdir()] == [f".a.partial-{os.getpid()}.mp4"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    sink.close()
    sink.abort()
    assert target.exists()


def test_failure_and_abort_leave_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.mp4"
    target.write_bytes(b"the earlier recording")
    with pytest.raises(RuntimeError, match="elsewhere"):
        with open_sink(str(target), VideoFormat((48, 64), TICK, Fraction(25))) as sink:
            sink.write(Shown(Frame(picture(0), 0, TICK)))
            raise RuntimeError("elsewhere")
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert target.read_bytes() == b"the earlier recording"


def test_no_frames_no_file(tmp_path: Path) -> None:
    save(tmp_path / "a.mp4", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("{tmp}/a.gif", r"a\.gif: the name must end in one of \.mp4 \.m4v \.mov \.mkv \.avi \.webm \.jsonl, or be"),
        ("{tmp}/a", "the name must end in one of"),
        ("{tmp}/absent/a.mp4", "the folder .*absent does not exist; create it first"),
        ("{tmp}/file/a.mp4", ".*file is not a folder"),
        ("{tmp}/folder.mp4", "it is a folder; name a file inside it"),
        ("/proc/a.mp4", "cannot write in the folder /proc: no new files are allowed there"),
        ("ftp://user:secret@host/a.mp4", "cannot write to ftp://…@host/a.mp4: an address must begin with one of rtsp"),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, uri: str, message: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(SinkError, match=message) as caught:
        open_sink(uri.format(tmp=tmp_path), VideoFormat((48, 64), TICK, Fraction(25)))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_codecs_are_checked(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="unknown codec 'h266'; use one of libx264"):
        save(tmp_path / "b.mp4", [0], codec="h266")
    with pytest.raises(SinkError, match=r"cannot write .*c\.webm: 'webm' format does not support 'libx264' codec"):
        save(tmp_path / "c.webm", [0], codec="libx264")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi"])
def test_pixels_keep_their_shape(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", range(3), pixel_aspect=Fraction(16, 15))
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 15)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "webm"])
def test_a_full_disk_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f".a.partial-{os.getpid()}.{suffix}").symlink_to("/dev/full")
    noisy = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    with pytest.raises(SinkError, match=f"cannot (write|finish) .*a.{suffix}: the disk is full"):
        with open_sink(str(tmp_path / f"a.{suffix}"), VideoFormat((96, 128), TICK, Fraction(25))) as sink:
            for index in range(60):
                sink.write(Shown(Frame(np.roll(noisy, 7 * index, axis=1), index, TICK, index)))
    assert list(tmp_path.iterdir()) == []
    assert Path("/dev/full").exists()
