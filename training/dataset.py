"""Images ready for the network: read once, cropped to the field of view, augmented anew each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom import random_sample
from mcdrl_rt.video.region import find_region
from training.conditions import PHANTOM_CONDITIONS, PLAIN, apply_condition, draw_conditions, shown_conditions
from training.sites import Sample, read_sample

MARGIN = 1.15  # kept larger than the input, so that zooming in still sees pixels


class Item(NamedTuple):
    """One picture as the network sees it, or a batch of them."""

    pixels: Tensor  # (3, H, W) uint8
    labels: Tensor  # (H, W) int64
    shown: Tensor  # (M,) float, 1 for each condition of the dictionary that was drawn on it


class LesionDataset(Dataset[Item]):
    """Pictures at the network's input size, drawn anew each time.

    Args:
        samples: real images.
        size: (height, width).
        augment: draw a new view of each image each time.
        phantom_count: synthetic frames added to them.
        seed: of the synthetic frames.
        conditions: the M names of the confounder dictionary.
        condition_rate: share of the pictures that get one of the conditions.
        lesion_free: share of the pictures shown by a part without lesion, where there is one.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int],
        augment: bool,
        phantom_count: int = 0,
        seed: int = 0,
        conditions: Sequence[str] = (),
        condition_rate: float = 0.0,
        lesion_free: float = 0.0,
    ) -> None:
        self.size, self.conditions = size, tuple(conditions)
        self.condition_rate, self.lesion_free = condition_rate, lesion_free
        keep = (round(size[0] * MARGIN), round(size[1] * MARGIN)) if augment else size
        rng = np.random.default_rng(seed)
        frames = [random_sample(rng, (size[0] + 32, size[1] + 96)) for _ in range(phantom_count)]
        pairs = [_prepare(*read_sample(sample), keep) for sample in samples]
        pairs += [_prepare(frame.pixels, frame.mask, keep) for frame in frames]
        self.pixels, self.labels = (np.stack(side) for side in zip(*pairs, strict=True))
        self.shown = [(PLAIN,)] * len(samples) + [PHANTOM_CONDITIONS[frame.site] for frame in frames]
        self.transform = augmentation(size) if augment else None

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Item:
        rng = np.random.default_rng(int(torch.randint(2**31, ())))  # torch's state is what a resumed run restores
        pixels, labels = self.pixels[index], self.labels[index]
        if rng.random() < self.lesion_free:
            pixels, labels = _without_lesion(rng, pixels, labels)
        if self.transform is not None:
            picture, mask = self.transform(tv_tensors.Image(pixels.transpose(2, 0, 1)), tv_tensors.Mask(labels))
            pixels, labels = np.ascontiguousarray(picture.numpy().transpose(1, 2, 0)), mask.numpy()
        drawn = draw_conditions(self.conditions, rng, self.condition_rate) if self.condition_rate else ()
        for name in drawn:
            pixels, labels = apply_condition(name, rng, pixels, labels)
        shown = shown_conditions((*self.shown[index], *drawn), self.conditions)
        picture = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return Item(picture, torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(shown))


def augmentation(size: tuple[int, int]) -> v2.Transform:
    """Random views of one picture and its mask: an endoscope turns freely, and no two processors share colours."""
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomAffine(180, (0.1, 0.1), (0.6, 1.5), 8, interpolation=v2.InterpolationMode.BILINEAR),
            v2.Resize(size, antialias=True),
            v2.ColorJitter(0.35, 0.35, 0.35, 0.04),
            v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2, 0.3)], 0.1),
            v2.RandomApply([v2.GaussianBlur(7, (0.3, 2.0))], 0.2),
        ]
    )


def _prepare(pixels: UInt8Array, labels: UInt8Array, size: tuple[int, int]) -> tuple[UInt8Array, UInt8Array]:
    """Crop to the field of view, as the runtime does, and resize."""
    rows, columns = find_region(pixels).slices
    target = (size[1], size[0])
    picture = cv2.resize(pixels[rows, columns], target, interpolation=cv2.INTER_AREA)
    return picture, cv2.resize(labels[rows, columns], target, interpolation=cv2.INTER_NEAREST)


def _without_lesion(rng: np.random.Generator, pixels: UInt8Array, labels: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    """A part of the picture without lesion, at the picture's size; the picture itself if none is found."""
    height, width = labels.shape
    for _ in range(8):
        share = rng.uniform(0.35, 0.7)
        rows, columns = int(height * share), int(width * share)
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        if not labels[top : top + rows, left : left + columns].any():
            part = pixels[top : top + rows, left : left + columns]
            return np.asarray(cv2.resize(part, (width, height)), np.uint8), np.zeros_like(labels)
    return pixels, labels
