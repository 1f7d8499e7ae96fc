"""Figures of one image, worked by hand, and their means."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from mcdrl_rt.types import ModelSpec, Region
from training.metrics import hd95, paired_bootstrap, s_measure, score_image, selected_pixels, summarise


def test_image_is_scored_by_hand() -> None:
    predicted, truth, seen = np.zeros((3, 4, 4), np.uint8)
    predicted[0, :3], truth[0, 1:], seen[:2, :2] = 1, 1, 1  # two of three agree
    score = score_image(predicted, truth, seen.astype(bool))
    assert (score.dice, score.iou, score.accuracy) == (pytest.approx(2 / 3), 0.5, 14 / 16)
    assert score.recall == pytest.approx(1 / 3)  # of pixels 1…3 only the first is seen
    assert score.lesion == 3 / 16


def test_two_empty_masks_agree_and_recall_is_undefined() -> None:
    empty = np.zeros((4, 4), np.uint8)
    score = score_image(empty, empty, np.ones((4, 4), bool))
    assert (score.dice, score.iou, score.accuracy) == (1.0, 1.0, 1.0)
    assert math.isnan(score.recall)


def test_right_place_under_a_wrong_name_is_not_right() -> None:
    truth = np.full((4, 4), 2, np.uint8)
    score = score_image(np.ones((4, 4), np.uint8), truth, truth > 0)
    assert (score.dice, score.iou, score.accuracy, score.recall) == (0.0, 0.0, 0.0, 1.0)


def test_what_is_marked_beside_a_lesion_counts_whatever_it_is_called() -> None:
    truth, found = np.zeros((2, 4, 4), np.uint8)
    truth[0], found[0] = 2, 2
    found[3, :2] = 1
    one = score_image(found, truth, truth > 0)
    found[3, :2] = 2
    other = score_image(found, truth, truth > 0)
    assert dataclasses.asdict(one) == dataclasses.asdict(other) and one.dice == pytest.approx(0.8)


def test_lesion_seen_where_none_is_costs_everything() -> None:
    found = np.zeros((3, 4), np.uint8)
    found[0, 0] = 3
    score = score_image(found, np.zeros((3, 4), np.uint8), np.ones((3, 4), bool))
    assert (score.dice, score.hd95) == (0.0, 5.0)
    assert score.s_measure == pytest.approx(11 / 12)


def test_hd95_by_hand() -> None:
    one, other = np.zeros((2, 40, 60), bool)
    one[5:15, 5:25], other[5:15, 12:32] = True, True  # moved by 7
    assert hd95(one, one) == 0
    assert hd95(one, other) == pytest.approx(7)
    assert hd95(one, np.zeros_like(one)) == pytest.approx(math.hypot(40, 60))
    assert hd95(np.zeros_like(one), np.zeros_like(one)) == 0


@given(arrays(bool, (9, 11)), arrays(bool, (9, 11)))
def test_hd95_is_what_all_pairs_of_outline_pixels_say(one: np.ndarray, other: np.ndarray) -> None:
    if not (one.any() and other.any()):
        return

    def outline(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        around = [padded[1 + i : 10 + i, 1 + j : 12 + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return np.argwhere(mask & ~np.logical_and.reduce(around))

    pairs = np.linalg.norm(outline(one)[:, None] - outline(other)[None], axis=2)
    expected = np.percentile(np.concatenate([pairs.min(axis=1), pairs.min(axis=0)]), 95)
    assert hd95(one, other) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("k", "expected"), [(0, 0.7717187520), (1, 0.8069772656), (2, 0.7058133120), (3, 0.6027492253)]
)
def test_s_measure_is_the_published_codes(k: int, expected: float) -> None:
    """Figures of a library verified against the authors' own code."""
    truth, found = np.zeros((2, 120, 160), np.uint8)
    cv2.ellipse(truth, (60 + 10 * k, 50), (30, 20 + 5 * k), 10 * k, 0, 360, 255, -1)
    cv2.ellipse(found, (70, 55 + 3 * k), (25 + 4 * k, 22), 0, 0, 360, 255, -1)
    assert s_measure(found > 0, truth > 0) == pytest.approx(expected, abs=1e-9)


@given(arrays(bool, (7, 8)), arrays(bool, (7, 8)))
def test_s_measure_is_a_share_and_one_for_the_truth(found: np.ndarray, truth: np.ndarray) -> None:
    assert 0 <= s_measure(found, truth) <= 1 + 1e-9
    assert s_measure(truth, truth) == pytest.approx(1)


def test_bootstrap_draws_groups() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat([str(i) for i in range(20)], 30)
    effect = np.repeat(rng.normal(0.05, 0.1, 20), 30)  # frames of a sequence are alike
    base = rng.uniform(0.5, 0.8, 600)
    mean, low, high = paired_bootstrap(base + effect, base, list(groups))
    assert mean == pytest.approx(effect.mean()) and low < mean < high
    _, alone_low, alone_high = paired_bootstrap(base + effect, base, [str(i) for i in range(600)])
    assert high - low > 3 * (alone_high - alone_low)  # taking frames for independent would promise too much
    assert paired_bootstrap(base, base, list(groups)) == (0, 0, 0)


@pytest.mark.parametrize("stride", [16, 24])
def test_cells_cover_what_they_lie_on(small_spec: ModelSpec, stride: int) -> None:
    """Cells that stick out beyond the input are cut off, not squeezed in; outside the region nothing is seen."""
    height, width = small_spec.input_size
    grid = (-(-height // stride), -(-width // stride))
    spec = dataclasses.replace(small_spec, grid_stride=stride, grid=grid)
    cells = np.zeros(grid, bool)
    cells[0, 1] = cells[-1, -1] = True
    seen = selected_pixels(cells, spec, Region(4, 6, 2 * height, 2 * width), (2 * height + 9, 2 * width + 9))
    expected = np.zeros_like(seen)
    expected[4 : 4 + 2 * stride, 6 + 2 * stride : 6 + 4 * stride] = True
    corner = ((grid[0] - 1) * 2 * stride, (grid[1] - 1) * 2 * stride)
    expected[4 + corner[0] : 4 + 2 * height, 6 + corner[1] : 6 + 2 * width] = True
    np.testing.assert_array_equal(seen, expected)


def test_means_are_per_image_and_recall_per_lesion_pixel() -> None:
    small, large = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    small[0, 0], large[:5] = 1, 1
    top = np.arange(10)[:, None] < np.full(10, 5)
    scores = [
        score_image(small, small, ~top),  # missed by the selection
        score_image(np.zeros_like(large), large, top),
    ]
    figures = summarise(scores)
    assert (figures["dice"], figures["images"], figures["accuracy"]) == (0.5, 2, 0.75)
    assert figures["selection_recall"] == pytest.approx(50 / 51, abs=1e-4)
    assert figures["selection_recall_per_image"] == 0.5
    assert (figures["dice_small"], figures["dice_large"]) == (1.0, 0.0)
    assert "dice_medium" not in figures
