"""Per-image figures of a segmentation against its mask, and their means (method §6: per image, then averaged)."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mcdrl_rt.types import BoolArray, ModelSpec, Region, UInt8Array

SMALL = 0.02  # lesions below this share of the image
LARGE = 0.10


@dataclass(frozen=True)
class ImageScore:
    """One image's figures.

    Args:
        dice, iou: of the lesion class; both 1 where neither mask has a pixel.
        accuracy: share of pixels right.
        recall: share of lesion pixels under selected cells; NaN without lesion.
        lesion: share of the image that is lesion.
    """

    dice: float
    iou: float
    accuracy: float
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
        predicted, truth: label ids, 0 = background.
        seen: (H, W), the pixels under selected cells.
    """
    one, other = predicted > 0, truth > 0
    both, either = int((one & other).sum()), int((one | other).sum())
    total = int(one.sum()) + int(other.sum())
    return ImageScore(
        dice=2 * both / total if total else 1.0,
        iou=both / either if either else 1.0,
        accuracy=float((predicted == truth).mean()),
        recall=float(seen[other].mean()) if other.any() else float("nan"),
        lesion=float(other.mean()),
    )


def summarise(scores: list[ImageScore]) -> dict[str, float]:
    """Means over images; selection recall is over lesion pixels, Dice also by lesion size."""
    lesion = np.array([s.lesion for s in scores])
    dice, recall = np.array([s.dice for s in scores]), np.array([s.recall for s in scores])
    with_lesion = lesion > 0
    bands = {"small": lesion < SMALL, "medium": (lesion >= SMALL) & (lesion < LARGE), "large": lesion >= LARGE}
    figures = {
        "images": float(len(scores)),
        "dice": float(dice.mean()),
        "iou": float(np.mean([s.iou for s in scores])),
        "accuracy": float(np.mean([s.accuracy for s in scores])),
        "selection_recall": float(np.average(recall[with_lesion], weights=lesion[with_lesion])),
        "selection_recall_per_image": float(recall[with_lesion].mean()),
    }
    for name, band in bands.items():
        band = band & with_lesion
        if band.any():
            figures |= {f"dice_{name}": float(dice[band].mean()), f"recall_{name}": float(recall[band].mean())}
            figures[f"images_{name}"] = float(band.sum())
    return {name: round(value, 4) for name, value in figures.items()}
