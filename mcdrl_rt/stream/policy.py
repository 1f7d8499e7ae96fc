"""How a stream keeps up with its source: which frames the model is asked about, and what is shown meanwhile."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np

from mcdrl_rt.errors import SpecError
from mcdrl_rt.types import Frame, UInt8Array
from mcdrl_rt.video.planes import scaled

MODES = ("every", "latest", "pass")
AUTO = "auto"
_THUMBNAIL = (64, 48)  # (width, height)
_STILL_MEAN, _STILL_MOST = 1.0, 12  # grey levels: sensor noise is below, a lesion that comes into view is above


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a stream does with its frames.

    Args:
        mode: ``every`` segments each frame and makes the source wait (files); ``latest`` segments and shows the newest
            frame and drops those it has no time for; ``pass`` shows each frame at once, with the newest mask there is,
            moved to where its tissue is now; ``auto`` is ``pass`` for a live source, else ``every``.
        max_mask_age_ms: no mask found on a frame older than this is drawn.
        fps: at most so many frames of each second are segmented; None: no limit.
        stride: one frame in so many is segmented; between them the mask is moved along.
        skip_static: a frame like the one segmented last keeps its mask.
        steady: masks are averaged along the motion: less flicker, a frame late where a lesion comes or goes.
        opacity: of the lesions' tint, 0…1.
        hud: write the line at the bottom edge.

    Raises:
        SpecError: values that make no sense.
    """

    mode: str = "every"
    max_mask_age_ms: float = 120.0
    fps: float | None = None
    stride: int = 1
    skip_static: bool = False
    steady: bool = False
    opacity: float = 0.35
    hud: bool = True

    def __post_init__(self) -> None:
        if self.mode not in (*MODES, AUTO):
            raise SpecError(f"no policy {self.mode!r}; choose {', '.join(MODES)}")
        fps = 1.0 if self.fps is None else self.fps
        if not (self.max_mask_age_ms > 0 and self.stride >= 1 and 0 < fps < math.inf):
            raise SpecError("the age of a mask, a stride and a frame rate are greater than zero, and finite")

    def of_source(self, live: bool) -> Policy:
        """This policy, decided."""
        return self if self.mode != AUTO else dataclasses.replace(self, mode="pass" if live else "every")

    @property
    def moves_masks(self) -> bool:
        """Whether a mask may be shown on another frame than its own."""
        return self.mode == "pass" or self.stride > 1 or self.fps is not None or self.steady

    def oldest_mask_ms(self, rate: Fraction) -> float:
        """How old a mask gets before the model is asked for the next, in a video of so many frames a second."""
        frames = max(self.stride, 1 if self.fps is None else math.ceil(rate / Fraction(self.fps)))
        return float((frames - 1) / rate * 1000)


class Picker:
    """Decides, frame by frame, whether the model is asked.

    Attributes:
        like: index of the last frame asked about.
        reused: frames that were like the last one asked about, and kept its mask.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._countdown = 0
        self._due_s = -np.inf
        self._last: UInt8Array | None = None
        self.like = -1
        self.reused = 0

    def due(self, frame: Frame) -> bool:
        """Whether to ask about this frame, by stride and rate."""
        if not frame.signal:
            self.forget()
            return False
        self._countdown -= 1
        if self._countdown > 0 or frame.pts_s < self._due_s:
            return False
        self._countdown = self._policy.stride
        if self._policy.fps is not None:  # on a grid of its own, so that 30 frames at 20 a second are not 15
            step = 1 / self._policy.fps
            self._due_s += step
            if not self._due_s > frame.pts_s:  # the first frame, or a gap
                self._due_s = frame.pts_s + step
        return True

    def still(self, frame: Frame) -> bool:
        """Whether this frame, which is due, looks like the last one asked about, which then keeps its mask."""
        if not self._policy.skip_static:
            return False
        small = scaled(frame.picture, _thumbnail)
        last = self._last  # another thread may forget it
        if last is not None and small.shape == last.shape:
            apart = cv2.absdiff(small, last)
            if apart.mean() < _STILL_MEAN and apart.max() < _STILL_MOST:
                self.reused += 1
                return True
        self._last, self.like = small, frame.index
        return False

    def forget(self) -> None:
        """The last one asked about has no mask after all."""
        self._last = None


def _thumbnail(pixels: UInt8Array) -> UInt8Array:
    return np.asarray(cv2.resize(pixels, _THUMBNAIL, interpolation=cv2.INTER_AREA), np.uint8)
