"""Playlist: folders, globs and numbered patterns are one video; pipes and screens are inputs like any other."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from clips import picture, write_clip
from conftest import ROOT

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video.playlist import Playlist, pictures_of
from mcdrl_rt.video.source import open_source


def write_pictures(folder: Path, names: list[str]) -> Path:
    """One flat grey picture for each name, a little brighter each time."""
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        cv2.imwrite(str(folder / name), np.full((48, 64, 3), 10 * index, np.uint8))
    return folder


def read(uri: str, **options: str) -> tuple[list[Frame], str | None]:
    with open_source(uri, **options) as source:
        return list(source), source.problem


@pytest.mark.parametrize("pattern", ["", "*.png", "frame%d.png", "frame*[0-9].png"])
def test_pictures_are_one_video_in_the_order_of_their_numbers(tmp_path: Path, pattern: str) -> None:
    write_pictures(tmp_path / "frames", [f"frame{number}.png" for number in (1, 2, 9, 10, 11, 100)])
    with open_source(str(tmp_path / "frames" / pattern), framerate="30000/1001") as source:
        assert (source.rate, source.frame_count, source.live) == (Fraction(30000, 1001), 6, False)
        assert source.size == (48, 64)
        frames = list(source)
    assert [int(frame.pixels.mean()) // 10 for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert [frame.pts * frame.time_base * source.rate for frame in frames] == [0, 1, 2, 3, 4, 5]
    assert source.problem is None


def test_a_numbered_pattern_means_its_width_and_nothing_else(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a0001.png", "a0002.png", "a03.png", "b0004.png", "a0005.jpg", "a10000.png"])
    frames, _ = read(str(tmp_path / "a%04d.png"))
    assert [int(frame.pixels.mean()) // 10 for frame in frames] == [0, 1, 5]
    assert [frame.pts_s for frame in frames] == [0, 0.04, 0.08]


def test_videos_follow_each_other_on_one_clock(tmp_path: Path) -> None:
    write_clip(tmp_path / "part2.mp4", pts=range(5))
    write_clip(tmp_path / "part10.mkv", pts=[7000, 7040, 7100], time_base=Fraction(1, 1000), size=(32, 64))
    write_clip(tmp_path / "part1.mov", pts=range(4), rate=Fraction(30), time_base=Fraction(1, 30))
    (tmp_path / "notes.txt").write_text("not a video")
    frames, problem = read(str(tmp_path))
    thirtieths = [Fraction(i, 30) for i in range(4)]
    begin, last = Fraction(4, 30), Fraction(4, 30) + Fraction(5, 25)
    expected = [*thirtieths, *(begin + Fraction(i, 25) for i in range(5))]
    expected += [last, last + Fraction(4, 100), last + Fraction(10, 100)]
    assert [frame.pts * frame.time_base for frame in frames] == expected
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.size for frame in frames] == [(48, 64)] * 9 + [(32, 64)] * 3
    assert problem is None


def test_an_unreadable_file_among_many_is_told_of_and_left_out(tmp_path: Path) -> None:
    for name in ("a.mp4", "c.mp4"):
        write_clip(tmp_path / name)
    (tmp_path / "b.mp4").write_bytes(b"Dear colleague, " * 400)
    frames, problem = read(str(tmp_path / "*.mp4"))
    assert len(frames) == 24
    assert all(a.pts < b.pts for a, b in itertools.pairwise(frames))
    assert problem is not None
    assert problem.startswith("1 of the files could not be read; cannot open ")
    assert problem.endswith("b.mp4: not a video, or a recording cut off before its index was written")


def test_of_a_picture_that_moves_among_others_the_first_is_taken(tmp_path: Path) -> None:
    stills = [PIL.Image.fromarray(picture(number)) for number in range(4)]
    stills[0].save(tmp_path / "0.png")
    stills[1].save(tmp_path / "1.png", save_all=True, append_images=stills[2:])
    stills[3].save(tmp_path / "2.png")
    with Playlist("in", pictures_of(tmp_path), {}, slice(1, None)) as source:
        frames = list(source)
    assert [(frame.index, frame.pts) for frame in frames] == [(1, 1), (2, 2)]
    assert source.problem == "1.png: only the first of its pictures was taken"


def test_links_that_lead_nowhere_cost_no_other_picture(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), picture(1))
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "through.png").symlink_to("a.png/x")
    (tmp_path / "same.png").symlink_to("a.png")
    assert [path.name for path in pictures_of(tmp_path)] == ["a.png", "same.png"]


def test_a_picture_that_is_cut_off_is_told_of(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    for name in ("a.jpg", "b.jpg"):
        cv2.imwrite(str(tmp_path / name), noise)
    assert read(str(tmp_path))[1] is None
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-900])
    assert read(str(tmp_path))[1] == "b.jpg: cut off: a part of it is made up"
    assert read(str(tmp_path / "b.jpg"))[1] == "cut off: a part of it is made up"


def test_what_is_wrong_with_a_part_is_said_with_its_name(tmp_path: Path) -> None:
    noisy = [np.random.default_rng(i).integers(0, 255, (48, 64, 3)).astype(np.uint8) for i in range(40)]
    faststart = {"movflags": "faststart"}
    whole = write_clip(tmp_path / "b.mp4", pts=range(40), pictures=noisy, container_options=faststart).read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) // 2])
    _, problem = read(str(tmp_path))
    assert problem is not None
    assert problem.startswith("a.mp4: truncated: decoded ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "holds no video and no pictures"),
        ("*.mp4", r"no file matches .*\*\.mp4"),
        ("frame%04d.png", r"no file is numbered like .*frame%04d\.png"),
        ("nowhere/frame%04d.png", "no file is numbered like"),
        ("*.txt", r"letter\.txt is not a video"),
    ],
)
def test_nothing_there_is_said_in_one_line(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "letter.txt").write_bytes(b"Dear colleague, " * 400)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", ["fast", "0", "-5", "1/0"])
def test_a_rate_that_is_none_is_refused(tmp_path: Path, rate: str) -> None:
    write_pictures(tmp_path, ["1.png"])
    with pytest.raises(SourceError, match="is no frame rate; an example is framerate=25"):
        open_source(str(tmp_path), framerate=rate)


def test_closing_in_the_middle_of_a_list_ends_it(tmp_path: Path) -> None:
    for name in "ab":
        write_clip(tmp_path / f"{name}.mp4")
    source = open_source(str(tmp_path))
    frames = iter(source)
    next(frames)
    source.close()
    source.close()
    assert list(frames) == []


def test_a_list_can_be_paced(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"{number}.png" for number in range(5)])
    with open_source(str(tmp_path), live=True, framerate="50") as source:
        frames = list(source)
    assert len(frames) == 5
    assert frames[-1].capture_time_s - frames[0].capture_time_s > 0.078


def piped(data: bytes) -> subprocess.CompletedProcess[bytes]:
    script = (
        "from mcdrl_rt.video.source import open_source\n"
        "from mcdrl_rt.errors import SourceError\n"
        "try:\n"
        "    with open_source('-') as source: print(source.name, len(list(source)), source.live, source.problem)\n"
        "except SourceError as error: print(error)\n"
    )
    return subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, cwd=ROOT, timeout=60)


def test_standard_input_is_a_video(tmp_path: Path) -> None:
    ended = piped(write_clip(tmp_path / "a.ts").read_bytes())
    assert (ended.stdout, ended.stderr) == (b"standard input 12 False None\n", b"")


def test_standard_input_without_a_video_says_so() -> None:
    for data in (b"", b"Dear colleague, " * 400):
        ended = piped(data)
        assert ended.stdout.startswith(b"cannot open standard input: "), ended
        assert ended.stderr == b""


@pytest.fixture
def display() -> Iterator[str]:
    """A virtual X display with nothing on it."""
    if not shutil.which("Xvfb"):
        pytest.skip("needs Xvfb, a screen without a monitor (apt install xvfb)")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "320x200x24", "-nolisten", "tcp"]
    process = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as answer:
        number = answer.readline().strip()
    yield f":{number}"
    process.terminate()
    process.wait()


def test_a_screen_is_filmed(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_source(f"screen:{display}", framerate="20") as source:
        assert (source.name, source.size, source.rate, source.live) == (f"screen:{display}", (200, 320), 20, True)
        frames = list(itertools.islice(source, 5))
    assert all(frame.signal for frame in frames)
    assert all(a.pts < b.pts for a, b in itertools.pairwise(frames))
    monkeypatch.setenv("DISPLAY", display)
    with open_source("screen", video_size="64x48") as source:
        assert next(iter(source)).size == (48, 64)


def test_a_screen_that_is_not_there_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(SourceError, match=r"there is no display here; name one, such as screen::1"):
        open_source("screen")
    with pytest.raises(SourceError, match=r"cannot open screen::987: .*is there such a display"):
        open_source("screen::987")


def test_a_picture_alone_is_a_video_of_one_frame(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), cv2.cvtColor(picture(0), cv2.COLOR_RGB2BGR))
    frames, problem = read(str(tmp_path / "a.png"))
    assert [np.array_equal(frame.pixels, picture(0)) for frame in frames] == [True]
    assert problem is None
