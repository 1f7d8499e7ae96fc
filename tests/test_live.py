"""Live sources: they outlive their signal on one clock, drop rather than lag, and end at once when told to."""

from __future__ import annotations

import functools
import http.server
import itertools
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import SIZE, picture, write_clip
from conftest import ROOT

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame
from mcdrl_rt.video import address
from mcdrl_rt.video.base import Source
from mcdrl_rt.video.live import Live
from mcdrl_rt.video.source import open_source

TICK = Fraction(1, 90_000)
GSTREAMER = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


@dataclass
class Camera(Source):
    """A device of which the test decides what it delivers: the boundary that no clip stands in for.

    Args:
        script: called with the camera, yields (pts, index of the picture).
    """

    script: Callable[[Camera], Iterator[int]]
    size: tuple[int, int] = SIZE
    time_base: Fraction = Fraction(1, 1000)
    rate: Fraction = Fraction(50)
    name: str = "camera"
    live: bool = True
    closed: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[Frame]:
        for pts in self.script(self):
            yield Frame(picture(pts, self.size), pts, self.time_base)

    def close(self) -> None:
        self.closed.set()


def ticking(count: int, start: int = 0) -> Callable[[Camera], Iterator[int]]:
    """A script of ``count`` frames, one every 20 ms."""

    def script(camera: Camera) -> Iterator[int]:
        for i in range(count):
            yield start + 20 * i
            camera.closed.wait(0.02)

    return script


def never() -> Source:
    raise SourceError("nobody is there")


def take(source: Source, until: Callable[[Frame], bool], limit_s: float = 20.0) -> list[Frame]:
    """Frames up to the first for which ``until`` holds; their times increase and so do their numbers."""
    frames: list[Frame] = []
    deadline = time.monotonic() + limit_s
    for frame in source:
        frames.append(frame)
        if until(frame):
            break
        assert time.monotonic() < deadline, "what was waited for never came"
    assert all(later.pts > earlier.pts for earlier, later in itertools.pairwise(frames))
    assert all(later.index == earlier.index + 1 for earlier, later in itertools.pairwise(frames))
    return frames


def clock_error_s(frames: list[Frame]) -> float:
    """By how much the frames' own clock and the wall's differ at most."""
    return max(
        abs((frame.pts_s - frames[0].pts_s) - (frame.capture_time_s - frames[0].capture_time_s)) for frame in frames
    )


def test_a_lost_signal_is_shown_grey_until_pictures_come_again() -> None:
    cameras = iter([Camera(ticking(1000, 70_000), size=(96, 80), time_base=Fraction(1, 2000))])
    with Live(Camera(ticking(10)), lambda: next(cameras)) as source:
        lost = take(source, lambda frame: not frame.signal)
        grey = [lost[-1], *take(source, lambda frame: frame.signal)]
        back = [grey.pop(), *take(source, lambda frame: frame.index > 40)]
    assert (source.reconnections, source.note) == (1, "the signal was lost once; reconnected once")
    assert source.problem is None
    assert len(grey) >= 5  # 0.2 s at 50 frames per second, on a machine that may be busy
    assert all(frame.pixels is grey[0].pixels for frame in grey)  # greyed once
    shown, last = grey[0].pixels, lost[-2].pixels
    assert np.ptp(shown, axis=2).max() == 0
    assert 0 < shown.mean() < 0.6 * last.mean()
    assert {frame.size for frame in back} == {(96, 80)}
    assert {frame.time_base for frame in (*lost, *grey, *back)} == {source.time_base}
    assert clock_error_s([*lost, *grey, *back]) < 0.5


def test_silence_is_a_loss_and_what_was_held_up_is_left_out() -> None:
    def held_up(camera: Camera) -> Iterator[int]:
        yield from ticking(5)(camera)
        camera.closed.wait(1.0)
        yield from range(100, 1100, 20)  # all at once, with the times they were taken at
        yield from ticking(1000, 1100)(camera)

    with Live(Camera(held_up), never) as source:
        frames = take(source, lambda frame: frame.pts > 1500)
    assert (source.reconnections, source.note) == (0, "the signal was lost once; reconnected 0 times")
    real = [frame for frame in frames if frame.signal]
    assert len(real) < len(frames)
    assert all(frame.pts % 20 == 0 for frame in real)  # their own times, before and after
    assert source.dropped > 0
    assert clock_error_s(frames) < 0.5


def test_a_clock_that_stood_still_meanwhile_is_moved_on() -> None:
    def paused(camera: Camera) -> Iterator[int]:
        yield from ticking(5)(camera)
        camera.closed.wait(1.0)
        yield from ticking(1000, 100)(camera)

    with Live(Camera(paused), never) as source:
        frames = take(source, lambda frame: frame.signal and frame.pts > 1500, limit_s=10)
    assert clock_error_s(frames) < 0.5


def test_a_slow_consumer_gets_the_newest_frames() -> None:
    with Live(Camera(ticking(10_000)), never) as source:
        frames = take(source, lambda frame: bool(time.sleep(0.1)) or frame.index == 8)
    assert all(frame.signal for frame in frames)
    assert source.dropped > 10
    assert frames[-1].pts_s - frames[0].pts_s > 0.5


def test_what_nobody_waits_for_is_not_called_dropped() -> None:
    with Live(Camera(ticking(10_000)), never) as source:
        time.sleep(0.3)
        first = next(iter(source))
    assert first.pts > 0
    assert source.dropped == 0


@pytest.mark.parametrize("stuck", ["reading", "opening"])
def test_closing_does_not_wait_for_ffmpeg(stuck: str) -> None:
    released = threading.Event()

    def hangs(camera: Camera) -> Iterator[int]:
        yield from ticking(3)(camera)
        if stuck == "reading":
            released.wait()

    def reopen() -> Source:
        released.wait()
        return never()

    source = Live(Camera(hangs), reopen)
    frames = iter(source)
    while next(frames).signal:
        pass
    started = time.monotonic()
    source.close()
    source.close()
    assert time.monotonic() - started < 5
    assert list(frames) == []
    released.set()


def test_a_bug_is_not_a_lost_signal() -> None:
    def broken(camera: Camera) -> Iterator[int]:
        yield 0
        raise ZeroDivisionError("a bug")

    with Live(Camera(broken), never) as source, pytest.raises(ZeroDivisionError, match="a bug"):
        list(source)


def test_a_file_can_be_played_at_its_own_pace(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", pts=[0, 1, 2, 10, 11, 20])
    with open_source(str(path), live=True) as source:
        assert (source.live, source.format.live, source.frame_count, source.name) == (True, True, 6, "a.mp4")
        frames = list(source)
    assert source.problem is None
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(i, 25) for i in (0, 1, 2, 10, 11, 20)]
    for frame in frames:  # never early; late only on a busy machine
        assert frame.capture_time_s - frames[0].capture_time_s >= frame.pts_s - 0.001
    assert clock_error_s(frames) < 2


def test_the_phantom_can_be_played_at_its_own_pace() -> None:
    started = time.monotonic()
    with open_source("phantom:size=96x64,fps=20,frames=6", live=True) as source:
        assert [frame.pts for frame in source] == list(range(6))
    assert time.monotonic() - started >= 0.25


def test_closing_ends_the_wait_for_a_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", pts=[0, 100])
    source = open_source(str(path), live=True)
    frames = iter(source)
    next(frames)
    threading.Timer(0.2, source._closed.set).start()  # type: ignore[attr-defined]
    started = time.monotonic()
    assert list(frames) == []
    assert time.monotonic() - started < 3
    source.close()


def send_once(server: socket.socket, data: bytes, stay: threading.Event | None = None) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(data)
        if stay is not None:
            stay.wait(20)


@pytest.fixture
def recording(tmp_path: Path) -> bytes:
    """50 frames as a transport stream."""
    return write_clip(tmp_path / "live.ts", pts=range(50), codec_options={"g": "10", "bf": "0"}).read_bytes()


@pytest.mark.parametrize("ends", [True, False])
def test_a_stream_that_ends_or_falls_silent_is_opened_anew(
    recording: bytes, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    monkeypatch.setattr(address, "_LIVE_TIMEOUT_S", (5.0, 1.0))
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = threading.Thread(target=send_once, args=(server, recording, None if ends else over))
        first.start()
        with open_source(f"tcp://surgeon:secret@127.0.0.1:{server.getsockname()[1]}") as source:
            assert (source.live, source.frame_count, source.size) == (True, None, SIZE)
            assert "secret" not in source.name
            take(source, lambda frame: not frame.signal)
            threading.Thread(target=send_once, args=(server, recording), daemon=True).start()
            take(source, lambda frame: frame.signal)
            assert source.reconnections == 1
        over.set()
        first.join()


def test_a_silent_network_stream_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_LIVE_TIMEOUT_S", (1.0, 1.0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(SourceError, match="no data for 1 s; check the address and that the stream is running"):
            open_source(f"tcp://127.0.0.1:{server.getsockname()[1]}")


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """The address ``tmp_path`` has over HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://surgeon:secret@127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.h264"])
def test_a_file_behind_http_waits(tmp_path: Path, website: str, name: str) -> None:
    write_clip(tmp_path / name, pts=range(30))
    with open_source(f"{website}/{name}?token=abcdef") as source:
        assert not source.live
        assert len(list(source)) == 30
    assert source.problem is None


def test_a_playlist_that_grows_is_shown_steadily(tmp_path: Path, website: str) -> None:
    hls = {"hls_time": "1", "hls_list_size": "0"}
    write_clip(tmp_path / "a.m3u8", pts=range(75), codec_options={"g": "25", "bf": "0"}, container_options=hls)
    playlist = (tmp_path / "a.m3u8").read_text()
    (tmp_path / "a.m3u8").write_text(playlist.replace("#EXT-X-ENDLIST", ""))
    with open_source(f"{website}/a.m3u8") as source:
        assert source.live
        frames = take(source, lambda frame: not frame.signal)  # the playlist does not grow
    assert len(frames) > 60
    assert frames[50].capture_time_s - frames[0].capture_time_s > 1.9  # not all that is there at once
    assert clock_error_s(frames) < 1


def test_a_program_can_end_while_a_stream_is_silent(recording: bytes) -> None:
    over = threading.Event()
    script = (
        "import sys\nfrom mcdrl_rt.video.source import open_source\n"
        "source = open_source(sys.argv[1])\n"
        "for frame in source:\n    if not frame.signal: break\n"
        "source.close()\nprint('closed')\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = threading.Thread(target=send_once, args=(server, recording, over))
        sender.start()
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        ended = subprocess.run([sys.executable, "-c", script, url], capture_output=True, text=True, timeout=60)
        over.set()
        sender.join()
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "closed\n", "")


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


Serve = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def programs() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts programs, and ends what is left of them."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **quiet))  # type: ignore[call-overload]
        return started[-1]

    yield start
    for program in started:
        program.kill()
        program.communicate()


@pytest.fixture(params=["rtsp", "udp"])
def stream(request: pytest.FixtureRequest, programs: Callable[..., subprocess.Popen[str]]) -> tuple[str, Serve]:
    """An address, and what starts a sender of pictures of a given size there."""
    if request.param == "udp":
        if shutil.which("ffmpeg") is None:
            pytest.skip("needs the ffmpeg command")
        url = f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}"

        def send(size: str) -> subprocess.Popen[str]:
            picture = ("-re", "-f", "lavfi", "-i", f"testsrc=size={size}:rate=25")
            coded = ("-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "12", "-f", "mpegts")
            return programs("ffmpeg", "-v", "quiet", *picture, *coded, url)

        return url, send
    if subprocess.run(["/usr/bin/python3", "-c", GSTREAMER], capture_output=True, check=False).returncode:
        pytest.skip("needs GStreamer's RTSP server in /usr/bin/python3 (gir1.2-gst-rtsp-server-1.0)")
    port = str(free_port(socket.SOCK_STREAM))

    def serve(size: str) -> subprocess.Popen[str]:
        server = programs("/usr/bin/python3", str(ROOT / "tests" / "rtsp_server.py"), port, size)
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        return server

    return f"rtsp://surgeon:secret@127.0.0.1:{port}/live?token=abcdef", serve


def test_a_network_stream_comes_back_after_its_server_died(stream: tuple[str, Serve]) -> None:
    url, serve = stream
    server = serve("64x48")
    with open_source(url) as source:
        assert (source.size, source.rate, source.live) == (SIZE, 25, True)
        assert not {"secret", "abcdef"} & set(source.name.replace("/", "?").split("?"))
        frames = take(source, lambda frame: frame.index >= 20)
        server.kill()
        frames += take(source, lambda frame: not frame.signal)
        dark_s = time.monotonic()
        frames += take(source, lambda frame: time.monotonic() - dark_s > 1)
        serve("96x64")
        restarted_s = time.monotonic()
        frames += take(source, lambda frame: frame.signal)
        assert time.monotonic() - restarted_s < 10  # 2.5 s where nothing else runs
        frames += take(source, lambda frame: frame.index > frames[-1].index + 10)
    assert source.problem is None
    assert source.reconnections == (1 if url.startswith("rtsp") else 0)  # the same socket hears the next sender
    assert frames[-1].size == (64, 96)
    assert all(later.pts > earlier.pts for earlier, later in itertools.pairwise(frames))
    dark = [frame for frame in frames if not frame.signal]
    assert len(dark) / (dark[-1].capture_time_s - dark[0].capture_time_s) == pytest.approx(25, rel=0.4)
    assert clock_error_s(frames) < 1


@pytest.fixture
def display(programs: Callable[..., subprocess.Popen[str]]) -> str:
    """An X server of 320×240 that nobody sees."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb")
    server = programs("Xvfb", "-displayfd", "1", "-screen", "0", "320x240x24", "-nolisten", "tcp")
    assert server.stdout is not None
    return f":{int(server.stdout.readline())}"


def test_a_screen_is_a_live_source(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "x11grab" not in av.formats_available:
        pytest.skip("needs an FFmpeg with x11grab")
    monkeypatch.setenv("DISPLAY", display)
    with open_source("screen") as source:
        assert (source.name, source.size, source.rate, source.live) == (f"screen {display}", (240, 320), 30, True)
        assert len(take(source, lambda frame: frame.index == 4)) == 5
    with open_source(f"screen:{display}", video_size="160x120", framerate="20") as source:
        assert (source.size, source.rate) == ((120, 160), 20)


def test_a_screen_that_is_not_there_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(SourceError, match="DISPLAY is not set; name the display, as in screen::0"):
        open_source("screen")
    with pytest.raises(SourceError, match=r"cannot open screen :97: .*is there such a display"):
        open_source("screen::97")
