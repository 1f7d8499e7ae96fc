"""Findings: the intervals of a video in which lesions of one class are seen."""

from __future__ import annotations

from dataclasses import dataclass

_DIGITS = 6  # of seconds: five frames of 0.04 s are 0.2 s wherever they lie, though floating point differs


@dataclass(eq=False)
class Finding:
    """One interval; it grows while frames are seen.

    Args:
        label: the class.
        start_s, end_s: the first frame's beginning and the last one's end.
        seen_s: time within it that the class is really seen.
        peak_s: when its area is largest, for the first time.
        peak_pixels, peak_share: that area, and its share of the frame.
    """

    label: str
    start_s: float
    end_s: float
    seen_s: float
    peak_s: float
    peak_pixels: int
    peak_share: float

    @property
    def duration_s(self) -> float:
        """From its start to its end."""
        return self.end_s - self.start_s


class Finder:
    """Finds the findings of one class, given the frames it is seen on in order of time.

    Args:
        label: the class.
        bridged_gap_s: a gap shorter than this does not end a finding.
        shortest_s: one that is seen for less than this in all is a flash, and none.
    """

    def __init__(self, label: str, bridged_gap_s: float, shortest_s: float) -> None:
        self._label, self._bridged_gap_s, self._shortest_s = label, bridged_gap_s, shortest_s
        self._done: list[Finding] = []
        self._open: Finding | None = None

    def see(self, start_s: float, end_s: float, pixels: int, share: float) -> None:
        """The class is seen on the frame that lasts from ``start_s`` to ``end_s``."""
        found = self._open
        if found is None or round(start_s - found.end_s, _DIGITS) >= self._bridged_gap_s:
            self._finish()
            self._open = Finding(self._label, start_s, end_s, end_s - start_s, start_s, pixels, share)
            return
        found.end_s = end_s
        found.seen_s += end_s - start_s
        if share > found.peak_share:
            found.peak_s, found.peak_pixels, found.peak_share = start_s, pixels, share

    def findings(self) -> list[Finding]:
        """All of them, at the end."""
        self._finish()
        return self._done

    def _finish(self) -> None:
        if self._open is not None and round(self._open.seen_s, _DIGITS) >= self._shortest_s:
            self._done.append(self._open)
        self._open = None
