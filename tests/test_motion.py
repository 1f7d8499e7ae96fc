"""Motion: a mask stays on its tissue, invents nothing, and is given up where nobody can say where it went."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.types import FloatArray, UInt8Array
from mcdrl_rt.video.motion import HISTORY, Motion
from mcdrl_rt.video.phantom import Phantom, PhantomFrame
from mcdrl_rt.video.source import open_source

SIZE = (240, 320)


@pytest.fixture(scope="module")
def frames() -> list[PhantomFrame]:
    """Sixteen frames with polyps, a camera that is on its way, and a black surround."""
    phantom = Phantom(SIZE, seed=7, fps=25)
    return [phantom.render(index) for index in range(16)]


@pytest.fixture(scope="module")
def tissue() -> UInt8Array:
    """A frame without surround: whatever part of it is looked at, there is something to see."""
    return Phantom((300, 400), seed=3, surround=False).render(0).pixels


@pytest.fixture(scope="module")
def real(data_root: Path) -> UInt8Array:
    """The 28th frame of a colonoscopy, 480×560."""
    with open_source(str(data_root / "video" / "colonoscopy_560x480_25fps.mp4")) as source:
        return next(frame.pixels for frame in source if frame.index == 27)


def disc(size: tuple[int, int], x: float, y: float, radius: int, label: int = 1) -> UInt8Array:
    labels = np.zeros(size, np.uint8)
    cv2.circle(labels, (round(x), round(y)), radius, label, -1)
    return labels


def overlap(one: UInt8Array, other: UInt8Array) -> float:
    """Intersection over union."""
    return np.count_nonzero((one > 0) & (other > 0)) / np.count_nonzero((one > 0) | (other > 0))


def apart(one: UInt8Array, other: UInt8Array) -> float:
    """Mean distance of two outlines in pixels: the area between them by the outline's length."""
    outline = cv2.morphologyEx((other > 0).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((2, 2), np.uint8))
    return np.count_nonzero((one > 0) != (other > 0)) / np.count_nonzero(outline)


def similarity(size: tuple[int, int], angle: float, zoom: float, dx: float, dy: float) -> FloatArray:
    matrix = cv2.getRotationMatrix2D((size[1] / 2, size[0] / 2), angle, zoom)
    matrix[:, 2] += dx, dy
    return matrix


def warped(image: UInt8Array, matrix: FloatArray, how: int) -> UInt8Array:
    return np.asarray(cv2.warpAffine(image, matrix, image.shape[1::-1], flags=how), np.uint8)


def followed(*pictures: UInt8Array) -> Motion:
    motion = Motion()
    for index, pixels in enumerate(pictures):
        motion.follow(pixels, index)
    return motion


def drift(tissue: UInt8Array, steps: int, dx: int = 2) -> Iterator[UInt8Array]:
    """A window of 240×320 that goes to the right, so that what is in it goes to the left."""
    for step in range(steps):
        yield np.ascontiguousarray(tissue[20:260, 10 + dx * step : 330 + dx * step])


@pytest.mark.parametrize("age", [1, 2, 3, 4])
def test_a_moved_mask_fits_the_phantom_better_than_one_left_where_it_was(frames: list[PhantomFrame], age: int) -> None:
    motion, moved_fit, left_fit = Motion(), [], []
    for index, frame in enumerate(frames):
        motion.follow(frame.pixels, index)
        if index >= age:
            before = frames[index - age].mask
            moved = motion.move(before, index - age)
            assert moved is not None
            moved_fit.append(overlap(moved, frame.mask))
            left_fit.append(overlap(before, frame.mask))
    # what comes into view meanwhile no motion can know
    assert 1 - np.mean(moved_fit) < 0.6 * (1 - np.mean(left_fit))  # two fifths of what is wrong, at least


@pytest.mark.parametrize(
    ("angle", "zoom", "dx", "dy"),
    [(0, 1, 9, -6), (0, 1, -17, 3), (4, 1, 0, 0), (-3, 1, 5, 5), (0, 1.05, 0, 0), (0, 0.95, -4, 2), (3, 1.03, 8, 4)],
)
@pytest.mark.parametrize("place", [(170, 250), (330, 200)])
def test_a_known_motion_of_a_real_frame_is_found_to_within_a_pixel(
    real: UInt8Array, angle: float, zoom: float, dx: float, dy: float, place: tuple[int, int]
) -> None:
    matrix = similarity((480, 560), angle, zoom, dx, dy)
    labels = disc((480, 560), *place, 55)
    moved = followed(real, warped(real, matrix, cv2.INTER_LINEAR)).move(labels, 0)
    assert moved is not None
    assert apart(moved, warped(labels, matrix, cv2.INTER_NEAREST)) < 1.3
    assert apart(labels, warped(labels, matrix, cv2.INTER_NEAREST)) > 1.5


def test_small_steps_add_up_and_lead_as_far_back_as_the_history(tissue: UInt8Array) -> None:
    motion = followed(*drift(tissue, HISTORY + 2, dx=2))
    labels = disc(SIZE, 200, 120, 30)
    assert motion.move(labels, 0) is None
    moved = motion.move(labels, 1)
    assert moved is not None
    assert apart(moved, disc(SIZE, 200 - 2 * HISTORY, 120, 30)) < 1.5
    assert HISTORY >= 16


def test_two_lesions_go_two_ways(tissue: UInt8Array) -> None:
    def halves(step: int) -> UInt8Array:
        left, right = tissue[20:260, 40 - step : 200 - step], tissue[20:260, 200 + step : 360 + step]
        return np.hstack([left, right])

    labels = disc(SIZE, 70, 120, 30, 1) + disc(SIZE, 250, 120, 30, 2)
    moved = followed(halves(0), halves(4), halves(8)).move(labels, 0)
    assert moved is not None
    for label, x in ((1, 78), (2, 242)):
        assert apart((moved == label).astype(np.uint8), disc(SIZE, x, 120, 30)) < 1.3


def test_neither_glare_nor_text_nor_surround_holds_a_mask_back(tissue: UInt8Array) -> None:
    def shown(pixels: UInt8Array) -> UInt8Array:
        canvas = np.zeros((300, 460, 3), np.uint8)
        canvas[30:270, 70:390] = pixels
        cv2.putText(canvas, "DOE 12:03", (75, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1)
        for x in (230, 245, 262):
            cv2.circle(canvas, (x, 150 + x % 7), 3, (255, 255, 255), -1)
        return canvas

    moved = followed(*map(shown, drift(tissue, 4, dx=4))).move(disc((300, 460), 245, 150, 32), 0)
    assert moved is not None
    assert apart(moved, disc((300, 460), 245 - 12, 150, 32)) < 2


def test_a_lesion_that_left_the_picture_is_gone(tissue: UInt8Array) -> None:
    moved = followed(*drift(tissue, 9, dx=8)).move(disc(SIZE, 20, 120, 8), 0)
    assert moved is not None and not moved.any()


def flat(pixels: UInt8Array) -> UInt8Array:
    """What a processor shows without a signal."""
    screen = np.full_like(pixels, (20, 30, 200))
    cv2.putText(screen, "NO SIGNAL", (90, 120), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
    return screen


@pytest.mark.parametrize("other", ["mirrored", "another scene", "black", "no signal", "another size", "noise"])
def test_after_a_cut_there_is_nothing_to_show(frames: list[PhantomFrame], other: str) -> None:
    pixels, labels = frames[1].pixels, frames[1].mask
    rng = np.random.default_rng(0)
    cut = {
        "mirrored": np.ascontiguousarray(pixels[:, ::-1]),
        "another scene": Phantom(SIZE, seed=15).render(0).pixels,
        "black": np.zeros_like(pixels),
        "no signal": flat(pixels),
        "another size": cv2.resize(pixels, (400, 300)),
        "noise": rng.integers(0, 256, pixels.shape).astype(np.uint8),
    }[other]
    motion = followed(frames[0].pixels, pixels)
    assert motion.move(frames[0].mask, 0) is not None
    motion.follow(cut, 2)
    assert motion.move(labels, 0) is motion.move(labels, 1) is None
    assert motion.move(np.zeros_like(labels), 1) is None  # that nothing was found there says nothing of this
    motion.follow(cut, 3)  # what is new is followed, if there is anything to see
    again = motion.move(np.zeros(cut.shape[:2], np.uint8), 2)
    assert (again is None) == (other == "black")


@pytest.mark.parametrize("size", [(1, 1), (9, 9), (15, 40), (12, 900), (2000, 3)])
def test_a_sliver_is_not_followed(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 3), 120, np.uint8)
    assert followed(pixels, pixels).move(np.ones(size, np.uint8), 0) is None


def test_what_was_not_followed_is_not_known(frames: list[PhantomFrame]) -> None:
    assert Motion().move(frames[0].mask, 0) is None
    motion = followed(frames[0].pixels, frames[1].pixels)
    assert motion.move(frames[0].mask, 2) is motion.move(frames[0].mask, -1) is None
    assert motion.between(1, 0) is None


def test_indices_may_have_gaps(frames: list[PhantomFrame]) -> None:
    motion = Motion()
    for index in (3, 7, 20):
        motion.follow(frames[index // 4].pixels, index)
    assert motion.move(frames[0].mask, 3) is not None and motion.move(frames[0].mask, 4) is None


@st.composite
def label_maps(draw: st.DrawFn) -> UInt8Array:
    """A few rectangles and single pixels of any label, overlapping, at the edges, or none."""
    labels = np.zeros(SIZE, np.uint8)
    for _ in range(draw(st.integers(0, 5))):
        top, left = draw(st.integers(0, SIZE[0] - 1)), draw(st.integers(0, SIZE[1] - 1))
        tall, wide = draw(st.sampled_from([(1, 1), (3, 40), (60, 60), (240, 320)]))
        labels[top : top + tall, left : left + wide] = draw(st.integers(1, 254))
    return labels


@settings(max_examples=40, deadline=None)
@given(labels=label_maps(), first=st.integers(0, 15))
def test_moving_invents_no_label_and_keeps_the_form(
    frames: list[PhantomFrame], labels: UInt8Array, first: int
) -> None:
    motion, before = followed(*(frame.pixels for frame in frames)), labels.copy()
    moved = motion.move(labels, first)
    assert np.array_equal(labels, before)
    if moved is None:
        return
    assert moved.shape == labels.shape and moved.dtype == np.uint8
    assert set(np.unique(moved)) <= set(np.unique(labels)) | {0}
    if not labels.any() or first == len(frames) - 1:
        assert moved is labels


@settings(max_examples=30, deadline=None)
@given(labels=label_maps(), scale=st.sampled_from([1, 2, 3.7]))
def test_where_nothing_moves_a_mask_stays_to_the_pixel(
    frames: list[PhantomFrame], labels: UInt8Array, scale: float
) -> None:
    size = (round(SIZE[1] * scale), round(SIZE[0] * scale))
    pixels = np.asarray(cv2.resize(frames[0].pixels, size), np.uint8)
    labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), np.uint8)
    moved = followed(pixels, pixels, pixels).move(labels, 0)
    assert moved is not None
    np.testing.assert_array_equal(moved, labels)
