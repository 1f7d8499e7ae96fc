"""What a model makes of pictures whose content is known: of a condition drawn on them, of no lesion, and of nothing.

Does the confounder readout read? A condition is drawn on a picture; the weight of that condition has to rise. Do masks
withstand it? Dice should not fall.

>>> shares = readout_on_real(segmenter, pictures)      # {"motion blur": 0.97, …}; doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import BoolArray, FloatArray, UInt8Array
from mcdrl_rt.video.phantom import SITES, random_sample
from training.conditions import DRAWABLE, PHANTOM_CONDITIONS, PLAIN, Picture, apply_condition
from training.dataset import part_of

PHANTOM_SIZE = (288, 352)
EMPTY_SIZE = (576, 720)
COLOURS = {"white": (255, 255, 255), "grey": (128, 128, 128), "orange-pink": (230, 150, 120)}
UNTOUCHED = "none"  # the condition that is drawn on pictures left as they are
NOISE = 4.0  # standard deviation of a camera's noise, in 8-bit levels


def readout_on_real(segmenter: Segmenter, pictures: Sequence[UInt8Array], seed: int = 0) -> dict[str, float]:
    """Share of pictures (H, W, 3) whose weight of a condition rises when it is drawn on them, by condition.

    Plain white-light imaging and a distant view cannot be drawn, and are left out.
    """
    plain = [segmenter(picture).confounders for picture in pictures]
    bare = [(picture, np.zeros_like(picture[..., 0])) for picture in pictures]
    shares = {}
    for m, name in _drawable(segmenter):
        weights = [segmenter(drawn).confounders[m] for drawn, _ in _drawn(m, name, bare, seed)]
        shares[name] = round(float(np.mean([new > old[m] for new, old in zip(weights, plain, strict=True)])), 4)
    return shares


def dice_under_conditions(segmenter: Segmenter, pictures: Sequence[Picture], seed: int = 0) -> dict[str, float]:
    """Mean Dice when a condition is drawn on pictures, by condition, whatever a lesion is called; first as they are.

    Args:
        segmenter: what is measured.
        pictures: pixels (H, W, 3) and labels (H, W) of each. Where none of a lesion is in view, it does not count.
        seed: of the conditions' strengths and places.

    Returns:
        Without the conditions under which no lesion is in view.
    """
    drawn = {UNTOUCHED: iter(pictures)} | {n: _drawn(m, n, pictures, seed) for m, n in _drawable(segmenter)}
    figures = {}
    for name, some in drawn.items():
        scores = [_dice(segmenter(pixels).labels > 0, labels > 0) for pixels, labels in some if labels.any()]
        if scores:
            figures[name] = round(float(np.mean(scores)), 4)
    return figures


def _drawable(segmenter: Segmenter) -> list[tuple[int, str]]:
    """The conditions of a model's dictionary that can be drawn, and their places in it."""
    names = enumerate(segmenter.spec.confounders)
    return [(m, name) for m, name in names if name in DRAWABLE]


def _drawn(m: int, name: str, pictures: Iterable[Picture], seed: int) -> Iterator[Picture]:
    """Each picture with a condition, the mth of the dictionary, drawn on it; the same whenever it is asked for."""
    for i, picture in enumerate(pictures):
        yield apply_condition(name, np.random.default_rng((seed, m, i)), *picture)


def _dice(found: BoolArray, truth: BoolArray) -> float:
    """Of two masks (H, W), one of them not empty."""
    return 2 * int((found & truth).sum()) / int(found.sum() + truth.sum())


def readout_on_phantom(segmenter: Segmenter, count: int = 50, seed: int = 1_000_003) -> dict[str, float]:
    """The same over phantom sites: each scene once in white light and once at the site, by site.

    A site of two conditions counts where their weights together rise. ``seed`` is far from any recipe's.
    """
    names = segmenter.spec.confounders

    def weight(site: str, index: int, wanted: list[int]) -> float:
        frame = random_sample(np.random.default_rng((seed, index)), PHANTOM_SIZE, site=site)
        weights: FloatArray = segmenter(frame.pixels).confounders
        return float(weights[wanted].sum())

    shares = {}
    for site in SITES:
        wanted = [names.index(name) for name in PHANTOM_CONDITIONS[site] if name in names and name != PLAIN]
        if wanted:
            rose = [weight(site, i, wanted) > weight("white-light", i, wanted) for i in range(count)]
            shares[site] = round(float(np.mean(rose)), 4)
    return shares


def measure_parts(segmenter: Segmenter, pictures: Iterable[Picture], seed: int = 0) -> dict[str, float]:
    """What is marked on parts of pictures that show no lesion, and how well on parts as large that show some of one.

    Args:
        segmenter: what is measured.
        pictures: pixels (H, W, 3) and labels (H, W) of each; a lesion that is not in them counts as none.
        seed: of the parts' places.

    Returns:
        ``parts``, how many pictures have one without lesion (``part_of``); ``marked``, the share of these parts of
        which more than 1 % is marked; ``area``, the mean share that is; ``dice``, the mean over parts with lesion.
        Empty where no picture has both.
    """
    areas, dice = [], []
    for i, (pixels, labels) in enumerate(pictures):
        free, lesion = (part_of(np.random.default_rng((seed, i)), labels, lesion=kind) for kind in (False, True))
        if free is not None and lesion is not None:
            marked, found = (segmenter(np.ascontiguousarray(pixels[part])).labels > 0 for part in (free, lesion))
            areas.append(float(marked.mean()))
            dice.append(_dice(found, labels[lesion] > 0))
    if not areas:
        return {}
    figures = {"marked": np.mean([area > 0.01 for area in areas]), "area": np.mean(areas), "dice": np.mean(dice)}
    return {"parts": len(areas)} | {name: round(float(value), 4) for name, value in figures.items()}


def marked_on_empty(segmenter: Segmenter, seed: int = 0) -> dict[str, float]:
    """Share of a picture of one colour that is marked, plain and with noise: nothing is to be seen on it.

    Such are a white balance card, a wall too close to be sharp, a lens that is fogged.
    """
    shares = {}
    for name, colour in COLOURS.items():
        plain = np.full((*EMPTY_SIZE, 3), colour, np.uint8)
        noise = np.random.default_rng(seed).normal(0, NOISE, plain.shape)
        noisy = np.clip(plain + noise, 0, 255).astype(np.uint8)
        for title, picture in ((name, plain), (f"{name} with noise", noisy)):
            shares[title] = round(float((segmenter(picture).labels > 0).mean()), 4)
    return shares
