"""Many files as one video: what a folder, a glob or a pattern names, its order, its clock, and what cannot be read."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import SIZE, picture, write_clip
from hypothesis import given
from hypothesis import strategies as st

from mcdrl_rt.errors import SourceError
from mcdrl_rt.video.pictures import _naturally
from mcdrl_rt.video.source import open_source


def write_picture(path: Path, index: int, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), picture(index, size)[:, :, ::-1])
    return path


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Twelve pictures, numbered without zeros, one of them of another size; a hidden file and a text beside them."""
    folder = tmp_path / "case"
    for i in range(12):
        write_picture(folder / f"frame{i}.png", i, (96, 80) if i == 10 else SIZE)
    (folder / ".frame3.png").write_bytes(b"a Mac's")
    (folder / "notes.txt").write_text("polyp at frame 7")
    return folder


@pytest.mark.parametrize("named", ["{}", "{}/", "{}/*.png", "{}/frame%d.png", "{}/frame*"])
def test_pictures_are_one_sequence_in_natural_order(case: Path, named: str) -> None:
    with open_source(named.format(case)) as source:
        assert (source.rate, source.frame_count, source.live, source.size) == (25, 12, False, SIZE)
        frames = list(source)
    assert source.problem is None
    assert source.name.endswith("(12 pictures)")
    for i, frame in enumerate(frames):
        assert (frame.index, frame.pts * frame.time_base) == (i, Fraction(i, 25))
        assert np.array_equal(frame.pixels, picture(i, (96, 80) if i == 10 else SIZE))


def test_the_framerate_of_pictures_can_be_given(case: Path) -> None:
    with open_source(str(case), framerate="30000/1001") as source:
        assert source.rate == Fraction(30000, 1001)
        assert [frame.pts * frame.time_base for frame in source][-1] == Fraction(11 * 1001, 30000)
    for wrong in ("0", "-5", "fast", "1/0"):
        with pytest.raises(SourceError, match=f"at a framerate of '{wrong}'; give a number, such as 25"):
            open_source(str(case), framerate=wrong)


def test_a_pattern_takes_what_printf_would_write(tmp_path: Path) -> None:
    for name in ("f0001.png", "f0003.png", "f00010.png", "f10000.png", "f07.png", "fx.png", "g0001.png"):
        write_picture(tmp_path / name, 0)
    with open_source(str(tmp_path / "f%04d.png")) as source:
        assert len(list(source)) == 3
    write_picture(tmp_path / "x.png", 5).rename(tmp_path / "f%04d.png")  # a file of that very name comes first
    with open_source(str(tmp_path / "f%04d.png")) as source:
        assert [frame.pixels[5, 22, 0] for frame in source] == [240]


@given(st.lists(st.integers(0, 10**9), unique=True), st.sampled_from(["frame", "10 case-", ""]))
def test_numbers_in_names_count_as_numbers(numbers: list[int], before: str) -> None:
    names = [Path(f"{before}{number}.png") for number in numbers]
    assert _naturally(names) == [Path(f"{before}{number}.png") for number in sorted(numbers)]


def test_names_of_all_kinds_can_be_sorted() -> None:
    names = ["b.mp4", "2.mp4", "a10.mp4", "a9.mp4", "10.mp4", "a9b.mp4", "a٣.mp4"]
    ordered = [file.name for file in _naturally([Path(name) for name in names])]
    assert ordered == ["2.mp4", "10.mp4", "a٣.mp4", "a9.mp4", "a9b.mp4", "a10.mp4", "b.mp4"]


def test_recordings_follow_each_other_on_one_clock(tmp_path: Path) -> None:
    write_clip(tmp_path / "part9.mp4", pts=range(5, 10))
    tick = Fraction(1, 90_000)
    write_clip(tmp_path / "part10.mkv", pts=range(0, 10), rate=Fraction(50), time_base=Fraction(1, 50), size=(96, 80))
    ntsc = Fraction(30000, 1001)
    write_clip(tmp_path / "part11.ts", pts=range(9000, 9000 + 20 * 3003, 3003), rate=ntsc, time_base=tick)
    write_picture(tmp_path / "cover.png", 0)
    with open_source(str(tmp_path)) as source:
        assert source.name == f"{tmp_path.name} (3 videos)"
        frames = list(source)
    assert source.problem is None
    assert [frame.size for frame in frames] == [SIZE] * 5 + [(96, 80)] * 10 + [SIZE] * 20
    assert [frame.index for frame in frames] == list(range(35))
    steps = [(b.pts - a.pts) * b.time_base for a, b in itertools.pairwise(frames)]
    assert steps == [Fraction(1, 25)] * 4 + [Fraction(1, 50)] * 10 + [Fraction(1001, 30000)] * 20


def test_what_cannot_be_read_is_told_and_left_out(tmp_path: Path) -> None:
    for name in ("a.mp4", "c.mp4"):
        write_clip(tmp_path / name)
    (tmp_path / "b.mp4").write_bytes(b"Dear colleague, " * 400)
    with open_source(f"{tmp_path}/*.mp4") as source:
        frames = list(source)
    assert len(frames) == 24
    assert frames[12].pts * frames[12].time_base == Fraction(12, 25)
    assert source.problem == "cannot open b.mp4: not a video, or a recording cut off before its index was written"


def test_many_unreadable_files_are_told_in_one_line(case: Path) -> None:
    for i in range(6):
        (case / f"frame{i}.png").write_bytes(b"")
    with open_source(str(case)) as source:
        assert len(list(source)) == 6
    assert source.problem is not None
    assert source.problem.count("is empty (0 bytes)") == 3
    assert source.problem.endswith("; and 3 more")


def test_a_list_of_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(SourceError, match=r"no video and no picture in the folder .*; looked for .avi .bmp"):
        open_source(str(tmp_path))
    for name in ("*.mp4", "frame%04d.png", "gone/frame%d.png", "gone/*.png"):
        with pytest.raises(SourceError, match=r"no file is named like .*; looked for"):
            open_source(f"{tmp_path}/{name}")
    (tmp_path / "a.mp4").write_bytes(b"")
    with pytest.raises(SourceError, match=r"none of the 1 files in \*.mp4 can be read; .*a.mp4 is empty"):
        open_source(f"{tmp_path}/*.mp4")


def test_a_playlist_can_be_closed_at_any_time(case: Path) -> None:
    source = open_source(str(case))
    frames = iter(source)
    assert next(frames).index == 0
    source.close()
    source.close()
    assert len(list(frames)) <= 1
