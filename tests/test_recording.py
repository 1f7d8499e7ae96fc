"""Live recordings: a crash or a full disk costs a second at most, and what was there before is replaced at the end."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import av
import pytest
from clips import picture, read_pts

from mcdrl_rt import unfinished
from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Frame, Shown, VideoFormat
from mcdrl_rt.video.file import VideoFile
from mcdrl_rt.video.sink import open_sink

TICK = Fraction(1, 25)
LIVE = VideoFormat((48, 64), TICK, Fraction(25), live=True)

# writes noise, so that files grow fast, and says of every frame that it is written
RECORD = """
    import resource, sys
    from fractions import Fraction
    import numpy as np
    from mcdrl_rt.errors import SinkError
    from mcdrl_rt.types import Frame, Shown, VideoFormat
    from mcdrl_rt.video.sink import open_sink

    target, most, frames = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if most:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    noise = np.random.default_rng(0).integers(0, 64, (120, 160, 3)).astype(np.uint8)
    format = VideoFormat((120, 160), Fraction(1, 25), Fraction(25), live=True)
    try:
        with open_sink(target, format) as sink:
            for index in range(frames):
                frame = Frame(np.roll(noise, 7 * index, axis=1), 1000 + index, format.time_base, index)
                sink.write(Shown(frame))
                print(sink.frames, flush=True)
            sys.stdin.readline()
    except SinkError as error:
        print(error)
"""


def record(target: Path, frames: int, most: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(RECORD), str(target), str(most), str(frames)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def partial(target: Path, process: int) -> Path:
    return target.with_name(f".{target.stem}.partial-{process}{target.suffix}")


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
def test_a_killed_recording_plays_up_to_the_last_second(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / f"a.{suffix}"
    with record(target, 90) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 90:
                break
        process.kill()
    assert not target.exists()
    times = read_pts(partial(target, process.pid))
    assert times == [i * TICK for i in range(len(times))]
    assert 90 - 25 <= len(times) <= 90


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_keeps_what_was_recorded(tmp_path: Path, suffix: str, earlier: bool) -> None:
    target = tmp_path / f"a.{suffix}"
    if earlier:
        target.write_bytes(b"the earlier recording")
    process = record(target, 400, most=500_000)
    said = process.communicate("\n")[0].splitlines()
    kept = tmp_path / f"a-2.{suffix}" if earlier else target
    written, message = int(said[-2]), said[-1]
    times = read_pts(kept)
    assert written - 50 <= len(times) <= written
    assert message == (
        f"cannot write {target}: the file is larger than this system allows; "
        f"the first {float(times[-1] + TICK):.0f} s are kept in {kept}"
    )
    if earlier:
        assert target.read_bytes() == b"the earlier recording"
    assert len(list(tmp_path.iterdir())) == 1 + earlier


def test_a_finished_recording_is_an_ordinary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with open_sink(str(path), LIVE) as sink:
        for index in range(60):
            sink.write(Shown(Frame(picture(index), 500 + index, TICK, index)))
    assert read_pts(path) == [i * TICK for i in range(60)]
    content = path.read_bytes()
    assert b"moof" not in content[: content.index(b"mdat")]  # an index in the end, no fragments for players to walk
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_an_error_elsewhere_keeps_a_recording_and_a_second_ctrl_c_does_not(tmp_path: Path) -> None:
    for error, kept in ((RuntimeError, 30), (KeyboardInterrupt, 0)):
        path = tmp_path / f"{error.__name__}.mp4"
        with pytest.raises(error):
            with open_sink(str(path), LIVE) as sink:
                for index in range(30):
                    sink.write(Shown(Frame(picture(index), index, TICK, index)))
                raise error
        assert (len(read_pts(path)) if path.exists() else 0) == kept
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_recording_whose_encoder_fails_is_kept(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = VideoFile(tmp_path / f"a.{suffix}", "libx264", LIVE)
    encode = sink._encoder.encode

    def fails(pixels: Any, pts: int, duration_s: float) -> Any:
        if pts >= 60 * TICK / sink._timeline.time_base:
            raise av.error.OSError(errno.EIO, "Input/output error")  # so a graphics card says it
        return encode(pixels, pts, duration_s)

    monkeypatch.setattr(sink._encoder, "encode", fails)
    with pytest.raises(SinkError, match=rf"cannot write .*; the first \d s are kept in .*a\.{suffix}"):
        for index in range(61):
            sink.write(Shown(Frame(picture(index), index, TICK, index)))
    assert len(read_pts(tmp_path / f"a.{suffix}")) == 60
    assert len(list(tmp_path.iterdir())) == 1


def test_every_live_frame_is_written_at_once(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "a.mkv", "libx264", LIVE) as sink:
        for index in range(5):
            sink.write(Shown(Frame(picture(index), index, TICK, index)))
        sizes = []
        for index in range(5, 60):
            sink.write(Shown(Frame(picture(index), index, TICK, index)))
            sizes.append(partial(tmp_path / "a.mkv", os.getpid()).stat().st_size)
    assert len(set(sizes)) >= 4  # clusters of half a second


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_full_disk_before_the_first_second_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    process = record(tmp_path / f"a.{suffix}", 20, most=5000)
    last = process.communicate("\n")[0].splitlines()[-1]
    assert last.endswith(f"a.{suffix}: the file is larger than this system allows")
    assert process.returncode == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", [VideoFile.close, VideoFile.abort])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_a_recording_without_a_frame_is_none(suffix: str, end: Callable[[VideoFile], None], tmp_path: Path) -> None:
    """The end of fragments that never began is a memory fault in FFmpeg."""
    end(VideoFile(tmp_path / f"a.{suffix}", "libx264", LIVE))
    assert list(tmp_path.iterdir()) == []


def test_what_was_cut_off_is_not_written_over_by_a_process_of_the_same_number(tmp_path: Path) -> None:
    """In a container, every process is number 1."""
    left = partial(tmp_path / "a.mkv", os.getpid())
    left.write_bytes(b"an hour")
    with VideoFile(tmp_path / "a.mkv", "libx264", LIVE) as sink:
        sink.write(Shown(Frame(picture(0), 0, TICK)))
        unfinished.remove_all()  # as when the process is told to quit
        assert [path.name for path in tmp_path.iterdir()] == [left.name]
        sink.abort()
    assert left.read_bytes() == b"an hour"


@pytest.mark.parametrize("links", [True, False])
def test_what_appeared_meanwhile_is_not_replaced(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another recorder of that name, say."""
    if not links:
        monkeypatch.setattr(os, "link", Mock(side_effect=PermissionError(errno.EPERM, "not here")))
    sinks = [VideoFile(tmp_path / "a.mkv", "libx264", LIVE) for _ in range(3)]
    for count, sink in enumerate(sinks, 1):
        for index in range(count):
            sink.write(Shown(Frame(picture(index), index, TICK, index)))
        sink.close()
    assert [len(read_pts(tmp_path / name)) for name in ("a.mkv", "a-2.mkv", "a-3.mkv")] == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 3
    assert [sink.problem for sink in sinks] == [
        None,
        *(f"it is in {tmp_path}/a-{number}.mkv: {tmp_path}/a.mkv was there already" for number in (2, 3)),
    ]


def test_a_recording_whose_folder_is_removed_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    folder.mkdir()
    sink = VideoFile(folder / "a.mkv", "libx264", LIVE)
    sink.write(Shown(Frame(picture(0), 0, TICK)))
    shutil.rmtree(folder)
    with pytest.raises(SinkError, match=r"cannot finish .*: the file was removed meanwhile$"):
        sink.close()
