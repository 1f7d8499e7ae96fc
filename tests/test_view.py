"""View: what each key changes of what is seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from mcdrl_rt.types import CLASS_COLORS, Frame, Region, Segmentation, Shown, UInt8Array
from mcdrl_rt.video.overlay import Hud, draw
from mcdrl_rt.video.view import KEYS, View

SIZE = (240, 320)


def shown(index: int = 0, clean: bool = True) -> Shown:
    pixels = np.random.default_rng(index).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    labels = np.zeros(SIZE, np.uint8)
    labels[60:120, 80:160] = 1
    weights = np.array([0.7, 0.3], np.float32)
    found = Segmentation(
        labels, ("polyp",), weights, ("blur", "glare"), np.zeros((7, 7), np.bool_), Region(0, 0, *SIZE), 12.0
    )
    drawn = draw(pixels, found, colors=CLASS_COLORS, hud=Hud("small", 40.0))
    return Shown(Frame(drawn, index, Fraction(1, 25)), pixels if clean else None, found, age_ms=40.0)


def redrawn(frame: Shown, opacity: float) -> UInt8Array:
    assert frame.clean is not None and frame.segmentation is not None
    return draw(frame.clean, frame.segmentation, colors=CLASS_COLORS, hud=Hud("small", 40.0), opacity=opacity)


@pytest.fixture
def view(tmp_path: Path) -> View:
    return View(colors=CLASS_COLORS, title=lambda: "small", opacity=0.35, snapshots=tmp_path / "snapshots")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Advance the time the view lives in."""
    now = [1000.0]
    monkeypatch.setattr("mcdrl_rt.video.view.time.monotonic", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_before_the_first_frame_it_says_so_and_every_key_is_harmless(view: View) -> None:
    for character in " o+-sfh?":
        assert view.press(character)
    assert not view.picture().any()
    assert "waiting for the first frame" in view.notes().marks


def test_what_the_stream_drew_is_shown_as_it_is(view: View) -> None:
    frame = shown()
    assert view.take(frame)
    assert view.picture() is frame.frame.pixels
    assert view.notes().marks == ()
    assert view.notes().message == ""


@pytest.mark.parametrize("key", ["o", "O"])
def test_overlay_goes_off_and_on_and_off_is_said(view: View, key: str) -> None:
    frame = shown()
    view.take(frame)
    view.press(key)
    assert view.picture() is frame.clean
    assert view.notes().marks == ("overlay off",)
    view.press(key)
    assert view.picture() is frame.frame.pixels


def test_pause_holds_the_picture_and_the_newest_follows(view: View) -> None:
    first, second, third = (shown(index) for index in range(3))
    view.take(first)
    view.press(" ")
    assert not view.take(second)
    assert not view.take(third)
    assert view.picture() is first.frame.pixels
    assert view.notes().marks == ("paused",)
    view.press(" ")
    assert view.picture() is third.frame.pixels
    assert view.notes().marks == ()


def test_opacity_changes_what_is_drawn_and_stays_in_its_bounds(view: View, clock: Callable[[float], None]) -> None:
    frame = shown()
    view.take(frame)
    view.press("+")
    assert np.array_equal(view.picture(), redrawn(frame, 0.45))
    assert view.notes().message == "opacity 45%"
    for _ in range(9):
        view.press("=")
    assert np.array_equal(view.picture(), redrawn(frame, 1.0))
    for _ in range(12):
        view.press("-")
    assert np.array_equal(view.picture(), redrawn(frame, 0.0))
    assert view.notes().message == "opacity 0%"
    clock(2)
    assert view.notes().message == ""


def test_changing_its_opacity_brings_the_overlay_back(view: View) -> None:
    frame = shown()
    view.take(frame)
    view.press("o")
    view.press("-")
    assert np.array_equal(view.picture(), redrawn(frame, 0.25))
    assert view.notes().marks == ()


def test_a_frame_without_a_mask_is_shown_as_the_stream_drew_it(view: View) -> None:
    frame = dataclasses.replace(shown(), segmentation=None, age_ms=None, note="no fresh mask")
    view.take(frame)
    view.press("+")
    assert view.picture() is frame.frame.pixels


@pytest.mark.parametrize("key", ["o", "+", "-"])
def test_where_no_clean_frame_is_kept_the_key_says_so(view: View, key: str) -> None:
    frame = shown(clean=False)
    view.take(frame)
    view.press(key)
    assert view.picture() is frame.frame.pixels
    assert view.notes().message == "there is no frame without overlay"


def test_help_is_shown_for_a_while_or_until_asked_again(view: View, clock: Callable[[float], None]) -> None:
    view.press("?")
    assert view.notes().table == KEYS
    clock(60)
    assert view.notes().table == ()
    view.press("h")
    view.press("h")
    assert view.notes().table == ()


def test_the_table_names_every_key(view: View) -> None:
    named = {"space": " ", "Esc": "\x1b", "−": "-"}
    characters = {named.get(name, name) for names, _ in KEYS for name in names.split()}
    assert all(view.press(character) for character in characters)
    assert not any(view.press(character) for character in "abcxyz1€") and not view.press("")


def test_full_screen_and_the_end_are_wishes_for_the_window(view: View) -> None:
    view.press("f")
    assert view.full_screen and not view.closed
    view.press("f")
    assert not view.full_screen
    view.press("\x1b")
    assert view.closed


def test_a_snapshot_keeps_what_is_shown_and_the_frame_as_it_came(view: View, tmp_path: Path) -> None:
    frame = shown()
    view.take(frame)
    view.press("+")
    view.press("s")
    clean, seen = sorted((tmp_path / "snapshots").iterdir())
    assert clean.name == f"{seen.stem}-clean.png"
    assert np.array_equal(cv2.cvtColor(cv2.imread(str(clean)), cv2.COLOR_BGR2RGB), frame.clean)
    assert np.array_equal(cv2.cvtColor(cv2.imread(str(seen)), cv2.COLOR_BGR2RGB), redrawn(frame, 0.45))
    assert view.notes().message == f"saved {seen}"


def test_a_snapshot_without_a_clean_frame_is_one_picture(view: View, tmp_path: Path) -> None:
    view.take(shown(clean=False))
    view.press("s")
    (seen,) = (tmp_path / "snapshots").iterdir()
    assert "clean" not in seen.name


def test_a_snapshot_that_cannot_be_written_is_said(view: View, tmp_path: Path) -> None:
    (tmp_path / "snapshots").write_text("in the way")
    view.take(shown())
    view.press("s")
    assert view.notes().message == f"cannot write {tmp_path / 'snapshots'}: file exists"


def test_what_segments_now_is_said_and_nothing_where_the_stream_says_nothing(tmp_path: Path) -> None:
    """A picture of its own: at another opacity than the stream's."""
    names, pictures = ["small · openvino"], []
    for title in (lambda: names[0], None):
        view = View(colors=CLASS_COLORS, title=title, snapshots=tmp_path)
        view.take(shown())
        view.press("+")
        pictures.append(view.picture())
        names[0] = "small · torch"
        pictures.append(view.picture())
    with_first, with_second, *without = pictures
    assert not np.array_equal(with_first, with_second)
    assert np.array_equal(*without)
    assert not np.array_equal(without[0], with_first)
