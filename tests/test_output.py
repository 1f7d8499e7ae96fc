"""A sink on its own thread: nobody but that thread touches it, and one that hangs keeps nobody for ever."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest
from clips import picture, read_pts
from streams import BrightEngine, Kept, ListSource, run

from mcdrl_rt.errors import SinkError
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.stream import output as module
from mcdrl_rt.stream.pipeline import Stream
from mcdrl_rt.stream.supervisor import Supervisor
from mcdrl_rt.types import Shown
from mcdrl_rt.video.sink import open_sink


class Stuck(Kept):
    """Takes two frames and no third until it is let go; remembers who closed it."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.let_go, self.stuck, self.closed_by = threading.Event(), threading.Event(), ""

    def _wait(self, shown: Shown) -> None:
        if shown.frame.index >= 2:
            self.stuck.set()
            self.let_go.wait(20)

    def close(self) -> None:
        super().close()
        self.closed_by = threading.current_thread().name

    def abort(self) -> None:
        super().abort()
        self.closed_by = threading.current_thread().name


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FINISH_S", 0.3)


@pytest.mark.parametrize("live", [True, False])
def test_a_sink_that_takes_nothing_is_left_behind_once_the_end_is_asked_for(live: bool) -> None:
    sink, stop = Stuck(), threading.Event()
    threading.Thread(target=lambda: (sink.stuck.wait(20), stop.set()), daemon=True).start()
    source = ListSource([picture(0)] * 1000, live=live, every_s=0.005 if live else 0)
    with pytest.raises(SinkError, match="stuck has taken nothing for 0 s; its last frames are lost"):
        run(source, {"stuck": sink}, stop=stop)
    assert sink.closed_by == ""  # its thread is in it
    sink.let_go.set()
    deadline = time.monotonic() + 20
    while not sink.closed_by:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (sink.closed_by, sink.ended) == ("write stuck", "discarded")  # it is no video file


@pytest.mark.parametrize("live", [True, False])
def test_a_file_that_was_left_behind_is_kept_if_it_goes_on_and_cannot_be_made_again(tmp_path: Path, live: bool) -> None:
    source = ListSource([picture(0)] * 1000, live=live, every_s=0.005 if live else 0)
    sink, stop, let_go = open_sink(str(tmp_path / "a.mkv"), source.format), threading.Event(), threading.Event()
    write = sink.write

    def hang(shown: Shown) -> None:
        if sink.frames == 2:
            stop.set()
            let_go.wait(60)
        write(shown)

    sink.write = hang  # type: ignore[method-assign]
    with pytest.raises(SinkError, match="taken nothing"):
        run(source, {"a.mkv": sink}, stop=stop)
    (writer,) = (thread for thread in threading.enumerate() if thread.name == "write a.mkv")
    let_go.set()
    writer.join(60)
    assert [path.name for path in tmp_path.iterdir()] == (["a.mkv"] if live else [])
    assert not live or len(read_pts(tmp_path / "a.mkv")) == 3


def test_a_sink_that_hangs_does_not_cost_the_others_their_end() -> None:
    stuck, good, stop = Stuck(), Kept(), threading.Event()
    threading.Thread(target=lambda: (stuck.stuck.wait(20), stop.set()), daemon=True).start()
    summary = run(ListSource([picture(0)] * 1000), {"stuck": stuck, "good": good}, stop=stop)
    assert good.ended == "kept" and good.frames == summary.frames_out
    assert summary.lost["stuck"].startswith("stuck has taken nothing") and summary.output == "good"
    stuck.let_go.set()


@pytest.mark.parametrize("live", [True, False])
def test_a_sink_that_takes_long_to_finish_is_waited_for(live: bool) -> None:
    class Thorough(Kept):
        def close(self) -> None:
            time.sleep(4 * module.FINISH_S)
            super().close()

    sink, stop = Thorough(), threading.Event()
    source = ListSource([picture(0)] * 1000, live=live, every_s=0.005 if live else 0)
    summary = run(source, {"thorough": sink}, stop=stop, on_frame=lambda n: stop.set() if n == 3 else None)
    assert (sink.ended, summary.lost) == ("kept", {})


def test_that_a_sink_takes_nothing_is_told_when_it_happens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.3)
    caplog.set_level(logging.INFO)
    slow = Kept(lambda shown: time.sleep(0.9 if shown.frame.index == 2 else 0))
    with Supervisor(Segmenter(BrightEngine())) as supervisor:
        stream = Stream(ListSource([picture(0)] * 150, live=True, every_s=0.01), supervisor.seat(), {"slow": slow})
        up = set[bool]()
        stream._on_frame = lambda _: up.add(stream.status().outputs["slow"])
        summary = stream.run()
    assert up == {True, False}
    told = [record.getMessage() for record in caplog.records if record.name == "mcdrl_rt.stream"]
    assert told == [
        "list: slow is down, the video goes on: it has taken nothing for 0 s",
        "list: slow is up again",
    ]
    assert summary.frames_dropped > 0 and summary.problem is None


def test_a_file_waits_for_its_reader_however_slow_while_nobody_asks_for_the_end() -> None:
    slow = Kept(lambda shown: time.sleep(0.5 if shown.frame.index in (2, 29) else 0))
    summary = run(ListSource([picture(0)] * 30), {"slow": slow})
    assert (slow.frames, slow.ended, summary.problem) == (30, "kept", None)


def test_outputs_of_one_name_are_told_apart() -> None:
    names = ["rtmp://a.example/live/key-one", "rtmp://a.example/live/key-two"]
    summary = run(ListSource([picture(0)] * 3), {name: Kept() for name in names})
    assert summary.output == "rtmp://a.example/live/… (1), rtmp://a.example/live/… (2)"
