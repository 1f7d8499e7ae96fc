"""The Python entry: pixels in, ``Segmentation`` out.

    >>> from mcdrl_rt import Segmenter
    >>> segmenter = Segmenter.load()                       # the embedded default      # doctest: +SKIP
    >>> out = segmenter(rgb)                               # (H, W, 3) uint8           # doctest: +SKIP
    >>> out.labels, out.classes, out.confounders, out.selected                         # doctest: +SKIP
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np

from mcdrl_rt.engine.base import LESION, Engine, RawOutput
from mcdrl_rt.engine.choice import load_engine
from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import ModelSpec, Region, Segmentation, UInt8Array
from mcdrl_rt.video.region import RegionTracker, crop_and_resize, find_region

if TYPE_CHECKING:  # it imports torch
    from mcdrl_rt.engine.device import DeviceSegmenter

AnySegmenter: TypeAlias = "Segmenter | DeviceSegmenter"
"""What segments frames: on the processor, or where the frames are on the engine's device."""


class Segmenter:
    """Segments frames with one engine; not thread-safe.

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
        cls, model: str | Path | None = None, *, engine: str = "auto", precision: str = "auto", device: str = "auto"
    ) -> AnySegmenter:
        """Load a checkpoint into the best engine this machine has; on a GPU, all the work on a frame is done there.

        Args:
            model: a checkpoint or a built engine; None is the embedded default.
            engine: ``auto``, or a name of ``mcdrl_rt.engine.choice.ENGINES``.
            precision: ``auto``, or one that the engine comes in.
            device: ``auto``, or a device name of that runtime.

        Raises:
            McdrlError: the model or engine cannot be had, in one clear line.
        """
        loaded = load_engine(model, engine, precision, device)
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

    def show(self, rgb: UInt8Array, opacity: float) -> tuple[Segmentation, UInt8Array | None]:
        """Segment one picture; nothing is drawn here (``DeviceSegmenter.show`` draws where the frame is)."""
        return self(rgb), None

    def __call__(self, rgb: UInt8Array) -> Segmentation:
        """Segment one picture.

        Args:
            rgb: (H, W, 3) uint8.

        Raises:
            SourceError: ``rgb`` is something else.
            EngineError: the engine failed.
        """
        if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8 or rgb.shape[2:] != (3,) or not rgb.size:
            got = f"{getattr(rgb, 'dtype', type(rgb).__name__)} of shape {getattr(rgb, 'shape', '?')}"
            raise SourceError(f"a picture is an (H, W, 3) uint8 array, RGB; got {got}")
        started = time.perf_counter()
        region = self._region(rgb)
        output = self.engine.infer(crop_and_resize(rgb, region, self.spec.input_size)[None])
        labels = labels_at(output, region, (rgb.shape[0], rgb.shape[1]))
        weights = output.confounders[0].astype(np.float32)
        return Segmentation(
            labels=labels,
            classes=self.spec.classes,
            confounders=weights / weights.sum(),  # a bf16 engine sums to one only nearly
            confounder_names=self.spec.confounders,
            selected=output.selected[0].astype(bool),
            region=region,
            latency_ms=(time.perf_counter() - started) * 1e3,
        )


def labels_at(output: RawOutput, region: Region, size: tuple[int, int]) -> UInt8Array:
    """Labels (H, W) uint8 at the frame's size from the first output of a batch; background outside ``region``."""
    labels = np.zeros(size, np.uint8)
    target = (region.width, region.height)
    rows, columns = region.slices
    score = cv2.resize(output.score[0], target, interpolation=cv2.INTER_LINEAR)
    lesion = (score >= LESION).view(np.uint8)
    if output.label[0].max() > 1:
        lesion = lesion * cv2.resize(output.label[0], target, interpolation=cv2.INTER_NEAREST)
    labels[rows, columns] = lesion
    return labels
