"""Source → engine → overlay → sinks, each on its own thread, frames in order and with their own times.

    >>> with open_source("in.mp4") as source, Supervisor(segmenter) as supervisor:     # doctest: +SKIP
    ...     sinks = {"out.mp4": open_sink("out.mp4", source.format)}                   # doctest: +SKIP
    ...     summary = Stream(source, supervisor.seat(), sinks).run()                   # doctest: +SKIP

How a stream keeps up is its policy's (``policy.py``). A source or a sink that fails ends its stream, unless other sinks
are left; an engine that fails does not: the video goes on without overlay. Setting ``stop`` ends the source; what it
has delivered by then is still segmented and written. What is left of a video file, by what ended the stream:

====================================  ===============================  ==========================
what ended it                         of a live recording              of a file made of a file
====================================  ===============================  ==========================
the source's end, ``stop``            all                              all, or all until then
the source fails, or another sink     all until then                   nothing
a fault of ours                       all until then                   nothing
the disk is full, the sink fails      all but the last second          nothing
``discard``, a second Ctrl-C          nothing                          nothing
``kill -9``, power cut, hanging sink  all but the last second, hidden  nothing that can be played
====================================  ===============================  ==========================

What happens on the way goes to the log ``mcdrl_rt.stream``, how a run began and ended to ``mcdrl_rt.journal``.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from mcdrl_rt.errors import McdrlError, SinkError
from mcdrl_rt.stream.channel import Channel, Stopped
from mcdrl_rt.stream.histogram import Histogram
from mcdrl_rt.stream.metrics import StreamStatus
from mcdrl_rt.stream.output import Output
from mcdrl_rt.stream.policy import Policy
from mcdrl_rt.stream.presenter import Presenter, Segmented
from mcdrl_rt.stream.supervisor import Seat
from mcdrl_rt.stream.telemetry import Summary, Telemetry
from mcdrl_rt.types import Frame, Shown
from mcdrl_rt.video.motion import HISTORY
from mcdrl_rt.video.names import legible, redacted
from mcdrl_rt.video.routing import distinct
from mcdrl_rt.video.sink import Sink
from mcdrl_rt.video.source import Source

QUEUE = 4  # frames between two stages: enough to ride out a slow one, few enough to stay current
_SLICE_S = 0.2  # of every wait, so that Ctrl-C is seen at once
STOP_S = 1.0  # that a source which delivers nothing is waited for, once the end was asked for or something failed
_log, _journal = logging.getLogger("mcdrl_rt.stream"), logging.getLogger("mcdrl_rt.journal")


class Stream:
    """One run over one source.

    Args:
        source: opened; the caller closes it.
        seat: at the engine, this stream's own.
        sinks: opened, by the name the user gave; ``run`` closes them, or aborts them if it fails. Nobody else may from
            then on: one that hangs is left to its thread.
        policy: how to keep up.
        name: of the stream, for people; the source's by default.
        on_frame: called with the number of frames shown so far, on one thread.
        stop: set from anywhere, it ends the source as if it had no more frames.
        strict: a frame without an answer of the model is an error.
    """

    def __init__(
        self,
        source: Source,
        seat: Seat,
        sinks: Mapping[str, Sink],
        policy: Policy | None = None,
        name: str = "",
        *,
        on_frame: Callable[[int], None] | None = None,
        stop: threading.Event | None = None,
        strict: bool = False,
    ) -> None:
        self.source, self.name = source, name or source.name
        self.policy = (policy or Policy()).of_source(source.live)
        self.telemetry, self.stop, self.stopped = Telemetry(), stop or threading.Event(), False
        self.frames_in = self.frames_out = self.frames_with_lesion = 0
        self.frames_without_overlay = self.frames_lost_signal = 0
        self._seat, self._on_frame = seat, on_frame
        self._sinks, self._outputs, self._failed_outputs = dict(sinks), list[Output](), list[Output]()
        self._presenter = Presenter(self.policy, seat, self.telemetry, self.name, strict)
        waits = self.policy.mode == "every"
        self._captured: Channel[Frame] = Channel(1 if self.policy.mode == "latest" else QUEUE, drop_oldest=not waits)
        self._segmented: Channel[Segmented] = Channel(QUEUE)
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._signal, self._discarded = True, False
        self._down = set[Output]()  # that take nothing just now
        self._asked_source_s: float | None = None  # since when the source owes a frame
        self._lost_s = 0.0  # since when there is no signal
        self._first_pts_s = self._last_pts_s = self._started_s = self._seconds = 0.0

    def run(self) -> Summary:
        """Run to the end of the source.

        Raises:
            McdrlError: what source or sinks raised, after all have stopped.
        """
        self._started_s = time.monotonic()
        names = distinct([legible(redacted(name)) for name in self._sinks])
        self._outputs = [
            Output(name, sink, self.telemetry, self.source.live)
            for name, sink in zip(names, self._sinks.values(), strict=True)
        ]
        self._tell(logging.INFO, "started", _journal, engine=self._seat.engine, policy=dataclasses.asdict(self.policy))
        self._warn_of_flicker()
        keep = self._run_stages()
        for output in self._outputs:
            output.finish(keep)
        while not all([output.wait(_SLICE_S) for output in self._outputs]):
            if not keep or self.source.live or self.stop.is_set():
                self._hurry()
        self._seconds = time.monotonic() - self._started_s
        self._check_outputs()
        if self._failure is not None:
            bug = None if isinstance(self._failure, McdrlError) else self._failure
            self._tell(logging.ERROR, f"failed: {self._failure}", _journal, exc_info=bug)
            raise self._failure
        summary = self.summary()
        self._tell(logging.INFO, "ended", _journal, summary=dataclasses.asdict(summary))
        return summary

    def discard(self) -> None:
        """End at once, from any thread, and throw away what was written."""
        self._discarded = True
        self._fail(SinkError(f"{self.name}: discarded"))

    @property
    def dropped(self) -> int:
        """Frames a live source delivered that there was no time for."""
        written = max((output.dropped for output in self._outputs), default=0)
        return self.source.dropped + self._captured.dropped + written

    @property
    def video_s(self) -> float:
        """Duration of what was shown: from the first frame's time to one frame past the last's."""
        if not self.frames_out:
            return 0.0
        return self._last_pts_s - self._first_pts_s + float(1 / self.source.rate)

    @property
    def problem(self) -> str | None:
        """What the user should know though the run went on; None if nothing."""
        texts = [self.source.problem, *(output.sink.problem for output in self._outputs if not output.lost)]
        texts += self._presenter.problems
        return "; ".join(text for text in texts if text) or None

    def status(self) -> StreamStatus:
        """Where the stream stands now; from any thread."""
        return StreamStatus(
            name=self.name,
            policy=self.policy.mode,
            engine=self._seat.engine,
            frames_in=self.frames_in,
            frames_out=self.frames_out,
            frames_dropped=self.dropped,
            frames_without_overlay=self.frames_without_overlay,
            frames_reused=self._presenter.reused,
            reconnections=self.source.reconnections,
            engine_restarts=self._seat.restarts,
            signal=self._signal,
            outputs={output.name: output.failure is None and not output.down for output in self._outputs},
            age=self.telemetry.stages.get("mask_age", Histogram()),
            stages={name: times for name, times in list(self.telemetry.stages.items()) if name != "mask_age"},
        )

    def summary(self) -> Summary:
        """What happened."""
        stages = self.telemetry.percentiles()
        age, first = stages.pop("mask_age", {}), self.telemetry.first_frame_s
        return Summary(
            source=self.name,
            output=", ".join(output.name for output in self._outputs if not output.lost),
            lost={output.name: output.lost for output in self._outputs if output.lost},
            model=self._seat.spec.name,
            engine=self._seat.engine,
            policy=self.policy.mode,
            frames_in=self.frames_in,
            frames_out=self.frames_out,
            frames_dropped=self.dropped,
            frames_with_lesion=self.frames_with_lesion,
            frames_without_overlay=self.frames_without_overlay,
            frames_reused=self._presenter.reused,
            frames_lost_signal=self.frames_lost_signal,
            reconnections=self.source.reconnections,
            engine_restarts=self._seat.restarts,
            seconds=round(self._seconds, 3),
            fps=round(self.frames_out / self._seconds, 2) if self._seconds else 0.0,
            realtime=round(self.video_s / self._seconds, 2) if self._seconds else 0.0,
            first_frame_s=None if first is None else round(first, 3),
            mask_age=age,
            stages=stages,
            stopped=self.stopped,
            problem=self.problem,
        )

    def _run_stages(self) -> bool:
        """Run to the end; whether what was written is to be kept."""
        rest = [self._pass] if self.policy.mode == "pass" else [self._segment, self._show]
        stages = [self._capture, *rest]
        # events, because Thread.join takes a thread for dead when a signal's exception interrupts it (CPython 3.11)
        ends = {stage: threading.Event() for stage in stages}
        for stage, end in ends.items():
            name = stage.__name__.strip("_")
            threading.Thread(target=self._guard, args=(stage, end), name=name, daemon=True).start()
        try:
            for stage, end in ends.items():
                while not end.wait(_SLICE_S):
                    self._check_outputs()
                    if stage == self._capture and self._source_hangs():
                        self.stopped = True
                        self._captured.end()  # the thread is left behind: nothing can interrupt it
                        break
                    if self.stop.is_set() or self._failure is not None:
                        self._hurry()
                    self._tell_of_outputs()
        except BaseException as error:
            self._fail(error)
            for end in ends.values():
                end.wait(5)
            return False
        # a recording of what will not come again is worth keeping, whatever ended it
        return self._failure is None or (self.source.live and not self._discarded)

    def _hurry(self) -> None:
        for output in self._outputs:
            output.hurry()

    def _capture(self) -> None:
        frames = iter(self.source)
        while not self.stop.is_set():
            with self.telemetry.time("capture"):
                self._asked_source_s = time.monotonic()
                frame = next(frames, None)
                self._asked_source_s = None
            if frame is None:
                break
            self._captured.put(frame)
            self.frames_in += 1
        else:
            self.stopped = True
        self._captured.end()

    def _segment(self) -> None:
        """``every`` and ``latest``: frame and mask go on together."""
        while (frame := self._captured.get()) is not None:
            self._segmented.put(self._presenter.segment(frame))
        self._segmented.end()

    def _show(self) -> None:
        while (item := self._segmented.get()) is not None:
            with self.telemetry.time("compose"):
                shown = self._presenter.with_answer(item)
            self._put(shown)

    def _pass(self) -> None:
        """``pass``: each frame is shown at once, and the model is asked about the newest one it has time for."""
        while (frame := self._captured.get()) is not None:
            with self.telemetry.time("compose"):
                shown = self._presenter.at_once(frame)
            self._put(shown)

    def _source_hangs(self) -> bool:
        """Whether the end was asked for, or something failed, and the source keeps everyone waiting for it."""
        asked_s, ends = self._asked_source_s, self.stop.is_set() or self._failure is not None
        return ends and asked_s is not None and time.monotonic() - asked_s > STOP_S

    def _put(self, shown: Shown) -> None:
        """Hand a composed frame to the sinks, and count it."""
        frame, found = shown.frame, shown.segmentation
        stages_ms = {"since_capture": (time.monotonic() - frame.capture_time_s) * 1e3}
        if found is not None:
            stages_ms |= found.stages_ms
        for output in self._outputs:
            output.put(dataclasses.replace(shown, stages_ms=stages_ms))
        self.telemetry.add("video_delay", stages_ms["since_capture"])
        if self.frames_out == 0:
            self._first_pts_s = frame.pts_s
        self._last_pts_s = frame.pts_s
        if frame.signal != self._signal:
            self._tell_of_signal(frame.signal)
        self.frames_out += 1
        self.frames_lost_signal += not frame.signal
        self.frames_without_overlay += frame.signal and found is None
        if found is not None and shown.age_ms is not None:
            self.frames_with_lesion += bool(found.boxes)
            self.telemetry.add("mask_age", shown.age_ms)
        if self._on_frame is not None:
            self._on_frame(self.frames_out)

    def _warn_of_flicker(self) -> None:
        oldest_ms, limit_ms = self.policy.oldest_mask_ms(self.source.rate), self.policy.max_mask_age_ms
        limit_ms = min(limit_ms, float(HISTORY / self.source.rate * 1000))  # no mask is moved farther
        interval_ms = float(1 / self.source.rate * 1000)
        if self.policy.mode == "pass" and interval_ms > self.policy.max_mask_age_ms:
            text = f"a mask is ready when the next frame is shown, {interval_ms:.0f} ms later, and none as old is drawn"
            self._tell(logging.WARNING, f"{text}: there will be no overlay; see --max-mask-age and --policy latest")
        elif oldest_ms > limit_ms:
            text = f"a mask is found every {oldest_ms:.0f} ms and shown for {limit_ms:.0f}: the overlay flickers"
            self._tell(logging.WARNING, f"{text}; see --stride, --fps and --max-mask-age")

    def _tell_of_signal(self, signal: bool) -> None:
        self._signal, now = signal, time.monotonic()
        if signal:
            self._tell(logging.INFO, f"the signal is back after {now - self._lost_s:.1f} s")
        else:
            self._lost_s = now
            self._tell(logging.WARNING, "the signal is lost")

    def _tell_of_outputs(self) -> None:
        """Say that one takes nothing more, and that it does again; that it has failed is said elsewhere."""
        for output in self._outputs:
            why, known = output.down, output in self._down
            if output.failure is not None or bool(why) == known:
                continue
            if why:
                self._down.add(output)
                self._tell(logging.WARNING, f"{output.name} is down, the video goes on: {why}")
            else:
                self._down.discard(output)
                self._tell(logging.INFO, f"{output.name} is up again")

    def _tell(
        self,
        level: int,
        text: str,
        log: logging.Logger = _log,
        exc_info: BaseException | None = None,
        **facts: Any,
    ) -> None:
        log.log(level, "%s: %s", self.name, text, exc_info=exc_info, extra={"stream": self.name, **facts})

    def _check_outputs(self) -> None:
        """A stream that nobody takes any more ends."""
        failed = [output for output in self._outputs if output.failure is not None]
        if len(failed) == len(self._failed_outputs):
            return
        for output in failed:
            if len(failed) == len(self._outputs) or not isinstance(output.failure, Exception):
                self._fail(cast(BaseException, output.failure))
            elif output not in self._failed_outputs:
                self._tell(logging.WARNING, f"{output.name} failed, the others go on: {output.failure}")
        self._failed_outputs = failed

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
        self._captured.stop()
        self._segmented.stop()


def run_together(streams: list[Stream]) -> list[Summary | BaseException]:
    """Run several streams at once, to the end of the last; one that fails leaves the others running."""
    results: dict[int, Summary | BaseException] = {}

    def run(place: int, stream: Stream) -> None:
        try:
            results[place] = stream.run()
        except BaseException as error:
            results[place] = error
            if len(results) < len(streams):  # it may be long until the last has ended
                stream._tell(logging.WARNING, f"it has ended, the others go on: {error}")

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(streams)]
    for thread in threads:
        thread.start()
    try:
        while len(results) < len(streams):
            time.sleep(0.05)
    except BaseException:
        for stream in streams:
            stream.discard()
        for thread in threads:
            thread.join(5)
        raise
    return [results[place] for place in range(len(streams))]
