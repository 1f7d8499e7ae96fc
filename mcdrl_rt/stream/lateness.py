"""Whether the masks of a stream that waits for none (``pass``) come in time to be drawn at all."""

from __future__ import annotations

import statistics
import time
from collections import deque

from mcdrl_rt.stream.policy import Policy

WARN_S = 5.0  # of a stream without overlay, at a time, before that is told
_LEAST = 10  # frames in such a time
_MUCH = 5  # a flaw where one frame in so many was of such a time
_RARE = 100  # a stream with an overlay on fewer than one frame in so many is as good as without
_ANSWERS = 50  # the newest, whose time is told


class Lateness:
    """Counts the frames of one stream that no mask was in time for, though nothing fails.

    Args:
        policy: one that asks the model about a few frames only has a warning of its own; then nothing is counted.
    """

    def __init__(self, policy: Policy) -> None:
        self._limit_ms, self._asks_all = policy.max_mask_age_ms, policy.stride == 1 and policy.fps is None
        self._frames = self._late = 0
        self._frames_now = self._late_now = self._blind = 0  # in the time that is looked at; in times without overlay
        self._took_ms = deque[float](maxlen=_ANSWERS)
        self._took_then_ms: float | None = None  # when there was no overlay last
        self._began_s: float | None = None
        self._told = False

    def answered(self, took_ms: float) -> None:
        """A mask is there, so many milliseconds after it was asked for."""
        self._took_ms.append(took_ms)

    def see(self, late: bool) -> str | None:
        """Take the next frame that has a signal; a warning, once, when it is time for one.

        Args:
            late: no mask was there in time.
        """
        now_s = time.monotonic()
        self._began_s = now_s if self._began_s is None else self._began_s
        self._frames, self._frames_now = self._frames + 1, self._frames_now + 1
        self._late, self._late_now = self._late + late, self._late_now + late
        if not self._asks_all or now_s - self._began_s < WARN_S or self._frames_now < _LEAST:
            return None
        rare = self._late_now > 0 and _RARE * (self._frames_now - self._late_now) < self._frames_now
        if rare:
            self._blind += self._frames_now
            self._took_then_ms = statistics.median(self._took_ms) if self._took_ms else None
        self._began_s, self._frames_now, self._late_now = now_s, 0, 0
        if self._told or not rare:
            return None
        self._told = True
        return f"{self._text}; see --max-mask-age, --policy latest and --model"

    @property
    def problem(self) -> str | None:
        """That for a time hardly a frame had an overlay, and why; None where there was none, or not for long."""
        return self._text if self._blind * _MUCH > self._frames else None

    @property
    def _text(self) -> str:
        text = f"no overlay on {self._late} of {self._frames} frames: "
        if self._took_then_ms is None:
            return text + "the model has not answered in time for any"
        return (
            f"{text}the model takes {self._took_then_ms:.0f} ms for a mask, too long for one to be shown within "
            f"{self._limit_ms:.0f} ms of its frame"
        )
