"""Stream: frames in order and on time, bounded queues, and an end that is clean however it comes."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import picture, read_pixels, read_pts, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.engine.device import DeviceSegmenter
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import EngineError, SinkError, SourceError
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.stream import telemetry
from mcdrl_rt.stream.channel import Channel, Stopped
from mcdrl_rt.stream.pipeline import QUEUE, Pipeline, Segmented, run
from mcdrl_rt.stream.telemetry import Summary, Telemetry
from mcdrl_rt.types import Frame, ModelSpec, Shown, UInt8Array
from mcdrl_rt.video.sink import Sink, open_sink
from mcdrl_rt.video.source import Source, open_source

STAGES = {"decode", "segment", "write"}


class BrightEngine:
    """Calls bright pixels lesion: a device that needs no model. Raises ``failure`` on frame number ``fails_at``."""

    name = "bright"
    spec = ModelSpec(
        name="bright", encoder="none", input_size=(64, 64), classes=("polyp",), confounders=("blur", "blood")
    )

    def __init__(self, fails_at: int | None = None, failure: BaseException | None = None) -> None:
        self._frames, self._fails_at, self._failure = itertools.count(), fails_at, failure

    def infer(self, frames: UInt8Array) -> RawOutput:
        if next(self._frames) == self._fails_at and self._failure is not None:
            raise self._failure
        grey = frames.mean(axis=3).astype(np.uint8)
        batch = len(frames)
        shares = np.full((batch, 2), 0.5, np.float32)
        return RawOutput(grey, np.ones_like(grey), shares, np.ones((batch, 4, 4), np.uint8))


class ListSource(Source):
    """Frames of given pictures, as fast as they are taken; raises ``failure`` after the last one."""

    name = "list"
    rate, time_base = Fraction(25), Fraction(1, 25)

    def __init__(
        self, pictures: Sequence[UInt8Array], live: bool = False, failure: BaseException | None = None
    ) -> None:
        self.size = (pictures[0].shape[0], pictures[0].shape[1])
        self.live = live
        self.delivered = 0
        self.exhausted = threading.Event()
        self._pictures, self._failure = pictures, failure

    def __iter__(self) -> Iterator[Frame]:
        for index, pixels in enumerate(self._pictures):
            self.delivered += 1
            yield Frame(pixels, index, self.time_base, index)
        self.exhausted.set()
        if self._failure is not None:
            raise self._failure


def stages_alive() -> set[str]:
    """Stages whose thread still runs; a thread that has just said so may need a moment to be gone."""
    deadline = time.monotonic() + 2
    while (alive := {thread.name for thread in threading.enumerate()} & STAGES) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive


def stream(source: Source, output: Path, engine: BrightEngine | None = None) -> Summary:
    segmenter = Segmenter(engine or BrightEngine()).for_stream()
    with open_sink(str(output), source.format) as sink:
        return run(source, segmenter, sink, output=str(output))


def test_every_frame_of_a_file_keeps_its_place_and_time(tmp_path: Path) -> None:
    pts = [0, 1, 2, 5, 9, 10, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 77]
    path = write_clip(tmp_path / "in.mp4", pts=pts)
    with open_source(str(path)) as source:
        summary = stream(source, tmp_path / "out.mp4")
    assert read_pts(tmp_path / "out.mp4") == read_pts(path) == [Fraction(p, 25) for p in pts]
    assert (summary.frames_in, summary.frames_out, summary.frames_dropped) == (18, 18, 0)
    assert (summary.source, summary.model, summary.engine) == ("in.mp4", "bright", "bright")
    assert (summary.frames_with_lesion, summary.stopped, summary.problem) == (18, False, None)
    assert set(summary.stages) == {"decode", "segment", "overlay", "write", "glass_to_glass"}
    assert summary.first_frame_s is not None and 0 < summary.first_frame_s <= summary.seconds
    assert summary.fps * summary.seconds == pytest.approx(18, rel=0.05)
    assert stages_alive() == set()


@pytest.mark.parametrize("size", [(64, 64), (49, 65), (16, 640), (241, 8)])
@pytest.mark.parametrize("frames", [1, 3])
def test_odd_sizes_and_single_frames(tmp_path: Path, size: tuple[int, int], frames: int) -> None:
    pictures = [np.full((*size, 3), 90, np.uint8) for _ in range(frames)]
    assert stream(ListSource(pictures), tmp_path / "out.mkv").frames_out == frames
    shown = read_pixels(tmp_path / "out.mkv")
    assert [p.shape[:2] for p in shown] == [(size[0] + size[0] % 2, size[1] + size[1] % 2)] * frames


def test_the_size_may_change_on_the_way(tmp_path: Path) -> None:
    sizes = [(48, 64)] * 4 + [(96, 128)] * 4 + [(31, 45)] * 4
    summary = stream(ListSource([picture(i, size) for i, size in enumerate(sizes)]), tmp_path / "out.mp4")
    assert (summary.frames_out, len(read_pixels(tmp_path / "out.mp4"))) == (12, 12)


def failing_writer(failure: BaseException) -> Callable[[Segmented], None]:
    def write(item: Segmented) -> None:
        if item.frame.index == 5:
            raise failure

    return write


@pytest.mark.parametrize("stage", ["source", "engine", "writer", "on_frame"])
@pytest.mark.parametrize("kind", [SourceError, EngineError, ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_anywhere_ends_everything_and_is_raised_once(stage: str, kind: type[BaseException]) -> None:
    failure = kind("on purpose")
    endless = ListSource([picture(0)] * 100_000)  # the others are busy, or wait for room, when it happens
    source = ListSource([picture(0)] * 6, failure=failure) if stage == "source" else endless
    engine = BrightEngine(fails_at=5, failure=failure if stage == "engine" else None)
    writer = failing_writer(failure if stage == "writer" else ValueError("not reached"))

    def on_frame(frames: int) -> None:
        if stage == "on_frame" and frames == 5:
            raise failure

    writers = [writer] if stage == "writer" else []
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        Pipeline(source, Segmenter(engine), writers, on_frame).run()
    assert caught.value is failure
    assert time.monotonic() - started < 10
    assert stages_alive() == set()


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_text("what was there before")
    with pytest.raises(EngineError):
        stream(ListSource([picture(0)] * 20), tmp_path / "out.mp4", BrightEngine(9, EngineError("no")))
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "what was there before"


def test_a_slow_writer_holds_a_file_back() -> None:
    source, lead = ListSource([picture(0)] * 40), []

    def slow(item: Segmented) -> None:
        time.sleep(0.01)
        lead.append(source.delivered - item.frame.index)

    pipeline = Pipeline(source, Segmenter(BrightEngine()), [slow])
    pipeline.run()
    assert (pipeline.frames_out, pipeline.dropped) == (40, 0)
    # two full queues, one frame in the writer, and one each in the hands of the two stages before it
    assert QUEUE < max(lead) <= 2 * QUEUE + 3


def test_a_live_source_drops_the_oldest_and_counts() -> None:
    source, written = ListSource([picture(0)] * 50, live=True), []

    def blocked(item: Segmented) -> None:
        source.exhausted.wait(10)
        written.append(item.frame.index)

    pipeline = Pipeline(source, Segmenter(BrightEngine()), [blocked])
    pipeline.run()
    assert written == sorted(set(written))
    assert written[-QUEUE:] == list(range(50 - QUEUE, 50))  # the newest are there
    assert pipeline.dropped == 50 - len(written) >= 50 - (2 * QUEUE + 3)
    assert (pipeline.frames_in, pipeline.frames_out) == (50, len(written))


@pytest.mark.parametrize("frames", [0, 7])
def test_stopping_writes_what_was_delivered(frames: int) -> None:
    stop, source = threading.Event(), ListSource([picture(0)] * 100_000)
    if not frames:
        stop.set()
    segmenter = Segmenter(BrightEngine())
    with open_sink("null", source.format) as sink:
        summary = run(source, segmenter, sink, stop=stop, on_frame=lambda n: stop.set() if n == frames else None)
    assert summary.stopped
    assert summary.frames_out == summary.frames_in == source.delivered
    assert frames <= summary.frames_out <= frames + 2 * QUEUE + 3
    assert stages_alive() == set()


def test_a_sink_that_fails_is_reported_as_it_is(tmp_path: Path) -> None:
    source = ListSource([picture(0)] * 10)
    with open_sink(str(tmp_path / "o.mp4"), source.format) as sink:
        sink.write = failing_write  # type: ignore[method-assign]
        with pytest.raises(SinkError, match="the disk is full"):
            run(source, Segmenter(BrightEngine()), sink)
        sink.abort()
    assert list(tmp_path.iterdir()) == []


def failing_write(shown: Shown) -> None:
    raise SinkError("the disk is full")


@given(capacity=st.integers(1, 5), items=st.lists(st.integers() | st.none(), max_size=30))
def test_a_dropping_channel_is_a_bounded_deque(capacity: int, items: list[int | None]) -> None:
    """Numbers are put, None takes; a deque of that length says what must come out."""
    channel: Channel[int] = Channel(capacity, drop_oldest=True)
    model: deque[int] = deque(maxlen=capacity)
    dropped = 0
    for item in items:
        if item is not None:
            dropped += len(model) == capacity
            model.append(item)
            channel.put(item)
        elif model:
            assert channel.get() == model.popleft()
    assert channel.dropped == dropped
    channel.end()
    assert [channel.get() for _ in range(len(model) + 1)] == [*model, None]


@settings(max_examples=25, deadline=None)
@given(capacity=st.integers(1, 4), items=st.lists(st.integers(), max_size=60))
def test_a_blocking_channel_loses_nothing(capacity: int, items: list[int]) -> None:
    channel: Channel[int] = Channel(capacity)

    def give() -> None:
        for item in items:
            channel.put(item)
        channel.end()

    giver = threading.Thread(target=give)
    giver.start()
    taken = []
    while (item := channel.get()) is not None:
        taken.append(item)
    giver.join()
    assert (taken, channel.dropped) == (items, 0)


def test_a_full_channel_makes_the_giver_wait() -> None:
    channel: Channel[int] = Channel(3)
    given_: list[int] = []

    def give() -> None:
        with pytest.raises(Stopped):
            for i in range(10):
                channel.put(i)
                given_.append(i)

    giver = threading.Thread(target=give)
    giver.start()
    giver.join(0.2)
    assert given_ == [0, 1, 2]
    assert channel.get() == 0
    giver.join(0.2)
    assert given_ == [0, 1, 2, 3]
    channel.stop()
    giver.join(5)
    assert not giver.is_alive()
    with pytest.raises(Stopped):
        channel.get()


def test_stopping_wakes_a_taker() -> None:
    channel: Channel[int] = Channel(1)
    threading.Timer(0.05, channel.stop).start()
    with pytest.raises(Stopped):
        channel.get()


def test_telemetry_percentiles() -> None:
    record = Telemetry()
    record.stages_ms["segment"].extend([4.0, 1.0, 3.0, 2.0])
    for _ in range(3):
        with record.time("decode"):
            time.sleep(0.002)
    record.frame_out(time.monotonic() - 1)
    stages = record.percentiles()
    assert stages["segment"] == {"p50_ms": 2.5, "p95_ms": 3.85, "p99_ms": 3.97, "max_ms": 4.0}
    assert stages["decode"]["p50_ms"] >= 2
    assert stages["glass_to_glass"]["max_ms"] >= 1000
    assert record.first_frame_s is not None
    assert Telemetry().percentiles() == {}


def test_telemetry_of_an_endless_stream_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "SAMPLES", 10)
    record = Telemetry()
    record.stages_ms["segment"].extend(float(i) for i in range(1000))
    assert list(record.stages_ms["segment"]) == [float(i) for i in range(990, 1000)]


def test_a_stream_is_drawn_where_its_engine_runs(small_checkpoint: Path) -> None:
    """The pipeline over a device: each frame with its own mask, the lesions drawn by the device, the HUD over them."""
    written: list[UInt8Array] = []

    class Kept(Sink):
        def write(self, shown: Shown) -> None:
            written.append(shown.frame.pixels)
            self.frames += 1

    segmenter = DeviceSegmenter(TorchEngine.from_checkpoint(small_checkpoint))
    clip = "phantom:size=320x240,frames=6,seed=15"
    with open_source(clip) as source:
        summary = run(source, segmenter.for_stream(), Kept(), opacity=0.5)
    assert summary.frames_out == summary.frames_in == len(written) == 6
    alone = segmenter.for_stream()
    with open_source(clip) as source:
        for frame, got in zip(source, written, strict=True):
            _, shown = alone.show(frame.pixels, 0.5)
            assert shown is not None
            assert np.array_equal(got[:200], shown[:200])  # above the HUD, whose milliseconds are never the same
            assert not np.array_equal(got[200:], shown[200:])
