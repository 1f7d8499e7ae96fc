"""The Python entry: pixels in, ``Segmentation`` out.

    >>> from mcdrl_rt import Segmenter
    >>> segmenter = Segmenter.load()                       # the embedded default      # doctest: +SKIP
    >>> out = segmenter(rgb)                               # (H, W, 3) uint8           # doctest: +SKIP
    >>> out.labels, out.classes, out.confounders, out.selected                         # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from mcdrl_rt.engine.base import LESION, Engine, RawOutput, checked
from mcdrl_rt.engine.choice import load_engine
from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import ModelSpec, Picture, Region, Segmentation, UInt8Array, size_of
from mcdrl_rt.video.planes import Planes
from mcdrl_rt.video.region import RegionTracker, crop_and_resize, find_region

if TYPE_CHECKING:  # it imports torch
    from mcdrl_rt.engine.device import DeviceSegmenter

AnySegmenter: TypeAlias = "Segmenter | DeviceSegmenter"
"""What segments frames: on the processor, or where the frames are on the engine's device."""


class Segmenter:
    """Segments frames with one engine; not thread-safe, but several on one engine are, one a thread.

    Args:
        engine: a ready engine.
        stateful: follow one video: the field of view is found once and watched. Off (the default), every picture
            stands for itself.
    """

    def __init__(self, engine: Engine, stateful: bool = False) -> None:
        self.engine = engine
        self._region = RegionTracker() if stateful else find_region

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        *,
        engine: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        skip: int = 0,
    ) -> AnySegmenter:
        """Load a checkpoint into the best engine this machine has; on a GPU, all the work on a frame is done there.

        Args:
            model: a checkpoint or a built engine; None is the embedded default.
            engine: ``auto``, or a name of ``mcdrl_rt.engine.choice.ENGINES``.
            precision: ``auto``, or one that the engine comes in.
            device: ``auto``, or a device name of that runtime.
            skip: pass over so many of the runtimes that ``auto`` would try; see ``load_engine``.

        Raises:
            McdrlError: the model or engine cannot be had, in one clear line.
        """
        loaded = load_engine(model, engine, precision, device, skip)
        if getattr(getattr(loaded, "device", None), "type", None) == "cuda":  # torch, which then is imported already
            from mcdrl_rt.engine.device import DeviceSegmenter
            from mcdrl_rt.engine.tensors import TensorEngine

            if isinstance(loaded, TensorEngine):
                return DeviceSegmenter(loaded)
        return cls(loaded)

    def for_stream(self) -> Segmenter:
        """The same engine, following one video from here on: a field of view of its own, found and then watched."""
        return Segmenter(self.engine, stateful=True)

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.engine.spec

    def show(self, picture: Picture, opacity: float | None) -> tuple[Segmentation, UInt8Array | None]:
        """Segment one picture; nothing is drawn here (``DeviceSegmenter.show`` draws where the frame is)."""
        return self(picture), None

    def __call__(self, picture: Picture) -> Segmentation:
        """Segment one picture.

        Args:
            picture: (H, W, 3) uint8, RGB, or what a frame of a video has as its ``picture``.

        Raises:
            SourceError: ``picture`` is something else.
            EngineError: the engine failed.
        """
        if not isinstance(picture, Planes) and not _is_rgb(picture):
            got = f"{getattr(picture, 'dtype', type(picture).__name__)} of shape {getattr(picture, 'shape', '?')}"
            raise SourceError(f"a picture is an (H, W, 3) uint8 array, RGB; got {got}")
        return segment_together([self], [picture])[0]


def _is_rgb(picture: object) -> bool:
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        return False
    return picture.shape[2:] == (3,) and picture.size > 0


def segment_together(segmenters: Sequence[Segmenter], pictures: Sequence[Picture]) -> list[Segmentation]:
    """Segment a picture of each of several videos in one batch; the segmenters share one engine.

    Args:
        segmenters: one for each picture; at most ``max_batch`` of their engine.
        pictures: (H, W, 3) uint8, RGB, or planes; of any sizes.

    Raises:
        EngineError: the engine failed, or gave no possible answer.
    """
    engine, spec = segmenters[0].engine, segmenters[0].spec
    clock = [time.perf_counter()]
    regions = [segmenter._region(picture) for segmenter, picture in zip(segmenters, pictures, strict=True)]
    inputs = [crop_and_resize(one, region, spec.input_size) for one, region in zip(pictures, regions, strict=True)]
    frames = np.stack(inputs) if len(inputs) > 1 else inputs[0][None]
    clock.append(time.perf_counter())
    output = checked(engine.infer(frames), spec, len(pictures))
    clock.append(time.perf_counter())
    sizes = [size_of(picture) for picture in pictures]
    labels = [labels_at(output, region, size, i) for i, (region, size) in enumerate(zip(regions, sizes, strict=True))]
    clock.append(time.perf_counter())
    stages = zip(("preprocess", "infer", "postprocess"), itertools.pairwise(clock), strict=True)
    stages_ms = {name: (end - start) * 1e3 for name, (start, end) in stages}
    weights = output.confounders.astype(np.float32)
    weights /= weights.sum(axis=1, keepdims=True)  # a bf16 engine sums to one only nearly
    return [
        Segmentation(
            labels=labels[i],
            classes=spec.classes,
            confounders=weights[i],
            confounder_names=spec.confounders,
            selected=output.selected[i].astype(bool),
            region=region,
            latency_ms=(clock[-1] - clock[0]) * 1e3,
            stages_ms=stages_ms,
        )
        for i, region in enumerate(regions)
    ]


def labels_at(output: RawOutput, region: Region, size: tuple[int, int], place: int = 0) -> UInt8Array:
    """Labels (H, W) uint8 at the frame's size, of the frame at ``place`` in a batch; background outside ``region``."""
    labels, score = np.zeros(size, np.uint8), output.score[place]
    high = (score >= LESION).view(np.uint8)
    x, y, width, height = cv2.boundingRect(high)
    if not height:
        return labels
    rows, pixel_rows = _part(y, y + height, high.shape[0], region.height)
    columns, pixel_columns = _part(x, x + width, high.shape[1], region.width)
    target = pixel_columns.stop - pixel_columns.start, pixel_rows.stop - pixel_rows.start
    lesion = (cv2.resize(score[rows, columns], target, interpolation=cv2.INTER_LINEAR) >= LESION).view(np.uint8)
    label = output.label[place]
    if label.max() > 1:
        lesion = lesion * cv2.resize(label[rows, columns], target, interpolation=cv2.INTER_NEAREST)
    labels[region.slices][pixel_rows, pixel_columns] = lesion
    return labels


def _part(first: int, last: int, cells: int, pixels: int) -> tuple[slice, slice]:
    """The cells from ``first`` to ``last`` with one more on each side, and the pixels that they become.

    What is interpolated between cells that are too low is too low: the others need not be made larger. The part begins
    and ends where an edge of a cell is one of a pixel: so it becomes what it does among all of them, but for rounding.
    """
    steps = math.gcd(cells, pixels)
    start, stop = max(0, first - 1) * steps // cells, -(-min(cells, last + 1) * steps // cells)
    return slice(start * cells // steps, stop * cells // steps), slice(start * pixels // steps, stop * pixels // steps)
