"""Push: real receivers get the pictures at once, come and go as they like, and never hold up who writes."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import picture
from conftest import ROOT

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Frame, Shown, UInt8Array, VideoFormat
from mcdrl_rt.video import output, push
from mcdrl_rt.video.push import Push
from mcdrl_rt.video.sink import open_sink

TICK = Fraction(1, 25)
SIZE = (96, 128)
LIVE = VideoFormat(SIZE, TICK, Fraction(25), live=True)
PATIENCE_S = 30.0

# says of every frame decoded how bright it is, and whether another start of the stream was seen
RECEIVE = """
    import sys, av
    options = dict(pair.split("=") for pair in sys.argv[2:])
    with av.open(sys.argv[1], options={"probesize": "32000", "analyzeduration": "0"} | options) as container:
        for frame in container.decode(video=0):
            print(frame.pts * frame.time_base, frame.to_ndarray(format="gray").mean(), flush=True)
"""


class Receiver:
    """A process that receives, and what it has said."""

    def __init__(self, command: list[str]) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.strip())

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def receiving(*command: str) -> Iterator[Receiver]:
    receiver = Receiver(list(command))
    try:
        yield receiver
    finally:
        receiver.kill()


def through_pyav(url: str, *options: str) -> tuple[str, ...]:
    script = "\n".join(line[4:] for line in RECEIVE.splitlines())
    return sys.executable, "-c", script, url, *options


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_listener(port: int) -> None:
    """Until somebody listens, without connecting: a receiver of RTMP takes one call only."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"nobody listens on port {port}")


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


class Camera:
    """Writes pictures as a live source would, and remembers the longest it was kept waiting."""

    def __init__(self, sink: Push) -> None:
        self.sink, self.longest_s = sink, 0.0
        self._index = itertools.count()

    def write_until(self, done: object) -> None:
        end = time.monotonic() + PATIENCE_S
        while not done():  # type: ignore[operator]
            assert time.monotonic() < end, self.sink.problem
            self.write()
            time.sleep(0.02)

    def write(self, pixels: UInt8Array | None = None) -> None:
        index = next(self._index)
        frame = Frame(picture(index, SIZE) if pixels is None else pixels, index, TICK, index)
        started = time.monotonic()
        self.sink.write(Shown(frame))
        self.longest_s = max(self.longest_s, time.monotonic() - started)


def opened(url: str, format: VideoFormat = LIVE) -> Push:
    sink = open_sink(url, format)
    assert isinstance(sink, Push)
    return sink


def test_udp_pictures_arrive_while_they_are_written() -> None:
    url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    with receiving(*through_pyav(url)) as receiver, opened(url) as sink:
        Camera(sink).write_until(lambda: len(receiver.lines) >= 20)
    assert float(receiver.lines[-1].split()[1]) > 60  # no black ones
    assert sink.problem is None


def test_rtmp_receivers_may_end_and_come_back() -> None:
    port = free_port()
    url = f"rtmp://127.0.0.1:{port}/live/secret-key"
    listen = through_pyav(url, "listen=1")
    with receiving(*listen) as first:
        wait_for_listener(port)
        sink = opened(url)
        camera = Camera(sink)
        camera.write_until(lambda: len(first.lines) >= 5)
    camera.write_until(lambda: sink.down and sink.dropped)
    with receiving(*listen) as second:
        camera.write_until(lambda: len(second.lines) >= 5)
        assert not sink.down
        sink.close()
    assert sink.reconnections == 1 and not sink.lost
    assert camera.longest_s < 2
    assert sink.problem is not None
    assert "frames not sent to rtmp://127.0.0.1" in sink.problem
    assert sink.problem.endswith(", connected again 1 times")
    assert "secret" not in sink.problem


def test_a_receiver_that_does_not_come_back_is_a_lost_output() -> None:
    port = free_port()
    url = f"rtmp://127.0.0.1:{port}/live/secret-key"
    with receiving(*through_pyav(url, "listen=1")) as receiver:
        wait_for_listener(port)
        sink = opened(url)
        camera = Camera(sink)
        camera.write_until(lambda: len(receiver.lines) >= 5)
    camera.write_until(lambda: sink.down)
    sink.close()
    assert sink.frames and "frames not sent to rtmp://127.0.0.1" in sink.lost and "no connection" in sink.lost
    assert "secret" not in sink.lost


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs the ffmpeg command, which has SRT")
@pytest.mark.slow
def test_srt_receivers_may_end_and_come_back(tmp_path: Path) -> None:
    url = f"srt://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    listen = ("ffmpeg", "-v", "error", "-i", f"{url}?mode=listener", "-f", "framemd5", "-flush_packets", "1", "-")

    def pictures(receiver: Receiver) -> int:
        return sum(not line.startswith("#") for line in receiver.lines)

    with receiving(*listen) as first:
        time.sleep(1)  # SRT listens on UDP, where nobody can see it do so; the sink gives up after three seconds
        sink = opened(url)
        camera = Camera(sink)
        camera.write_until(lambda: pictures(first) >= 5)
    camera.write_until(lambda: sink.problem)
    with receiving(*listen) as second:
        camera.write_until(lambda: pictures(second) >= 5)
        sink.close()
    assert sink.reconnections == 1
    assert camera.longest_s < 2


@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs the system's Python, for GStreamer")
def test_rtsp_is_recorded_by_a_server() -> None:
    script = ROOT / "tests" / "rtsp_receiver.py"
    check = "import gi; gi.require_version('GstRtspServer', '1.0')"
    if subprocess.run(["/usr/bin/python3", "-E", "-c", check], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs GStreamer's RTSP server (apt: gir1.2-gst-rtsp-server-1.0)")
    port = free_port()
    with receiving("/usr/bin/python3", "-E", str(script), str(port)) as server:
        wait_for_listener(port)
        with opened(f"rtsp://user:secret@127.0.0.1:{port}/live") as sink:
            Camera(sink).write_until(lambda: "20" in server.lines)
        with pytest.raises(SinkError, match=r"to rtsp://…@127.0.0.1:\d+/absent: server returned 404 Not Found; ") as no:
            opened(f"rtsp://user:secret@127.0.0.1:{port}/absent")
    assert sink.problem is None
    assert "secret" not in str(no.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("rtsp://user:secret@127.0.0.1:1/live", "cannot write to rtsp://…@127.0.0.1:1/live: connection refused; check"),
        ("rtmp://127.0.0.1:1/live/secret", "cannot write to rtmp://127.0.0.1:1/live/…: connection refused; check"),
        ("udp://127.0.0.1?secret=1", "cannot write to udp://127.0.0.1.…: invalid argument; check the address"),
        ("rtmp://no-such-host.invalid/live/secret", "to rtmp://no-such-host.invalid/live/…: .*error; check"),
        ("tcp://secret@127.0.0.1:1", "to tcp://…@127.0.0.1:1: an address must begin with one of rtsp:// rtmp:"),
    ],
)
def test_addresses_that_cannot_be_reached(url: str, message: str) -> None:
    with pytest.raises(SinkError, match=message) as caught:
        open_sink(url, LIVE)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_host_that_does_not_answer_stops_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "_CONNECT_S", 1.0)
    ticks: list[float] = []
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.01):
            ticks.append(time.monotonic())

    clock = threading.Thread(target=tick)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        clock.start()
        with pytest.raises(SinkError, match="no answer for 1 s; check the address"):
            open_sink(f"rtmp://127.0.0.1:{silent.getsockname()[1]}/live/key", LIVE)
        done.set()
        clock.join()
    assert np.diff(ticks).max() < 0.7  # the lock was never held for as long as the host was silent


NOISE = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)  # more than a pipe holds, encoded
LARGE = VideoFormat((480, 640), TICK, Fraction(25), live=True)


@contextmanager
def sending(port: int) -> Iterator[tuple[Receiver, Camera]]:
    """Large pictures to a receiver that has begun to show them."""
    url = f"rtmp://127.0.0.1:{port}/live/key"
    with receiving(*through_pyav(url, "listen=1")) as receiver:
        wait_for_listener(port)
        camera = Camera(opened(url, LARGE))
        camera.write_until(lambda: receiver.lines)
        yield receiver, camera


def write_noise_until(camera: Camera, done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    for number in itertools.count():
        if done():
            return
        assert time.monotonic() < end, camera.sink.problem
        camera.write(np.roll(NOISE, 31 * number, axis=1))
        time.sleep(0.005)


def test_a_connection_that_takes_nothing_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "_STALL_S", 1.0)
    with sending(free_port()) as (receiver, camera):
        receiver._process.send_signal(19)  # SIGSTOP: the connection stands, and its buffers fill
        write_noise_until(camera, lambda: "no connection" in (camera.sink.problem or ""))
    camera.sink.close()
    assert camera.longest_s < 2


def test_a_server_that_takes_a_call_and_says_nothing_is_given_up_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "_STALL_S", 1.0)
    port = free_port()
    with sending(port) as (_, camera):
        sink = camera.sink
    with socket.create_server(("127.0.0.1", port)):  # nobody reads
        write_noise_until(camera, lambda: sink._trying)
        first = sink._trying
        write_noise_until(camera, lambda: sink._trying is not first)
    sink.close()
    assert camera.longest_s < 2


def test_a_listener_that_nobody_calls_leaves_nothing_behind() -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("needs the ffmpeg command, which has SRT")
    camera = Camera(opened(f"srt://127.0.0.1:{free_port(socket.SOCK_DGRAM)}?mode=listener", LARGE))
    write_noise_until(camera, lambda: camera.sink._trying)
    assert camera.sink._trying is not None
    process = camera.sink._trying._process
    camera.sink.close()
    assert process.poll() is not None and not camera.sink._thread.is_alive()


def test_a_listener_waits_for_its_caller_and_ends_without_one() -> None:
    if not shutil.which("ffmpeg"):
        pytest.skip("needs the ffmpeg command, which has SRT")
    sink = opened(f"srt://127.0.0.1:{free_port(socket.SOCK_DGRAM)}?mode=listener")
    camera = Camera(sink)
    camera.write_until(lambda: sink.problem)
    sink.close()
    assert camera.longest_s < 2
    assert sink.frames == 0
    assert "no connection (nobody has called yet)" in (sink.problem or "") and not sink.lost


def children(process: int) -> list[int]:
    """The processes it has started."""
    threads = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def runs(process: int) -> bool:
    """Whether it is there, and no mere entry of a table that nobody has taken note of."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", ["srt", "rtmp"])
def test_what_waits_for_others_ends_with_a_program_that_is_killed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexec sleep 600")  # waits for a call, and reads nothing
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    send = "from test_push import *\ncamera = Camera(opened(sys.argv[1]))\nwhile True: camera.write()"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"{kind}://127.0.0.1:{silent.getsockname()[1]}/live{'?mode=listener' if kind == 'srt' else ''}"
        program = subprocess.Popen([sys.executable, "-c", send, url], cwd=ROOT / "tests")
        try:
            if kind == "rtmp":
                silent.settimeout(PATIENCE_S)
                silent.accept()[0].detach()  # and says nothing to who has called
            until(lambda: children(program.pid))
            (waiting,) = children(program.pid)
        finally:
            program.kill()
            program.wait()
        try:
            until(lambda: not runs(waiting))
        finally:
            if runs(waiting):
                os.kill(waiting, signal.SIGKILL)


@pytest.mark.parametrize("asked_to_end", [False, True])
def test_a_file_is_sent_at_its_own_pace(asked_to_end: bool) -> None:
    url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    with opened(url, VideoFormat(SIZE, TICK, Fraction(25))) as sink:
        started = time.monotonic()
        if asked_to_end:
            sink.hurry()
        for index in range(20):
            sink.write(Shown(Frame(picture(index, SIZE), index, TICK, index)))
        assert time.monotonic() - started > 0.7
    assert (sink.frames, sink.problem) == (20, None)


def test_a_frame_after_a_pause_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(output.time, "monotonic", lambda: 100.0 + sum(waits))
    monkeypatch.setattr(output.time, "sleep", waits.append)
    pace = output.Pace(VideoFormat(SIZE, TICK, Fraction(25)))
    monkeypatch.setattr(pace._hurried, "wait", waits.append)  # nobody asks for the end
    for pts in (0, 1, 75, 76):
        pace.wait(Frame(picture(0, SIZE), pts, TICK))
    assert waits == pytest.approx([0.0, 0.04, 2.96, 0.04])


@pytest.mark.parametrize("asked_to_end", [False, True])
def test_nobody_waits_long_for_a_file_whose_clock_leaps_or_once_the_end_was_asked_for(
    asked_to_end: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gap_s = 3600
    if asked_to_end:
        monkeypatch.setattr(output, "_LEAP_S", 2.0 * gap_s)
    url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"
    file = VideoFormat(SIZE, TICK, Fraction(25))
    pictures = [Shown(Frame(picture(index, SIZE), pts, TICK)) for index, pts in enumerate([0, 1, 25 * gap_s])]
    with opened(url, file) as sink:
        writer = threading.Thread(target=lambda: [sink.write(shown) for shown in pictures], daemon=True)
        writer.start()
        if asked_to_end:
            writer.join(0.5)
            assert writer.is_alive()
            sink.hurry()
        writer.join(PATIENCE_S)
        assert not writer.is_alive()
    assert (sink.frames, sink.problem) == (3, None)


def test_only_h264_is_sent() -> None:
    with pytest.raises(SinkError, match=r"cannot write libvpx-vp9 to udp://127\.0\.0\.1:9: an address takes H\.264"):
        open_sink("udp://127.0.0.1:9", LIVE, codec="libvpx-vp9")
