"""What a run did and how long each part took."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

SAMPLES = 100_000  # kept of each stage, the latest: an hour of video, and a stream that never ends stays small


@dataclass
class Telemetry:
    """Times of every stage, in milliseconds a frame, and the time from frame in to frame out.

    Each stage is written by one thread only.
    """

    stages_ms: dict[str, deque[float]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=SAMPLES)))
    started_s: float = field(default_factory=time.monotonic)
    first_frame_s: float | None = None

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Record the time spent inside as one sample of ``stage``."""
        started = time.perf_counter()
        yield
        self.stages_ms[stage].append((time.perf_counter() - started) * 1e3)

    def frame_out(self, capture_time_s: float) -> None:
        """A frame has been written."""
        now = time.monotonic()
        self.stages_ms["glass_to_glass"].append((now - capture_time_s) * 1e3)
        if self.first_frame_s is None:
            self.first_frame_s = now - self.started_s

    def percentiles(self) -> dict[str, dict[str, float]]:
        """p50, p95, p99 and maximum of every stage."""
        return {
            stage: {
                **{f"p{q}_ms": round(float(np.percentile(times, q)), 2) for q in (50, 95, 99)},
                "max_ms": round(max(times), 2),
            }
            for stage, times in self.stages_ms.items()
            if times
        }


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished run, as ``--json`` prints it.

    Args:
        source, output: as given; of a folder's video, its path.
        model, engine: what segmented.
        frames_in, frames_out: decoded and written.
        frames_dropped: by a live source that outran the model.
        frames_with_lesion: frames in which any label was set.
        seconds, fps: wall time of the run and frames out per second.
        realtime: duration of the video over the wall time; above 1 is faster than real time.
        first_frame_s: from the start of the run to the first frame written.
        stages: per stage percentiles, milliseconds.
        stopped: ended by the user before its source did.
        problem: what was wrong with the input or output though the run went on; None if nothing.
    """

    source: str
    output: str
    model: str
    engine: str
    frames_in: int
    frames_out: int
    frames_dropped: int
    frames_with_lesion: int
    seconds: float
    fps: float
    realtime: float
    first_frame_s: float | None
    stages: dict[str, dict[str, float]]
    stopped: bool = False
    problem: str | None = None
