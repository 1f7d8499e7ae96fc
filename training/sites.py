"""Endoscopy sites as published: which images there are, their masks, and what belongs together.

This first form knows Kvasir-SEG (site E) and CVC-ClinicDB (site C).
"""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import UInt8Array

# First frame of each of ClinicDB's 29 sequences: a split by frame would leak neighbours.
CLINIC_STARTS = (
    1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298,
    318, 343, 364, 384, 409, 429, 448, 467, 479, 504, 529, 547, 572, 592,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated image; ``group`` must stay on one side of any split."""

    image: Path
    mask: Path
    group: str


def data_root() -> Path:
    """Where the sites lie: ``MCDRL_DATA``, or ``../shared/data``."""
    return Path(os.environ.get("MCDRL_DATA", "../shared/data"))


def load_site(folder: Path) -> list[Sample]:
    """The samples of a site, sorted by name.

    Raises:
        SourceError: the folder has neither layout, or an image lacks its mask.
    """
    layouts = ((folder / "images", folder / "masks"), (folder / "PNG" / "Original", folder / "PNG" / "Ground Truth"))
    for images, masks in layouts:
        if images.is_dir() and masks.is_dir():
            break
    else:
        raise SourceError(f"{folder} is no site: expected images/ and masks/, or PNG/Original and PNG/Ground Truth")
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in {".jpg", ".png"})
    missing = [path.name for path in paths if not (masks / path.name).is_file()]
    if missing or not paths:
        lack = f"{len(missing)} of {len(paths)} images have no mask in {masks.name}/"
        raise SourceError(f"{folder}: {lack} {', '.join(missing[:3])}".rstrip())
    clinic = images.name == "Original"
    return [Sample(path, masks / path.name, _sequence(path) if clinic else path.stem) for path in paths]


def read_sample(sample: Sample) -> tuple[UInt8Array, UInt8Array]:
    """Pixels (H, W, 3) uint8 RGB and labels (H, W) uint8: 1 where the mask is set (≥ 128: some are JPEG)."""
    pixels, mask = cv2.imread(str(sample.image), cv2.IMREAD_COLOR), cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE)
    if pixels is None or mask is None or pixels.shape[:2] != mask.shape:
        raise SourceError(f"cannot read {sample.image} with its mask, or their sizes differ")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), (mask >= 128).astype(np.uint8)


def hold_out(samples: list[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Split off ``count`` samples at random; the same for a seed, whatever the order of ``samples``."""
    order = np.random.default_rng(seed).permutation(len(samples))
    ordered = sorted(samples, key=lambda sample: sample.image.name)
    held = {int(i) for i in order[:count]}
    return [s for i, s in enumerate(ordered) if i not in held], [s for i, s in enumerate(ordered) if i in held]


def _sequence(path: Path) -> str:
    return f"sequence-{bisect.bisect_right(CLINIC_STARTS, int(path.stem)):02d}"
