"""Whether the masks of a stream that waits for none (``pass``) come in time to be drawn at all."""

from __future__ import annotations

import time

from mcdrl_rt.types import Shown

WARN_S = 5.0  # of a stream without overlay, before that is told
_RARE = 100  # a stream with an overlay on fewer than one frame in so many is as good as without


class Lateness:
    """Counts the frames of one stream on which nothing is drawn, though nothing fails.

    Args:
        limit_ms: no mask found longer ago is drawn.
    """

    def __init__(self, limit_ms: float) -> None:
        self._limit_ms = limit_ms
        self._frames = self._bare = 0
        self._took_ms: float | None = None
        self._began_s: float | None = None
        self._told = False

    def answered(self, took_ms: float) -> None:
        """A mask is there, so many milliseconds after it was asked for."""
        self._took_ms = took_ms

    def see(self, shown: Shown) -> str | None:
        """Take the next frame that has a signal; a warning, once, when it is time for one."""
        now_s = time.monotonic()
        self._began_s = now_s if self._began_s is None else self._began_s
        self._frames += 1
        self._bare += shown.segmentation is None
        if self._told or now_s - self._began_s < WARN_S or (problem := self.problem) is None:
            return None
        self._told = True
        return f"{problem}; see --max-mask-age, --policy latest and --model"

    @property
    def problem(self) -> str | None:
        """That hardly a frame has an overlay, and why; None where that is not so."""
        if not self._bare or _RARE * (self._frames - self._bare) >= self._frames:
            return None
        text = f"no overlay on {self._bare} of {self._frames} frames: "
        if self._took_ms is None:
            return text + "the model has not answered in time for any"
        limit = f"none found more than {self._limit_ms:.0f} ms ago is drawn"
        return f"{text}the model takes {self._took_ms:.0f} ms for a mask, and {limit}"
