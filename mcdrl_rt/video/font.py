"""The font of all that is written into pictures."""

from __future__ import annotations

import threading

import cv2


class _Fonts(threading.local):
    """Each thread's own: OpenCV changes a font's weight and size as it writes, without Python's lock."""

    def __init__(self) -> None:
        self.sans = cv2.FontFace("sans")  # OpenCV 5 carries a TrueType font; hershey strokes are hard to read on mucosa


_fonts = _Fonts()


def font() -> cv2.FontFace:
    """The font, for this thread to write with."""
    return _fonts.sans
