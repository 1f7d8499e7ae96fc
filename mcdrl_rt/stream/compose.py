"""What is shown on a frame: the newest mask that belongs there, or an honest word that there is none."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from fractions import Fraction

from mcdrl_rt.stream.policy import Policy
from mcdrl_rt.types import Frame, ModelSpec, Segmentation, Shown, UInt8Array
from mcdrl_rt.video.motion import Motion
from mcdrl_rt.video.overlay import Hud, draw, draw_hud
from mcdrl_rt.video.steady import Steady

NO_SIGNAL = "signal lost"


@dataclass(frozen=True, slots=True)
class Found:
    """A segmentation and the frame it belongs to; ``origin`` is the index of the one the model saw."""

    segmentation: Segmentation
    index: int
    origin: int
    capture_time_s: float
    time_s: Fraction


class Compositor:
    """Draws on the frames of one stream, in their order; for one thread.

    Args:
        policy: what may be shown.
        spec: the model's.

    Attributes:
        late: whether the frame composed last has no overlay because no mask was there in time.
    """

    late = False

    def __init__(self, policy: Policy, spec: ModelSpec) -> None:
        self._policy, self._spec = policy, spec
        self._motion = Motion() if policy.moves_masks else None
        self._steady = Steady(self._motion) if self._motion is not None and policy.steady else None
        self._newest: Found | None = None

    def follow(self, frame: Frame) -> None:
        """See the next frame, before what was found on it, and before it is composed."""
        if not frame.signal:
            self._newest = None
        elif self._motion is not None:
            self._motion.follow(frame.picture, frame.index)

    def found(self, frame: Frame, segmentation: Segmentation) -> None:
        """Take a segmentation of ``frame``, which was followed."""
        if self._newest is not None and self._newest.index >= frame.index:
            return
        if self._steady is not None:
            segmentation = dataclasses.replace(segmentation, labels=self._steady(segmentation.labels, frame.index))
        self._newest = Found(segmentation, frame.index, frame.index, frame.capture_time_s, frame.pts * frame.time_base)

    def confirm(self, frame: Frame, like: int) -> bool:
        """``frame`` looks like frame ``like``: that one's mask, if it is known and can be brought here, is its own."""
        if self._newest is None or self._newest.origin != like:
            return False
        labels = self._newest.segmentation.labels if self._motion is None else self._labels_on(frame, self._newest)
        if labels is None or labels.shape != frame.size:
            return False
        segmentation = dataclasses.replace(self._newest.segmentation, labels=labels)
        self._newest = Found(segmentation, frame.index, like, frame.capture_time_s, frame.pts * frame.time_base)
        return True

    def compose(self, frame: Frame, title: str, reason: str = "", drawn: UInt8Array | None = None) -> Shown:
        """The frame as it is to be shown.

        Args:
            frame: followed.
            title: what segments now, for the HUD.
            reason: why the model did not answer, if it did not.
            drawn: (H, W, 3) uint8, the frame with the lesions drawn on it by the engine's device; taken over.
        """
        segmentation, age_ms, note = self._overlay(frame, reason)
        picture = frame.picture
        if segmentation is not None and drawn is not None and self._steady is None:
            picture = drawn
        elif segmentation is not None:
            picture = draw(frame.picture, segmentation, colors=self._spec.colors, opacity=self._policy.opacity)
        if self._policy.hud:
            picture = picture.copy() if picture is frame.picture else picture
            hud = Hud(title, age_ms, note)
            draw_hud(picture, segmentation, hud, self._spec.colors)
        return Shown(frame.showing(picture), frame.picture, segmentation, age_ms, note)

    def _overlay(self, frame: Frame, reason: str) -> tuple[Segmentation | None, float | None, str]:
        """What may be drawn on the frame and how old it is, or why nothing."""
        self.late = False
        if not frame.signal:
            return None, None, NO_SIGNAL
        if self._newest is None:
            self.late = True
            return None, None, f"no overlay: {reason or 'waiting for the model'}"
        age_ms = self._age_ms(frame, self._newest)
        if age_ms > self._policy.max_mask_age_ms:
            self.late = True
            return None, None, f"no overlay: {reason or f'the newest mask is {age_ms:.0f} ms old'}"
        labels = self._labels_on(frame, self._newest)
        if labels is None:
            return None, None, f"no overlay: {reason or 'the motion since the newest mask is not known'}"
        return dataclasses.replace(self._newest.segmentation, labels=labels), age_ms, ""

    def _age_ms(self, frame: Frame, found: Found) -> float:
        """How old a mask is: live by the clock on the wall, else by the video's own."""
        if self._policy.mode == "pass":
            return (time.monotonic() - found.capture_time_s) * 1e3
        return float((frame.pts * frame.time_base - found.time_s) * 1000)  # exactly: the limit is often on a frame

    def _labels_on(self, frame: Frame, found: Found) -> UInt8Array | None:
        labels = found.segmentation.labels
        if found.index == frame.index:
            return labels
        if labels.shape != frame.size or self._motion is None:
            return None
        return self._motion.move(labels, found.index)
