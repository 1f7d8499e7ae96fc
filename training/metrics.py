"""Per-image figures of a segmentation against its mask, and their means (method §6: per image, then averaged)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mcdrl_rt.types import BoolArray, ModelSpec, Region, UInt8Array

SMALL = 0.02  # lesions below this share of the image
LARGE = 0.10
DRAWS = 10_000  # of the bootstrap


@dataclass(frozen=True)
class ImageScore:
    """One image's figures.

    Args:
        dice, iou: of the image's lesion class; what is marked beside its lesion counts, whatever it is called. Both 1
            where neither mask has a pixel.
        accuracy: share of pixels right.
        hd95: 95th percentile of the distances between the two outlines, in pixels; the image's diagonal where one mask
            is empty, 0 where both are.
        s_measure: structure measure (Fan et al. 2017), 0…1.
        recall: share of lesion pixels under selected cells; NaN without lesion.
        lesion: share of the image that is lesion.
    """

    dice: float
    iou: float
    accuracy: float
    hd95: float
    s_measure: float
    recall: float
    lesion: float


def selected_pixels(selected: BoolArray, spec: ModelSpec, region: Region, size: tuple[int, int]) -> BoolArray:
    """The pixels (H, W) of an image of ``size`` under the selected cells (h, w), which lie on its ``region``."""
    height, width = spec.input_size
    pixels = selected.view(np.uint8).repeat(spec.grid_stride, axis=0).repeat(spec.grid_stride, axis=1)
    seen = np.zeros(size, bool)
    seen[region.slices] = cv2.resize(
        pixels[:height, :width], (region.width, region.height), interpolation=cv2.INTER_NEAREST
    ).astype(bool)
    return seen


def score_image(predicted: UInt8Array, truth: UInt8Array, seen: BoolArray) -> ImageScore:
    """Score labels (H, W) against the mask (H, W) of the same size.

    Args:
        predicted, truth: label ids, 0 = background; ``truth`` has one other at most.
        seen: (H, W), the pixels under selected cells.
    """
    other = truth > 0
    label = int(truth.max())
    # the right place under a wrong name is not right, and the wrong place is wrong under any
    one = np.where(other, predicted == label, predicted > 0)
    both, either = int((one & other).sum()), int((one | other).sum())
    total = int(one.sum()) + int(other.sum())
    return ImageScore(
        dice=2 * both / total if total else 1.0,
        iou=both / either if either else 1.0,
        accuracy=float((predicted == truth).mean()),
        hd95=hd95(one, other),
        s_measure=s_measure(one, other),
        recall=float(seen[other].mean()) if other.any() else math.nan,
        lesion=float(other.mean()),
    )


def hd95(one: BoolArray, other: BoolArray) -> float:
    """95th percentile of the distances from each outline's pixels to the other outline, both ways together."""
    if not (one.any() and other.any()):
        return float(np.hypot(*one.shape)) if one.any() or other.any() else 0.0
    outlines = [_outline(one), _outline(other)]
    away = [cv2.distanceTransform((~line).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for line in outlines]
    return float(np.percentile(np.concatenate([away[1][outlines[0]], away[0][outlines[1]]]), 95))


def _outline(mask: BoolArray) -> BoolArray:
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & ~inner.astype(bool)


def s_measure(predicted: BoolArray, truth: BoolArray) -> float:
    """Structure measure of a binary map: half likeness of lesion and background, half of four parts (Fan et al. 2017).

    The parts meet at the lesion's centre of mass.
    """
    share = truth.mean()
    if share in (0, 1):
        return float(predicted.mean() if share else 1 - predicted.mean())
    alike = share * _object_score(predicted[truth]) + (1 - share) * _object_score(~predicted[~truth])
    row, column = (round(float(place.mean())) + 1 for place in np.nonzero(truth))
    parts = 0.0
    for rows in (slice(None, row), slice(row, None)):
        for columns in (slice(None, column), slice(column, None)):
            one, other = predicted[rows, columns], truth[rows, columns]
            if one.size:
                parts += _likeness(one, other) * one.size / truth.size
    return float(max(0.0, 0.5 * alike + 0.5 * parts))


def _object_score(right: BoolArray) -> float:
    """How fully and evenly a region is marked."""
    mean = float(right.mean())
    spread = math.sqrt(mean * (1 - mean) * right.size / (right.size - 1)) if right.size > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + spread)


def _likeness(one: BoolArray, other: BoolArray) -> float:
    """SSIM without its constants, of two binary maps."""
    x, y, both = float(one.mean()), float(other.mean()), float((one & other).mean())
    spread = x * (1 - x) + y * (1 - y)
    if not x * y * (both - x * y):
        return 1.0 if not (x**2 + y**2) * spread else 0.0
    return 4 * x * y * (both - x * y) / ((x**2 + y**2) * spread)


def summarise(scores: Sequence[ImageScore]) -> dict[str, float]:
    """Means over images; selection recall is over lesion area, all images taken as equally large; Dice also by lesion
    size."""
    lesion = np.array([s.lesion for s in scores])
    dice, recall = np.array([s.dice for s in scores]), np.array([s.recall for s in scores])
    with_lesion = lesion > 0
    bands = {"small": lesion < SMALL, "medium": (lesion >= SMALL) & (lesion < LARGE), "large": lesion >= LARGE}
    figures = {"images": float(len(scores))}
    figures |= {
        name: float(np.mean([getattr(s, name) for s in scores]))
        for name in ("dice", "iou", "accuracy", "hd95", "s_measure")
    }
    if with_lesion.any():
        figures["selection_recall"] = float(np.average(recall[with_lesion], weights=lesion[with_lesion]))
        figures["selection_recall_per_image"] = float(recall[with_lesion].mean())
    for name, band in bands.items():
        band = band & with_lesion
        if band.any():
            figures |= {f"dice_{name}": float(dice[band].mean()), f"recall_{name}": float(recall[band].mean())}
            figures[f"images_{name}"] = float(band.sum())
    return {name: round(value, 4) for name, value in figures.items()}


def paired_bootstrap(
    one: Sequence[float], other: Sequence[float], groups: Sequence[str], seed: int = 0
) -> tuple[float, float, float]:
    """Mean of ``one`` − ``other`` over the same images, and its 95 % interval.

    Args:
        one, other: a figure of two methods, image by image.
        groups: what each image belongs to: frames of a sequence are alike, so whole groups are drawn.
        seed: of the draws.

    Returns:
        Mean, 2.5th and 97.5th percentile.
    """
    difference = np.asarray(one, float) - np.asarray(other, float)
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(place, difference), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)
