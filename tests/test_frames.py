"""Frames to calibrate and check with: pictures and videos of a folder, evenly, as the model will see them."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import write_clip

from mcdrl_rt.engine.frames import _decimated, real_frames, synthetic_frames
from mcdrl_rt.errors import SourceError
from mcdrl_rt.video.playlist import VIDEOS

SIZE = (64, 80)


def test_pictures_and_videos_of_a_folder_are_taken_and_nothing_else(data_root: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "clip.mp4").symlink_to(data_root / "video" / "colonoscopy_560x480_25fps.mp4")
    picture = np.full((40, 50, 3), (10, 120, 200), np.uint8)
    cv2.imwrite(str(tmp_path / "b.png"), picture)
    for i in range(50):
        (tmp_path / f"{i}.txt").write_text("no picture")
    frames = real_frames(tmp_path, SIZE, 12)
    assert len(frames) == 7  # a share of six for each of two files: six of the clip, and the picture
    assert {frame.shape for frame in frames} == {(*SIZE, 3)}
    assert (frames[-1] == (200, 120, 10)).all()  # RGB


def test_frames_of_a_video_are_spread_over_it(data_root: Path) -> None:
    clip = data_root / "video" / "colonoscopy_560x480_25fps.mp4"
    few, all_of_it = real_frames(clip, SIZE, 4), real_frames(clip, SIZE, 100)
    assert (len(few), len(all_of_it)) == (4, 53)
    assert [int(np.argmin([np.abs(one * 1.0 - other).sum() for other in all_of_it])) for one in few] == [7, 20, 34, 47]


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".y4m"])
def test_so_are_those_of_one_that_begins_late_or_does_not_say_how_long_it_is(tmp_path: Path, suffix: str) -> None:
    codec = "rawvideo" if suffix == ".y4m" else "libx264"
    shown = [np.full((48, 64, 3), 40 + 2 * i, np.uint8) for i in range(90)]
    options = {} if suffix == ".y4m" else {"g": "10", "bf": "0"}
    video = write_clip(tmp_path / f"a{suffix}", pts=range(90), pictures=shown, codec=codec, codec_options=options)
    (tmp_path / "all").mkdir()
    for i in range(20):
        (tmp_path / "all" / f"{i:02}{suffix}").symlink_to(video)
    for found in (real_frames(video, SIZE, 5), _decimated(video, SIZE, 5)):
        levels = [(frame[20, 20, 0] - 40) / 2 for frame in found]
        assert len(levels) == 5 and np.abs(np.diff(levels) - 18).max() < 9 and levels[0] < 12 and levels[-1] > 70
    if suffix in VIDEOS:
        assert len(real_frames(tmp_path / "all", SIZE, 33)) == 33  # of all twenty, and not of the first


def test_files_are_taken_evenly(tmp_path: Path) -> None:
    for i in range(7):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((64, 64, 3), 30 * i, np.uint8))
    assert [int(frame[0, 0, 0]) for frame in real_frames(tmp_path, SIZE, 4)] == [0, 60, 120, 180]


def write(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((64, 64, 3), level, np.uint8))


def test_masks_results_and_what_is_hidden_are_no_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    write(folder / "images" / "a.png", 10)
    write(elsewhere / "b.png", 20)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "cut.png").write_bytes(b"no picture")
    for name in ("Masks/a.png", "PNG/Ground Truth/a.png", "gt/x/a.png", ".trash/a.png", ".a.png", "a.masks/0.png"):
        write(folder / name, 255)
    write_clip(folder / "a.annotated.mp4")
    (folder / "a.summary.json").touch()
    with caplog.at_level(logging.INFO, "mcdrl_rt"):
        assert sorted(int(frame[0, 0, 0]) for frame in real_frames(folder, SIZE)) == [10, 20]
    assert caplog.messages == [
        f"2 frames of 2 files in {folder}; 7 passed over: hidden, masks or results; 1 of 3 files could not be read"
    ]
    assert len(real_frames(folder / "Masks", SIZE)) == 1  # who names such a folder means it
    with pytest.raises(SourceError, match="no video; 1 passed over: hidden, masks or results"):
        real_frames(folder / "PNG", SIZE)


def test_synthetic_frames_are_varied_and_always_the_same() -> None:
    one, other = synthetic_frames(SIZE), synthetic_frames(SIZE)
    assert np.array_equal(one, other)
    assert len({frame.tobytes() for frame in one}) == len(one) == 10


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no picture"):
        real_frames(tmp_path, SIZE)
