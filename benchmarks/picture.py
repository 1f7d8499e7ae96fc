"""The README's picture: the phantom's five imaging sites, segmented by the default model.

    python benchmarks/picture.py preview.jpg
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

from mcdrl_rt import Segmenter
from mcdrl_rt.video.overlay import Hud, draw
from mcdrl_rt.video.phantom import SITES, Phantom

SIZE = (360, 448)  # (height, width) of each panel
SEED, MOMENT = 15, 90  # a scene and a frame of it with a polyp in view


def main(path: str) -> None:
    """Write one panel for each site, and the plain frame of the first, to ``path``."""
    segmenter = Segmenter.load()
    panels = []
    for site in SITES:
        pixels = Phantom(SIZE, site=site, seed=SEED).render(MOMENT).pixels
        if not panels:
            panels.append(pixels)
        hud = Hud(f"{segmenter.spec.name} · {site}")
        panels.append(draw(pixels, segmenter(pixels), colors=segmenter.spec.colors, hud=hud))
    sheet = np.vstack([np.hstack(panels[:3]), np.hstack(panels[3:])])
    cv2.imwrite(path, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "preview.jpg")
