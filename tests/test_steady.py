"""Steadiness: less flicker, no new labels, no lag where a mask moves, and one frame where a lesion comes or goes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.motion import Motion
from mcdrl_rt.video.phantom import Phantom, PhantomFrame
from mcdrl_rt.video.steady import Steady, flicker

SIZE = (240, 320)


@pytest.fixture(scope="module")
def frames() -> list[PhantomFrame]:
    """Sixteen frames in which polyps drift through the picture."""
    phantom = Phantom(SIZE, seed=7, fps=25)
    return [phantom.render(index) for index in range(16)]


def disc(x: int = 160, y: int = 120, radius: int = 30, label: int = 1) -> UInt8Array:
    labels = np.zeros(SIZE, np.uint8)
    cv2.circle(labels, (x, y), radius, label, -1)
    return labels


def overlap(one: UInt8Array, other: UInt8Array) -> float:
    return np.count_nonzero((one > 0) & (other > 0)) / np.count_nonzero((one > 0) | (other > 0))


def steadied(frames: list[PhantomFrame], masks: list[UInt8Array], still: bool = False) -> list[UInt8Array]:
    """The masks, one for each frame, or all on the first frame."""
    motion = Motion()
    steady, shown = Steady(motion), []
    for index, labels in enumerate(masks):
        motion.follow(frames[0 if still else index].pixels, index)
        shown.append(steady(labels, index))
    return shown


def frayed(masks: list[UInt8Array]) -> list[UInt8Array]:
    """Masks whose outlines are torn anew in each frame, as a model's are."""
    rng = np.random.default_rng(0)
    torn = []
    for mask in masks:
        noise = cv2.GaussianBlur(rng.normal(size=SIZE), (0, 0), 5)
        soft = cv2.GaussianBlur(mask.astype(float), (0, 0), 4) + 1.2 * noise / noise.std() * 0.15
        torn.append((soft > 0.5).astype(np.uint8))
    return torn


def aligned(frames: list[PhantomFrame], masks: list[UInt8Array]) -> list[tuple[UInt8Array, UInt8Array]]:
    """Each mask moved to the next frame, and that frame's own."""
    motion, pairs = Motion(), []
    for index, frame in enumerate(frames):
        motion.follow(frame.pixels, index)
        if index:
            moved = motion.move(masks[index - 1], index - 1)
            assert moved is not None
            pairs.append((moved, masks[index]))
    return pairs


def test_masks_flicker_less_and_are_no_worse(frames: list[PhantomFrame]) -> None:
    truth = [frame.mask for frame in frames]
    raw = frayed(truth)
    shown = steadied(frames, raw)
    before, after = flicker(aligned(frames, raw)), flicker(aligned(frames, shown))
    assert before is not None and after is not None
    assert after < 0.75 * before
    assert np.mean([*map(overlap, shown, truth)]) > np.mean([*map(overlap, raw, truth)])


def test_a_mask_that_moves_does_not_lag(frames: list[PhantomFrame]) -> None:
    shown, truth = steadied(frames, [frame.mask for frame in frames]), [frame.mask for frame in frames]
    behind = [np.mean([*map(overlap, shown[4:], truth[4 - lag : len(truth) - lag])]) for lag in (0, 1, 2)]
    assert behind[0] > behind[1] > behind[2]


def test_a_lesion_comes_and_goes_a_frame_late(frames: list[PhantomFrame]) -> None:
    shown = steadied(frames, [disc() * (5 <= index < 10) for index in range(16)], still=True)
    assert [int(labels.any()) for labels in shown] == [0] * 6 + [1] * 5 + [0] * 5
    assert overlap(shown[9], disc()) > 0.95


def test_what_is_there_at_the_start_is_shown_at_once(frames: list[PhantomFrame]) -> None:
    labels = disc()
    shown = steadied(frames, [labels, labels], still=True)
    assert shown[0] is labels
    assert overlap(shown[1], labels) > 0.95


def test_a_flash_is_not_shown_and_a_gap_is_closed(frames: list[PhantomFrame]) -> None:
    seen = [disc(60) | disc() * (index == 6) for index in range(12)]
    seen[9] = np.zeros(SIZE, np.uint8)
    shown = steadied(frames, seen, still=True)
    assert not any((labels & disc()).any() for labels in shown)
    assert all(overlap(labels, disc(60)) > 0.9 for labels in shown)


def test_classes_keep_apart(frames: list[PhantomFrame]) -> None:
    seen = [np.maximum(disc(100, label=3), disc(220, label=200)) for _ in range(6)]
    shown = steadied(frames, seen, still=True)[-1]
    for label in (3, 200):
        assert overlap((shown == label).astype(np.uint8), (seen[0] == label).astype(np.uint8)) > 0.95
    turned = steadied(frames, [disc(label=2)] * 4 + [disc(label=1)] * 4, still=True)
    assert [int(labels.max()) for labels in turned] == [2] * 5 + [1] * 3


def test_a_cut_and_another_size_begin_again(frames: list[PhantomFrame]) -> None:
    motion = Motion()
    steady = Steady(motion)
    other = Phantom(SIZE, seed=15).render(0).pixels
    for index, pixels in enumerate([frames[0].pixels, frames[1].pixels, other, cv2.resize(other, (400, 300))]):
        motion.follow(np.asarray(pixels, np.uint8), index)
        labels = np.zeros(pixels.shape[:2], np.uint8)
        labels[50:90, 10 + 60 * index : 50 + 60 * index] = 1
        assert (steady(labels, index) is labels) == (index != 1)


def test_masks_may_come_late_and_for_some_frames_only(frames: list[PhantomFrame]) -> None:
    motion = Motion()
    steady = Steady(motion)
    for index, frame in enumerate(frames):
        motion.follow(frame.pixels, index)
        if index >= 3 and index % 3 == 0:
            shown = steady(frames[index - 2].mask, index - 2)  # the model took two frames' time
            assert overlap(shown, frames[index - 2].mask) > 0.6


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, n) for n in (319, 239, 60, 254)]), max_size=6), st.booleans())
def test_nothing_is_invented(
    frames: list[PhantomFrame], discs: list[tuple[int, int, int, int]], still: bool
) -> None:
    seen = [np.zeros(SIZE, np.uint8), *(disc(*each) for each in discs), np.zeros(SIZE, np.uint8)]
    present = {0}
    for labels, shown in zip(seen, steadied(frames, seen, still), strict=True):
        present |= set(np.unique(labels))
        assert shown.shape == labels.shape and shown.dtype == np.uint8
        assert set(np.unique(shown)) <= present
        assert shown.any() <= (len(present) > 1)


def test_flicker_counts_what_changes() -> None:
    empty, whole = np.zeros((4, 4), np.uint8), np.ones((4, 4), np.uint8)
    half = whole.copy()
    half[:2] = 0
    assert flicker([]) is flicker([(empty, empty)]) is None
    assert flicker([(whole, whole), (empty, empty)]) == 0
    assert flicker([(whole, half)]) == pytest.approx(0.5)
    assert flicker([(whole, empty), (half, half)]) == pytest.approx(0.5)
    assert flicker([(whole, 2 * whole)]) == 1  # another class is another finding
