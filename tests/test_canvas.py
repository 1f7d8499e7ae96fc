"""Canvas: the picture has its shape in any window, and what is written over it can be read and stays inside."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.canvas import Notes, compose, fit

SIDE = st.integers(1, 3000)
ASPECT = st.fractions(Fraction(1, 3), Fraction(3))


def plain(size: tuple[int, int], value: int = 200) -> UInt8Array:
    return np.full((*size, 3), value, np.uint8)


@given(st.tuples(SIDE, SIDE), st.tuples(SIDE, SIDE), ASPECT)
def test_a_picture_touches_two_sides_in_the_middle_and_keeps_its_shape(
    picture: tuple[int, int], size: tuple[int, int], aspect: Fraction
) -> None:
    place = fit(picture, size, aspect)
    assert place.height == size[0] or place.width == size[1]
    assert 0 < place.height <= size[0] and 0 < place.width <= size[1]
    assert abs(2 * place.top + place.height - size[0]) <= 1
    assert abs(2 * place.left + place.width - size[1]) <= 1
    scale = min(size[0] / picture[0], size[1] / (picture[1] * aspect))
    assert place.height == pytest.approx(picture[0] * scale, abs=0.51) or place.height == 1
    assert place.width == pytest.approx(picture[1] * float(aspect) * scale, abs=0.51) or place.width == 1


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [((100, 400), (0, 100), (100, 300)), ((400, 200), (150, 250), (0, 200)), ((30, 60), (0, 30), (0, 60))],
)
def test_bars_are_black_and_the_picture_is_there(
    size: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    canvas = compose(plain((50, 100)), size, Notes())
    expected = np.zeros((*size, 3), np.uint8)
    expected[slice(*rows), slice(*columns)] = 200
    assert np.array_equal(canvas, expected)


def test_a_window_of_the_pictures_size_shows_it_to_the_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    canvas = compose(pixels, (90, 120), Notes())
    assert np.array_equal(canvas, pixels)
    assert not np.shares_memory(canvas, pixels)


def test_wide_pixels_make_a_wide_picture() -> None:
    canvas = compose(plain((100, 100)), (100, 300), Notes(), Fraction(2))
    assert np.flatnonzero(canvas[50, :, 0]).tolist() == list(range(50, 250))


@pytest.mark.parametrize("size", [(45, 60), (33, 47), (120, 161), (90, 30)])
def test_scaling_neither_shifts_nor_loses_detail(size: tuple[int, int]) -> None:
    ramp = np.broadcast_to(np.linspace(20, 220, 120)[None, :, None], (90, 120, 3)).astype(np.uint8)
    ramp = np.ascontiguousarray(ramp)
    place = fit((90, 120), size)
    shown = compose(ramp, size, Notes())[place.slices].astype(float)
    centers = (np.arange(place.width) + 0.5) / place.width * 120 - 0.5
    expected = np.interp(centers, np.arange(120), ramp[0, :, 0])
    assert np.abs(shown[..., 0] - expected).max() <= 2.5
    stripes = np.ascontiguousarray(np.tile(np.array([[0], [255]], np.uint8), (45, 120))[..., None].repeat(3, axis=2))
    assert compose(stripes, size, Notes())[place.slices].mean() == pytest.approx(127.5, abs=6)


def test_marks_are_amber_a_message_is_white_and_both_are_on_a_plate() -> None:
    pixels = plain((600, 800))
    canvas = compose(pixels, (600, 800), Notes(marks=("paused", "overlay off"), message="saved it"))
    rows = np.flatnonzero((canvas != pixels).any(axis=(1, 2)))
    assert rows[-1] < 150
    lines = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    assert len(lines) == 3
    for line, color in zip(lines, ((255, 176, 64), (255, 176, 64), (236, 238, 240)), strict=True):
        strip = canvas[line[0] : line[-1] + 1, 24:80].reshape(-1, 3)
        assert np.median(strip) < 70
        assert strip[strip[:, 0].argmax()] == pytest.approx(color, abs=8)


def test_a_table_is_in_the_middle_and_a_shadow_of_the_picture_stays() -> None:
    pixels = plain((600, 800))
    table = [("space", "pause"), ("o", "overlay on or off")]
    changed = (compose(pixels, (600, 800), Notes(table=table)) != pixels).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert abs(rows[0] + rows[-1] - 599) <= 1
    assert abs(columns[0] + columns[-1] - 799) <= 1
    assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_a_long_message_is_written_smaller_and_stays_inside() -> None:
    pixels = plain((240, 320))
    canvas = compose(pixels, (240, 320), Notes(message="saved snapshots/20260301-093000-125.png"))
    assert np.array_equal(canvas[:, -8:], pixels[:, -8:])
    assert canvas[:60].max() > 220


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.text(max_size=60))
def test_notes_fit_no_window_and_harm_none(height: int, width: int, text: str) -> None:
    notes = Notes(marks=(text, "paused"), message=text, table=[(text, text)] * 5)
    assert compose(plain((9, 16)), (height, width), notes).shape == (height, width, 3)
