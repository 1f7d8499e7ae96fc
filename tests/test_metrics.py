"""Figures of one image, worked by hand, and their means."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from mcdrl_rt.types import ModelSpec, Region
from training.metrics import score_image, selected_pixels, summarise


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
