"""Masks of a whole procedure as one COCO file, run-length encoded, for the tools that read annotations.

There is one annotation for each class on each frame that it is seen on. The model says which pixels are of a class,
not which of them belong to one lesion: two that touch would be one component, and one behind a fold or an instrument
would be several. Who wants components has their boxes in the table of frames. Frames that nobody looked at are not
among the images; those that nothing was found on are, without annotations.

Every image and annotation is a line of its own, written as it comes; ids follow from the frame's index and the class
alone. So the files of a procedure's parts can be joined, and give what writing them at once would have given.

Import this where it is needed only: it needs pycocotools, of the extra ``coco``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline.whole import WholeFile
from mcdrl_rt.types import BoolArray, Shown
from mcdrl_rt.video.output import Sink, reason

try:
    from pycocotools import mask as rle
except ImportError:
    raise SinkError("masks as COCO need pycocotools: pip install 'mcdrl-rt[coco]'") from None

_IMAGES = b'], "images": ['
_END = b"]}"
_HEAD_LINES = 3


class Coco(Sink):
    """Writes the COCO file of one procedure, or of a part of it.

    Args:
        target: the file; it appears when it is whole.
        classes: the model's, in its order: the i-th is category i.
        facts: what holds for all of the frames (model, engine, source), kept under ``info``.

    Raises:
        SinkError: the file cannot be written.
    """

    def __init__(self, target: Path, classes: Sequence[str], facts: Mapping[str, Any]) -> None:
        categories = [{"id": i, "name": name, "supercategory": "lesion"} for i, name in enumerate(classes, start=1)]
        info = json.dumps(dict(facts), sort_keys=True, ensure_ascii=False)
        head = f'{{"info": {info},\n"categories": {json.dumps(categories, ensure_ascii=False)},\n"annotations": ['
        self._document = _Document(target, head.encode())

    def write(self, shown: Shown) -> None:
        """Write the annotations of one frame."""
        frame, found = shown.frame, shown.segmentation
        self.frames += 1
        if found is None:
            return
        height, width = found.labels.shape
        image = {"id": frame.index, "width": width, "height": height}
        if frame.file:
            image["file_name"] = frame.file
        times = {"frame_index": frame.index, "pts": frame.pts, "time_s": frame.pts_s}
        self._document.image(_line(image | times))
        for label in found.boxes:
            number = frame.index * len(found.classes) + label  # from 1: pycocotools takes 0 for "no match"
            about = {"id": number, "image_id": frame.index, "category_id": label, "iscrowd": 0}
            self._document.annotation(_line(about | _encoded(found.labels == label)))

    def close(self) -> None:
        """Finish the file and let it appear under its name."""
        self._document.close()

    def abort(self) -> None:
        """Discard what was written."""
        self._document.abort()


def concatenate(parts: Sequence[Path], target: Path) -> None:
    """Join the files of a procedure's parts, in this order, into the one that writing them at once would have given.

    Raises:
        SourceError: a part is missing or damaged.
        SinkError: the parts are not of one job, or the target cannot be written.
    """
    heads = [_head(part) for part in parts]
    for part, head in zip(parts, heads, strict=True):
        if head != heads[0]:
            raise SinkError(f"cannot join {parts[0]} and {part}: they were made with different settings")
    document = _Document(target, heads[0])
    try:
        for part in parts:
            take = document.annotation
            for line in _elements(part):
                if line == _IMAGES:
                    take = document.image
                else:
                    take(line)
        document.close()
    finally:
        document.abort()


class _Document:
    """The lines of a COCO file; images wait in a nameless file, for they follow after all annotations."""

    def __init__(self, target: Path, head: bytes) -> None:
        self._whole = WholeFile(target)
        with self._whole.guarded():
            self._images = tempfile.TemporaryFile(dir=target.parent)
            self._whole.file.write(head)
        self._separators = {"annotation": b"\n", "image": b"\n"}

    def annotation(self, line: bytes) -> None:
        with self._whole.guarded():
            self._whole.file.write(self._separator("annotation") + line)

    def image(self, line: bytes) -> None:
        with self._whole.guarded():
            self._images.write(self._separator("image") + line)

    def _separator(self, kind: str) -> bytes:
        separator, self._separators[kind] = self._separators[kind], b",\n"
        return separator

    def close(self) -> None:
        if self._images.closed:
            return
        with self._whole.guarded(), self._images:
            self._images.seek(0)
            self._whole.file.write(b"\n" + _IMAGES)
            shutil.copyfileobj(self._images, self._whole.file)
            self._whole.file.write(b"\n" + _END + b"\n")
        self._whole.close()

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # what waits for a full disk is thrown away
            self._images.close()
        self._whole.abort()


def _encoded(mask: BoolArray) -> dict[str, Any]:
    """A mask's runs, area and box; COCO counts down the columns."""
    runs = rle.encode(cv2.transpose(mask.view(np.uint8)).T)
    counts = {"size": runs["size"], "counts": runs["counts"].decode()}
    return {"area": int(rle.area(runs)), "bbox": rle.toBbox(runs).tolist(), "segmentation": counts}


def _line(element: dict[str, Any]) -> bytes:
    return json.dumps(element).encode()


def _head(part: Path) -> bytes:
    """All that comes before the first annotation."""
    with _readable(part), part.open("rb") as file:
        return b"".join(itertools.islice(file, _HEAD_LINES)).removesuffix(b"\n")


def _elements(part: Path) -> Iterator[bytes]:
    """Annotations, the line between them and the images, and the images."""
    line = b""
    with _readable(part), part.open("rb") as file:
        for line in itertools.islice(file, _HEAD_LINES, None):
            line = line.removesuffix(b"\n").removesuffix(b",")
            if line != _END:
                yield line
    if line != _END:
        raise SourceError(f"cannot read {part}: it is not whole")


@contextlib.contextmanager
def _readable(part: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"cannot read {part}: {reason(error)}") from None
