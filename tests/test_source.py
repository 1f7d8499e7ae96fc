"""Source: real clips through the real decoder; every way to fail says what is wrong in one line."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import os
import socket
import subprocess
import threading
import time
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from clips import picture, read_pts, serving, write_audio, write_clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcdrl_rt.doctor import _devices
from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.source import open_source

FINE = {"crf": "1"}  # close enough to compare pixels


def difference(a: UInt8Array, b: UInt8Array) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """60 frames with the index first, so that a prefix of the file is still a video."""
    path = tmp_path_factory.mktemp("clips") / "long.mp4"
    noisy = [np.random.default_rng(i).integers(0, 255, (48, 64, 3)).astype(np.uint8) for i in range(60)]
    options = {"g": "10", "bf": "0", "crf": "30"}
    faststart = {"movflags": "faststart"}
    return write_clip(
        path, pts=range(60), pictures=noisy, codec_options=options, container_options=faststart
    ).read_bytes()


def test_a_clip_gives_its_frames_and_facts(tmp_path: Path) -> None:
    with open_source(str(write_clip(tmp_path / "a.mp4", codec_options=FINE))) as source:
        assert (source.size, source.rate, source.frame_count) == ((48, 64), 25, 12)
        assert (source.name, source.live, source.problem) == ("a.mp4", False, None)
        before = time.monotonic()
        frames = list(source)
        assert list(source) == []
    assert source.problem is None
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.pts * source.time_base for frame in frames] == [Fraction(i, 25) for i in range(12)]
    assert all(before <= frame.capture_time_s <= time.monotonic() for frame in frames)
    assert all(frame.pixels.flags.c_contiguous and frame.pixels.dtype == np.uint8 for frame in frames)
    assert max(difference(frame.pixels, picture(frame.index)) for frame in frames) < 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(1, 9000), min_size=1, max_size=12), start=st.integers(0, 100_000))
def test_irregular_times_come_through(tmp_path: Path, steps: list[int], start: int) -> None:
    pts = list(itertools.accumulate(steps, initial=start))
    scale = {"video_track_timescale": "90000", "movie_timescale": "90000"}
    tick = Fraction(1, 90_000)
    path = write_clip(tmp_path / "vfr.mp4", pts=pts, time_base=tick, container_options=scale)
    with open_source(str(path)) as source:
        assert [frame.pts * frame.time_base for frame in source] == [time * tick for time in pts]


def test_streams_without_timestamps_count_on(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "raw.h264", codec_options={"bf": "0"})
    with open_source(str(path)) as source:
        pts = [frame.pts for frame in source]
    assert len(pts) == 12
    assert all(later > earlier for earlier, later in itertools.pairwise(pts))


@pytest.mark.parametrize("turn", list(itertools.product((0, 90, 180, 270), (False, True), (False, True))))
def test_turned_and_mirrored_video_is_shown_upright(tmp_path: Path, turn: tuple[int, bool, bool]) -> None:
    degrees, across, down = turn
    path = write_clip(tmp_path / "turned.mp4", pts=range(1), rotation=turn, codec_options=FINE)
    expected = np.rot90(picture(0), degrees // 90)
    expected = expected[:, ::-1] if across else expected
    expected = expected[::-1] if down else expected
    with open_source(str(path)) as source:
        frame = next(iter(source))
        assert source.size == frame.size == expected.shape[:2]
    assert difference(frame.pixels, expected) < 4


@pytest.mark.parametrize(("degrees", "turned"), [(0, False), (180, False), (90, True)])
def test_anamorphic_pixels_are_told_as_they_are_shown(tmp_path: Path, degrees: int, turned: bool) -> None:
    path = write_clip(
        tmp_path / "wide.mp4",
        pts=range(2),
        rotation=(degrees, False, False),
        tags={"sample_aspect_ratio": Fraction(16, 11)},
    )
    with open_source(str(path)) as source:
        assert source.pixel_aspect == (Fraction(11, 16) if turned else Fraction(16, 11))


@pytest.mark.parametrize(
    ("size", "matrix", "tags", "color"),
    [
        ((48, 64), "ITU601", {}, "bt601"),
        ((48, 64), "ITU709", {"colorspace": 1}, "bt709"),
        ((48, 64), "ITU601", {"colorspace": 6, "color_range": 2}, "bt601"),
        ((720, 64), "ITU709", {}, "bt709"),
        ((720, 64), "ITU601", {"colorspace": 5}, "bt601"),
        ((48, 64), "BT2020", {"colorspace": 9}, "bt2020"),
        ((48, 64), "BT2020", {"colorspace": 9, "color_trc": 16}, "bt2020-pq"),
    ],
)
def test_colours_are_right(
    tmp_path: Path, size: tuple[int, int], matrix: str, tags: dict[str, int], color: str
) -> None:
    flat = np.empty((*size, 3), np.uint8)
    flat[:] = (200, 60, 30)
    path = write_clip(
        tmp_path / "c.mp4", pts=range(1), size=size, pictures=[flat], matrix=matrix, tags=tags, codec_options=FINE
    )
    with open_source(str(path)) as source:
        assert source.color == color
        assert np.abs(next(iter(source)).pixels.mean(axis=(0, 1)) - (200, 60, 30)).max() < 4


def test_ten_bit_and_rgb_video(tmp_path: Path) -> None:
    ten = write_clip(
        tmp_path / "ten.mkv",
        codec="libx265",
        pix_fmt="yuv420p10le",
        codec_options={"crf": "5", "x265-params": "log-level=none"},
    )
    rgb = write_clip(tmp_path / "rgb.mkv", codec="ffv1", pix_fmt="bgr0")
    with open_source(str(ten)) as source:
        assert max(difference(frame.pixels, picture(frame.index)) for frame in source) < 5
    with open_source(str(rgb)) as source:
        assert all(np.array_equal(frame.pixels, picture(frame.index)) for frame in source)


def test_frame_size_may_change_on_the_way(tmp_path: Path) -> None:
    parts = [
        write_clip(tmp_path / f"{i}.h264", size=size, pts=range(5)) for i, size in enumerate([(48, 64), (96, 80)])
    ]
    joined = tmp_path / "joined.h264"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_source(str(joined)) as source:
        assert [frame.size for frame in source] == [(48, 64)] * 5 + [(96, 80)] * 5


def test_truncated_file_gives_what_is_left(tmp_path: Path, long_clip: bytes) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(long_clip[: int(0.6 * len(long_clip))])
    with open_source(str(path)) as source:
        count = len(list(source))
    assert 20 < count < 50
    missing = len(long_clip) - path.stat().st_size
    end = f"{missing} bytes or more are missing at its end"
    assert source.problem == f"truncated: decoded {count} of about 60 frames; {end}"


def test_damage_in_the_middle_costs_only_what_is_damaged(tmp_path: Path, long_clip: bytes) -> None:
    data, middle = bytearray(long_clip), len(long_clip) // 2
    data[middle : middle + 4000] = np.random.default_rng(0).bytes(4000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(data)
    with open_source(str(path)) as source:
        frames = list(source)
    assert len(frames) > 45
    assert frames[-1].pts * source.time_base == Fraction(59, 25)
    assert source.problem is not None
    assert source.problem.startswith("damaged: ")


def test_nothing_decodable_is_an_error(tmp_path: Path, long_clip: bytes) -> None:
    data, start = bytearray(long_clip), long_clip.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    (tmp_path / "dead.mp4").write_bytes(data)
    with pytest.raises(
        SourceError, match=r"cannot decode dead\.mp4: no frame of it is readable: it is damaged, or of a kind"
    ):
        open_source(str(tmp_path / "dead.mp4"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.mp4", None, "no such file: .*absent.mp4"),
        ("empty.mp4", b"", r"is empty \(0 bytes\)"),
        ("letter.mp4", b"Dear colleague, " * 400, "letter.mp4: not a video, or a recording cut off"),
        ("letter.txt", b"Dear colleague, " * 400, "letter.txt is not a video"),
        ("noise.mkv", np.random.default_rng(0).bytes(4000), "not a video"),
        ("a:b?c.mp4", b"", "is empty"),
    ],
)
def test_what_is_no_video_says_so(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(tmp_path / name))
    assert "Errno" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_things_that_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no video and no pictures"):
        open_source(str(tmp_path))
    with pytest.raises(SourceError, match=r"sound\.m4a has no video, only audio"):
        open_source(str(write_audio(tmp_path / "sound.m4a")))
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "headless.mp4").write_bytes(whole[: whole.index(b"moov") - 10])
    with pytest.raises(SourceError, match="cut off before its index was written"):
        open_source(str(tmp_path / "headless.mp4"))


def test_a_missing_device_says_where_to_look() -> None:
    with pytest.raises(SourceError, match=r"cannot open /dev/video97: .*is the capture device connected"):
        open_source("/dev/video97", video_size="1920x1080")


def test_a_device_gets_its_options_and_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot open /dev/video\.\..*/a\.mp4: .*is the capture device connected"):
        open_source(f"/dev/video../..{write_clip(tmp_path / 'a.mp4')}", video_size="1920x1080", input_format="mjpeg")


def test_doctor_names_the_capture_devices(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    assert _devices(tmp_path) == (False, "none (/dev/video*)")
    for number in (0, 2, 10):
        (tmp_path / "dev" / f"video{number}").touch()
    (tmp_path / "dev" / "videodev").touch()
    label = tmp_path / "sys" / "class" / "video4linux" / "video2" / "name"
    label.parent.mkdir(parents=True)
    label.write_text("USB Capture HDMI\n")
    dev = tmp_path / "dev"
    assert _devices(tmp_path) == (True, f"{dev}/video0, {dev}/video2 (USB Capture HDMI), {dev}/video10")


@pytest.mark.parametrize("scheme", ["rtsp", "http", "udp", "srt", "nonsense"])
@pytest.mark.parametrize("password", ["secret", "se/secret@", "secret:secret"])
def test_passwords_stay_secret(scheme: str, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcdrl_rt.video.container.OPEN_TIMEOUT_S", 0.3)
    with pytest.raises(SourceError, match=r"check the address|this FFmpeg has no SRT") as caught:
        open_source(f"{scheme}://surgeon:{password}@127.0.0.1:9/live?token=abcdef")
    assert "secret" not in str(caught.value)
    assert "abcdef" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_colon_in_a_name_is_no_protocol(tmp_path: Path) -> None:
    with open_source(str(write_clip(tmp_path / "plain.mp4").rename(tmp_path / "a:b %d.mp4"))) as source:
        assert len(list(source)) == 12


def test_closing_early_is_safe(tmp_path: Path) -> None:
    source = open_source(str(write_clip(tmp_path / "a.mp4")))
    frames = iter(source)
    first = next(frames)
    source.close()
    source.close()
    assert list(frames) == []
    assert first.pixels.sum() > 0  # a frame outlives its source


def test_phantom_takes_width_by_height() -> None:
    with open_source("phantom:site=blur,size=128x96,frames=3,seed=3,fps=30000/1001") as source:
        assert (source.size, source.frame_count, source.live) == ((96, 128), 3, False)
        assert source.rate == 1 / source.time_base == Fraction(30000, 1001)
        frames = list(source)
    assert [(frame.pts, frame.size) for frame in frames] == [(0, (96, 128)), (1, (96, 128)), (2, (96, 128))]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("phantom:sice=3", "phantom has no option 'sice'; it takes site, size, frames, seed, fps"),
        ("phantom:size=big", "an example is phantom:site=blur"),
        ("phantom:size=128x96,fps=0", "phantom"),
        ("phantom:size=128x96,site=moon", "moon"),
    ],
)
def test_phantom_mistakes_are_explained(uri: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(uri)


def test_a_network_stream_is_live(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "live.ts",
        pts=range(0, 50 * 3600, 3600),
        time_base=Fraction(1, 90_000),
        codec_options={"g": "10"},
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = threading.Thread(target=lambda: _send(server, path.read_bytes()))
        sender.start()
        with open_source(f"tcp://127.0.0.1:{server.getsockname()[1]}") as source:
            frames = list(itertools.takewhile(lambda frame: frame.signal, source))
        sender.join()
    assert (source.live, source.frame_count, source.size) == (True, None, (48, 64))
    assert source.problem == "the signal was lost once"
    # what arrives while FFmpeg finds out what it is may be lost: that is the price of not lagging behind
    assert frames[-1].pts * source.time_base == read_pts(path)[-1]


def test_a_finite_file_behind_http_is_not_live(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", container_options={"movflags": "faststart"})

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://surgeon:secret@127.0.0.1:{server.server_address[1]}/a.mp4?token=abcdef"
        for live in (False, True):
            with open_source(address, live=live) as source:
                assert (source.live, source.name.count("…"), len(list(source))) == (live, 2, 12)
            assert source.problem is None
        server.shutdown()


@pytest.mark.parametrize("name", ["a.ts", "a.h264", "a.mkv"])
def test_an_answer_of_known_length_ends_though_nobody_can_seek_in_it(name: str, tmp_path: Path) -> None:
    """It has no duration: a recording, all the same."""
    data = write_clip(tmp_path / name).read_bytes()

    class NoRanges(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NoRanges) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with open_source(f"http://127.0.0.1:{server.server_address[1]}/{name}") as source:
            assert (source.live, len(list(source))) == (False, 12)
        server.shutdown()


@pytest.mark.parametrize("kind", ["http", "pipe"])
@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}])
def test_an_index_at_the_end_of_what_is_read_once_is_told_from_damage(
    kind: str, options: dict[str, str], tmp_path: Path
) -> None:
    """Larger than what FFmpeg keeps of what it has read; behind a server without ranges, or in a named pipe."""
    noise = [np.random.default_rng(i).integers(0, 255, (240, 320, 3)).astype(np.uint8) for i in range(8)]
    size = (240, 320)
    clip = write_clip(tmp_path / "a.mp4", pts=range(8), size=size, pictures=noise, container_options=options)
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    with serving(tmp_path) as address, contextlib.ExitStack() as stack:
        uri = f"{address}/a.mp4" if kind == "http" else str(pipe)
        if kind == "pipe":
            writer = subprocess.Popen(["sh", "-c", 'exec cat "$0" > "$1"', str(clip), str(pipe)])
            stack.callback(writer.wait)
        if options:
            with open_source(uri) as source:
                assert len(list(source)) == 8
            return
        with pytest.raises(SourceError, match=r"an MP4 whose index comes last.* save it as a file first.* \+faststart"):
            open_source(uri)


def test_a_file_address_is_a_recording(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a b.h264")  # which states no duration
    for uri in (f"file://{path}", f"file://{str(path).replace(' ', '%20')}"):
        with open_source(uri) as source:
            assert (source.live, source.name, len(list(source))) == (False, "a b.h264", 12)
    with pytest.raises(SourceError, match=r"no such file: /gone/a\.mp4"):
        open_source("file:///gone/a.mp4")


def _send(server: socket.socket, data: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(data)


def test_a_silent_network_stream_ends_in_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcdrl_rt.video.container.OPEN_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(SourceError, match="no data for 1 s; check the address and that the stream is running"):
            open_source(f"tcp://127.0.0.1:{server.getsockname()[1]}")


def test_the_real_procedure(data_root: Path) -> None:
    with open_source(str(data_root / "video" / "colonoscopy_560x480_25fps.mp4")) as source:
        frames = list(source)
    assert (len(frames), source.frame_count, source.size, source.problem) == (53, 53, (480, 560), None)
    assert [frame.pts for frame in frames] == [512 * i for i in range(53)]


def test_a_healthy_variable_rate_is_not_called_damage(tmp_path: Path) -> None:
    pts = [0, 40, 80, 500, 540, 1500, 1540, 1580, 2900, 3000]  # ms: far fewer frames than its best rate would give
    write_clip(tmp_path / "vfr.mkv", pts=pts, time_base=Fraction(1, 1000))
    with open_source(str(tmp_path / "vfr.mkv")) as source:
        assert [frame.pts for frame in source] == pts
        assert source.frame_count is None or source.frame_count > 2 * len(pts)
    assert source.problem is None


def test_decoding_is_quiet(tmp_path: Path, long_clip: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.mp4").write_bytes(long_clip[: len(long_clip) // 2])
    with open_source(str(tmp_path / "cut.mp4")) as source:
        list(source)
    assert capfd.readouterr() == ("", "")
    assert av.logging.get_level() is None
