"""Fuzz: whatever is done to a file, streaming it ends in time, with frames or with one clear line."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import pytest
from clips import read_pts, write_clip
from fuzz import damaged
from streams import Kept, run

from mcdrl_rt.errors import SourceError
from mcdrl_rt.video.source import open_source

LIMIT_S = 30


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Clips of several containers, codecs and sizes."""
    folder = tmp_path_factory.mktemp("whole")
    ticks = {"pts": range(0, 15 * 3600, 3600), "time_base": Fraction(1, 90_000)}
    faststart = {"movflags": "faststart"}
    return [
        path.read_bytes()
        for path in (
            write_clip(folder / "a.mp4", pts=range(15), codec_options={"g": "5"}, container_options=faststart),
            write_clip(folder / "b.ts", size=(96, 80), codec_options={"g": "5"}, **ticks),  # type: ignore[arg-type]
            write_clip(folder / "c.ts", size=(50, 62), codec="mpeg2video"),
            write_clip(folder / "d.mkv", codec="libx264", codec_options={"x264-params": "interlaced=1"}),
            write_clip(folder / "e.avi", codec="mjpeg", pix_fmt="yuvj420p"),
            write_clip(folder / "f.webm", codec="libvpx-vp9", codec_options={"deadline": "realtime", "cpu-used": "8"}),
            write_clip(folder / "g.h264", codec_options={"bf": "2"}),
        )
    ]


def stream_to_the_end(path: Path) -> None:
    """Nothing but a SourceError of one line; times that rise; time that is bounded."""
    began_s = time.monotonic()
    try:
        with open_source(str(path)) as source:
            sink = Kept()
            summary = run(source, {"kept": sink})
        times = [shown.frame.pts for shown in sink.shown]
        assert all(a < b for a, b in itertools.pairwise(times)), times
        assert summary.frames_out == summary.frames_in == len(times)
        assert "\n" not in (summary.problem or "")
    except SourceError as error:
        assert "\n" not in str(error)
    assert time.monotonic() - began_s < LIMIT_S


def stream_all(clips: list[bytes], count: int, folder: str) -> None:
    """In a process of its own, so that a crash of FFmpeg is a failure and not the end of the tests."""
    for number, data in enumerate(damaged(clips, count)):
        path = Path(folder) / "damaged.mp4"
        path.write_bytes(data)
        (Path(folder) / "number").write_text(str(number))
        stream_to_the_end(path)


@pytest.mark.parametrize("count", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_damage_never_crashes(tmp_path: Path, clips: list[bytes], count: int) -> None:
    process = multiprocessing.get_context("spawn").Process(target=stream_all, args=(clips, count, str(tmp_path)))
    process.start()
    process.join(LIMIT_S + count)
    process.kill()
    process.join()
    assert process.exitcode == 0, f"copy {(tmp_path / 'number').read_text()} of seed 0 is {tmp_path / 'damaged.mp4'}"


@pytest.mark.parametrize("count", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_a_damaged_procedure_gets_a_video_or_one_clear_line(count: int, data_root: Path, tmp_path: Path) -> None:
    """The command, on a real one: what comes out can be opened, and nobody sees a traceback."""
    whole = data_root / "video/colonoscopy_560x480_25fps.mp4"
    copies = [whole.read_bytes(), repacked(whole, tmp_path / "whole.ts").read_bytes()]
    for number, data in enumerate(damaged(copies, count, seed=7)):
        path, output = tmp_path / "damaged.mp4", tmp_path / f"{number}.mkv"
        path.write_bytes(data)
        command = [sys.executable, "-m", "mcdrl_rt.cli", "stream", "--input", path, "--output", output, "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ended.returncode in (0, 1, 3), (number, ended)
        assert "Traceback" not in ended.stderr and len(ended.stderr.splitlines()) <= 1, (number, ended.stderr)
        if ended.returncode == 1:
            assert ended.stderr.startswith("error: ") and not output.exists()
        else:
            assert len(read_pts(output)) == json.loads(ended.stdout)["frames_out"] > 0


def repacked(video: Path, target: Path) -> Path:
    """The same packets in another container, one that survives more."""
    with av.open(video) as source, av.open(target, "w") as copy:
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    return target
