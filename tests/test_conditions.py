"""Imaging conditions drawn on pictures: each does what its name says, and to the mask only what it must."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.prompts import CONFOUNDERS
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom import SITES, Phantom
from mcdrl_rt.video.region import find_region
from training.conditions import (
    CONDITIONS,
    PHANTOM_CONDITIONS,
    apply_condition,
    draw_conditions,
    shown_conditions,
)

NAMES = tuple(name for name, _ in CONFOUNDERS if name != "a distant view")  # which nobody can draw
MOVING = {"a close-up view", "a tangential view"}


@pytest.fixture(scope="module")
def scene() -> tuple[UInt8Array, UInt8Array]:
    """A frame of the phantom that shows a whole polyp, and its mask."""
    frames = (Phantom((160, 192), seed=2, surround=False).render(i) for i in range(0, 900, 10))
    whole = (frame for frame in frames if 0.02 < frame.mask[20:-20, 20:-20].mean() and frame.mask.mean() < 0.2)
    frame = next(frame for frame in whole if frame.mask[20:-20, 20:-20].sum() == frame.mask.sum())
    return frame.pixels, frame.mask


def change(name: str, scene: tuple[UInt8Array, UInt8Array], seed: int = 0) -> tuple[UInt8Array, UInt8Array]:
    return apply_condition(name, np.random.default_rng(seed), *scene)


def detail(pixels: UInt8Array) -> float:
    return float(cv2.Laplacian(pixels.astype(np.float32), cv2.CV_32F).std())


def test_every_confounder_can_be_drawn_and_every_site_of_the_phantom_is_one() -> None:
    assert set(CONDITIONS) == set(NAMES)
    assert set(PHANTOM_CONDITIONS) == set(SITES)
    assert {name for shown in PHANTOM_CONDITIONS.values() for name in shown} <= set(NAMES)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    size=st.tuples(st.integers(48, 140), st.integers(48, 140)),
    seed=st.integers(0, 2**31),
)
def test_any_picture_keeps_its_form_and_is_left_alone(name: str, size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, (*size, 3)).astype(np.uint8), (0, 0), 3)
    labels = np.zeros(size, np.uint8)
    labels[size[0] // 3 : size[0] // 2, size[1] // 4 : size[1] // 2] = 2
    before = pixels.copy(), labels.copy()
    changed, moved = apply_condition(name, np.random.default_rng(seed), pixels, labels)
    assert (changed.shape, changed.dtype, moved.shape, moved.dtype) == (pixels.shape, np.uint8, size, np.uint8)
    assert set(np.unique(moved)) <= {0, 2}
    np.testing.assert_array_equal(pixels, before[0])
    np.testing.assert_array_equal(labels, before[1])
    again, _ = apply_condition(name, np.random.default_rng(seed), pixels, labels)
    np.testing.assert_array_equal(changed, again)


@pytest.mark.parametrize("name", NAMES)
def test_only_distance_and_angle_move_the_mask(name: str, scene: tuple[UInt8Array, UInt8Array]) -> None:
    changed, moved = change(name, scene)
    assert np.array_equal(moved, scene[1]) == (name not in MOVING)
    assert np.array_equal(changed, scene[0]) == (name == "white-light imaging")


@pytest.mark.parametrize("seed", range(5))
def test_conditions_are_what_they_are_called(scene: tuple[UInt8Array, UInt8Array], seed: int) -> None:
    pixels, mask = scene
    mean = float(pixels.mean())
    assert change("dim lighting", scene, seed)[0].mean() < 0.6 * mean
    assert change("bright lighting", scene, seed)[0].mean() > 1.15 * mean
    for name in ("motion blur", "defocus"):
        assert detail(change(name, scene, seed)[0]) < 0.6 * detail(pixels)
    red, green, blue = change("narrow-band imaging", scene, seed)[0].mean(axis=(0, 1))
    assert red < 1.1 * max(green, blue)  # no longer the red of white light
    assert pixels[..., 0].mean() > 1.2 * pixels[..., 1].mean()
    blood = change("blood", scene, seed)[0].astype(np.int16) - pixels
    assert blood[..., 1].mean() < -2 and blood[..., 1].mean() < blood[..., 0].mean()
    assert (change("specular reflection", scene, seed)[0].min(axis=2) > 245).sum() > (pixels.min(axis=2) > 245).sum()
    assert change("a close-up view", scene, seed)[1].mean() > 1.3 * mask.mean()
    halves = np.sort([half.mean() for half in np.split(change("uneven lighting", scene, seed)[0], 2, axis=seed % 2)])
    assert halves[0] < mean


def test_unknown_condition_is_named_with_the_known(scene: tuple[UInt8Array, UInt8Array]) -> None:
    with pytest.raises(SpecError, match=r"'fog'; known: .*motion blur"):
        change("fog", scene)


def test_conditions_are_drawn_at_their_rate_and_plain_imaging_never() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_conditions(NAMES[:12], rng, 0.4) for _ in range(2000)]
    assert all("white-light imaging" not in names and len(set(names)) == len(names) for names in drawn)
    assert {len(names) for names in drawn} == {0, 1, 2}
    assert np.mean([len(names) for names in drawn]) == pytest.approx(0.48, abs=0.05)
    assert draw_conditions(("white-light imaging",), rng, 1.0) == ()


def test_what_the_dictionary_does_not_name_is_not_shown() -> None:
    plain = [float(name == "white-light imaging") for name in NAMES[:12]]
    assert shown_conditions(("bubbles",), NAMES[:12]).tolist() == plain
    assert shown_conditions(("white-light imaging", "blood"), NAMES[:12]).sum() == 2


def test_no_picture_shows_both_kinds_of_light() -> None:
    shown = shown_conditions(("white-light imaging", "narrow-band imaging", "blood"), NAMES)
    assert {name for name, value in zip(NAMES, shown, strict=True) if value} == {"narrow-band imaging", "blood"}


def test_the_runtime_does_not_cut_away_what_was_drawn(scene: tuple[UInt8Array, UInt8Array]) -> None:
    for seed in range(5):
        changed, _ = change("a tangential view", scene, seed)
        region = find_region(changed)
        assert region.height * region.width > 0.95 * changed.shape[0] * changed.shape[1]
