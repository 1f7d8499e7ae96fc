"""Difficult material: what recorders, splices and damage do to a video, and what a source makes of it."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import SIZE, picture, write_clip
from fuzz import mutants

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame, UInt8Array
from mcdrl_rt.video.source import open_source

TICK = Fraction(1, 90_000)
FINE = {"crf": "1", "bf": "0"}


def read(path: Path) -> tuple[list[Frame], str | None]:
    """All frames of a file and what was wrong with it; their times increase."""
    with open_source(str(path)) as source:
        frames = list(source)
    assert all(later.pts > earlier.pts for earlier, later in itertools.pairwise(frames))
    return frames, source.problem


def difference(a: UInt8Array, b: UInt8Array) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


def spliced(folder: Path, *parts: dict[str, object]) -> Path:
    """Transport streams of 20 frames each, one written behind the other; every one begins at the same time."""
    data = b""
    for i, part in enumerate(parts):
        path = write_clip(folder / f"{i}.ts", pts=range(20), codec_options=FINE, **part)  # type: ignore[arg-type]
        data += path.read_bytes()
    joined = folder / "joined.ts"
    joined.write_bytes(data)
    return joined


def test_size_and_pixel_format_may_change_in_mid_stream(tmp_path: Path) -> None:
    path = spliced(tmp_path, {}, {"size": (96, 80)}, {"size": (96, 80), "pix_fmt": "yuv444p"})
    frames, problem = read(path)
    assert [frame.size for frame in frames] == [SIZE] * 20 + [(96, 80)] * 40
    shown = [picture(i % 20, frame.size) for i, frame in enumerate(frames)]
    assert max(difference(frame.pixels, pixels) for frame, pixels in zip(frames, shown, strict=True)) < 4
    assert problem is not None and "its clock jumped back, or stood still, 2 times" in problem


def test_time_goes_on_one_frame_after_a_clock_that_jumped_back(tmp_path: Path) -> None:
    frames, _ = read(spliced(tmp_path, {}, {}, {}))
    steps = {later.pts - earlier.pts for earlier, later in itertools.pairwise(frames)}
    assert (len(frames), steps, frames[0].time_base) == (60, {3600}, TICK)


@pytest.mark.parametrize("back", [1, 2])
def test_one_time_out_of_order_moves_only_its_own_frame(tmp_path: Path, back: int) -> None:
    path, tick = tmp_path / "a.mkv", Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=64, height=48, time_base=tick)
        stream.pix_fmt = "bgr0"
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24").reformat(format="bgr0")
            for packet in stream.encode(frame):
                packet.time_base, packet.dts, packet.pts = tick, 40 * i, 40 * (i + 3 - (back if i == 10 else 0))
                container.mux(packet)
    frames, problem = read(path)
    assert [frame.pts - 120 for frame in frames] == [40 * i if i != 10 else 361 for i in range(20)]
    assert problem == "its clock jumped back, or stood still, once; time was made to go on"


def test_a_clock_that_wraps_goes_on(tmp_path: Path) -> None:
    start = 2**33 - 10 * 3600  # MPEG's clock has 33 bits
    path = write_clip(
        tmp_path / "wrap.ts", pts=range(start, start + 30 * 3600, 3600), time_base=TICK, codec_options={"bf": "0"}
    )
    frames, problem = read(path)
    steps = {later.pts - earlier.pts for earlier, later in itertools.pairwise(frames)}
    assert (len(frames), steps, problem) == (30, {3600}, None)


def woven(index: int) -> UInt8Array:
    """A picture whose odd lines are a moment later: a bar in motion gets teeth."""
    pixels = np.full((64, 128, 3), 90, np.uint8)
    for field in (0, 1):
        left = 4 + 8 * index + 4 * field
        pixels[field::2, left : left + 16] = 220
    return pixels


def teeth(pixels: UInt8Array) -> float:
    """How much every line differs from both its neighbours."""
    grey = pixels[8:-8, :, 1].astype(np.float32)
    return float(np.abs(2 * grey[1:-1] - grey[:-2] - grey[2:]).mean())


@pytest.mark.parametrize(("codec", "suffix"), [("mpeg2video", "ts"), ("libx264", "mkv")])
def test_interlaced_video_loses_its_teeth_and_no_frame(tmp_path: Path, codec: str, suffix: str) -> None:
    options = {"flags": "+ilme+ildct", "b": "4M", "bf": "0"}
    clips = {
        name: write_clip(
            tmp_path / f"{name}.{suffix}",
            pts=range(12),
            size=(64, 128),
            codec=codec,
            pictures=[woven(i) for i in range(12)],
            codec_options=chosen,
        )
        for name, chosen in (("interlaced", options), ("progressive", {"b": "4M", "bf": "0"}))
    }
    (interlaced, problem), (progressive, _) = read(clips["interlaced"]), read(clips["progressive"])
    assert problem is None
    assert [frame.pts for frame in interlaced] == [frame.pts for frame in progressive]
    assert len(interlaced) == 12
    assert min(teeth(frame.pixels) for frame in progressive) > 5
    # the first and the last frame have a neighbour on one side only
    assert max(teeth(frame.pixels) for frame in interlaced[1:-1]) < 2
    for frame in interlaced:  # bars where they belong: the frame is of its first field's time
        assert frame.pixels[32, 4 + 8 * frame.index + 8, 1] > 180


@pytest.mark.parametrize("size", [(47, 63), (1, 65), (33, 4), (35, 64)])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], pix_fmt: str) -> None:
    path = write_clip(tmp_path / "odd.mkv", size=size, codec="ffv1", pix_fmt=pix_fmt)
    frames, problem = read(path)
    assert problem is None
    for frame in frames:
        assert frame.size == size
        assert frame.pixels.flags.c_contiguous
        assert difference(frame.pixels, picture(frame.index, size)) < 8  # colour is halved, and these are small


def test_ten_bit_colours_are_right(tmp_path: Path) -> None:
    flat = np.empty((*SIZE, 3), np.uint8)
    flat[:] = (200, 60, 30)
    for codec, options in (("libx264", FINE), ("libx265", {"crf": "1", "x265-params": "log-level=none"})):
        path = write_clip(
            tmp_path / f"{codec}.mkv", codec=codec, pix_fmt="yuv420p10le", pictures=[flat] * 12, codec_options=options
        )
        for frame in read(path)[0]:
            assert np.abs(frame.pixels.mean(axis=(0, 1)) - (200, 60, 30)).max() < 3


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small clips of many containers and codecs."""
    folder = tmp_path_factory.mktemp("healthy")
    interlaced = {"flags": "+ilme+ildct", "bf": "0"}
    quiet = {"x265-params": "log-level=none"}
    return [
        write_clip(folder / "a.mp4", pts=range(20), container_options={"movflags": "faststart"}),
        write_clip(folder / "b.mp4", codec="libx265", pix_fmt="yuv420p10le", codec_options=quiet),
        write_clip(folder / "c.ts", pts=range(20), codec_options={"g": "5"}),
        write_clip(folder / "d.ts", pts=range(20), size=(64, 128), codec="mpeg2video", codec_options=interlaced),
        write_clip(folder / "e.mkv", codec="mpeg4", size=(47, 63)),
        write_clip(folder / "f.avi", codec="mjpeg", pix_fmt="yuvj420p"),
        write_clip(folder / "g.webm", codec="libvpx-vp9", codec_options={"deadline": "realtime", "cpu-used": "8"}),
        write_clip(folder / "h.png", codec="png", pix_fmt="rgb24", pts=range(1)),
    ]


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_is_an_error_or_a_flaw_and_never_a_crash(
    tmp_path: Path, healthy: list[Path], count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    decoded = 0
    for name, data in mutants(healthy, count, seed=count):
        path = tmp_path / name
        path.write_bytes(data)
        started = time.monotonic()
        try:
            frames, problem = read(path)
        except SourceError as error:
            assert "\n" not in str(error) and name in str(error)
        else:
            decoded += len(frames)
            assert problem is None or "\n" not in problem
        assert time.monotonic() - started < 20, f"{name} took too long"
        path.unlink()
    assert decoded > count  # most of it can still be seen
    assert capfd.readouterr() == ("", "")
