"""Class ids of every frame as a folder of PNG pictures, for whoever evaluates or trains on them.

``00000012-153600.png`` is frame 12, at 153600 units of time: 8 bits a pixel, 0 for background, ``i`` for the i-th
class. ``masks.json`` beside them names the classes and the unit of time. A frame without an overlay (the source lost
its signal, the model fell behind) has no file: nobody looked, which is not the same as nothing found. Each picture
is whole in itself, so an error or an abort leaves those that are there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Shown, VideoFormat
from mcdrl_rt.video.output import Sink, reason


class Masks(Sink):
    """A folder of masks.

    Attributes:
        frames: number of masks written.

    Raises:
        SinkError: the folder cannot be made, or something is in it.
    """

    def __init__(self, folder: str, format: VideoFormat) -> None:
        if not folder:
            raise SinkError("cannot write masks: name a folder, as in masks:results/masks")
        self._folder, self._time_base = Path(folder), format.time_base
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with os.scandir(self._folder) as entries:
                occupied = next(entries, None) is not None
        except OSError as error:
            raise SinkError(f"cannot make the folder {folder} for masks: {reason(error)}") from None
        if occupied:
            raise SinkError(f"cannot write masks into {folder}: the folder is not empty; name another, or empty it")

    def write(self, shown: Shown) -> None:
        """Write one mask; nothing for a frame without an overlay."""
        if shown.segmentation is None:
            return
        try:
            if not self.frames:
                about = {"classes": shown.segmentation.classes, "time_base": str(self._time_base)}
                self._write("masks.json", json.dumps(about).encode())
            png = cv2.imencode(".png", shown.segmentation.labels)[1]
            self._write(f"{shown.frame.index:08d}-{shown.frame.pts}.png", png.tobytes())
        except OSError as error:
            raise SinkError(f"cannot write masks into {self._folder}: {reason(error)}") from None
        self.frames += 1

    def _write(self, name: str, content: bytes) -> None:
        """A file that is either whole or not there."""
        partial = self._folder / f".{name}.partial"
        try:
            partial.write_bytes(content)
            partial.rename(self._folder / name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
