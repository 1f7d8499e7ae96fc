"""Stream: frames in order and on time, bounded queues, and an end that is clean however it comes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import picture, read_pixels, read_pts, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import AlwaysFailing, BrightEngine, Kept, ListSource, run

from mcdrl_rt.engine.base import Engine
from mcdrl_rt.engine.device import DeviceSegmenter
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import EngineError, SinkError, SourceError
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.stream import output
from mcdrl_rt.stream.channel import Channel, Stopped
from mcdrl_rt.stream.pipeline import QUEUE, Stream, run_together
from mcdrl_rt.stream.policy import MODES, Policy
from mcdrl_rt.stream.supervisor import Supervisor
from mcdrl_rt.stream.telemetry import Summary, Telemetry
from mcdrl_rt.types import Frame, Shown
from mcdrl_rt.video.sink import open_sink
from mcdrl_rt.video.source import Source, open_source

STAGES = {"capture", "segment", "show", "pass", "engine", "watchdog"}


def stages_alive() -> set[str]:
    """Stages whose thread still runs; a thread that has just said so may need a moment to be gone."""
    deadline = time.monotonic() + 2
    while (alive := {thread.name for thread in threading.enumerate()} & STAGES) and time.monotonic() < deadline:
        time.sleep(0.01)
    return alive


def save(source: Source, output: Path, engine: Engine | None = None, **options: Any) -> Summary:
    with open_sink(str(output), source.format) as sink:
        return run(source, {str(output): sink}, engine, **options)


def test_every_frame_of_a_file_keeps_its_place_and_time(tmp_path: Path) -> None:
    pts = [0, 1, 2, 5, 9, 10, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 77]
    path = write_clip(tmp_path / "in.mp4", pts=pts)
    with open_source(str(path)) as source:
        summary = save(source, tmp_path / "out.mp4")
    assert read_pts(tmp_path / "out.mp4") == read_pts(path) == [Fraction(p, 25) for p in pts]
    assert (summary.frames_in, summary.frames_out, summary.frames_dropped) == (18, 18, 0)
    assert (summary.source, summary.model, summary.engine) == ("in.mp4", "bright", "bright")
    assert (summary.frames_with_lesion, summary.stopped, summary.problem) == (18, False, None)
    stages = {"capture", "queue", "preprocess", "infer", "postprocess", "segment", "compose", "video_delay", "encode"}
    assert set(summary.stages) == stages | {"glass_to_glass"}
    assert summary.first_frame_s is not None and 0 < summary.first_frame_s <= summary.seconds
    assert summary.fps * summary.seconds == pytest.approx(18, rel=0.05)
    assert summary.mask_age["max_ms"] == 0
    assert stages_alive() == set()


@pytest.mark.parametrize("size", [(64, 64), (49, 65), (16, 640), (241, 8)])
@pytest.mark.parametrize("frames", [1, 3])
def test_odd_sizes_and_single_frames(tmp_path: Path, size: tuple[int, int], frames: int) -> None:
    pictures = [np.full((*size, 3), 90, np.uint8) for _ in range(frames)]
    assert save(ListSource(pictures), tmp_path / "out.mkv").frames_out == frames
    shown = read_pixels(tmp_path / "out.mkv")
    assert [p.shape[:2] for p in shown] == [(size[0] + size[0] % 2, size[1] + size[1] % 2)] * frames


@pytest.mark.parametrize("mode", MODES)
def test_the_size_may_change_on_the_way(tmp_path: Path, mode: str) -> None:
    sizes = [(48, 64)] * 4 + [(96, 128)] * 4 + [(31, 45)] * 4
    pictures = [picture(i, size) for i, size in enumerate(sizes)]
    source = ListSource(pictures, live=mode != "every", every_s=0.02)
    summary = save(source, tmp_path / "out.mp4", policy=Policy(mode=mode))
    assert summary.frames_out + summary.frames_dropped == 12
    assert len(read_pixels(tmp_path / "out.mp4")) == summary.frames_out >= (12 if mode == "every" else 1)


def failing(failure: BaseException, at: int = 5) -> Callable[[Shown], None]:
    def write(shown: Shown) -> None:
        if shown.frame.index >= at:
            raise failure

    return write


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", ["source", "sink", "on_frame"])
@pytest.mark.parametrize("kind", [SourceError, ZeroDivisionError, KeyboardInterrupt])
def test_a_failure_anywhere_ends_everything_and_is_raised_once(
    stage: str, kind: type[BaseException], mode: str
) -> None:
    failure = kind("on purpose")
    endless = ListSource([picture(0)] * 100_000)  # the others are busy, or wait for room, when it happens
    source = ListSource([picture(0)] * 6, failure=failure) if stage == "source" else endless

    def on_frame(frames: int) -> None:
        if stage == "on_frame" and frames == 5:
            raise failure

    sink = Kept(failing(failure) if stage == "sink" else lambda shown: None)
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        run(source, {"kept": sink}, on_frame=on_frame, policy=Policy(mode=mode))
    assert caught.value is failure
    assert time.monotonic() - started < 10
    assert sink.ended == "discarded"
    assert stages_alive() == set()


def test_a_failure_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_text("what was there before")
    with pytest.raises(SourceError):
        save(ListSource([picture(0)] * 20, failure=SourceError("no")), tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "what was there before"


def test_what_was_recorded_live_is_kept_when_the_source_fails() -> None:
    sink = Kept()
    with pytest.raises(SourceError):
        run(ListSource([picture(0)] * 9, live=True, every_s=0.01, failure=SourceError("gone")), {"kept": sink})
    assert sink.ended == "kept" and sink.frames


def test_where_every_frame_must_be_segmented_an_engine_that_fails_is_an_error() -> None:
    sink = Kept()
    with pytest.raises(EngineError, match="frame 3 could not be segmented: broken"):
        run(ListSource([picture(0)] * 9), {"kept": sink}, AlwaysFailing(EngineError("broken"), 3), strict=True)
    assert sink.ended == "discarded"


def test_one_sink_of_two_fails_and_the_other_goes_on(tmp_path: Path) -> None:
    good, bad = Kept(), Kept(failing(SinkError("the disk is full")))
    summary = run(ListSource([picture(0)] * 30), {"good": good, "bad": bad})
    assert (good.frames, good.ended, bad.ended) == (30, "kept", "discarded")
    assert (summary.output, summary.lost, summary.problem) == ("good", {"bad": "the disk is full"}, None)


def test_a_slow_sink_holds_a_file_back() -> None:
    source, lead = ListSource([picture(0)] * 60), []

    def slow(shown: Shown) -> None:
        time.sleep(0.01)
        lead.append(source.delivered - shown.frame.index)

    summary = run(source, {"slow": Kept(slow)})
    assert (summary.frames_out, summary.frames_dropped) == (60, 0)
    # three full queues, one frame in the sink, and one each in the hands of the three stages before it
    assert QUEUE < max(lead) <= 2 * QUEUE + output.QUEUE + 4


def test_a_live_source_drops_the_oldest_and_counts() -> None:
    source = ListSource([picture(0)] * 80, live=True)

    def blocked(shown: Shown) -> None:
        source.exhausted.wait(10)

    sink = Kept(blocked)
    summary = run(source, {"blocked": sink}, policy=Policy(mode="latest"))
    written = [shown.frame.index for shown in sink.shown]
    assert written == sorted(set(written))
    assert written[-1] == 79  # the newest is there
    assert summary.frames_in == 80 == len(written) + summary.frames_dropped


@pytest.mark.parametrize("frames", [0, 7])
def test_stopping_writes_what_was_delivered(frames: int) -> None:
    stop, source = threading.Event(), ListSource([picture(0)] * 100_000)
    if not frames:
        stop.set()
    with open_sink("null", source.format) as sink:
        summary = run(source, {"null": sink}, stop=stop, on_frame=lambda n: stop.set() if n == frames else None)
    assert summary.stopped
    assert summary.frames_out == summary.frames_in == source.delivered == sink.frames
    assert frames <= summary.frames_out <= frames + 2 * QUEUE + 4
    assert stages_alive() == set()


def test_stopping_does_not_wait_for_a_source_that_gives_nothing() -> None:
    stop, more, sink = threading.Event(), threading.Event(), Kept()

    class Held(ListSource):
        def __iter__(self) -> Iterator[Frame]:
            yield from itertools.islice(super().__iter__(), 3)
            more.wait(30)
            yield from super().__iter__()

    summary = run(Held([picture(0)] * 9), {"kept": sink}, stop=stop, on_frame=lambda n: stop.set() if n == 3 else None)
    assert summary.stopped
    assert summary.frames_in == summary.frames_out == sink.frames == 3
    assert (sink.ended, summary.seconds < 10) == ("kept", True)
    more.set()  # a frame that comes now is nobody's
    assert stages_alive() == set()
    assert sink.frames == 3


@pytest.mark.parametrize("cause", ["the disk is full", "discarded"])
def test_a_source_that_gives_nothing_hides_no_failure(cause: str) -> None:
    silent, more, waited = threading.Event(), threading.Event(), list[bool]()

    class Held(ListSource):
        def __iter__(self) -> Iterator[Frame]:
            yield from super().__iter__()
            silent.set()
            waited.append(more.wait(60))

    def end(shown: Shown) -> None:
        if shown.frame.index == 2:  # no other comes
            silent.wait(60)
            time.sleep(0.3)
            if cause == "discarded":
                stream.discard()
            else:
                raise SinkError(cause)

    sink = Kept(end)
    with Supervisor(Segmenter(BrightEngine())) as supervisor:
        stream = Stream(Held([picture(0)] * 3), supervisor.seat(), {"kept": sink})
        with pytest.raises(SinkError, match=cause):
            stream.run()
    assert not waited and sink.ended == "discarded"
    more.set()
    assert stages_alive() == set()


def test_what_happens_on_the_way_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Flickering(ListSource):
        def __iter__(self) -> Iterator[Frame]:
            for frame in super().__iter__():
                yield dataclasses.replace(frame, signal=not 3 <= frame.index < 6)

    url = "rtsp://surgeon:secret@theatre/live"
    sinks = {"good": Kept(), url: Kept(failing(SinkError("the disk is full"), at=8))}
    with caplog.at_level(logging.INFO, "mcdrl_rt"):
        summary = run(Flickering([picture(0)] * 20), sinks, name="theatre 1")
    assert summary.frames_lost_signal == 3
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "theatre 1: started" and said[-1] == "theatre 1: ended"
    assert said[1] == "theatre 1: the signal is lost"
    assert said[2].startswith("theatre 1: the signal is back after 0.")
    assert said[3] == "theatre 1: rtsp://…@theatre/live failed, the others go on: the disk is full"
    assert {record.stream for record in caplog.records} == {"theatre 1"}  # type: ignore[attr-defined]
    assert "secret" not in json.dumps(dataclasses.asdict(summary))
    assert caplog.records[-1].summary == dataclasses.asdict(summary)  # type: ignore[attr-defined]


def test_a_sink_that_fails_is_reported_as_it_is(tmp_path: Path) -> None:
    source = ListSource([picture(0)] * 10)
    with open_sink(str(tmp_path / "o.mp4"), source.format) as sink:
        sink.write = failing(SinkError("the disk is full"), at=0)  # type: ignore[method-assign]
        with pytest.raises(SinkError, match="the disk is full"):
            run(source, {"o.mp4": sink})
    assert list(tmp_path.iterdir()) == []


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
    for milliseconds in (4.0, 1.0, 3.0, 2.0):
        record.add("segment", milliseconds)
    for _ in range(3):
        with record.time("capture"):
            time.sleep(0.002)
    record.frame_out(time.monotonic() - 1)
    stages = record.percentiles()
    expected = {"p50_ms": 2.5, "p95_ms": 3.85, "p99_ms": 3.97, "max_ms": 4.0}
    assert stages["segment"] == pytest.approx(expected, rel=0.01)
    assert stages["capture"]["p50_ms"] >= 2
    assert stages["glass_to_glass"]["max_ms"] >= 1000
    assert record.first_frame_s is not None
    assert Telemetry().percentiles() == {}


def test_a_stream_is_drawn_where_its_engine_runs(small_checkpoint: Path) -> None:
    """A stream over a device: each frame with its own mask, the lesions drawn by the device, the HUD over them."""
    segmenter, sink = DeviceSegmenter(TorchEngine.from_checkpoint(small_checkpoint)), Kept()
    clip = "phantom:size=320x240,frames=6,seed=15"
    with open_source(clip) as source, Supervisor(segmenter) as supervisor:
        summary = Stream(source, supervisor.seat(), {"kept": sink}, Policy(opacity=0.5)).run()
    assert summary.frames_out == summary.frames_in == len(sink.shown) == 6
    alone = segmenter.for_stream()
    with open_source(clip) as source:
        for frame, got in zip(source, sink.shown, strict=True):
            _, shown = alone.show(frame.pixels, 0.5)
            assert shown is not None
            written = got.frame.pixels
            assert np.array_equal(written[:200], shown[:200])  # above the HUD, whose milliseconds are never the same
            assert not np.array_equal(written[200:], shown[200:])


def test_several_streams_share_one_engine_and_one_that_fails_leaves_the_others() -> None:
    sinks = [Kept(), Kept(), Kept()]
    pictures = [picture(i) for i in range(40)]
    sources = [
        ListSource(pictures, name="a"),
        ListSource(pictures[:10], failure=SourceError("b is gone"), name="b"),
        ListSource(pictures, name="c"),
    ]
    with Supervisor(Segmenter(BrightEngine())) as supervisor:
        streams = [
            Stream(source, supervisor.seat(), {"kept": sink}) for source, sink in zip(sources, sinks, strict=True)
        ]
        a, b, c = run_together(streams)
    assert isinstance(a, Summary) and isinstance(c, Summary)
    assert isinstance(b, SourceError)
    assert (a.frames_out, c.frames_out) == (40, 40)
    for sink in (sinks[0], sinks[2]):
        assert [shown.frame.index for shown in sink.shown] == list(range(40))
        assert all(np.array_equal(shown.clean, picture(shown.frame.index)) for shown in sink.shown)  # type: ignore[arg-type]
    assert stages_alive() == set()
