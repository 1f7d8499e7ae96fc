"""Images ready for the network: read once, cropped to the field of view, augmented anew each epoch."""

from __future__ import annotations

from collections.abc import Sequence

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
from training.sites import Sample, read_sample

MARGIN = 1.15  # kept larger than the input, so that zooming in still sees pixels


class LesionDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pixels (3, H, W) uint8 and labels (H, W) int64 at the network's input size.

    Args:
        samples: real images.
        phantom_count: synthetic frames added to them.
        size: (height, width).
        augment: draw a new view of each image each time.
        seed: of the synthetic frames.
    """

    def __init__(
        self, samples: Sequence[Sample], size: tuple[int, int], augment: bool, phantom_count: int = 0, seed: int = 0
    ) -> None:
        self.size = size
        keep = (round(size[0] * MARGIN), round(size[1] * MARGIN)) if augment else size
        rng = np.random.default_rng(seed)
        frames = (random_sample(rng, (size[0] + 32, size[1] + 96)) for _ in range(phantom_count))
        pairs = [_prepare(*read_sample(sample), keep) for sample in samples]
        pairs += [_prepare(frame.pixels, frame.mask, keep) for frame in frames]
        self.pixels, self.labels = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
        self.transform = augmentation(size) if augment else None

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels = tv_tensors.Image(self.pixels[index].permute(2, 0, 1))
        labels = tv_tensors.Mask(self.labels[index])
        if self.transform is not None:
            pixels, labels = self.transform(pixels, labels)
        return torch.as_tensor(pixels), torch.as_tensor(labels).long()


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
