"""Source → segment → overlay → sinks, each on its own thread, frames in order and with their own times.

    >>> with open_source("in.mp4") as source, open_sink(...) as sink:          # doctest: +SKIP
    ...     summary = run(source, segmenter, sink)                             # doctest: +SKIP

Files block: every frame is segmented. Live sources drop their oldest waiting frame, and the drop is counted. An
exception in any stage stops all of them and is raised once, from ``run``. Setting ``stop`` ends the source; what it
has delivered by then is still segmented and written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from mcdrl_rt.segmenter import AnySegmenter
from mcdrl_rt.stream.channel import Channel, Stopped
from mcdrl_rt.stream.telemetry import Summary, Telemetry
from mcdrl_rt.types import Frame, Segmentation, Shown, UInt8Array
from mcdrl_rt.video.overlay import Hud, draw, draw_hud
from mcdrl_rt.video.sink import Sink
from mcdrl_rt.video.source import Source

QUEUE = 4  # frames between two stages: enough to ride out a slow one, few enough to stay current


class Segmented(NamedTuple):
    """A frame and what the model said of it."""

    frame: Frame
    segmentation: Segmentation
    shown: UInt8Array | None = None  # the frame's pixels with the lesions drawn, where the engine's device did that


Writer = Callable[[Segmented], None]


class Pipeline:
    """One run over one source.

    Args:
        source: opened.
        segmenter: used from one thread only.
        writers: called in order for every segmented frame, on the writing thread.
        on_frame: called with the number of frames written so far, on the writing thread.
        stop: set from anywhere, it ends the source as if it had no more frames.
        opacity: of the lesions' tint, where they are drawn on the engine's device.
    """

    def __init__(
        self,
        source: Source,
        segmenter: AnySegmenter,
        writers: list[Writer],
        on_frame: Callable[[int], None] | None = None,
        stop: threading.Event | None = None,
        opacity: float = 0.35,
    ) -> None:
        self.source, self.segmenter, self.writers, self.on_frame = source, segmenter, writers, on_frame
        self.opacity = opacity
        self.stop = stop or threading.Event()
        self.stopped = False
        self.telemetry = Telemetry()
        self.frames_in = self.frames_out = self.frames_with_lesion = 0
        self._decoded: Channel[Frame] = Channel(QUEUE, drop_oldest=source.live)
        self._segmented: Channel[Segmented] = Channel(QUEUE)
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._first_pts_s = self._last_pts_s = 0.0

    def run(self) -> None:
        """Run to the end of the source; raises what any stage raised, after all have stopped."""
        # events, because Thread.join takes a thread for dead when a signal's exception interrupts it (CPython 3.11)
        ends = {stage: threading.Event() for stage in (self._decode, self._segment, self._write)}
        for stage, end in ends.items():
            name = stage.__name__.strip("_")
            threading.Thread(target=self._guard, args=(stage, end), name=name, daemon=True).start()
        try:
            for end in ends.values():
                while not end.wait(0.2):  # in slices, so that Ctrl-C is seen at once
                    pass
        except BaseException as error:
            self._fail(error)
            for end in ends.values():
                end.wait(5)
        if self._failure is not None:
            raise self._failure

    @property
    def dropped(self) -> int:
        """Frames a live source delivered that the model had no time for."""
        return self._decoded.dropped

    @property
    def video_s(self) -> float:
        """Duration of what was written: from the first frame's time to one frame past the last's."""
        if not self.frames_out:
            return 0.0
        return self._last_pts_s - self._first_pts_s + float(1 / self.source.rate)

    def _decode(self) -> None:
        frames = iter(self.source)
        while not self.stop.is_set():
            with self.telemetry.time("decode"):
                frame = next(frames, None)
            if frame is None:
                break
            self.frames_in += 1
            self._decoded.put(frame)
        else:
            self.stopped = True
        self._decoded.end()

    def _segment(self) -> None:
        while (frame := self._decoded.get()) is not None:
            with self.telemetry.time("segment"):
                segmentation, shown = self.segmenter.show(frame.pixels, self.opacity)
            self._segmented.put(Segmented(frame, segmentation, shown))
        self._segmented.end()

    def _write(self) -> None:
        while (item := self._segmented.get()) is not None:
            for writer in self.writers:
                writer(item)
            self._count(item)
            if self.on_frame is not None:
                self.on_frame(self.frames_out)

    def _count(self, item: Segmented) -> None:
        if self.frames_out == 0:
            self._first_pts_s = item.frame.pts_s
        self._last_pts_s = item.frame.pts_s
        self.frames_out += 1
        self.frames_with_lesion += bool(item.segmentation.labels.any())
        self.telemetry.frame_out(item.frame.capture_time_s)

    def _guard(self, stage: Callable[[], None], end: threading.Event) -> None:
        try:
            stage()
        except Stopped:
            pass
        except BaseException as error:
            self._fail(error)
        finally:
            end.set()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._failure = self._failure or error
        self._decoded.stop()
        self._segmented.stop()


def annotate(sink: Sink, segmenter: AnySegmenter, telemetry: Telemetry, opacity: float = 0.35) -> Writer:
    """A writer that draws lesions and HUD on each frame and hands it to ``sink``."""
    model, colors = f"{segmenter.spec.name} · {segmenter.engine.name}", segmenter.spec.colors

    def write(item: Segmented) -> None:
        with telemetry.time("overlay"):
            hud = Hud(model, age_ms=0.0)  # each frame carries its own mask here
            if (pixels := item.shown) is None:
                pixels = draw(item.frame.pixels, item.segmentation, colors=colors, hud=hud, opacity=opacity)
            else:
                draw_hud(pixels, item.segmentation, hud, colors)
        with telemetry.time("write"):
            sink.write(Shown(item.frame.with_pixels(pixels)))

    return write


def run(
    source: Source,
    segmenter: AnySegmenter,
    sink: Sink,
    *,
    output: str = "",
    opacity: float = 0.35,
    on_frame: Callable[[int], None] | None = None,
    writers: list[Writer] | None = None,
    stop: threading.Event | None = None,
) -> Summary:
    """Segment ``source``, write it annotated to ``sink``, and say what happened.

    Args:
        source, segmenter, sink: opened; the caller closes them.
        output: the sink's name, for the summary.
        opacity: of the lesions' tint, 0…1.
        on_frame: called with the number of frames written so far.
        writers: further writers, called for each frame after the annotated one.
        stop: set it to end the run early and keep what was written.
    """
    pipeline = Pipeline(source, segmenter, [], on_frame, stop, opacity)
    pipeline.writers = [annotate(sink, segmenter, pipeline.telemetry, opacity), *(writers or [])]
    started = time.monotonic()
    pipeline.run()
    seconds = time.monotonic() - started
    first = pipeline.telemetry.first_frame_s
    return Summary(
        source=source.name,
        output=output,
        model=segmenter.spec.name,
        engine=segmenter.engine.name,
        frames_in=pipeline.frames_in,
        frames_out=sink.frames,
        frames_dropped=pipeline.dropped,
        frames_with_lesion=pipeline.frames_with_lesion,
        seconds=round(seconds, 3),
        fps=round(pipeline.frames_out / seconds, 2) if seconds else 0.0,
        realtime=round(pipeline.video_s / seconds, 2) if seconds else 0.0,
        first_frame_s=None if first is None else round(first, 3),
        stages=pipeline.telemetry.percentiles(),
        stopped=pipeline.stopped,
        problem="; ".join(text for text in (source.problem, sink.problem) if text) or None,
    )
