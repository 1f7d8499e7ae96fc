"""The whole way of a frame on one device: colour, crop, resize, network, labels, overlay, and one wait at the end.

``DeviceSegmenter`` does what ``Segmenter`` and ``overlay.draw`` do, for an engine whose network runs on torch tensors.
A frame on the host is uploaded once; one that is in GPU memory already (a tensor, NV12 planes of a decoder) not at
all. ``begin`` only asks the device to work, ``Pending.finish`` waits, so the next frame can be begun before.

    >>> segmenter = DeviceSegmenter(GraphEngine.from_checkpoint(path), stateful=True)     # doctest: +SKIP
    >>> pending = segmenter.begin(rgb, opacity=0.35)                                      # doctest: +SKIP
    >>> segmentation, shown = pending.finish()                                            # doctest: +SKIP
    >>> overlay.draw_hud(shown, segmentation, hud, spec.colors)                           # doctest: +SKIP

The HUD's letters are left to the processor: they say what the network said, so they can only be written after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from mcdrl_rt.engine.pixels import Nv12, Scaler, paint, to_rgb
from mcdrl_rt.engine.tensors import TensorEngine, download, failures, upload
from mcdrl_rt.errors import EngineError, SourceError
from mcdrl_rt.types import ModelSpec, Native, Region, Segmentation, UInt8Array
from mcdrl_rt.video import planes
from mcdrl_rt.video.planes import Planes
from mcdrl_rt.video.region import RegionTracker, find_region_by, sampled

Picture = UInt8Array | Native | Tensor | Nv12


@dataclass
class Pending:
    """A frame the device is at work on.

    Attributes:
        labels: (H, W) uint8 on the device.
        shown: (H, W, 3) uint8 on the device, the lesions drawn; None where that was not asked for.
        region: the field of view.
    """

    labels: Tensor
    shown: Tensor | None
    region: Region
    _confounders: Tensor  # (M,)
    _selected: Tensor  # (h, w)
    _spec: ModelSpec
    _started: float
    _frame: Picture  # a decoder hands its memory out again when nobody holds it

    def finish(self) -> tuple[Segmentation, UInt8Array | None]:
        """Wait for the device, once; the segmentation, and the pixels of ``shown``. Call it once."""
        on_device = [self.labels, self._confounders, self._selected]
        on_device += [] if self.shown is None else [self.shown]
        with failures("the engine failed on a frame"):
            labels, weights, selected, *shown = download(on_device, self.labels.device)
        weights = weights.astype(np.float32)
        if not (np.isfinite(weights).all() and weights.sum() > 0):
            raise EngineError("the engine's confounder readout is not a number")
        segmentation = Segmentation(
            labels=labels,
            classes=self._spec.classes,
            confounders=weights / weights.sum(),
            confounder_names=self._spec.confounders,
            selected=selected.astype(bool),
            region=self.region,
            latency_ms=(time.perf_counter() - self._started) * 1e3,
        )
        return segmentation, shown[0] if shown else None


class DeviceSegmenter:
    """Segments frames with one engine, on its device; not thread-safe, but several on one engine are, one a thread.

    Args:
        engine: a ready engine.
        stateful: follow one video, as in ``Segmenter``: then one frame in 15 is looked at for the field of view, which
            waits for the device if the frame is on it. Off, every frame is.
    """

    def __init__(self, engine: TensorEngine, stateful: bool = False) -> None:
        self.engine = engine
        self._region = RegionTracker().follow if stateful else find_region_by
        self._scaler: Scaler | None = None
        colors = np.array([(0, 0, 0), *engine.spec.colors], np.float32)
        self._colors = upload(colors, engine.device)

    def for_stream(self) -> DeviceSegmenter:
        """The same engine, following one video from here on."""
        return DeviceSegmenter(self.engine, stateful=True)

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self.engine.spec

    def __call__(self, frame: Picture) -> Segmentation:
        """Segment one frame and wait for it; see ``begin``."""
        return self.begin(frame).finish()[0]

    def show(self, frame: Picture, opacity: float | None) -> tuple[Segmentation, UInt8Array | None]:
        """Segment one frame and wait for it, and for its pixels with the lesions drawn; see ``begin``.

        Nothing is drawn on planes here: they are on the host, and there it takes less than to fetch other pixels.
        """
        return self.begin(frame, None if isinstance(frame, Planes) else opacity).finish()

    @torch.no_grad()
    def begin(self, frame: Picture, opacity: float | None = None) -> Pending:
        """Have the device segment a frame.

        Args:
            frame: (H, W, 3) uint8 RGB, an array or a tensor wherever it is, ``Nv12``, or a video's ``Planes``.
            opacity: of the lesions' tint, 0…1; None draws nothing.

        Raises:
            SourceError: ``frame`` is something else.
            EngineError: the engine failed.
        """
        started = time.perf_counter()
        with failures("the engine failed on a frame"):
            pixels = self._on_device(frame)
            size = (int(pixels.shape[0]), int(pixels.shape[1]))
            region = self._find_region(frame, pixels, size)
            scaler = self._scaler_for(region)
            small = scaler.down(pixels)[None]
            with self.engine.turn:  # until there are copies of what the next frame, of any video's, would overwrite
                score, label, confounders, selected = (part[0].clone() for part in self.engine.run(small)[:4])
            labels = scaler.labels(score, label, size, len(self.spec.classes))
            shown = None if opacity is None else paint(pixels, labels, self._colors, opacity, region)
        return Pending(labels, shown, region, confounders, selected, self.spec, started, frame)

    def _on_device(self, frame: Picture) -> Tensor:
        """(H, W, 3) uint8 on the engine's device."""
        device = self.engine.device
        if isinstance(frame, Nv12):
            if device.type == "cuda":  # where decoders write; torch's other streams do not wait for it by themselves
                torch.cuda.current_stream(device).wait_stream(torch.cuda.default_stream(device))
            return to_rgb(Nv12(frame.luma.to(device), frame.chroma.to(device), *frame[2:]))
        if isinstance(frame, Planes):  # half of what RGB is
            luma, blue, red = (upload(plane, device) for plane in (frame.luma, frame.blue, frame.red))
            return to_rgb(Nv12(luma, torch.stack([blue, red], dim=-1), frame.matrix))
        if not _is_picture(frame):
            got = f"{getattr(frame, 'dtype', type(frame).__name__)} of shape {tuple(getattr(frame, 'shape', ()))}"
            raise SourceError(f"a picture is (H, W, 3) uint8, RGB, an array or a tensor; got {got}")
        if isinstance(frame, np.ndarray):
            return upload(frame, device)
        return frame.to(device, non_blocking=True)

    def _find_region(self, frame: Picture, pixels: Tensor, size: tuple[int, int]) -> Region:
        def look() -> UInt8Array:
            if isinstance(frame, np.ndarray | Planes):  # still on the host: no need to ask the device
                return planes.sampled(frame, *sampled(size))
            return pixels[sampled(size)].cpu().numpy()

        return self._region(size, look)

    def _scaler_for(self, region: Region) -> Scaler:
        """Weights for this region; a video's stays, so one is kept."""
        if self._scaler is None or self._scaler.region != region:
            self._scaler = Scaler(region, self.spec.input_size, self.engine.device)
        return self._scaler


def _is_picture(frame: Picture) -> TypeGuard[UInt8Array | Tensor]:
    if not isinstance(frame, np.ndarray | Tensor) or frame.dtype not in (np.uint8, torch.uint8):
        return False
    return tuple(frame.shape[2:]) == (3,) and 0 not in frame.shape
