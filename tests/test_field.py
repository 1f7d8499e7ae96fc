"""The field of view to its edge: nothing that is written beside it, or on it, survives; no lesion is lost."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.field import blanked, field_of, field_of_video
from mcdrl_rt.video.phantom import Phantom

SIZE = (360, 480)


def tissue(seed: int, size: tuple[int, int] = SIZE) -> UInt8Array:
    """Red and blotchy, another one for each seed."""
    rng = np.random.default_rng(seed)
    blotches = cv2.resize(rng.integers(60, 220, (9, 12)).astype(np.uint8), size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.dstack([blotches, blotches // 2, blotches // 3])


def form(kind: str, share: float) -> UInt8Array:
    """A field, (H, W), 255 inside."""
    height, width = SIZE
    inside = np.zeros(SIZE, np.uint8)
    half = np.array([width, height]) / 2 * share
    if kind == "circle":
        cv2.circle(inside, (width // 2, height // 2), int(half.min()), 255, -1)
    else:
        x, y = half
        cut = 0.3 * y if kind == "octagon" else 0.0
        corners = [(x, y - cut), (x - cut, y), (-x + cut, y), (-x, y - cut), (-x, -y + cut), (-x + cut, -y)]
        corners += [(x - cut, -y), (x, -y + cut)]
        points = np.round(np.array(corners) + np.array([width, height]) / 2).astype(np.int32)
        cv2.fillConvexPoly(inside, points, 255)
    return inside


def write(rgb: UInt8Array, text: str, at: tuple[int, int], level: int = 235) -> tuple[UInt8Array, UInt8Array]:
    """The picture with a text on it, and where the text is."""
    ink = np.zeros(rgb.shape[:2], np.uint8)
    cv2.putText(ink, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255, 1, cv2.LINE_AA)
    share = ink[..., None] / 255
    return (rgb * (1 - share) + level * share).astype(np.uint8), ink > 60


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["circle", "octagon", "rectangle"]),
    share=st.floats(0.5, 0.85),
    at=st.tuples(st.integers(0, 380), st.integers(12, 358)),
    seed=st.integers(0, 1000),
)
def test_what_is_written_beside_a_field_of_any_form_is_blanked(
    kind: str, share: float, at: tuple[int, int], seed: int
) -> None:
    inside = form(kind, share)
    picture = cv2.bitwise_and(tissue(seed), tissue(seed), mask=inside)
    written, ink = write(picture, "DOE, JANE", at)
    beside = ink & (cv2.dilate(inside, np.ones((7, 7))) == 0)  # the rest is on the picture
    before = written.copy()
    field = field_of([written])
    assert field is not None
    private = blanked(written, field)
    assert not private[beside].any()
    assert np.array_equal(written, before)
    assert np.array_equal(blanked(private, field), private)
    assert (field[inside > 0] > 0).mean() > 0.93  # and the picture is still there


def test_what_is_written_on_the_picture_is_found_when_the_picture_moves() -> None:
    phantom = Phantom((480, 640), "mixed", 15, 30.0, 9000)
    frames = [phantom.render(index * 150).pixels for index in range(24)]
    inks, written = [], []
    for number, rgb in enumerate(frames):
        for text, at in (("DOE JANE", (60, 200)), (f"{10 + number}:{(number * 7) % 60:02d}:00", (60, 230))):
            rgb, ink = write(rgb, text, at)
            inks.append(ink)
        written.append(rgb)
    field, clean = field_of(written), field_of(frames)
    assert field is not None and clean is not None
    assert np.mean([(field[ink] > 0).mean() for ink in inks]) < 0.01
    assert (field > 0).mean() > 0.9 * (clean > 0).mean()


@pytest.mark.parametrize(
    ("level", "seen"), [(235, range(16)), (235, range(40, 56)), (10, range(80)), (10, range(30, 45))]
)
def test_what_is_written_dark_or_for_a_while_is_found_too(level: int, seen: range) -> None:
    inside = form("octagon", 0.8)
    frames, text = [], np.zeros(SIZE, bool)
    for index in range(80):
        rgb = cv2.add(tissue(index) // 2, 90)
        if index in seen:
            rgb, text = write(rgb, "DOE JANE", (200, 180), level)
        frames.append(cv2.bitwise_and(rgb, rgb, mask=inside))
    field, moves = field_of_video(frames, for_a_while=len(seen) < 20)
    assert field is not None and moves
    assert text.any() and (field[text] > 0).mean() < 0.01
    assert (field > 0).mean() > 0.9 * (inside > 0).mean()


def test_a_picture_that_fills_the_frame_stays_and_a_menu_now_and_then_shows_nothing_more() -> None:
    full = [tissue(seed) for seed in range(4)]
    field = field_of(full)
    assert field is not None and field.all()
    inside = form("octagon", 0.7)
    pictures = [cv2.bitwise_and(tissue(seed), tissue(seed), mask=inside) for seed in range(4)]
    menu = np.full((*SIZE, 3), 180, np.uint8)
    with_menu = field_of([*pictures, menu])
    assert with_menu is not None and np.array_equal(with_menu, field_of(pictures))


@pytest.mark.parametrize("level", [0, 25, 60, 120, 200])
@pytest.mark.parametrize("ink_level", [0, 235])
def test_a_surround_may_have_any_even_colour(level: int, ink_level: int) -> None:
    inside = form("octagon", 0.7)
    picture = tissue(1)
    picture[inside == 0] = level
    _, ink = write(picture, "DOE, JANE", (5, 20))
    picture[ink > 0] = ink_level
    field = field_of([picture])
    assert field is not None and not field[ink > 0].any()
    assert (field[inside > 0] > 0).mean() > 0.93


@settings(max_examples=30, deadline=None)
@given(corner=st.integers(0, 3), seed=st.integers(0, 1000))
def test_what_is_written_where_an_inset_was_is_blanked_in_a_single_picture(corner: int, seed: int) -> None:
    inside = form("octagon", 0.95)
    top, left = (corner // 2) * 240, (corner % 2) * 300
    inside[top : top + 120, left : left + 180] = 0  # some of it is within the picture's hull
    picture = cv2.bitwise_and(tissue(seed), tissue(seed), mask=inside)
    for line in range(4):
        picture, _ = write(picture, "DOE, JANE 1950", (left + 30, top + 28 + 22 * line))
    written = picture.any(axis=2) & (cv2.dilate(inside, np.ones((7, 7))) == 0)  # the rest is on the picture
    field = field_of([picture])
    assert field is not None and written.any() and not field[written].any()
    assert (field[inside > 0] > 0).mean() > 0.93


def test_a_grey_panel_beside_the_picture_is_blanked_and_the_other_half_of_a_picture_is_not() -> None:
    picture = np.zeros((360, 640, 3), np.uint8)
    picture[20:340, 200:620] = tissue(3)[20:340, 20:440]
    picture[20:340, 20:180] = 190
    picture[20:340, 390:420] = (12, 5, 4)  # a dark lumen from edge to edge
    field = field_of([picture])
    assert field is not None
    assert not field[:, :190].any() and (field[20:340, 200:620] > 0).mean() > 0.93


def test_menus_and_rooms_have_no_say_where_the_picture_ends() -> None:
    inside = form("octagon", 0.7)
    pictures = [cv2.bitwise_and(tissue(seed), tissue(seed), mask=inside) for seed in range(5)]
    menu = np.zeros((*SIZE, 3), np.uint8)
    menu[5:350, 5:400] = (60, 80, 140)
    alone, among = field_of(pictures), field_of([menu, *pictures, menu])
    assert alone is not None and among is not None and np.array_equal(alone, among)


def test_in_the_dark_there_is_no_field_and_another_size_is_black() -> None:
    assert field_of([np.zeros((*SIZE, 3), np.uint8)]) is None
    assert field_of([]) is None
    assert not blanked(tissue(0), np.full((10, 10), 255, np.uint8)).any()


def test_no_lesion_of_a_real_site_is_lost(data_root: Path) -> None:
    lost = []
    for path in sorted((data_root / "Kvasir-SEG" / "images").iterdir())[::25]:
        rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        lesion = cv2.imread(str(data_root / "Kvasir-SEG" / "masks" / path.name), cv2.IMREAD_GRAYSCALE) > 127
        field = field_of([rgb])
        assert field is not None
        lost.append((field[lesion] == 0).mean())
    assert len(lost) == 40 and np.max(lost) < 0.02
