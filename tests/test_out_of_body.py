"""Inside or outside: what may be a room is blanked at once, and believed to be a body after a second."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_field import tissue

from mcdrl_rt.types import Frame, UInt8Array
from mcdrl_rt.video.out_of_body import OutOfBody, tissue_share

ROOM = np.full((360, 480, 3), (150, 155, 160), np.uint8)
DARK = np.zeros((360, 480, 3), np.uint8)


def seen(*pictures: tuple[UInt8Array, int]) -> list[bool]:
    """What is said of each frame, for pictures and how many frames each is shown, ten a second."""
    outside = OutOfBody()
    shown = [pixels for pixels, count in pictures for _ in range(count)]
    return [outside(Frame(pixels, index, Fraction(1, 10), index)) for index, pixels in enumerate(shown)]


def test_outside_at_once_and_inside_after_a_second() -> None:
    said = seen((ROOM, 5), (tissue(0), 20), (ROOM, 1), (tissue(1), 15))
    assert said == [True] * 5 + [True] * 10 + [False] * 10 + [True] + [True] * 10 + [False] * 5


def test_a_video_that_begins_inside_is_seen_from_its_first_frame() -> None:
    assert seen((tissue(0), 3)) == [False] * 3


def test_what_leaves_a_doubt_neither_ends_a_view_nor_begins_one() -> None:
    doubtful = ROOM.copy()
    doubtful[:216] = tissue(0)[:216]  # six tenths of it
    assert 0.45 < (tissue_share(doubtful) or 0) < 0.75
    assert seen((doubtful, 20)) == [True] * 20
    assert seen((tissue(0), 1), (doubtful, 20)) == [False] * 21
    assert seen((ROOM, 1), (tissue(0), 8), (doubtful, 1), (tissue(0), 12)) == [True] * 20 + [False] * 2


def test_what_is_shown_does_not_depend_on_where_one_begins_to_look_once_that_is_known() -> None:
    doubtful = ROOM.copy()
    doubtful[:216] = tissue(0)[:216]
    pictures = [tissue(0)] * 15 + [doubtful] * 10 + [ROOM] + [doubtful] * 5 + [tissue(0)] * 25
    frames = [Frame(pixels, index, Fraction(1, 10), index) for index, pixels in enumerate(pictures)]
    whole = OutOfBody()
    said = [whole(frame) for frame in frames]
    known = 0
    for begin in range(len(frames)):
        outside = OutOfBody(from_start=begin == 0)
        for frame in frames[begin:]:
            one = outside(frame)
            if outside.is_known:
                assert one == said[frame.index]
                known += 1
            else:
                assert one  # as long as it is not known, nothing is shown
    assert known > 700


@pytest.mark.parametrize("before", [tissue(0), ROOM])
def test_in_the_dark_nothing_changes(before: UInt8Array) -> None:
    first, *rest = seen((before, 1), (DARK, 30))
    assert rest == [first] * 30
    assert seen((DARK, 2)) == [True, True]  # nothing was seen yet


def test_only_the_field_is_looked_at() -> None:
    rgb = ROOM.copy()
    rgb[100:260, 140:340] = tissue(0)[100:260, 140:340]
    field = np.zeros(rgb.shape[:2], np.uint8)
    field[100:260, 140:340] = 255
    inside, all_of_it = tissue_share(rgb, field), tissue_share(rgb)
    assert inside is not None and inside > 0.95
    assert all_of_it is not None and all_of_it < 0.3


def test_real_bodies_and_other_photographs(data_root: Path) -> None:
    images = sorted((data_root / "Kvasir-SEG" / "images").iterdir())[::20]
    shares = [tissue_share(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)) for path in images]
    assert min(share or 0 for share in shares) > 0.45
    photographs = pytest.importorskip("sklearn.datasets").load_sample_images().images
    assert all((tissue_share(photograph) or 0) < 0.45 for photograph in photographs)
