"""A recording played at its own pace, as if it came from a capture card."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from mcdrl_rt.types import Frame
from mcdrl_rt.video.base import Source

_LONGEST_WAIT_S = 5.0  # a longer gap is a clock that jumped
_LATE_S = 0.1  # what is later than this goes on from here, and does not hurry to make up for it


class Paced(Source):
    """Hands out each frame of another source when it is due; live.

    A source that decodes more slowly than its own time runs late, and stays late: no frame is left out here.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._take_facts(source)
        self.live = True
        self._started_s: float | None = None  # when the frame at 0 s was due
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        for frame in self._source:
            if self._closed.wait(self._until_due(frame)):
                return
            yield replace(frame, capture_time_s=time.monotonic())
        self.problem = self._source.problem

    def close(self) -> None:
        """Close the source behind, and end the wait for a frame."""
        self._closed.set()
        self._source.close()

    def _until_due(self, frame: Frame) -> float:
        """Seconds to wait before ``frame`` may be seen."""
        now = time.monotonic()
        start_s = now - frame.pts_s if self._started_s is None else self._started_s
        if not -_LATE_S < start_s + frame.pts_s - now < _LONGEST_WAIT_S:
            start_s = now - frame.pts_s
        self._started_s = start_s
        return max(0.0, start_s + frame.pts_s - now)
