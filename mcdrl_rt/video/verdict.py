"""What to tell people of a video once it has been read: all at once, or in parts whose tallies add up."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Tally:
    """What became of a video, or of a part of it; the sum of the parts, in their order, is that of the whole.

    Args:
        frames: that were given out.
        lost: frames that could not be decoded, or only with errors.
        jumps: how often the clock jumped back.
        first, last: times of the first and the last frame, in units of the time base; None without frames.
        last_stays: how long the last frame is to be shown, in the same units; 0 where that is not said.
        stopped: why reading stopped early, if it did.
    """

    frames: int = 0
    lost: int = 0
    jumps: int = 0
    first: int | None = None
    last: int | None = None
    stopped: str | None = None
    last_stays: int = 0

    def __add__(self, later: Tally) -> Tally:
        return Tally(
            self.frames + later.frames,
            self.lost + later.lost,
            self.jumps + later.jumps,
            later.first if self.first is None else self.first,
            self.last if later.last is None else later.last,
            later.stopped or self.stopped,
            self.last_stays if later.last is None else later.last_stays,
        )


@dataclass(frozen=True)
class Expected:
    """What a container promises.

    Args:
        frames: how many; 0 where nothing is known.
        counted: it states their number; else that is at most its duration times the rate.
        rate: frames per second, on average where they are counted.
        time_base: of the times in a tally.
        from_zero: its duration is the time of its end, wherever it begins.
        bytes_missing: by how many, at least, the file is shorter than it should be.
    """

    frames: int
    counted: bool
    rate: Fraction
    time_base: Fraction
    from_zero: bool
    bytes_missing: int = 0

    def verdict(self, tally: Tally) -> str | None:
        """What was wrong with the video, in one line; None when nothing was."""
        if tally.jumps:
            times = "once" if tally.jumps == 1 else f"{tally.jumps} times"
            return "; ".join(filter(None, (self._loss(tally), f"its clock jumped back {times}: time was counted on")))
        return self._loss(tally)

    def _loss(self, tally: Tally) -> str | None:
        # estimates are a few frames off in sound files too, so a small shortage means nothing
        tolerance = 2 + self.frames // 20
        there = max(self._spanned(tally), tally.frames) if self.counted else self._spanned(tally)
        if self.bytes_missing or self.frames - there > tolerance:
            cut_off = f"; {self.bytes_missing} bytes or more are missing at its end" if self.bytes_missing else ""
            return f"truncated: decoded {tally.frames} {self._out_of(tally)}{cut_off}"
        if tally.stopped:
            return f"ended early after {tally.frames} frames: {tally.stopped}"
        # only a count that the container states can miss frames: an estimate assumes a constant rate
        missing = self.frames - tally.frames if self.counted else 0
        lost = max(tally.lost, missing if missing > tolerance else 0)
        if lost:
            return f"damaged: {lost} frames were lost or decoded with errors, {tally.frames} were decoded"
        return None

    def _out_of(self, tally: Tally) -> str:
        """How much there should have been: in frames where they were counted, else in seconds."""
        if self.counted:
            return f"of about {self.frames} frames"
        return f"frames, {float(self._spanned(tally) / self.rate):.1f} of about {float(self.frames / self.rate):.1f} s"

    def _spanned(self, tally: Tally) -> int:
        """Frames that fit between the first one and the end of the last one seen: gaps are not a missing end."""
        first, last = tally.first, tally.last
        if first and self.from_zero:
            first = 0
        if first is None or last is None:
            return 0
        rate = self.time_base * self.rate  # frames in a unit of the times
        return round((last - first) * rate + max(Fraction(1), tally.last_stays * rate))
