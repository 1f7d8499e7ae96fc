"""What is seen in every frame as lines of JSON, one a frame, readable while it runs (``tail -f``, a pipe).

A line, wrapped here::

    {"stream": "theatre 1", "index": 12, "pts": 153600, "pts_s": 12.0, "signal": true, "note": "",
     "age_ms": 31.2,
     "lesions": [{"label": "polyp", "pixels": 5120, "box": {"x": 310, "y": 96, "width": 84, "height": 77}}],
     "confounders": {"blood": 0.31, …}, "selected": 0.5, "stages_ms": {"segment": 14.1}}

Pixels are the frame's own. ``lesions``, ``confounders`` and ``selected`` (the share of grid cells that the prompts
selected) are null for a frame without an overlay, and ``note`` says why.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import cv2

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Segmentation, Shown
from mcdrl_rt.video.output import Sink, reason

_STANDARD_OUTPUT = 1
_READER_S = 10.0  # that a pipe's reader is waited for


class Records(Sink):
    """Lines of JSON in a file, or on the standard output for ``-``.

    A file that was there is replaced when the first line is written. Lines written stay, whatever happens.

    Args:
        uri: a file's name, or ``-``.
        stream: what each line says it belongs to.

    Raises:
        SinkError: the file cannot be written.
    """

    def __init__(self, uri: str, stream: str = "") -> None:
        self._stream = stream
        self._name = "the standard output" if uri == "-" else uri
        self._replaces = uri != "-" and (Path(uri).is_file() or not Path(uri).exists())  # no pipe or device
        try:  # unbuffered: a buffer's lock would keep everyone waiting for a reader that takes nothing
            if uri == "-":
                self._file = open(_STANDARD_OUTPUT, "wb", buffering=0, closefd=False)
            else:
                self._file = open(uri, "ab", buffering=0, opener=_opener)
        except OSError as error:
            why = "nobody reads that pipe" if error.errno == errno.ENXIO else reason(error)
            raise SinkError(f"cannot write {self._name}: {why}") from None

    def write(self, shown: Shown) -> None:
        """Write the line of one frame."""
        text = json.dumps({"stream": self._stream} | record(shown), ensure_ascii=False) + "\n"
        line = text.encode("utf-8", "backslashreplace")  # a file's name may be no text at all
        try:
            if not self.frames and self._replaces:
                self._file.truncate(0)
            while line:  # a pipe may take a part of it
                line = line[self._file.write(line) :]
        except OSError as error:
            self.close()
            closed = isinstance(error, BrokenPipeError)
            why = "the program that read it has ended" if closed else reason(error)
            raise SinkError(f"cannot write {self._name}: {why}") from None
        self.frames += 1

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # what was written is written
            self._file.close()

    def abort(self) -> None:
        """The same: lines written stay."""
        self.close()


def _opener(name: str, flags: int) -> int:
    """Opens a file; a pipe, only once somebody reads it, which is not waited for for ever."""
    if not Path(name).is_fifo():
        return os.open(name, flags, 0o666)
    deadline_s = time.monotonic() + _READER_S
    while True:
        try:
            number = os.open(name, flags | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
        else:
            os.set_blocking(number, True)
            return number


def record(shown: Shown) -> dict[str, Any]:
    """What is known of a frame, ready for JSON."""
    frame, found = shown.frame, shown.segmentation
    return {
        "index": frame.index,
        "pts": frame.pts,
        "pts_s": round(frame.pts_s, 6),
        "signal": frame.signal,
        "note": shown.note,
        "age_ms": None if shown.age_ms is None else round(shown.age_ms, 1),
        "lesions": None if found is None else _lesions(found),
        "confounders": None if found is None else _confounders(found),
        "selected": None if found is None else round(float(found.selected.mean()), 4),
        "stages_ms": {name: round(duration, 2) for name, duration in shown.stages_ms.items()},
    }


def _lesions(found: Segmentation) -> list[dict[str, Any]]:
    """Area and bounding box of each class there is."""
    lesions = []
    for label, box in found.boxes.items():
        pixels = cv2.countNonZero(found.mask(label, box))
        place = {"x": box.left, "y": box.top, "width": box.width, "height": box.height}
        lesions.append({"label": found.classes[label - 1], "pixels": pixels, "box": place})
    return lesions


def _confounders(found: Segmentation) -> dict[str, float]:
    return {name: round(float(w), 4) for name, w in zip(found.confounder_names, found.confounders, strict=True)}
