"""Overlay: what is drawn, what is left alone, and that it is legible at any size."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.types import CLASS_COLORS, Region, Segmentation, UInt8Array
from mcdrl_rt.video import overlay
from mcdrl_rt.video.overlay import Hud, draw

NAMES = ("blur", "glare", "stool", "bubbles")


def segmentation(
    labels: UInt8Array, classes: tuple[str, ...] = ("polyp",), latency_ms: float = 12.3
) -> Segmentation:
    weights = np.array([0.4, 0.3, 0.2, 0.1], np.float32)
    region = Region(0, 0, *labels.shape)
    return Segmentation(labels, classes, weights, NAMES, np.zeros((7, 7), np.bool_), region, latency_ms)


def noise(size: tuple[int, int]) -> UInt8Array:
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)


def blob(size: tuple[int, int], value: int = 1) -> UInt8Array:
    labels = np.zeros(size, np.uint8)
    labels[size[0] // 4 : size[0] // 2, size[1] // 4 : size[1] // 2] = value
    return labels


def test_nothing_found_and_no_hud_changes_nothing() -> None:
    pixels = noise((90, 120))
    shown = draw(pixels, segmentation(np.zeros((90, 120), np.uint8)), colors=CLASS_COLORS)
    assert np.array_equal(shown, pixels)
    assert not np.shares_memory(shown, pixels)


@settings(max_examples=40, deadline=None)
@given(st.integers(40, 300), st.integers(40, 300), st.integers(0, 2**32 - 1))
def test_pixels_away_from_lesions_stay(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((height, width), np.uint8)
    for value in (1, 2):
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        labels[top : top + int(rng.integers(1, 40)), left : left + int(rng.integers(1, 40))] = value
    pixels = noise((height, width))
    before = pixels.copy()
    shown = draw(pixels, segmentation(labels, ("polyp", "ulcer")), colors=CLASS_COLORS)
    near = np.zeros((height, width), bool)
    for row, column in np.argwhere(labels):
        near[max(0, row - 4) : row + 5, max(0, column - 4) : column + 5] = True
    assert np.array_equal(shown[~near], before[~near])
    assert np.array_equal(pixels, before)


def test_tint_is_the_blend_it_says() -> None:
    pixels = noise((200, 200))
    shown = draw(pixels, segmentation(blob((200, 200))), colors=((64, 255, 96),), opacity=0.35)
    inside = (slice(60, 90), slice(60, 90))
    expected = 0.65 * pixels[inside] + 0.35 * np.array((64, 255, 96))
    assert np.abs(shown[inside] - expected).max() <= 1.01


@pytest.mark.parametrize("label", [1, 2, 3])
def test_each_class_has_its_colour(label: int) -> None:
    labels = blob((120, 120), label)
    shown = draw(np.zeros((120, 120, 3), np.uint8), segmentation(labels, ("a", "b", "c")), colors=CLASS_COLORS)
    assert tuple(shown[30, 45]) == CLASS_COLORS[label - 1]  # on the outline, which is opaque


def test_hole_in_a_lesion_is_left_alone() -> None:
    labels = blob((200, 200))
    labels[65:85, 65:85] = 0
    pixels = noise((200, 200))
    shown = draw(pixels, segmentation(labels), colors=CLASS_COLORS)
    assert np.array_equal(shown[70:80, 70:80], pixels[70:80, 70:80])


@pytest.mark.parametrize("size", [(480, 560), (480, 854), (1080, 1920), (2160, 3840), (1280, 720)])
def test_hud_stays_at_the_bottom_and_is_legible(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 200, np.uint8)
    shown = draw(pixels, segmentation(np.zeros(size, np.uint8)), colors=CLASS_COLORS, hud=Hud("mcdrl-small", 40.0))
    rows = np.flatnonzero((shown != pixels).any(axis=(1, 2)))
    assert rows[-1] == size[0] - 1
    assert len(rows) <= max(0.09 * size[0], 40)
    strip = shown[rows[0] :].max(axis=2)
    assert strip.max() > 200  # bright text …
    assert np.median(strip) < 70  # … on a dark plate, even over white


def test_hud_does_not_move_when_digits_change() -> None:
    def columns(latency_ms: float) -> int:
        shown = draw(
            np.zeros((480, 854, 3), np.uint8),
            segmentation(np.zeros((480, 854), np.uint8), latency_ms=latency_ms),
            colors=CLASS_COLORS,
            hud=Hud("m", 40.0, note="paused"),
        )
        amber = (shown[..., 0].astype(int) - shown[..., 2] > 150).any(axis=0)
        return int(np.flatnonzero(amber)[0])

    assert columns(8.1) == columns(111.9) == columns(44.4)


def test_an_old_mask_is_pointed_out() -> None:
    def amber(age_ms: float) -> bool:
        labels = np.zeros((480, 854), np.uint8)
        shown = draw(noise((480, 854)) // 8, segmentation(labels), colors=CLASS_COLORS, hud=Hud("m", age_ms))
        return bool((shown[..., 0].astype(int) - shown[..., 2] > 150).any())

    assert amber(900.0)
    assert not amber(40.0)


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (16, 300), (300, 8), (33, 41)])
def test_tiny_frames_do_not_fail(size: tuple[int, int]) -> None:
    labels = np.ones(size, np.uint8)
    assert draw(noise(size), segmentation(labels), colors=CLASS_COLORS, hud=Hud("m", 1.0)).shape == (*size, 3)


def test_what_threads_write_at_once_is_what_each_writes_alone() -> None:
    size = (480, 854)
    ready = threading.Barrier(6)

    def hud(seen: bool) -> UInt8Array:
        labels = blob(size) if seen else np.zeros(size, np.uint8)  # a class that is seen is written in bold
        return draw(np.zeros((*size, 3), np.uint8), segmentation(labels), colors=CLASS_COLORS, hud=Hud("m"))[400:]

    def at_once(seen: bool) -> UInt8Array:
        overlay._text_width.cache_clear()
        ready.wait()
        return hud(seen)

    alone = [hud(False), hud(True)]
    for _ in range(5):
        with ThreadPoolExecutor(6) as threads:
            shown = list(threads.map(at_once, [False, True] * 3))
        assert all(np.array_equal(picture, alone[place % 2]) for place, picture in enumerate(shown))
