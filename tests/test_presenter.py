"""What is shown of a frame when the model is late, hangs, or the overlay cannot be drawn: the frame, always."""

from __future__ import annotations

import logging
import re
import threading
import time
from fractions import Fraction
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from clips import picture, write_clip
from streams import BrightEngine, Kept, ListSource, run

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.stream import compose, lateness
from mcdrl_rt.stream.pipeline import Stream
from mcdrl_rt.stream.policy import Picker, Policy
from mcdrl_rt.stream.presenter import Presenter
from mcdrl_rt.stream.supervisor import Supervisor
from mcdrl_rt.stream.telemetry import Telemetry
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.motion import HISTORY, Motion
from mcdrl_rt.video.source import open_source


def failing_twice(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """The named part of the overlay fails the fourth and the fifth time it is used."""
    owner, name = {"the HUD": (compose, "draw_hud"), "the motion": (Motion, "follow")}[part]
    works, calls = getattr(owner, name), iter(range(1_000))

    def fails(*arguments: object) -> object:
        if next(calls) in (3, 4):
            raise ZeroDivisionError("on purpose")
        return works(*arguments)

    monkeypatch.setattr(owner, name, fails)


@pytest.mark.parametrize("mode", ["every", "pass"])
@pytest.mark.parametrize("part", ["the HUD", "the motion"])
def test_an_overlay_that_cannot_be_drawn_costs_no_frame(
    part: str, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failing_twice(monkeypatch, part)
    caplog.set_level(logging.INFO)
    sink, pictures = Kept(), [picture(i % 4) for i in range(40)]
    source = ListSource(pictures, live=mode == "pass", every_s=0.04 if mode == "pass" else 0)
    summary = run(source, {"kept": sink}, policy=Policy(mode=mode, stride=2, max_mask_age_ms=5000))
    assert summary.frames_out == summary.frames_in == 40
    undrawn = [shown for shown in sink.shown if shown.note == "no overlay: a fault in drawing it"]
    assert [shown.frame.index for shown in undrawn] == [3, 4]
    assert all(np.array_equal(shown.frame.pixels, pictures[shown.frame.index]) for shown in undrawn)
    assert sink.shown[-1].segmentation is not None  # it goes on
    assert summary.problem == "no drawing on 2 frames: ZeroDivisionError: on purpose"
    told = [record.getMessage() for record in caplog.records if record.name == "mcdrl_rt.stream"]
    assert told == ["list: no overlay: a fault in drawing it: ZeroDivisionError: on purpose"]
    assert [record for record in caplog.records if record.exc_info and record.name == "mcdrl_rt.journal"]


def test_a_fault_in_asking_the_model_costs_no_frame(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Picker, "still", Mock(side_effect=[False] * 3 + [ZeroDivisionError("x")] * 2 + [False] * 5))
    sink = Kept()
    summary = run(ListSource([picture(i) for i in range(10)]), {"kept": sink}, policy=Policy())
    assert [shown.frame.index for shown in sink.shown] == list(range(10))
    assert [shown.note for shown in sink.shown][3:5] == ["no overlay: a fault: ZeroDivisionError"] * 2
    assert summary.problem == "the model did not answer for 2 frames: a fault: ZeroDivisionError"
    assert caplog.text.count("no overlay: a fault in asking the model: ZeroDivisionError: x") == 1


def test_where_every_frame_must_be_segmented_a_fault_in_drawing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    failing_twice(monkeypatch, "the HUD")
    with pytest.raises(ZeroDivisionError):
        run(ListSource([picture(0)] * 9), {"kept": Kept()}, strict=True)


def test_frames_do_not_pile_up_behind_an_engine_that_hangs() -> None:
    released = threading.Event()

    class Hanging(BrightEngine):
        def infer(self, frames: UInt8Array) -> RawOutput:
            released.wait(20)
            return super().infer(frames)

    source = ListSource([picture(0)], live=True)
    with Supervisor(Segmenter(Hanging()), stall_s=20) as supervisor:
        presenter = Presenter(Policy(mode="pass"), supervisor.seat(), Telemetry())
        for index in range(100):
            frame = next(iter(source))
            presenter.at_once(frame)
            assert len(presenter._asked) <= 3, index  # in hand, waiting, and the one just overtaken
        released.set()


def test_a_mask_as_old_as_it_may_be_is_shown() -> None:
    """One frame in four at 25 a second: the last of them is 120 ms from its mask, to the microsecond."""
    sink = Kept()
    run(ListSource([picture(i % 4) for i in range(90)]), {"kept": sink}, policy=Policy(mode="every", stride=4))
    assert [shown.note for shown in sink.shown if shown.note] == []
    assert max(shown.age_ms or 0 for shown in sink.shown) == 120


@pytest.mark.parametrize(("rate", "told"), [(5, True), (30, False)])
def test_that_a_camera_is_too_slow_for_any_overlay_is_said(
    rate: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = ListSource([picture(i) for i in range(2)], live=True)
    source.rate = Fraction(rate)
    run(source, {"kept": Kept()}, policy=Policy(mode="pass"))
    assert ("there will be no overlay; see --max-mask-age" in caplog.text) == told


class Slow(BrightEngine):
    """A mask takes it 0.2 s."""

    def infer(self, frames: UInt8Array) -> RawOutput:
        time.sleep(0.2)
        return super().infer(frames)


@pytest.mark.parametrize(("engine", "late"), [(Slow(), True), (BrightEngine(), False)])
def test_a_model_too_slow_for_any_overlay_is_told_of_once_and_in_the_summary(
    engine: BrightEngine, late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lateness, "WARN_S", 0.5)
    clip = write_clip(tmp_path / "a.mp4", pts=range(40))
    with open_source(str(clip), live=True) as source:
        limit_ms = 120 if late else 5000
        summary = run(source, {"kept": Kept()}, engine, policy=Policy(mode="pass", max_mask_age_ms=limit_ms))
    told = [record.getMessage() for record in caplog.records if "see --max-mask-age" in record.getMessage()]
    if not late:
        assert (told, summary.problem) == ([], None)
        return
    count = summary.frames_without_overlay
    assert count == summary.frames_out > 20
    assert len(told) == 1 and told[0].startswith("a.mp4: no overlay on ")
    words = rf"no overlay on {count} of {count} frames: the model takes \d+ ms for a mask, too long for one to be "
    assert re.match(words, summary.problem or ""), summary.problem


@pytest.mark.parametrize("policy", [Policy(mode="pass", stride=30), Policy(mode="pass", fps=0.1)])
def test_a_model_that_is_hardly_asked_is_not_told_to_be_slow(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lateness, "WARN_S", 0)
    source = ListSource([picture(i % 4) for i in range(40)], live=True, every_s=0.02)
    summary = run(source, {"kept": Kept()}, Slow(), policy=policy)
    assert summary.frames_without_overlay > 35 and summary.problem is None


def test_a_model_that_becomes_slow_is_told_of_however_long_it_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(lateness.time, "monotonic", lambda: now_s[0])
    watch, told = lateness.Lateness(Policy(mode="pass")), list[float]()

    def pass_by(seconds: int, late: bool) -> None:
        for _ in range(30 * seconds):
            now_s[0] += 1 / 30
            if watch.see(late):
                told.append(now_s[0])

    pass_by(3600, late=False)
    assert watch.problem is None
    pass_by(20, late=True)
    assert len(told) == 1 and 3600 < told[0] < 3615
    assert watch.problem is None  # seconds of an hour are no flaw
    pass_by(1180, late=True)
    assert len(told) == 1 and (watch.problem or "").startswith("no overlay on 36000 of 144000 frames")


def test_a_picture_that_stands_still_is_asked_about_when_its_mask_cannot_be_followed() -> None:
    class Counting(BrightEngine):
        asked = 0

        def infer(self, frames: UInt8Array) -> RawOutput:
            self.asked += 1
            return super().infer(frames)

    engine = Counting()
    source = ListSource([picture(0)] * 120, live=True, every_s=0.005)
    policy = Policy(mode="pass", skip_static=True, stride=HISTORY + 6, max_mask_age_ms=5000)
    run(source, {"kept": Kept()}, engine, policy=policy)
    assert engine.asked > 1


def test_a_short_stream_is_no_slow_one() -> None:
    summary = run(ListSource([picture(0)], live=True), {"kept": Kept()}, Slow(), policy=Policy(mode="pass"))
    assert summary.frames_without_overlay == 1 and summary.problem is None


@pytest.mark.parametrize(
    ("policy", "flickers"),
    [
        (Policy(mode="every", stride=4), False),
        (Policy(mode="every", stride=5), True),
        (Policy(mode="every", stride=5, max_mask_age_ms=160), False),
        (Policy(mode="every", fps=8), False),
        (Policy(mode="every", fps=6), True),
        (Policy(mode="pass", fps=1), True),
        (Policy(mode="every", stride=26, max_mask_age_ms=5000), True),  # farther than motion is followed
    ],
)
def test_that_masks_will_be_too_old_is_said_before(
    policy: Policy, flickers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = ListSource([picture(i % 4) for i in range(30)])
    with Supervisor(Segmenter(BrightEngine())) as supervisor:
        Stream(source, supervisor.seat(), {"kept": (sink := Kept())}, policy).run()
    assert ("the overlay flickers; see --stride" in caplog.text) == flickers
    if policy.mode == "every" and policy.stride < HISTORY:
        assert any("ms old" in shown.note for shown in sink.shown) == flickers
