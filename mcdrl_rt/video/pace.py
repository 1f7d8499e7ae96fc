"""A recording played at its own pace, as if it came from a capture card."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

from mcdrl_rt.types import Frame
from mcdrl_rt.video.base import Source

_LONGEST_WAIT_S = 5.0  # a longer gap is a clock that jumped


class Paced(Source):
    """Hands out each frame of another source when it is due; live.

    A source that decodes more slowly than its own time runs late: no frame is left out here.
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
        self._closed.set()
        self._source.close()

    def _until_due(self, frame: Frame) -> float:
        """Seconds to wait before ``frame`` may be seen."""
        now = time.monotonic()
        if self._started_s is None or self._started_s + frame.pts_s - now > _LONGEST_WAIT_S:
            self._started_s = now - frame.pts_s
        return max(0.0, self._started_s + frame.pts_s - now)
