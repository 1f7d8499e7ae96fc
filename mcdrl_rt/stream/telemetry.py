"""What a run did and how long each part took."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mcdrl_rt.stream.histogram import Histogram


@dataclass
class Telemetry:
    """Times of every stage, in milliseconds a frame, and the time from frame in to frame out.

    That is the stage ``glass_to_glass``, as far as it is known here: from ``Frame.capture_time_s``, when the frame came
    out of the decoder (of a recording that is played at its own pace, when it was due), to the return of the sink's
    ``write``. A file's encoder has taken the frame by then; to a window it has been handed over, and to a receiver on
    the network it waits to be encoded and sent. Camera, cable, what the network and the decoder hold back before, and
    the screen after, are not in it. Every sink of a stream adds a sample of its own.
    """

    stages: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    started_s: float = field(default_factory=time.monotonic)
    first_frame_s: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)  # two sinks are one stage

    def add(self, stage: str, milliseconds: float) -> None:
        """One more sample of ``stage``."""
        with self._lock:
            self.stages[stage].add(milliseconds)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Record the time spent inside as one sample of ``stage``."""
        started = time.perf_counter()
        yield
        self.add(stage, (time.perf_counter() - started) * 1e3)

    def frame_out(self, capture_time_s: float) -> None:
        """A sink has returned from writing a frame that came into being then: a sample of ``glass_to_glass``."""
        now = time.monotonic()
        self.add("glass_to_glass", (now - capture_time_s) * 1e3)
        if self.first_frame_s is None:
            self.first_frame_s = now - self.started_s

    def percentiles(self) -> dict[str, dict[str, float]]:
        """p50, p95, p99 and maximum of every stage."""
        return {stage: percentiles(times) for stage, times in list(self.stages.items()) if times.count}


def percentiles(times: Histogram) -> dict[str, float]:
    """p50, p95, p99 and maximum, in milliseconds."""
    figures = {f"p{q}_ms": round(times.percentile(q), 2) for q in (50, 95, 99)}
    return figures | {"max_ms": round(times.maximum, 2)}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A finished run, as ``--json`` prints it.

    Args:
        source: as given; of a folder's video, its path.
        output: where it was written, several with commas between; nothing that was lost.
        lost: outputs that were lost, or of which the end was, and why.
        model, engine: what segmented; the engine at the end, where it changed.
        policy: how the stream kept up with its source.
        frames_in, frames_out: taken from the source and shown.
        frames_dropped: of a live source, that there was no time for.
        frames_with_lesion: frames on which a lesion was drawn.
        frames_without_overlay: frames with a picture but without an answer of the model.
        frames_reused: standing pictures that kept their mask.
        frames_lost_signal: frames while the source was lost.
        reconnections, engine_restarts: how often source and engine were lost and came back.
        seconds, fps: wall time of the run and frames out per second.
        realtime: duration of the video over the wall time; above 1 is faster than real time.
        first_frame_s: from the start of the run to the first frame written.
        mask_age: percentiles of the masks' age, milliseconds.
        stages: per stage percentiles, milliseconds; of an archive's procedure, means of its segments' ones.
        stopped: ended by the user before its source did.
        problem: what was wrong with the input or output though the run went on; None if nothing.
    """

    source: str
    output: str
    lost: dict[str, str] = field(default_factory=dict)
    model: str
    engine: str
    policy: str = "every"
    frames_in: int
    frames_out: int
    frames_dropped: int
    frames_with_lesion: int
    frames_without_overlay: int = 0
    frames_reused: int = 0
    frames_lost_signal: int = 0
    reconnections: int = 0
    engine_restarts: int = 0
    seconds: float
    fps: float
    realtime: float
    first_frame_s: float | None
    mask_age: dict[str, float] = field(default_factory=dict)
    stages: dict[str, dict[str, float]]
    stopped: bool = False
    problem: str | None = None
