"""A program with a window, for tests: ``python window_program.py LIVE ASPECT`` shows one picture again and again.

With LIVE 1 its left edge changes with every frame. Prints ``open``, ``quit`` when the user does, ``lost`` and why
when the screen is gone, and ``closed``.
"""

from __future__ import annotations

import sys
import threading
from fractions import Fraction

import numpy as np

from mcdrl_rt.console import leave
from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import CLASS_COLORS, Frame, Region, Segmentation, Shown, UInt8Array, VideoFormat
from mcdrl_rt.video.overlay import draw
from mcdrl_rt.video.view import View
from mcdrl_rt.video.window import Window

SIZE = (300, 400)


def picture() -> tuple[UInt8Array, Segmentation]:
    """A frame of one colour with a lesion in its middle, and a gradient at the right so that nothing is symmetric."""
    clean = np.full((*SIZE, 3), (180, 60, 40), np.uint8)
    clean[:, 300:] = np.linspace(0, 255, 300)[:, None, None].astype(np.uint8)
    labels = np.zeros(SIZE, np.uint8)
    labels[110:190, 150:250] = 1
    weights = np.ones(1, np.float32)
    found = Segmentation(
        labels, ("polyp",), weights, ("blur",), np.zeros((7, 7), np.bool_), Region(0, 0, *SIZE), latency_ms=12.0
    )
    return clean, found


def main(live: bool, aspect: Fraction) -> None:
    """Show it, 50 times a second."""
    stop = threading.Event()
    clean, found = picture()
    drawn = draw(clean, found, colors=CLASS_COLORS)
    video = VideoFormat(SIZE, Fraction(1, 50), Fraction(50), pixel_aspect=aspect)

    def quit() -> None:
        print("quit", flush=True)
        stop.set()

    with Window(video, "théâtre 1", View(colors=CLASS_COLORS, title=lambda: "small"), on_quit=quit) as window:
        print("open", flush=True)
        index = 0
        while not stop.wait(0.02):
            pixels = drawn.copy()
            if live:
                pixels[:, :50] = index % 256
            try:
                window.write(Shown(Frame(pixels, index, Fraction(1, 50)), clean, found, age_ms=20.0))
            except SinkError as error:
                print(f"lost: {error}", flush=True)
                break
            index += 1
    print("closed", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] == "1", Fraction(sys.argv[2]))
    leave(0)
