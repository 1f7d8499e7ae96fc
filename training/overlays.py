"""Pictures for people: what a method draws on images, beside what is true."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from mcdrl_rt.types import UInt8Array
from training.dataset import LesionDataset
from training.methods import Method

TRUTH, FOUND = (255, 255, 255), (64, 255, 96)  # RGB of the outlines


def draw_outlines(pixels: UInt8Array, truth: UInt8Array, found: UInt8Array) -> UInt8Array:
    """A picture (H, W, 3) with the outlines of two masks: white is true, green is found."""
    picture = np.ascontiguousarray(pixels).copy()
    for mask, color in ((truth, TRUTH), (found, FOUND)):
        outlines, _ = cv2.findContours((mask > 0).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, color, max(1, round(max(mask.shape) / 160)), cv2.LINE_AA)
    return picture


@torch.no_grad()
def contact_sheet(method: Method, dataset: LesionDataset, count: int, path: Path) -> UInt8Array:
    """The first ``count`` pictures of a data set, four to a row, with outlines; written to ``path`` and returned."""
    device = next(method.parameters()).device
    pictures = []
    for index in range(min(count, len(dataset))):
        item = dataset[0, index]
        out = method.predict(method.normalise(item.pixels.to(device).unsqueeze(0)))
        found = out.logits[0].argmax(dim=0).to("cpu", torch.uint8).numpy()
        pixels = item.pixels.permute(1, 2, 0).numpy()
        pictures.append(draw_outlines(pixels, item.labels.numpy().astype(np.uint8), found))
    while len(pictures) % 4:
        pictures.append(np.zeros_like(pictures[0]))
    rows = [np.concatenate(pictures[i : i + 4], axis=1) for i in range(0, len(pictures), 4)]
    sheet = np.concatenate(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return np.asarray(sheet, np.uint8)
