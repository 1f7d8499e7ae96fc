"""Images ready for the network: read once, cropped to the field of view, augmented anew each epoch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors

from mcdrl_rt.errors import SourceError, SpecError
from mcdrl_rt.model.prompts import confounder_names
from mcdrl_rt.types import FloatArray, UInt8Array
from mcdrl_rt.video.phantom import random_sample
from mcdrl_rt.video.region import find_region
from training.conditions import PHANTOM_CONDITIONS, PLAIN, apply_condition, draw_conditions, shown_conditions
from training.recipe import Recipe
from training.sites import MENDED, Sample, class_ids, read_sample
from training.style import restyle, tone, with_surround
from training.views import random_view, rows_of

MARGIN = 1.15  # kept larger than the input, so that zooming in still sees pixels
PARTS = (0.35, 0.7)  # sides of a part of a picture, as shares of the picture's
Key = tuple[int, int]  # epoch and index: all that the randomness of an item depends on, beside the seed


class Item(NamedTuple):
    """One picture as the network sees it, or a batch of them."""

    pixels: Tensor  # (3, H, W) uint8
    labels: Tensor  # (H, W) int64
    shown: Tensor  # (M,) float, 1 for each condition of the dictionary that was drawn on it


class LesionDataset(Dataset[Item]):
    """Pictures at the network's input size, drawn anew for each epoch.

    Args:
        samples: real images.
        size: (height, width).
        classes: the K lesion classes; labels are their places, from 1.
        augmentation: ``none``, ``plain`` or ``endoscopy`` (``training.views``).
        phantom_count: synthetic frames added to them; their lesions are of the first class.
        seed: of everything random.
        conditions: the M names of the confounder dictionary.
        condition_rate: share of the pictures that get one of the conditions.
        style_rate: share of the pictures that take on colours of another one.
        part_rate: share of the pictures shown by a part of them, half of these parts without lesion (see ``part_of``).
        blank_rate: share of the pictures in whose place nothing is seen (see ``blank``).
        skip_bad: leave out images that cannot be read, in ``skipped``, instead of raising.

    Raises:
        SourceError: an image or mask cannot be read.
        SpecError: a sample's class is none of ``classes``.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        size: tuple[int, int],
        classes: Sequence[str] = ("polyp",),
        *,
        augmentation: str = "none",
        phantom_count: int = 0,
        seed: int = 0,
        conditions: Sequence[str] = (),
        condition_rate: float = 0.0,
        style_rate: float = 0.0,
        part_rate: float = 0.0,
        blank_rate: float = 0.0,
        skip_bad: bool = False,
    ) -> None:
        self.seed, self.conditions = seed, tuple(conditions)
        self.condition_rate, self.style_rate = condition_rate, style_rate
        self.part_rate, self.blank_rate = part_rate, blank_rate
        keep = size if augmentation == "none" else (round(size[0] * MARGIN), round(size[1] * MARGIN))
        self.samples: list[Sample] = []  # those that could be read
        self.skipped: list[str] = []
        pairs = [_prepare(*pair, keep) for pair in self._read(samples, classes, skip_bad)]
        rng = np.random.default_rng(seed)
        frames = [random_sample(rng, (size[0] + 32, size[1] + 96)) for _ in range(phantom_count)]
        self.shown = [(PLAIN,)] * len(pairs) + [PHANTOM_CONDITIONS[frame.site] for frame in frames]
        pairs += [_prepare(frame.pixels, frame.mask, keep) for frame in frames]
        if not pairs:
            raise SourceError("there is no image to train on or to measure with")
        self.pixels, self.labels = (np.stack(side) for side in zip(*pairs, strict=True))
        # a picture in narrow-band colours shows narrow-band imaging: only plain ones lend theirs
        plain = [pixels for pixels, shown in zip(self.pixels, self.shown, strict=True) if shown == (PLAIN,)]
        self.tones = [tone(pixels) for pixels in plain] if style_rate else []
        self.views = None if augmentation == "none" else random_view(size, augmentation)

    def _read(
        self, samples: Sequence[Sample], classes: Sequence[str], skip_bad: bool
    ) -> Iterator[tuple[UInt8Array, UInt8Array]]:
        ids = class_ids(classes)
        if strange := sorted({sample.lesion for sample in samples} - ids.keys()):
            first = next(sample.image for sample in samples if sample.lesion == strange[0])
            raise SpecError(
                f"no prompt for class {', '.join(strange)} (of {first}); the recipe's classes are {', '.join(classes)}"
            )
        for sample in samples:
            try:
                pair = read_sample(sample, ids[sample.lesion])
            except SourceError as error:
                if not skip_bad:
                    raise SourceError(f"{error}; {MENDED}") from error
                self.skipped.append(str(error))
                continue
            self.samples.append(sample)
            yield pair

    def with_rates(self, *, condition_rate: float, part_rate: float) -> LesionDataset:
        """The same pictures, drawn at other rates."""
        other = copy.copy(self)
        other.condition_rate, other.part_rate = condition_rate, part_rate
        return other

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        pixels, labels = self.pixels[index], self.labels[index]
        part = part_of(rng, labels, bool(rng.random() < 0.5)) if rng.random() < self.part_rate else None
        if part is not None:
            pixels, labels = _enlarged(pixels, labels, part)
        nothing = rng.random() < self.blank_rate
        if nothing:
            pixels, labels = blank(rng, pixels), np.zeros_like(labels)
        placed = pixels
        if self.views is not None:
            place, colour = self.views
            with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
                torch.default_generator.manual_seed(int(rng.integers(2**62)))
                picture, mask = place(tv_tensors.Image(pixels.transpose(2, 0, 1)), tv_tensors.Mask(labels))
                placed, labels = rows_of(picture), rows_of(mask)
                pixels = rows_of(colour(picture))
        if nothing:
            return _item(pixels, labels, np.zeros(len(self.conditions), np.float32))
        if self.tones and rng.random() < self.style_rate:
            pixels = restyle(rng, pixels, self.tones[int(rng.integers(len(self.tones)))])
        if pixels is not placed:
            pixels = with_surround(pixels, placed)
        drawn = draw_conditions(self.conditions, rng, self.condition_rate) if self.condition_rate else ()
        for name in drawn:
            pixels, labels = apply_condition(name, rng, pixels, labels)
        if part is not None and not drawn:  # it looks like a close-up, and nobody knows whether it is one
            return _item(pixels, labels, np.zeros(len(self.conditions), np.float32))
        return _item(pixels, labels, shown_conditions((*self.shown[index], *drawn), self.conditions))


class EpochBatches(Sampler[list[Key]]):
    """One epoch's batches, in an order that depends on seed and epoch alone; incomplete ones are left out.

    Args:
        length: of the data set.
        batch_size: images in an optimiser step, over all processes.
        seed, epoch: what the order depends on.
        parts: a batch is worked through in this many parts, each an element of the iteration.
        rank, world: this process takes its own share of every part.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, epoch: int, parts: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        self.order = np.random.default_rng((seed, epoch)).permutation(length)
        self.epoch, self.batch_size = epoch, batch_size
        self.parts, self.rank, self.world = parts, rank, world

    def __len__(self) -> int:
        return len(self.order) // self.batch_size * self.parts

    def __iter__(self) -> Iterator[list[Key]]:
        part = self.batch_size // self.parts
        for i in range(len(self)):
            indices = self.order[i * part : (i + 1) * part][self.rank :: self.world]
            yield [(self.epoch, int(index)) for index in indices]


def training_set(fabric: Fabric, recipe: Recipe, samples: Sequence[Sample]) -> LesionDataset:
    """The recipe's data set; what had to be left out is said."""
    dataset = LesionDataset(
        samples,
        recipe.input_size,
        recipe.classes,
        augmentation=recipe.augmentation,
        phantom_count=recipe.phantom_count,
        seed=recipe.seed,
        conditions=confounder_names(recipe.confounders),
        condition_rate=recipe.condition_rate,
        style_rate=recipe.style_rate,
        part_rate=recipe.part_rate,
        blank_rate=recipe.blank_rate,
        skip_bad=recipe.skips_bad,
    )
    for reason in dataset.skipped:
        fabric.print(f"left out: {reason}")
    if dataset.skipped:
        fabric.print(f"left out {len(dataset.skipped)} of {len(samples)} images that cannot be read")
    return dataset


def _prepare(pixels: UInt8Array, labels: UInt8Array, size: tuple[int, int]) -> tuple[UInt8Array, UInt8Array]:
    """Crop to the field of view, as the runtime does, and resize."""
    rows, columns = find_region(pixels).slices
    target = (size[1], size[0])
    pixels, labels = pixels[rows, columns], labels[rows, columns]
    how = cv2.INTER_AREA if labels.size > size[0] * size[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, target, interpolation=how), np.uint8), _resized(labels, target)


def _resized(labels: UInt8Array, target: tuple[int, int]) -> UInt8Array:
    """A mask at a size (width, height), where its picture is: ``INTER_NEAREST`` alone would move it half a pixel."""
    return np.asarray(cv2.resize(labels, target, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def part_of(rng: np.random.Generator, labels: UInt8Array, lesion: bool) -> tuple[slice, slice] | None:
    """Rows and columns of a random part of a picture, ``PARTS`` of its sides: one that shows a lesion, or one of none.

    Both kinds are as large, so that how far a picture is enlarged says nothing of what is on it.

    Args:
        rng: decides how large the part is and where.
        labels: (H, W), 0 where there is no lesion.
        lesion: whether some of it is to be seen.

    Returns:
        None where the smallest part, wherever it is, shows a lesion, or where there is none to be seen.
    """
    height, width = labels.shape
    marked = cv2.integral((labels > 0).astype(np.uint8))  # (H + 1, W + 1)
    for share in (rng.uniform(*PARTS), PARTS[0]):
        rows, columns = max(1, int(height * share)), max(1, int(width * share))
        low, high = marked[:-rows], marked[rows:]
        areas = high[:, columns:] - high[:, :-columns] - low[:, columns:] + low[:, :-columns]  # of a part at each place
        if (areas == 0).any():
            places = np.flatnonzero((areas > 0) == lesion)
            if not len(places):
                return None
            top, left = divmod(int(places[rng.integers(len(places))]), areas.shape[1])
            return slice(top, top + rows), slice(left, left + columns)
    return None


def _enlarged(pixels: UInt8Array, labels: UInt8Array, part: tuple[slice, slice]) -> tuple[UInt8Array, UInt8Array]:
    """A part of a picture and its mask, at the picture's size."""
    size = labels.shape[::-1]
    return np.asarray(cv2.resize(pixels[part], size), np.uint8), _resized(labels[part], size)


def _item(pixels: UInt8Array, labels: UInt8Array, shown: FloatArray) -> Item:
    picture = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    return Item(picture, torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(shown))


def blank(rng: np.random.Generator, pixels: UInt8Array) -> UInt8Array:
    """What a camera gives that sees nothing: fogged, against the wall, before a white card, or out of the body.

    Args:
        rng: decides what.
        pixels: (H, W, 3) uint8, RGB; its colours may be taken.

    Returns:
        One colour with slow changes over it, and noise, of the same shape.
    """
    height, width = pixels.shape[:2]
    if rng.random() < 0.5:
        colour = pixels.reshape(-1, 3).mean(axis=0) * rng.uniform(0.5, 1.8)
    else:
        colour = rng.uniform(10, 255) * rng.uniform(0.85, 1.0, 3)
    coarse = rng.normal(0, rng.uniform(0, 40), (4, 4)).astype(np.float32)
    slow = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, rng.uniform(0, 8), pixels.shape)
    return np.asarray(np.clip(colour + slow[..., None] + noise, 0, 255), np.uint8)
