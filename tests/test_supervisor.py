"""An engine that fails: everyone learns why at once, it comes back by itself, and the video never stands still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from clips import picture
from streams import BrightEngine, Kept, ListSource, run

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError
from mcdrl_rt.segmenter import AnySegmenter, Segmenter
from mcdrl_rt.stream import supervisor as module
from mcdrl_rt.stream.pipeline import Stream
from mcdrl_rt.stream.policy import Policy
from mcdrl_rt.stream.supervisor import Answer, Supervisor
from mcdrl_rt.types import Shown, UInt8Array

GIVE_UP_S = 20  # of waiting for what must come


class Faulty(BrightEngine):
    """Does ``fault`` on its calls from ``first`` up to ``last``, and works otherwise."""

    def __init__(self, fault: Callable[[RawOutput], RawOutput], first: int = 3, last: int = 3) -> None:
        super().__init__()
        self.calls, self._fault, self._when = 0, fault, range(first, last + 1)

    def infer(self, frames: UInt8Array) -> RawOutput:
        self.calls += 1
        output = super().infer(frames)
        return self._fault(output) if self.calls - 1 in self._when else output


def raises(error: BaseException) -> Callable[[RawOutput], RawOutput]:
    def fault(output: RawOutput) -> RawOutput:
        raise error

    return fault


def hangs(output: RawOutput) -> RawOutput:
    time.sleep(10)
    return output


FAULTS: dict[str, tuple[Callable[[RawOutput], RawOutput], str]] = {
    "raises": (raises(EngineError("the device is gone")), "the device is gone"),
    "runs out of memory": (raises(MemoryError()), "out of memory"),
    "interrupts": (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
    "hangs": (hangs, "the engine hangs"),
    "says NaN": (lambda o: o._replace(confounders=o.confounders * np.nan), "not a number"),
    "weighs nothing": (lambda o: o._replace(confounders=o.confounders * 0), "not a number"),
    "answers in another shape": (lambda o: o._replace(score=o.score[:, :-1]), "has shape"),
    "answers for nobody": (lambda o: o._replace(selected=o.selected[:0]), "has shape"),
}


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.02, 0.05))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GIVE_UP_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_answered_with_its_reason_and_the_engine_comes_back(fault: str) -> None:
    does, says = FAULTS[fault]
    with Supervisor(Segmenter(Faulty(does, 3, 3)), lambda skip: Segmenter(BrightEngine()), stall_s=0.2) as supervisor:
        seat = supervisor.seat()
        answers: list[Answer] = []
        for i in range(4):
            answer = seat.ask(picture(i)).wait(GIVE_UP_S)
            assert answer is not None
            answers.append(answer)
        assert [bool(answer.segmentation) for answer in answers] == [True, True, True, False]
        assert says in answers[3].reason
        assert seat.wait_until_ready(GIVE_UP_S)
        after = seat.ask(picture(4)).wait(GIVE_UP_S)
        assert after is not None and after.segmentation is not None
        assert supervisor.restarts == 1


def test_while_the_engine_is_down_nobody_waits() -> None:
    down = threading.Event()

    def reload(skip: int) -> AnySegmenter:
        down.wait(GIVE_UP_S)
        return Segmenter(BrightEngine())

    with Supervisor(Segmenter(Faulty(FAULTS["raises"][0], 0, 0)), reload) as supervisor:
        seat, other = supervisor.seat(), supervisor.seat()
        assert seat.ask(picture(0)).wait(GIVE_UP_S) == Answer(reason="the device is gone")
        for _ in range(100):
            ticket = other.ask(picture(0))
            assert ticket.answer == Answer(reason="the device is gone")  # at once
        down.set()
        until(lambda: supervisor.restarts == 1)


def test_the_next_runtime_in_line_is_taken_after_two_failures_in_a_row() -> None:
    asked: list[int] = []

    def reload(skip: int) -> AnySegmenter:
        asked.append(skip)
        if skip == 2:
            raise EngineError("this one is not installed")
        return Segmenter(Faulty(FAULTS["raises"][0], 0, 0) if skip < 2 else BrightEngine())

    with Supervisor(Segmenter(Faulty(FAULTS["raises"][0], 0, 0)), reload) as supervisor:
        seat = supervisor.seat()
        deadline = time.monotonic() + GIVE_UP_S
        while not ((answer := seat.ask(picture(0)).wait(GIVE_UP_S)) and answer.segmentation):
            assert time.monotonic() < deadline
            seat.wait_until_ready(GIVE_UP_S)
    assert asked == [0, 1, 1, 2, 2, 3]


def test_an_engine_that_needs_long_for_its_first_frame_after_each_load_comes_back() -> None:
    class SlowToBegin(BrightEngine):
        begun = False

        def infer(self, frames: UInt8Array) -> RawOutput:
            time.sleep(0 if self.begun else 0.5)
            self.begun = True
            return super().infer(frames)

    broken = Segmenter(Faulty(hangs, 3, 3))  # of the same name: what a frame takes is known
    with Supervisor(broken, lambda skip: Segmenter(SlowToBegin()), stall_s=0.1) as supervisor:
        seat = supervisor.seat()
        for i in range(3):
            seat.ask(picture(i)).wait(GIVE_UP_S)
        deadline = time.monotonic() + GIVE_UP_S
        while not ((answer := seat.ask(picture(0)).wait(GIVE_UP_S)) and answer.segmentation):
            assert time.monotonic() < deadline
            seat.wait_until_ready(GIVE_UP_S)
        assert supervisor.restarts > 1  # it was given up before, too early


def test_an_engine_that_hangs_while_it_is_loaded_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RELOAD_S", 0.2)
    let_go, asked, late = threading.Event(), list[int](), threading.Event()

    def reload(skip: int) -> AnySegmenter:
        asked.append(skip)
        if len(asked) == 1:
            let_go.wait(GIVE_UP_S)
            late.set()
            return Segmenter(Faulty(FAULTS["raises"][0], 0, 10_000))
        return Segmenter(BrightEngine())

    with Supervisor(Segmenter(Faulty(FAULTS["raises"][0], 0, 0)), reload, stall_s=0.2) as supervisor:
        seat = supervisor.seat()
        assert seat.ask(picture(0)).wait(GIVE_UP_S) == Answer(reason="the device is gone")
        assert seat.wait_until_ready(GIVE_UP_S)
        assert asked == [0, 1]  # the next runtime
        let_go.set()
        assert late.wait(GIVE_UP_S)
        for _ in range(20):  # what comes too late is not taken up
            answer = seat.ask(picture(0)).wait(GIVE_UP_S)
            assert answer is not None and answer.segmentation is not None
            time.sleep(0.01)
        assert supervisor.restarts == 1


def test_engines_that_hang_are_not_piled_up_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEFT_BEHIND", 3)
    let_go, loaded = threading.Event(), list[int]()

    class Stuck(BrightEngine):
        def infer(self, frames: UInt8Array) -> RawOutput:
            let_go.wait(GIVE_UP_S)
            return super().infer(frames)

    def reload(skip: int) -> AnySegmenter:
        loaded.append(skip)
        return Segmenter(Stuck())

    monkeypatch.setattr(module, "FIRST_S", 0.2)
    with Supervisor(Segmenter(Stuck()), reload, stall_s=0.1) as supervisor:
        seat, deadline = supervisor.seat(), time.monotonic() + GIVE_UP_S
        while len(supervisor._left_behind) < 3:
            assert time.monotonic() < deadline
            seat.ask(picture(0)).wait(GIVE_UP_S)
            seat.wait_until_ready(0.2)
        time.sleep(0.3)
        assert len(loaded) == 2
        assert seat.ask(picture(0)).wait(GIVE_UP_S) == Answer(reason="the engine hangs")
        let_go.set()
        while supervisor._left_behind:  # those that come back in the end are in nobody's way
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_engine_that_failed_for_hours_is_given_no_more_time_than_there_is() -> None:
    with Supervisor(Segmenter(BrightEngine())) as supervisor:
        supervisor.seat().ask(picture(0)).wait(GIVE_UP_S)
        supervisor._failures, supervisor._fresh = 5000, True
        assert supervisor._limit_s() == module.FIRST_S


def test_what_an_answer_takes_includes_the_turns_of_other_streams() -> None:
    with Supervisor(Segmenter(BrightEngine())) as supervisor:
        seat = supervisor.seat()
        assert seat.typical_s is None
        seat.ask(picture(0)).wait(GIVE_UP_S)
        alone = seat.typical_s
        supervisor.seat()  # that never asks
        for _ in range(3):
            supervisor.seat().ask(picture(0))
        assert alone is not None and seat.typical_s == 4 * alone


def test_closing_waits_for_an_engine_that_is_being_loaded() -> None:
    loading, loaded = threading.Event(), threading.Event()

    def reload(skip: int) -> AnySegmenter:
        loading.set()
        time.sleep(0.5)
        loaded.set()
        return Segmenter(BrightEngine())

    with Supervisor(Segmenter(Faulty(FAULTS["raises"][0], 0, 0)), reload) as supervisor:
        seat = supervisor.seat()
        seat.ask(picture(0)).wait(GIVE_UP_S)
        assert loading.wait(GIVE_UP_S)
    assert loaded.is_set()
    assert supervisor.restarts == 0
    assert seat.ask(picture(0)).answer is not None  # and nobody waits


def test_a_newer_frame_overtakes_the_one_that_waits_and_seats_take_turns() -> None:
    busy = threading.Event()
    order: list[int] = []

    def wait(output: RawOutput) -> RawOutput:
        busy.wait(GIVE_UP_S)
        return output

    with Supervisor(Segmenter(Faulty(wait, 0, 0)), stall_s=GIVE_UP_S) as supervisor:
        first, second = supervisor.seat(), supervisor.seat()
        working = first.ask(picture(0))
        until(lambda: first.waiting is None)
        old, new = first.ask(picture(1)), first.ask(picture(2))
        other = second.ask(picture(3))
        assert old.wait(GIVE_UP_S) == Answer(overtaken=True)
        busy.set()
        for i, ticket in enumerate((working, other, new)):
            answer = ticket.wait(GIVE_UP_S)
            assert answer is not None and answer.segmentation is not None
            order.append(i)
        assert other.answer is not None and new.answer is not None
        assert other.answer.waited_ms < new.answer.waited_ms  # the one that has waited longest for its turn


def test_frames_of_several_streams_go_in_one_batch() -> None:
    sizes: list[int] = []
    busy = threading.Event()

    class Batching(BrightEngine):
        max_batch = 2

        def infer(self, frames: UInt8Array) -> RawOutput:
            sizes.append(len(frames))
            busy.wait(GIVE_UP_S)
            return super().infer(frames)

    with Supervisor(Segmenter(Batching()), stall_s=GIVE_UP_S) as supervisor:
        seats = [supervisor.seat() for _ in range(4)]
        tickets = [seats[0].ask(picture(0))]
        until(lambda: len(sizes) == 1)
        # of different sizes, and the answers must not be mixed up
        pictures = [picture(i, (48 + 16 * i, 64)) for i in range(1, 4)]
        tickets += [seat.ask(pixels) for seat, pixels in zip(seats[1:], pictures, strict=True)]
        busy.set()
        answers = [ticket.wait(GIVE_UP_S) for ticket in tickets]
    assert sizes == [1, 2, 1]
    for pixels, answer in zip(pictures, answers[1:], strict=True):
        assert answer is not None and answer.segmentation is not None
        assert np.array_equal(answer.segmentation.labels, Segmenter(BrightEngine())(pixels).labels)


@pytest.mark.parametrize("mode", ["pass", "latest", "every"])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_video_goes_on_without_overlay_and_says_why(fault: str, mode: str) -> None:
    """In ``pass``, no frame is late for it, whatever the engine does."""
    does, says = FAULTS[fault]
    lateness_s: list[float] = []
    sink = Kept(lambda shown: lateness_s.append(time.monotonic() - shown.frame.capture_time_s))
    source = ListSource([picture(i % 4) for i in range(120)], live=mode != "every", every_s=0.01)
    broken, failed = Segmenter(Faulty(does, 5, 10_000)), threading.Event()

    def reload(skip: int) -> AnySegmenter:
        failed.set()
        return Segmenter(BrightEngine()) if skip else broken

    with Supervisor(broken, reload, stall_s=0.15) as supervisor:
        summary = Stream(source, supervisor.seat(), {"kept": sink}, Policy(mode=mode, max_mask_age_ms=3000)).run()
    assert failed.is_set() and summary.engine_restarts >= 1
    assert summary.frames_in == 120 == summary.frames_out + summary.frames_dropped
    notes = {shown.note for shown in sink.shown if shown.segmentation is None}
    assert mode != "latest" or any(says in note for note in notes)
    for shown in sink.shown:
        assert (shown.segmentation is None) == bool(shown.note)
    assert any(shown.segmentation is not None for shown in sink.shown[-30:])  # it came back
    if mode == "pass":
        assert np.median(lateness_s) < 0.1 and max(lateness_s) < 2.0


def test_an_engine_that_never_comes_back_costs_a_file_its_overlay_not_its_frames() -> None:
    def gone(skip: int) -> AnySegmenter:
        raise EngineError("no device")

    sink = Kept()
    with Supervisor(Segmenter(Faulty(FAULTS["raises"][0], 5, 5)), gone) as supervisor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mcdrl_rt.stream.asker.PATIENCE_S", 0.3)
            stream = Stream(ListSource([picture(0)] * 200), supervisor.seat(), {"kept": sink})
            summary = stream.run()
    assert (summary.frames_out, summary.frames_without_overlay) == (200, 195)
    assert summary.problem == "the model did not answer for 195 frames: the device is gone"


def test_latest_does_not_wait_for_an_engine_that_is_late() -> None:
    """It hangs for half a second, which is no failure yet: frames go on at their rate, and so does the model after."""
    delays_s = []

    class Late(BrightEngine):
        def infer(self, frames: UInt8Array) -> RawOutput:
            if next(self._frames) == 20:
                time.sleep(0.5)
            return BrightEngine().infer(frames)

    def measure(shown: Shown) -> None:
        delays_s.append(time.monotonic() - shown.frame.capture_time_s)

    sink = Kept(measure)
    source = ListSource([picture(i) for i in range(60)], live=True, every_s=0.03)
    summary = run(source, {"kept": sink}, Late(), policy=Policy(mode="latest"))
    late = [shown for shown in sink.shown if shown.note == "no overlay: the model is late"]
    assert 5 <= len(late) == summary.frames_without_overlay
    assert sink.shown[-1].segmentation is not None
    assert summary.engine_restarts == 0
    assert np.median(delays_s) < 0.1 and np.percentile(delays_s, 95) < 0.3
