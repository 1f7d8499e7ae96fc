"""The kinds of results: how each is written for one segment, and how those of all segments become one.

Every kind is whole or not there, for a segment as for the procedure; joined, it is what writing it at once would have
given.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcdrl_rt.errors import SinkError
from mcdrl_rt.offline.manifest import keep_names
from mcdrl_rt.offline.settings import Settings
from mcdrl_rt.types import Shown, VideoFormat
from mcdrl_rt.video.chunks import Chunk, join
from mcdrl_rt.video.encoder import H264
from mcdrl_rt.video.file import VideoFile
from mcdrl_rt.video.found import ANNOTATED, MASKS, TABLE
from mcdrl_rt.video.masks import Masks
from mcdrl_rt.video.output import Sink, reason


@dataclass(frozen=True)
class About:
    """What holds for a whole procedure.

    Args:
        format: of its frames.
        classes: the model's.
        facts: for tables and lists of masks.
        sound: the file that its sound is in, if it has any.
    """

    format: VideoFormat
    classes: tuple[str, ...]
    facts: Mapping[str, Any]
    sound: Path | None


class Product(ABC):
    """One kind of result.

    Attributes:
        end: of its name, after the procedure's or the segment's.
    """

    end: str

    def part(self, folder: Path, number: int) -> Path:
        """Where a segment's lies."""
        return folder / f"{number:05d}{self.end}"

    def whole(self, folder: Path) -> Path:
        """Where that of all segments lies until it is put in its place."""
        return folder / f"whole{self.end}"

    @abstractmethod
    def open(self, part: Path, about: About) -> Sink:
        """What writes a segment's.

        Raises:
            SinkError: it cannot be written.
        """

    @abstractmethod
    def join(self, chunks: Sequence[Chunk], whole: Path, about: About) -> list[str]:
        """Make one of all segments' that have a frame, in their order; what they are made of stays.

        Returns:
            What people should know of it.

        Raises:
            McdrlError: one is damaged, or the whole cannot be written.
        """


def products(settings: Settings) -> list[Product]:
    """What is to be made of every procedure, apart from the report.

    Raises:
        SinkError: something needs a package that is not installed.
    """
    chosen: list[Product] = [_Annotated()] if settings.annotated else []
    kinds: dict[str, type[Product]] = {"ffv1": _LabelVideo, "png": _Pictures, "coco": _Coco}
    chosen += [kinds[name]() for name in settings.masks]
    return chosen + ([_Table()] if settings.table else [])


class _Annotated(Product):
    """The video with the lesions drawn on it, and its sound."""

    end = ANNOTATED

    def open(self, part: Path, about: About) -> Sink:
        return VideoFile(part, H264, about.format, joinable=True)

    def join(self, chunks: Sequence[Chunk], whole: Path, about: About) -> list[str]:
        return join(chunks, whole, about.sound)


class _LabelVideo(Product):
    """The class ids of every pixel as a lossless video."""

    end = MASKS["ffv1"]

    def open(self, part: Path, about: About) -> Sink:
        return _Labels(VideoFile(part, "ffv1", about.format, joinable=True, grey=True))

    def join(self, chunks: Sequence[Chunk], whole: Path, about: About) -> list[str]:
        return join(chunks, whole)


class _Pictures(Product):
    """The same as a folder of PNG pictures."""

    end = MASKS["png"]

    def open(self, part: Path, about: About) -> Sink:
        return _Kept(str(part), about.format)

    def join(self, chunks: Sequence[Chunk], whole: Path, about: About) -> list[str]:
        try:
            shutil.rmtree(whole, ignore_errors=True)  # from before an interruption
            whole.mkdir()
            linked = True
            for number, chunk in enumerate(chunks):
                for file in chunk.path.iterdir():
                    if number == 0 or file.suffix == ".png":  # what is beside them is the same in all
                        linked &= _link(file, whole / file.name)
            if linked:
                keep_names(whole)
            else:
                _sync()
        except OSError as error:
            raise SinkError(f"cannot write masks into {whole}: {reason(error)}") from None
        return []


def _link(file: Path, name: Path) -> bool:
    """Another name for a file, or a copy where a file system has one name for each; whether it is a name."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)
        return False
    return True


def _sync() -> None:
    """Put all that was written on the disk: at once, for each file by itself would take long."""
    if hasattr(os, "sync"):
        os.sync()


class _Coco(Product):
    """The same as run lengths, in COCO's JSON."""

    end = MASKS["coco"]

    def __init__(self) -> None:
        from mcdrl_rt.offline import coco

        self._coco = coco

    def open(self, part: Path, about: About) -> Sink:
        return self._coco.Coco(part, about.classes, about.facts)

    def join(self, chunks: Sequence[Chunk], whole: Path, about: About) -> list[str]:
        self._coco.concatenate([chunk.path for chunk in chunks], whole)
        return []


class _Table(Product):
    """What is known of every frame."""

    end = TABLE

    def __init__(self) -> None:
        from mcdrl_rt.offline import table

        self._table = table

    def open(self, part: Path, about: About) -> Sink:
        return self._table.Table(part, about.facts)

    def join(self, chunks: Sequence[Chunk], whole: Path, about: About) -> list[str]:
        self._table.concatenate([chunk.path for chunk in chunks], whole)
        return []


class _Labels(Sink):
    """Writes the class ids of every pixel into another sink, as a grey picture."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, shown: Shown) -> None:
        assert shown.segmentation is not None
        labels = shown.segmentation.labels
        self._sink.write(Shown(shown.frame.showing(np.broadcast_to(labels[:, :, None], (*labels.shape, 3)))))
        self.frames = self._sink.frames

    def close(self) -> None:
        self._sink.close()

    def abort(self) -> None:
        self._sink.abort()

    @property
    def problem(self) -> str | None:
        return self._sink.problem


class _Kept(Masks):
    """Pictures that are on the disk when their folder is done."""

    def close(self) -> None:
        _sync()


class Together(Sink):
    """Several sinks as one: where one fails, all are given up.

    Attributes:
        first, last: times of the frames written, in units of their time base; None before.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self.first: int | None = None
        self.last: int | None = None

    def write(self, shown: Shown) -> None:
        """Write one frame into each."""
        for sink in self._sinks:
            sink.write(shown)
        self.first = shown.frame.pts if self.first is None else self.first
        self.last = shown.frame.pts
        self.frames += 1

    def close(self) -> None:
        """Finish all of them."""
        with contextlib.ExitStack() as aborted:
            for sink in self._sinks:
                aborted.callback(sink.abort)  # of what is closed already, nothing is lost
            for sink in self._sinks:
                sink.close()

    def abort(self) -> None:
        """Give up all of them."""
        for sink in self._sinks:
            sink.abort()

    @property
    def problem(self) -> str | None:
        """What people should know of any."""
        told = dict.fromkeys(sink.problem for sink in self._sinks)  # two may have the same one
        return "; ".join(text for text in told if text) or None
