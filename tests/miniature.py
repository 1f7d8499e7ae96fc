"""Miniature data sets in published layouts, written for a test."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mcdrl_rt.types import UInt8Array


def write_site(root: Path, count: int = 8, size: tuple[int, int] = (96, 120), suffix: str = ".png") -> Path:
    """A site of noise with one bright lesion in each image."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        image = rng.integers(80, 120, (*size, 3)).astype(np.uint8)
        mask = np.zeros(size, np.uint8)
        centre = (int(rng.integers(30, size[1] - 30)), int(rng.integers(30, size[0] - 30)))
        cv2.circle(image, centre, 18, (60, 90, 240), -1)  # red, as OpenCV writes it
        cv2.circle(mask, centre, 18, 255, -1)
        cv2.imwrite(str(root / "images" / f"im{i}{suffix}"), image)
        cv2.imwrite(str(root / "masks" / f"im{i}{suffix}"), mask)
    return root


def write_pair(image: Path, mask: Path | None) -> None:
    """One flat picture of 40 × 50, and a mask over its left half."""
    image.parent.mkdir(parents=True, exist_ok=True)
    _write(image, np.full((40, 50, 3), (200, 60, 30), np.uint8))
    if mask is not None:
        mask.parent.mkdir(parents=True, exist_ok=True)
        _write(mask, np.repeat(np.where(np.arange(50) < 25, 255, 0)[None], 40, axis=0).astype(np.uint8))


def _write(path: Path, pixels: UInt8Array) -> None:
    cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
