"""One rising clock out of what containers say of their frames' times."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Protocol

from av.video.frame import VideoFrame


class Clock(Protocol):
    """Gives each decoded frame its time; called once for each, in order of presentation.

    Attributes:
        first, last: times given so far, in units of the time base; None before.
        jumps: how often the container's clock jumped back.
    """

    first: int | None
    last: int | None
    jumps: int

    def __call__(self, decoded: VideoFrame) -> int:
        """The frame's time, in units of the time base."""


class Arrivals:
    """A ``Clock`` for what is live and carries no times: it is when the frame was decoded, since the first was."""

    def __init__(self, time_base: Fraction) -> None:
        self._units_per_s = float(1 / time_base)
        self._began_s: float | None = None
        self.first: int | None = None
        self.last: int | None = None
        self.jumps = 0

    def __call__(self, decoded: VideoFrame) -> int:
        """The frame's time, in units of the time base."""
        now_s = time.monotonic()
        self._began_s = now_s if self._began_s is None else self._began_s
        passed = round((now_s - self._began_s) * self._units_per_s)
        self.last = passed if self.last is None else max(passed, self.last + 1)
        self.first = self.last if self.first is None else self.first
        return self.last


class Timestamps:
    """A ``Clock`` that goes by the container's.

    A frame's time is its pts, unless pts run out of order where dts do not (AVI with B-frames); failing both, one
    frame's duration after the frame before. Never back: where the container's clock jumps back, time goes on one frame
    later.

    Args:
        time_base: of the frames' pts.
        rate: nominal frames per second.
        sound: the container's times are known to be right: a frame out of order is a mistake of the decoder, which
            changes no other frame's time.
    """

    def __init__(self, time_base: Fraction, rate: Fraction, sound: bool = False) -> None:
        self._sound = sound
        self._duration = max(1, round(1 / (rate * time_base)))
        self._pts, self._dts = _Order(), _Order()
        self._shift = 0  # all that the container's clock has jumped back by
        self.first: int | None = None
        self.last: int | None = None
        self.jumps = 0

    def __call__(self, decoded: VideoFrame) -> int:
        """The frame's time, in units of the time base."""
        self.last = self._rising(self._given(decoded), int(decoded.duration or self._duration))
        self.first = self.last if self.first is None else self.first
        return self.last

    def _given(self, decoded: VideoFrame) -> int | None:
        self._pts.see(decoded.pts)
        self._dts.see(decoded.dts)
        if self._pts.faults > self._dts.faults and not self._sound:
            return decoded.dts
        return decoded.dts if decoded.pts is None else decoded.pts

    def _rising(self, given: int | None, duration: int) -> int:
        if self.last is None:
            return given or 0
        if given is None:
            return self.last + max(1, duration)
        time = given + self._shift
        if time > self.last:
            return time
        if self._sound or self.last - time < self._duration:  # or a trembling clock: not worth moving all that follows
            return self.last + 1
        self.jumps += 1
        self._shift += self.last + self._duration - time
        return self.last + self._duration


class _Order:
    """Counts how often a sequence of times does not rise."""

    def __init__(self) -> None:
        self.faults = 0
        self._last: int | None = None

    def see(self, time: int | None) -> None:
        if time is not None:
            self.faults += self._last is not None and time <= self._last
            self._last = time
