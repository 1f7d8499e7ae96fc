"""Decoder: difficult but real material, made here: spliced, interlaced, odd, without times, with times that jump."""

from __future__ import annotations

import gc
import itertools
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.frame import VideoFrame
from clips import picture, read_pts, write_clip
from hypothesis import given
from hypothesis import strategies as st

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame, Shown, UInt8Array
from mcdrl_rt.video.deinterlace import Deinterlacer
from mcdrl_rt.video.index import Segment, index_of
from mcdrl_rt.video.segment import open_segment
from mcdrl_rt.video.sink import open_sink
from mcdrl_rt.video.source import open_source
from mcdrl_rt.video.timestamps import Timestamps

FINE = {"crf": "1", "g": "5"}
TICK = Fraction(1, 90_000)


def read(path: Path) -> tuple[list[Frame], str | None]:
    with open_source(str(path)) as source:
        return list(source), source.problem


def difference(a: UInt8Array, b: UInt8Array) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


def steps(frames: list[Frame]) -> set[Fraction]:
    return {(b.pts - a.pts) * a.time_base for a, b in itertools.pairwise(frames)}


def spliced(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def transport(path: Path, first: int, frames: int = 10, **clip: object) -> Path:
    """An MPEG transport stream whose pictures begin at tick ``first``."""
    pts = range(first, first + frames * 3600, 3600)
    return write_clip(path, pts=pts, time_base=TICK, codec_options=FINE, **clip)  # type: ignore[arg-type]


def test_size_and_pixel_format_change_in_mid_stream(tmp_path: Path) -> None:
    a = transport(tmp_path / "a.ts", 0)
    b = transport(tmp_path / "b.ts", 36_000, size=(96, 80), pix_fmt="yuv444p")
    c = transport(tmp_path / "c.ts", 72_000, pix_fmt="yuv422p10le")
    frames, _ = read(spliced(tmp_path / "abc.ts", a, b, c))
    assert {frame.size for frame in frames} == {(48, 64), (96, 80)}
    assert len(frames) >= 27  # at a seam a frame or two may need what is gone
    for frame in frames:
        number = round((frame.pts - frames[0].pts) / 3600) % 10
        assert difference(frame.pixels, picture(number, frame.size)) < 4
    assert all(a.pts < b.pts for a, b in itertools.pairwise(frames))


@pytest.mark.parametrize("size", [(48, 65), (47, 64), (33, 51), (2, 2)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    pictures = [picture(i, (48, 80))[: size[0], : size[1]] for i in range(3)]
    path = write_clip(tmp_path / "odd.mkv", pts=range(3), size=size, codec="ffv1", pix_fmt="bgr0", pictures=pictures)
    frames, problem = read(path)
    assert problem is None
    assert all(np.array_equal(frame.pixels, given) for frame, given in zip(frames, pictures, strict=True))


def test_interlaced_pictures_are_made_whole(tmp_path: Path) -> None:
    """A bar that moves between the fields of a frame has a comb for an edge, until it is deinterlaced."""
    size = (64, 96)
    combed = []
    for index in range(10):
        fields = [np.full((*size, 3), 30, np.uint8) for _ in range(2)]
        for parity, field in enumerate(fields):
            left = 8 * index + 4 * parity
            field[:, left : left + 10] = 220
        frame = fields[0].copy()
        frame[1::2] = fields[1][1::2]
        combed.append(frame)
    options = {"crf": "1", "x264-params": "interlaced=1:tff=1"}
    path = write_clip(
        tmp_path / "i.mp4", pts=[0, 1, 2, 3, 5, 6, 7, 8, 9, 12], size=size, pictures=combed, codec_options=options
    )
    frames, problem = read(path)
    assert [frame.pts * frame.time_base * 25 for frame in frames] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 12]
    assert problem is None
    for frame, raw in zip(frames[1:-1], combed[1:-1], strict=True):
        assert comb(frame.pixels) < 0.35 * comb(raw)


def comb(pixels: UInt8Array) -> float:
    """How much lines differ from both of their neighbours."""
    grey = pixels[..., 0].astype(np.int16)
    return float(np.abs(2 * grey[1:-1] - grey[:-2] - grey[2:]).mean())


def test_field_coded_mpeg2_from_the_ffmpeg_command(tmp_path: Path) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("needs the ffmpeg command, to write interlaced MPEG-2")
    path = tmp_path / "i.mpg"
    source = "testsrc2=size=96x64:rate=50:duration=1"
    filters = "tinterlace=interleave_top,setfield=tff"
    command = f"ffmpeg -v error -f lavfi -i {source} -vf {filters} -c:v mpeg2video -flags +ildct+ilme {path}"
    subprocess.run(command.split(), check=True)
    with av.open(str(path)) as container:
        raw = [(frame.pts, frame.interlaced_frame) for frame in container.decode(video=0)]
    frames, _ = read(path)
    assert all(interlaced for _, interlaced in raw)
    assert [frame.pts for frame in frames] == [pts for pts, _ in raw]


def test_progressive_video_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Deinterlacer, "_set_up", lambda *_: pytest.fail("no filter is needed here"))
    frames, _ = read(write_clip(tmp_path / "p.mp4"))
    assert len(frames) == 12


def test_interlaced_parts_of_other_sizes_lose_no_frame(tmp_path: Path) -> None:
    options = {"crf": "1", "g": "5", "bf": "0", "x264-params": "interlaced=1"}
    parts = [
        write_clip(tmp_path / "a.h264", size=(64, 64), pts=range(5), codec_options=options),
        write_clip(tmp_path / "b.h264", size=(96, 64), pts=range(5), codec_options=options),
        write_clip(tmp_path / "c.h264", size=(64, 64), pts=range(5), codec_options=FINE | {"bf": "0"}),
    ]
    frames, _ = read(spliced(tmp_path / "abc.h264", *parts))
    assert [frame.size for frame in frames] == [(64, 64)] * 5 + [(96, 64)] * 5 + [(64, 64)] * 5
    assert len(steps(frames)) == 1


def test_time_goes_on_where_the_clock_of_a_stream_jumps_back(tmp_path: Path) -> None:
    a, b = transport(tmp_path / "a.ts", 900_000), transport(tmp_path / "b.ts", 0)
    frames, problem = read(spliced(tmp_path / "ab.ts", a, b))
    assert len(frames) == 20
    assert steps(frames) == {Fraction(1, 25)}
    assert problem is not None
    assert problem.endswith("its clock jumped back once: time was counted on")


def test_a_transport_stream_whose_counter_wraps(tmp_path: Path) -> None:
    frames, _ = read(transport(tmp_path / "wrap.ts", 2**33 - 5 * 3600 - 126_000))
    assert len(frames) == 10
    assert steps(frames) == {Fraction(1, 25)}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path, orientation: int) -> None:
    _, jpeg = cv2.imencode(".jpg", picture(3)[:, :, ::-1])
    tag = b"\x01\x12\0\x03\0\0\0\x01" + orientation.to_bytes(2) + b"\0\0"
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01" + tag + b"\0\0\0\0"
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe1" + (len(exif) + 2).to_bytes(2) + exif + jpeg.tobytes()[2:])
    (frame,), problem = read(path)
    expected = cv2.imread(str(path))[:, :, ::-1]  # which obeys it too
    assert frame.pixels.shape == expected.shape and problem is None
    assert difference(frame.pixels, expected) < 4


@pytest.mark.parametrize("size", [(48, 64), (1, 1)])
@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
def test_pictures_of_any_kind_and_size(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), picture(3, size)[:, :, ::-1])
    (frame,), problem = read(path)
    assert problem is None
    np.testing.assert_array_equal(frame.pixels, picture(3, size))


def test_the_empty_packets_of_avi_are_no_lost_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.avi", pts=range(0, 60, 2), time_base=Fraction(1, 50), rate=Fraction(50))
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames > 50
    frames, problem = read(path)
    assert len(frames) == 30 and problem is None
    index = index_of(path)
    with open_segment(index, Segment(0, None, None)) as source:
        assert len(list(source)) == 30
    assert index.verdict([source.tally]) is None


def test_b_frames_in_avi_come_in_order(tmp_path: Path) -> None:
    frames, problem = read(write_clip(tmp_path / "b.avi", pts=range(20), codec_options={"crf": "1", "bf": "2"}))
    assert all(a.pts < b.pts for a, b in itertools.pairwise(frames))
    assert frames[-1].pts - frames[0].pts <= 21
    assert problem is None


def test_the_rate_of_dv_is_not_how_finely_it_counts(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.dv", pts=range(20), size=(576, 720), codec="dvvideo")
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 60_000
    with open_source(str(path)) as source:
        assert source.rate == 25 and source.frame_count == 20
        frames = list(source)
        assert (len(frames), steps(frames), source.problem) == (20, {Fraction(1, 25)}, None)


def test_a_recording_with_pauses_keeps_its_rate_and_in_avi_its_frames(tmp_path: Path) -> None:
    pts = list(itertools.accumulate(([1] * 20 + [250]) * 4, initial=0))
    path = write_clip(tmp_path / "a.mp4", pts=pts)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate < 3
    with open_source(str(path)) as source, open_sink(str(tmp_path / "b.avi"), source.format) as sink:
        assert source.rate == 25 and source.frame_count == len(pts)
        for frame in source:
            sink.write(Shown(frame))
    assert (sink.frames, sink.problem, source.problem) == (len(pts), None, None)
    assert read_pts(tmp_path / "b.avi") == [Fraction(time, 25) for time in pts]


def test_a_clock_that_trembles_has_its_average_rate(tmp_path: Path) -> None:
    pts = list(itertools.accumulate([3, 4, 2, 5, 3, 4, 3, 3, 4] * 8, initial=0))
    path = write_clip(tmp_path / "a.mp4", pts=pts, time_base=Fraction(1, 100))
    with av.open(str(path)) as container:
        assert container.streams.video[0].guessed_rate == 100
    with open_source(str(path)) as source:
        assert 28 < source.rate < 31


def told(pts: int | None, dts: int | None) -> av.VideoFrame:
    frame = av.VideoFrame(2, 2)
    frame.pts, frame.dts = pts, dts
    return frame


times = st.none() | st.integers(-(2**40), 2**40)


@given(given_times=st.lists(st.tuples(times, times), max_size=30))
def test_time_always_rises(given_times: list[tuple[int | None, int | None]]) -> None:
    timestamps = Timestamps(TICK, Fraction(25))
    given_out = [timestamps(told(pts, dts)) for pts, dts in given_times]
    assert all(a < b for a, b in itertools.pairwise(given_out))


@given(first=st.integers(0, 2**40), gaps=st.lists(st.integers(1, 10**6), max_size=30))
def test_times_that_rise_are_left_alone(first: int, gaps: list[int]) -> None:
    pts = list(itertools.accumulate(gaps, initial=first))
    timestamps = Timestamps(TICK, Fraction(25))
    assert [timestamps(told(time, None)) for time in pts] == pts
    assert timestamps.jumps == 0


@given(order=st.permutations(range(10)))
def test_a_frame_out_of_order_changes_no_other_time_where_times_are_sound(order: list[int]) -> None:
    timestamps = Timestamps(TICK, Fraction(25), sound=True)
    given_out = [timestamps(told(3600 * place, 3600 * i)) for i, place in enumerate(order)]
    assert all(a < b for a, b in itertools.pairwise(given_out))
    highest = list(itertools.accumulate(order, max))
    in_order = [i for i, place in enumerate(order) if place == highest[i]]
    assert [given_out[i] for i in in_order] == [3600 * order[i] for i in in_order]
    assert timestamps.jumps == 0


def test_colours_that_cannot_be_converted_are_told_of(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", tags={"colorspace": 8})  # YCgCo
    with pytest.raises(SourceError, match=r"cannot convert the pictures of a\.mp4: operation not supported; save it"):
        open_source(str(path))


def test_frames_are_freed_at_once(tmp_path: Path) -> None:
    """Not when Python's collector comes by: at 1080p that is hundreds of megabytes later."""
    path = write_clip(tmp_path / "a.mp4", pts=range(60))
    with open_source(str(path)) as source:
        gc.collect()
        gc.disable()
        try:
            count = sum(1 for _ in source)
            held = [thing for thing in gc.get_objects() if type(thing) is VideoFrame]
        finally:
            gc.enable()
    assert count == 60
    assert sum(frame.width * frame.height for frame in held) <= 4 * 16 * 16
