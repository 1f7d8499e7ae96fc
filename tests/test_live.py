"""Live sources: they keep their clock through every loss, and a recording can play as if it were one."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from clips import write_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video.live import Live, _Clock, _Lag
from mcdrl_rt.video.source import Source, open_source
from mcdrl_rt.video.timestamps import Timestamps

TICK = Fraction(1, 1000)
PYTHON = "/usr/bin/python3"  # GStreamer's bindings are in the system's own
Spawn = Callable[..., "subprocess.Popen[str]"]


class Camera(Source):
    """A device that gives as many pictures as it is told, then ends, or waits until it is let go."""

    def __init__(
        self, pictures: int, *, first_pts: int = 0, step: int = 20, size: tuple[int, int] = (8, 12), stuck: bool = False
    ) -> None:
        self.name, self.size, self.time_base, self.rate, self.live = "camera", size, TICK, Fraction(50), True
        self.pictures, self.first_pts, self.step, self.stuck = pictures, first_pts, step, stuck
        self.let_go, self.closed = threading.Event(), threading.Event()
        self.delivered = 0

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.pictures):
            self.delivered += 1
            yield Frame(np.full((*self.size, 3), (250, 100, 0), np.uint8), self.first_pts + index * self.step, TICK)
        if self.stuck:
            self.let_go.wait(30)

    def close(self) -> None:
        self.closed.set()


def absent() -> Source:
    raise SourceError("not there")


def returning(*cameras: Source) -> Callable[[], Source]:
    """Gives one camera after the other, then none."""
    left = iter(cameras)

    def reopen() -> Source:
        if (camera := next(left, None)) is None:
            raise SourceError("not there")
        return camera

    return reopen


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts programs that end with the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        return running[-1]

    yield start
    for process in running:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture
def rtsp(spawn: Spawn) -> Callable[..., subprocess.Popen[str]]:
    """Starts GStreamer's RTSP server on a port; ``size`` as width and height."""
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", check], capture_output=True).returncode:
        pytest.skip("needs GStreamer's RTSP server (apt install gir1.2-gst-rtsp-server-1.0 python3-gi)")

    def serve(port: int, *size: str) -> subprocess.Popen[str]:
        process = spawn(PYTHON, str(Path(__file__).with_name("rtsp_server.py")), str(port), *size)
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        return process

    return serve


def until(frames: Iterator[Frame], wanted: Callable[[Frame], bool], limit_s: float = 20) -> list[Frame]:
    """Frames up to the first one wanted, itself included."""
    taken, give_up_s = [], time.monotonic() + limit_s
    for frame in frames:
        taken.append(frame)
        if wanted(frame):
            return taken
        assert time.monotonic() < give_up_s, f"none of {len(taken)} frames in {limit_s} s"
    raise AssertionError("the source ended")


def rising(frames: list[Frame]) -> bool:
    return all(a.pts < b.pts and a.index + 1 == b.index for a, b in itertools.pairwise(frames))


def survives(source: Source, lose: Callable[[], object], restore: Callable[[], object]) -> list[Frame]:
    """Every frame of a source that is lost and comes back: pictures, greyed ones, pictures."""
    frames = iter(source)
    taken = until(frames, lambda frame: frame.index >= 10 and frame.signal)
    lose()
    taken += until(frames, lambda frame: not frame.signal)
    lost, lost_s = taken[-1], time.monotonic()
    taken += until(frames, lambda frame: time.monotonic() - lost_s > 1)
    greyed, passed_s = len(taken) - lost.index - 1, taken[-1].pts_s - lost.pts_s
    # at the pace of the clock: as many as fit, and the time that passed
    assert 0.6 < greyed / float(source.rate) < 1.2
    assert 0.8 < passed_s < 1.6
    assert not any(frame.signal for frame in taken[lost.index :])
    assert all(frame.pixels is lost.pixels for frame in taken[lost.index :]), "greyed once, not for each frame"
    restore()
    taken += until(frames, lambda frame: frame.signal)
    taken += itertools.islice(frames, 10)
    assert rising(taken)
    return taken


def test_rtsp_is_lost_and_found(rtsp: Callable[..., subprocess.Popen[str]]) -> None:
    port = free_port()
    server = rtsp(port)
    with open_source(f"rtsp://surgeon:secret@127.0.0.1:{port}/live?token=abc") as source:
        assert (source.live, source.size, source.rate) == (True, (240, 320), 25)
        assert source.name == f"rtsp://…@127.0.0.1:{port}/live?…"
        frames = survives(source, lambda: end(server), lambda: rtsp(port, "160", "128"))
    assert frames[-1].size == (128, 160)
    assert (source.reconnections, source.problem) == (1, "the signal was lost once")


def test_udp_is_lost_and_found(spawn: Spawn) -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("needs the ffmpeg command, to send a stream")
    port = free_port()
    send = f"ffmpeg -v error -re -f lavfi -i testsrc=size=64x48:rate=25 -g 5 -f mpegts udp://127.0.0.1:{port}".split()
    sender = spawn(*send)
    with open_source(f"udp://127.0.0.1:{port}") as source:
        survives(source, lambda: end(sender), lambda: spawn(*send))
    assert source.problem == "the signal was lost once"


def test_a_stall_without_an_error_ends_in_a_new_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcdrl_rt.video.container.LIVE_TIMEOUT_S", 1.0)
    monkeypatch.setattr("mcdrl_rt.video.decoder.LIVE_TIMEOUT_S", 1.0)
    pts = range(0, 300 * 3600, 3600)
    clip = write_clip(tmp_path / "a.ts", pts=pts, time_base=Fraction(1, 90_000), codec_options={"g": "10"})
    connections = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):  # each is kept open, and silent after the clip
                connections.append(server.accept()[0])
                connections[-1].sendall(clip.read_bytes())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with open_source(f"tcp://127.0.0.1:{server.getsockname()[1]}") as source:
            frames = iter(source)
            taken = until(frames, lambda frame: not frame.signal)
            taken += until(frames, lambda frame: frame.signal and source.reconnections == 1)
        thread.join()
    assert rising(taken)
    for connection in connections:
        connection.close()


@settings(max_examples=15, deadline=None)
@given(
    runs=st.lists(
        st.tuples(st.integers(1, 6), st.integers(-(2**40), 2**40), st.integers(1, 50)), min_size=2, max_size=5
    )
)
def test_the_clock_never_goes_back_and_no_connection_is_mixed_up(runs: list[tuple[int, int, int]]) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr("mcdrl_rt.video.live._BACK_OFF_S", (0.001, 0.01))
    cameras = [
        Camera(pictures, first_pts=first, step=step, size=(8, 2 + 2 * number), stuck=number == len(runs) - 1)
        for number, (pictures, first, step) in enumerate(runs)
    ]
    with patch.context(), Live(cameras[0], returning(*cameras[1:])) as source:
        taken = until(iter(source), lambda frame: frame.signal and frame.size == cameras[-1].size)
        cameras[-1].let_go.set()
    assert rising(taken)
    assert source.reconnections == len(runs) - 1
    assert all(frame.time_base == TICK for frame in taken)
    patch.undo()


def test_time_goes_on_by_what_passed_here() -> None:
    second = Camera(3, first_pts=10**9, stuck=True)
    with Live(Camera(3), returning(second)) as source:
        taken = until(iter(source), lambda frame: frame.signal and source.reconnections == 1)
        second.let_go.set()
    before = [frame for frame in taken[:-1] if frame.signal][-1]
    passed_s = taken[-1].capture_time_s - before.capture_time_s
    assert abs(taken[-1].pts_s - before.pts_s - passed_s) < 0.05


class Delayed(Camera):
    """Gives its pictures at the given times, in seconds."""

    def __init__(self, times_s: list[float]) -> None:
        super().__init__(len(times_s), stuck=True)
        self.times_s = times_s

    def __iter__(self) -> Iterator[Frame]:
        began_s = time.monotonic()
        for frame, due_s in zip(super().__iter__(), self.times_s, strict=False):
            time.sleep(max(0.0, began_s + due_s - time.monotonic()))
            yield dataclasses.replace(frame, capture_time_s=time.monotonic())
        self.let_go.wait(30)


def test_what_was_held_up_is_not_shown_after_its_time() -> None:
    """A second of pictures comes all at once: that second was shown grey, and the stream must not lag from there on."""
    times_s = [0.02 * i if i < 10 or i > 60 else 1.2 for i in range(100)]
    with Live(camera := Delayed(times_s)) as source:
        began_s = time.monotonic()
        taken = until(iter(source), lambda frame: frame.signal and frame.capture_time_s - began_s > 1.8)
        camera.let_go.set()
    assert rising(taken)
    assert source.dropped > 20 and source.problem == "the signal was lost once"
    pictures = [frame for frame in taken if frame.signal]
    passed_s = pictures[-1].capture_time_s - pictures[0].capture_time_s
    assert abs(pictures[-1].pts_s - pictures[0].pts_s - passed_s) < 0.15


@pytest.mark.parametrize("leap_s", [-7200, 7200])
def test_when_the_clock_of_a_camera_is_set_ours_goes_on(leap_s: int) -> None:
    class Set(Delayed):
        def __iter__(self) -> Iterator[Frame]:
            clock = Timestamps(TICK, self.rate)
            for frame in super().__iter__():
                told = frame.pts + (leap_s * 1000 if frame.pts >= 400 else 0)
                yield dataclasses.replace(frame, pts=clock(SimpleNamespace(pts=told, dts=told, duration=20)))

    with Live(camera := Set([0.02 * i for i in range(40)])) as source:
        taken = list(itertools.islice((frame for frame in source if frame.signal), 36))
        camera.let_go.set()
    assert rising(taken)
    passed_s = taken[-1].capture_time_s - taken[0].capture_time_s
    assert abs(taken[-1].pts_s - taken[0].pts_s - passed_s) < 0.2


def test_pictures_without_times_get_those_of_their_arrival() -> None:
    """A camera that sends 50 bare JPEGs a second, where FFmpeg makes up 25."""
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, (240, 320, 3)))[1].tobytes()
    listener = socket.create_server(("127.0.0.1", 0))

    def send() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            while True:
                connection.sendall(jpeg)
                time.sleep(0.02)

    threading.Thread(target=send, daemon=True).start()
    options = {"probesize": "300000"}
    with listener, open_source(f"tcp://127.0.0.1:{listener.getsockname()[1]}", **options) as source:
        taken = [frame for frame in itertools.islice(source, 80) if frame.signal]
    passed_s = taken[-1].capture_time_s - taken[20].capture_time_s
    assert abs((taken[-1].pts_s - taken[20].pts_s) / passed_s - 1) < 0.3
    assert rising(taken)


def test_what_comes_later_from_now_on_is_shown() -> None:
    """As after a pause of the sender: the pictures' own times say that they are late, and will be for good."""
    times_s = [0.02 * i if i < 10 else 0.02 * i + 0.9 for i in range(100)]
    with Live(camera := Delayed(times_s)) as source:
        frames = iter(source)
        taken = until(frames, lambda frame: not frame.signal)
        taken += until(frames, lambda frame: frame.signal)
        taken += itertools.islice(frames, 20)
        camera.let_go.set()
    assert rising(taken)
    assert all(frame.signal for frame in taken[-20:])
    assert 0 < source.dropped < 30  # until it was clear


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg command, to make a stream")
def test_hls_comes_in_bursts_and_plays_smoothly(spawn: Spawn, tmp_path: Path) -> None:
    port = free_port()
    spawn("python3", "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path))
    make = "ffmpeg -v error -re -f lavfi -i testsrc=size=64x48:rate=25 -g 25 -hls_time 1 -hls_list_size 5"
    spawn(*make.split(), str(tmp_path / "live.m3u8"))
    deadline_s = time.monotonic() + 30
    while len(list(tmp_path.glob("*.ts"))) < 5 and time.monotonic() < deadline_s:
        time.sleep(0.1)
    with open_source(f"http://127.0.0.1:{port}/live.m3u8") as source:
        began_s = time.monotonic()
        taken = list(itertools.islice(source, 100))
    passed_s = time.monotonic() - began_s
    assert source.live and rising(taken)
    assert all(frame.signal for frame in taken)
    assert abs(taken[-1].pts_s - taken[0].pts_s - passed_s) < 1.0


def test_the_last_picture_is_greyed() -> None:
    with Live(Camera(2), absent) as source:
        taken = until(iter(source), lambda frame: not frame.signal)
    picture, grey = taken[0].pixels, taken[-1].pixels
    assert (picture == (250, 100, 0)).all(), "what was shown stays as it was"
    assert (grey == grey[..., :1]).all()
    assert 0 < grey.max() < picture.max() / 2


def test_an_opening_that_hangs_stalls_nothing_and_closing_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcdrl_rt.video.live._JOIN_S", 0.1)
    hanging, let_go = threading.Event(), threading.Event()
    late = Camera(1)

    def hang() -> Source:
        hanging.set()
        let_go.wait(30)
        return late

    source = Live(Camera(1), hang)
    frames = iter(source)
    until(frames, lambda frame: hanging.is_set())
    assert not any(frame.signal for frame in itertools.islice(frames, 10))
    began_s = time.monotonic()
    source.close()
    assert time.monotonic() - began_s < 5
    assert list(frames) == []
    let_go.set()
    assert late.closed.wait(5), "what opened too late is closed again"


def test_closing_from_elsewhere_ends_the_wait() -> None:
    camera = Camera(1, stuck=True)
    source = Live(camera, absent)
    frames = iter(source)
    next(frames)
    threading.Timer(0.1, lambda: (camera.let_go.set(), source.close())).start()
    assert all(not frame.signal for frame in frames)
    assert camera.closed.wait(5)


def test_a_slow_consumer_loses_the_oldest() -> None:
    camera = Camera(1, stuck=True)
    with Live(camera, absent) as source:
        frames = iter(source)
        next(frames)
        camera.let_go.set()
        assert source.dropped == 0
    burst = Camera(50, stuck=True)
    with Live(Camera(1), returning(burst)) as source:
        frames = iter(source)
        until(frames, lambda frame: not frame.signal)
        while source.dropped < 46:  # all but the four that wait
            time.sleep(0.01)
        taken = list(itertools.islice(frames, 4))
        burst.let_go.set()
    assert [frame.signal for frame in taken] == [True] * 4
    assert [b.pts - a.pts for a, b in itertools.pairwise(taken)] == [20] * 3
    assert source.dropped == 46


def test_what_cannot_come_again_waits_for_whoever_wants_it() -> None:
    """A pipe, while the model loads: its sender waits, and every frame lost later is counted."""
    pipe = Camera(50)
    with Live(pipe, None) as source:
        time.sleep(0.3)
        assert pipe.delivered == 0
        frames = [frame for frame in source if frame.signal]
        assert len(frames) + source.dropped == 50
    unread = Camera(50)
    Live(unread, None).close()
    assert unread.closed.is_set()


def test_how_a_pipe_ended_is_told() -> None:
    pipe = Camera(5)
    pipe.problem = "truncated"
    with Live(pipe, None) as source:
        assert len(list(source)) + source.dropped >= 5
    assert list(source) == [] and source.problem == "truncated"


def test_why_a_camera_does_not_come_back_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    reasons = iter(["no such device", "no such device", "permission denied"])

    def reopen() -> Source:
        if (reason := next(reasons, None)) is None:
            return Camera(30)
        raise SourceError(reason)

    with Live(Camera(1), reopen) as source:
        until(iter(source), lambda frame: frame.signal and frame.index > 1)
    said = ["camera is not back: no such device", "camera is not back: permission denied"]
    assert [message for message in caplog.messages if "not back" in message] == said


def frame_at(pts_s: float, there_s: float) -> Frame:
    pixels = np.zeros((8, 12, 3), np.uint8)
    return Frame(pixels, round(pts_s * 1000), TICK, capture_time_s=there_s)


def test_that_pictures_come_ever_later_is_told_once() -> None:
    lag, told = _Lag(), list[tuple[int, float]]()
    for second in range(60):  # decoded in 1.2 times the time they take
        for tick in range(25):
            own_s = second + tick / 25
            if (late := lag.see(frame_at(own_s, 100 + 1.2 * own_s))) is not None:
                told.append((second, late))
    assert len(told) == 1 and 17 < told[0][0] < 21 and 3 < told[0][1] < 5


def test_bursts_jams_and_a_clock_that_is_set_are_no_lag() -> None:
    for late_s in (
        lambda own_s: 6 - own_s % 6,  # HLS: six seconds at once
        lambda own_s: 8.0 if 10 < own_s < 18 else 0.0,  # what a jam held up came in the end
    ):
        lag = _Lag()
        assert not any(lag.see(frame_at(i / 25, 100 + i / 25 + late_s(i / 25))) for i in range(25 * 60))
    lag = _Lag()  # a camera of 29.97 that says 30, for two hours
    assert not any(lag.see(frame_at(second, second * 1.001)) for second in range(7200))
    lag = _Lag()
    for number, set_to_s in enumerate((5000, 1400, 12200)):
        assert not any(lag.see(frame_at(set_to_s + i / 25, 60 * number + i / 25)) for i in range(999))


def clocked(late_s: Callable[[int], float], connections: int = 4) -> list[list[tuple[Frame, int]]]:
    """Five seconds of each connection, 50 pictures a second that come late by as much, and the times they are given."""
    clock, shown = _Clock(TICK), list[list[tuple[Frame, int]]]()
    for number in range(connections):
        frames = [frame_at(100 * number + 0.02 * i, 7 * number + 0.02 * i + late_s(i)) for i in range(250)]
        given_out = [clock.of_picture(frame, number, signal=i > 0) for i, frame in enumerate(frames)]
        shown.append([(frame, pts) for frame, pts in zip(frames, given_out, strict=True) if pts is not None])
    every = [pts for pictures in shown for _, pts in pictures]
    assert len(every) == 250 * connections and all(a < b for a, b in itertools.pairwise(every))
    return shown


def test_what_a_server_kept_and_sends_at_once_moves_no_clock() -> None:
    first, *_, last = clocked(lambda i: max(0, 100 - i) * 0.0199)  # the first two seconds, all but at once
    passed_s = last[-1][0].capture_time_s - first[-1][0].capture_time_s
    assert float((last[-1][1] - first[-1][1]) * TICK) == pytest.approx(passed_s, abs=0.01)


def test_pictures_that_come_a_little_early_and_late_keep_their_own_times() -> None:
    for pictures in clocked(lambda i: 0.03 * (i * 7 % 5)):
        assert {b[1] - a[1] for a, b in itertools.pairwise(pictures)} == {20}


def test_an_absurd_rate_floods_nobody() -> None:
    camera = Camera(1)
    camera.rate = Fraction(90_000)
    with Live(camera, absent) as source:
        frames = iter(source)
        until(frames, lambda frame: not frame.signal)
        began_s = time.monotonic()
        list(itertools.islice(frames, 30))
        assert time.monotonic() - began_s > 0.2


def test_a_bug_in_the_reader_is_raised_to_the_consumer() -> None:
    def broken() -> Source:
        raise RuntimeError("a bug")

    with Live(Camera(1), broken) as source, pytest.raises(RuntimeError, match="a bug"):
        until(iter(source), lambda frame: False)


def test_a_recording_plays_at_its_own_pace(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "vfr.mkv", pts=[1000, 1010, 1100, 1110, 1250], time_base=TICK)
    with open_source(str(clip), live=True) as source:
        assert (source.live, source.format.live) == (True, True)
        frames = list(source)
    assert [frame.pts for frame in frames] == [1000, 1010, 1100, 1110, 1250]
    early = [f.capture_time_s - frames[0].capture_time_s - (f.pts_s - frames[0].pts_s) for f in frames]
    assert min(early) > -0.002, "nothing before it is due"
    assert frames[-1].capture_time_s - frames[0].capture_time_s < 5


def test_a_recording_whose_clock_leaps_is_not_waited_for(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "leap.mkv", pts=[0, 20, 3_600_000, 3_600_020], time_base=TICK)
    with open_source(str(clip), live=True) as source:
        frames = list(source)
    assert [frame.pts for frame in frames] == [0, 20, 3_600_000, 3_600_020]
    assert frames[-1].capture_time_s - frames[0].capture_time_s < 60


def test_a_paced_recording_says_what_was_wrong_and_drops_nothing_when_late(tmp_path: Path) -> None:
    whole = write_clip(
        tmp_path / "a.mp4", pts=range(50), codec_options={"g": "1"}, container_options={"movflags": "faststart"}
    ).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    with open_source(str(tmp_path / "cut.mp4"), live=True) as source:
        frames = iter(source)
        next(frames)
        time.sleep(0.3)  # a late consumer
        rest = [frame.index for frame in frames]
    assert rest == list(range(1, len(rest) + 1))
    assert source.problem is not None
    assert source.problem.startswith("truncated")


def test_closing_a_paced_source_ends_its_wait(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "gap.mkv", pts=[0, 9_000], time_base=TICK)
    source = open_source(str(clip), live=True)
    frames = iter(source)
    next(frames)
    threading.Timer(0.1, source.close).start()
    assert list(frames) == []


def test_the_phantom_may_be_paced() -> None:
    with open_source("phantom:size=96x64,frames=5,fps=50", live=True) as source:
        frames = list(source)
    assert (source.live, len(frames)) == (True, 5)
    assert frames[-1].capture_time_s - frames[0].capture_time_s > 0.078
