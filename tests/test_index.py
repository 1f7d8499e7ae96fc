"""Index and segments: a file read in parts gives, put together, the frames of the file read straight through."""

from __future__ import annotations

import itertools
import pickle
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.packet import Packet
from clips import SIZE, packed_again, picture, write_audio, write_clip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame, UInt8Array
from mcdrl_rt.video import segment as segments
from mcdrl_rt.video.index import Segment, VideoIndex, cut, index_of
from mcdrl_rt.video.segment import open_segment
from mcdrl_rt.video.source import open_source
from mcdrl_rt.video.verdict import Tally

TICK = Fraction(1, 90_000)
MS = Fraction(1, 1000)
WHOLE = Segment(0, None, None)
GOP = {"g": "10", "bf": "2", "preset": "ultrafast"}
B_FRAMES = "b-adapt=0:bframes=3"
FINE_SCALE = {"video_track_timescale": "90000"}


def noisy(count: int) -> list[UInt8Array]:
    """Pictures in which an error of prediction cannot hide."""
    rng = np.random.default_rng(0)
    return [(picture(i) // 2 + rng.integers(0, 90, (*SIZE, 3))).astype(np.uint8) for i in range(count)]


NOISY = noisy(60)


def clip(path: Path, frames: int = 40, **given: Any) -> Path:
    given = {"pts": range(frames), "codec_options": GOP} | given
    return write_clip(path, pictures=NOISY[: len(given["pts"])], **given)


def transport(path: Path, first: int = 0, frames: int = 40, **given: Any) -> Path:
    return clip(path, pts=range(first, first + frames * 3600, 3600), time_base=TICK, **given)


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def ffmpeg(path: Path, arguments: str) -> Path:
    if not shutil.which("ffmpeg"):
        pytest.skip("needs the ffmpeg command, to write what PyAV cannot")
    subprocess.run(["ffmpeg", "-y", "-v", "error", *arguments.split(), str(path)], check=True)
    return path


def interlaced(path: Path) -> Path:
    scene = "-f lavfi -i testsrc2=size=96x64:rate=50:duration=2 -vf tinterlace=interleave_top,setfield=tff"
    return ffmpeg(path, f"{scene} -c:v mpeg2video -g 8 -bf 2 -flags +ildct+ilme")


def now_and_then_interlaced(folder: Path) -> Path:
    """Where a segment begins, interlaced pictures follow progressive ones for the first time since its keyframe."""
    parts = []
    for number, kind in enumerate((1, 0, 0, 1)):
        options = GOP | {"bf": "0", "x264-params": f"interlaced={kind}"}
        parts.append(transport(folder / f"{number}.ts", number * 36_000, 10, codec_options=options))
    return joined(folder / "mixed.ts", *parts)


def cut_off(folder: Path, name: str, share: float, **given: Any) -> Path:
    data = clip(folder / f"whole-{name}", frames=60, **given).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    return folder / name


def begun_before(folder: Path) -> Path:
    """What its first pictures refer to was never recorded."""
    data = transport(folder / "whole.ts", frames=60).read_bytes()
    (folder / "rest.ts").write_bytes(data[188 * 60 :])
    return folder / "rest.ts"


def edited(folder: Path) -> Path:
    """It begins, by its edit list, in the middle of a group of pictures."""
    return ffmpeg(folder / "edited.mp4", f"-ss 0.5 -i {clip(folder / 'a.mp4', 60)} -c copy")


def with_sound(folder: Path) -> Path:
    video = "-itsoffset 1 -f lavfi -i testsrc2=size=96x64:rate=25:duration=2"
    return ffmpeg(folder / "sound.mp4", f"{video} -f lavfi -i sine=duration=4 -map 0 -map 1 -g 10")


def hevc(options: str) -> dict[str, Any]:
    params = f"log-level=none:keyint=10:min-keyint=10:bframes=3:{options}"
    pixels = {"codec": "libx265", "pix_fmt": "yuv420p10le"}
    return pixels | {"codec_options": {"preset": "ultrafast", "x265-params": params}}


OPEN = {"codec_options": GOP | {"x264-params": f"open-gop=1:{B_FRAMES}"}}
VARYING = list(itertools.accumulate(np.random.default_rng(1).integers(1, 9000, 39).tolist(), initial=777))

Write = Callable[[Path], Path]
CUT: dict[str, Write] = {
    "variable rate": lambda at: clip(at / "a.mp4", pts=VARYING, time_base=TICK, container_options=FINE_SCALE),
    "b-frames": lambda at: clip(at / "a.mp4", codec_options=GOP | {"x264-params": B_FRAMES}),
    "open groups, mp4": lambda at: clip(at / "a.mp4", **OPEN),
    "open groups, mkv": lambda at: clip(at / "a.mkv", **OPEN),
    "open groups, ts": lambda at: transport(at / "a.ts", **OPEN),
    "fragments": lambda at: clip(at / "a.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}),
    "hevc": lambda at: clip(at / "a.mp4", **hevc("open-gop=0")),
    "hevc, open groups": lambda at: clip(at / "a.mkv", **hevc("open-gop=1")),
    "counter wraps": lambda at: transport(at / "a.ts", 2**33 - 20 * 3600 - 126_000),
    "clock jumps ahead": lambda at: joined(
        at / "ab.ts", transport(at / "a.ts", 0, 20), transport(at / "b.ts", 900_000, 20)
    ),
    "begins in a group": begun_before,
    "mpeg-2": lambda at: clip(at / "a.mpg", codec="mpeg2video"),
    "interlaced mpeg-2, mpg": lambda at: interlaced(at / "a.mpg"),
    "interlaced mpeg-2, ts": lambda at: interlaced(at / "a.ts"),
    "interlaced h.264": lambda at: clip(at / "a.mp4", codec_options=GOP | {"x264-params": "interlaced=1"}),
    "now and then interlaced": now_and_then_interlaced,
    "turned": lambda at: clip(at / "a.mov", rotation=(90, False, True)),
    "prores": lambda at: clip(at / "a.mov", codec="prores_ks", pix_fmt="yuv422p10le", codec_options={}),
    "mjpeg": lambda at: clip(at / "a.avi", codec="mjpeg", pix_fmt="yuvj420p", codec_options={}),
    "mpeg-4 with b-frames": lambda at: clip(at / "a.avi", codec="mpeg4", codec_options={"g": "10", "bf": "2"}),
    "vp8": lambda at: clip(at / "a.webm", codec="libvpx", codec_options={"g": "10", "deadline": "realtime"}),
    "vp9": lambda at: clip(at / "a.webm", codec="libvpx-vp9", codec_options={"g": "10", "deadline": "realtime"}),
    "wmv": lambda at: clip(at / "a.wmv", codec="wmv2", codec_options={"g": "10"}),
    "av1": lambda at: clip(at / "a.mp4", codec="libsvtav1", codec_options={"g": "10", "preset": "12"}),
    "ffv1": lambda at: clip(at / "a.mkv", codec="ffv1", pix_fmt="bgr0", codec_options={"g": "5"}),
    "before zero": lambda at: clip(at / "a.mkv", pts=range(-520, 1080, 40), time_base=MS),
    "far from zero": lambda at: clip(
        at / "a.mp4", pts=range(10**9, 10**9 + 144_000, 3600), time_base=TICK, container_options=FINE_SCALE
    ),
    "cut off": lambda at: cut_off(at, "a.mkv", 0.7),
    "edit list": edited,
    "sound before pictures": with_sound,
}


def read(index: VideoIndex, *parts: Segment) -> tuple[list[Frame], list[Tally]]:
    frames, tallies = [], []
    for part in parts:
        with open_segment(index, part) as source:
            assert source.format == index.format
            frames += list(source)
            assert source.problem is None
            tallies.append(source.tally)
    return frames, tallies


def assert_same(frames: list[Frame], expected: list[Frame]) -> None:
    assert [frame.pts for frame in frames] == [frame.pts for frame in expected]
    different = [b.pts for a, b in zip(frames, expected, strict=True) if not np.array_equal(a.pixels, b.pixels)]
    assert different == []


@pytest.mark.parametrize("write", [pytest.param(write, id=name) for name, write in CUT.items()])
def test_segments_put_together_are_the_file(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path)
    with open_source(str(path)) as source:
        expected = list(source)
    index = pickle.loads(pickle.dumps(index_of(path)))  # as it travels to another machine
    assert index.problem is None
    assert index.times.tolist() == [frame.pts for frame in expected]
    for segment_s in (0, 0.3):
        parts = cut(index, segment_s)
        assert len(parts) > 2
        frames, tallies = read(index, *parts)
        assert_same(frames, expected)
        assert [frame.index for frame in frames] == list(range(len(expected)))
        assert [tally.frames for tally in tallies] == [len(index.within(part)) for part in parts]
        assert index.verdict(tallies) == source.problem


@pytest.mark.parametrize("name", ["open groups, mkv", "open groups, ts", "variable rate", "mpeg-2", "vp9", "mjpeg"])
def test_where_seeking_goes_wrong_the_file_is_read_from_its_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = CUT[name](tmp_path)
    index = index_of(path)
    *_, last = cut(index, 0.3)
    with open_segment(index, last) as source:
        assert source._seeks  # type: ignore[attr-defined]
        expected = list(source)

    def fail(*_: object) -> None:
        raise av.error.PermissionError(1, "Operation not permitted")

    def go_too_far(container: Any, stream: Any, time: int, *_: object) -> None:
        container.seek(int(index.times[-1]) + 1, stream=stream)

    for seek in (fail, go_too_far):
        monkeypatch.setattr(segments, "_seek", seek)
        with open_segment(index, last) as source:
            assert not source._seeks  # type: ignore[attr-defined]
            assert_same(list(source), expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gaps=st.lists(st.integers(1, 20_000), min_size=2, max_size=40),
    first=st.integers(0, 2**31),
    group=st.integers(1, 15),
    b_frames=st.integers(0, 3),
    open_groups=st.booleans(),
    segment_s=st.floats(0, 2),
)
def test_any_times_and_groups(
    tmp_path: Path, gaps: list[int], first: int, group: int, b_frames: int, open_groups: bool, segment_s: float
) -> None:
    pts = list(itertools.accumulate(gaps, initial=first))
    params = f"open-gop={int(open_groups)}:keyint={group}:min-keyint=1:bframes={b_frames}"
    options = {"preset": "ultrafast", "x264-params": params}
    path = clip(tmp_path / "a.mp4", pts=pts, time_base=TICK, codec_options=options, container_options=FINE_SCALE)
    index = index_of(path)
    parts = cut(index, segment_s)
    assert parts == cut(index_of(path), segment_s)
    assert parts[0].start is None
    assert parts[-1].end is None
    assert [part.number for part in parts] == list(range(len(parts)))
    starts = [int(index.times[0]), *(part.start for part in parts[1:] if part.start is not None)]
    assert all(a.end == b.start for a, b in itertools.pairwise(parts))
    assert all((b - a) * TICK >= segment_s for a, b in itertools.pairwise(starts))
    assert set(starts[1:]) <= set(index.keyframes)
    with open_source(str(path)) as source:
        assert_same(read(index, *parts)[0], list(source))


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda at: clip(at / "a.h264"), "not all of its packets say when they are shown"),
        (lambda at: clip(at / "a.avi"), "it has B-frames, and does not say when they are shown"),
        (
            lambda at: joined(at / "ab.ts", transport(at / "a.ts", 900_000, 20), transport(at / "b.ts", 0, 20)),
            "its clock jumps back",
        ),
        (
            lambda at: clip(at / "a.mp4", 60, codec_options={"g": "10", "x264-params": "intra-refresh=1:scenecut=0"}),
            "its pictures are refreshed bit by bit: decoding cannot begin at a keyframe",
        ),
        (lambda at: headless(at / "a.mkv"), "it has no keyframe"),
        (lambda at: twice(at / "a.mkv"), "two of its pictures are shown at the same time"),
    ],
)
def test_what_cannot_be_cut_is_one_segment(write: Write, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    index = index_of(path)
    assert index.problem == problem
    assert cut(index, 0.3) == (WHOLE,)
    with open_source(str(path)) as source:
        expected = list(source)
    frames, tallies = read(index, WHOLE)
    assert_same(frames, expected)
    assert index.verdict(tallies) == source.problem


def twice(path: Path) -> Path:
    """Its last two pictures have one time."""

    def change(packets: list[Packet]) -> list[Packet]:
        packets[-1].pts = packets[-1].dts = packets[-2].pts
        return packets

    once = clip(path.with_name("once.mkv"), codec="mjpeg", pix_fmt="yuvj420p", codec_options={})
    return packed_again(path, once, change)


def headless(path: Path) -> Path:
    """Its only keyframe is missing; this decoder begins anyway."""
    options = {"g": "500", "sc_threshold": "1000000000"}
    once = clip(path.with_name("once.mkv"), codec="mpeg4", codec_options=options)
    return packed_again(path, once, lambda packets: packets[1:])


maybe = st.none() | st.integers(0, 100)
tallies = st.builds(Tally, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), maybe, maybe, st.none() | st.text())


@given(parts=st.lists(tallies, max_size=6), split=st.integers(0, 6))
def test_tallies_may_be_added_in_any_groups(parts: list[Tally], split: int) -> None:
    total = sum(parts, Tally())
    assert sum(parts[:split], Tally()) + sum(parts[split:], Tally()) == total
    assert total.frames == sum(part.frames for part in parts)


def test_one_keyframe_or_one_picture_is_one_segment(tmp_path: Path) -> None:
    for path in (clip(tmp_path / "a.mp4", codec_options={"g": "1000"}), clip(tmp_path / "b.mp4", 1)):
        index = index_of(path)
        assert index.problem is None
        assert cut(index, 0) == (WHOLE,)


def test_what_is_no_video_is_no_index(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file: .*absent\.mp4"):
        index_of(tmp_path / "absent.mp4")
    with pytest.raises(SourceError, match=r"sound\.m4a has no video, only audio"):
        index_of(write_audio(tmp_path / "sound.m4a"))
    index = index_of(clip(tmp_path / "a.mp4"))
    (tmp_path / "a.mp4").unlink()
    for part in cut(index, 0.3):
        with pytest.raises(SourceError, match=r"no such file: .*a\.mp4"):
            open_segment(index, part)


def damaged(path: Path, seed: int) -> Path:
    data = bytearray(clip(path, 60, container_options={"movflags": "faststart"}).read_bytes())
    rng = np.random.default_rng(seed)
    where = int(rng.integers(len(data) // 3, len(data) - 1000))
    data[where : where + 600] = rng.bytes(600)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("seed", range(4))
def test_damage_changes_nothing_but_the_pictures_it_is_in(name: str, seed: int, tmp_path: Path) -> None:
    """What a decoder puts in place of the damage depends on what it saw before, but is the same every time."""
    index = index_of(damaged(tmp_path / name, seed))
    parts = cut(index, 0.3)
    frames, tallies = read(index, *parts)
    again, _ = read(index, *reversed(parts))
    assert_same(sorted(again, key=lambda frame: frame.pts), frames)
    whole, (tally,) = read(index, WHOLE)
    assert [frame.pts for frame in frames] == [frame.pts for frame in whole]
    different = [b.pts for a, b in zip(frames, whole, strict=True) if not np.array_equal(a.pixels, b.pixels)]
    groups = {sum(time <= pts for time in index.keyframes) for pts in different}
    assert len(groups) <= 2  # 600 bytes are less than a group of pictures
    assert index.verdict(tallies) == index.verdict([tally])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_damaged_keyframes_are_no_place_to_begin_at(name: str, tmp_path: Path) -> None:
    path = clip(tmp_path / name, 60)
    index = index_of(path)
    *_, last = cut(index, 0.3)
    before = index.keyframes[:-1]
    data = bytearray(path.read_bytes())
    begun = []
    for count in range(3):  # of damaged keyframes just before the segment
        if count:
            with av.open(str(path)) as container:
                (hit,) = (bytes(packet) for packet in container.demux(video=0) if packet.pts == before[-count])
            at = data.index(hit)
            data[at + 40 : at + len(hit)] = np.random.default_rng(0).bytes(len(hit) - 40)
            path.write_bytes(data)
        index = index_of(path)
        assert index.keyframes == (*before, last.start)
        with open_segment(index, last) as source:
            begun.append(source._keyframe)  # type: ignore[attr-defined]
            frames = list(source)
        assert_same(frames, read(index, WHOLE)[0][-len(frames) :])
    assert begun == [before[-1], before[-2], None]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.mpg"])
@pytest.mark.parametrize("share", [0.6, 0.8])
def test_a_file_cut_off_in_a_picture(name: str, share: float, tmp_path: Path) -> None:
    """The cut picture, one of the last, is what the decoder makes of it; several threads may lose some beside it."""
    options = {"codec": "mpeg2video", "codec_options": {"g": "10"}} if name == "a.mpg" else {}
    faststart = {"movflags": "faststart"} if name == "a.mp4" else {}
    path = cut_off(tmp_path, name, share, container_options=faststart, **options)
    with open_source(str(path)) as source:
        expected = list(source)
    index = index_of(path)
    frames, tallies = read(index, *cut(index, 0.3))
    whole, (tally,) = read(index, WHOLE)
    assert [frame.pts for frame in frames] == [frame.pts for frame in whole]
    sure = len(frames) - 4
    assert len(expected) >= sure > 3
    assert_same(frames[:sure], expected[:sure])
    assert_same(frames[:sure], whole[:sure])
    assert index.verdict(tallies) == index.verdict([tally])
    if name in ("a.mp4", "a.mkv"):  # the others do not say how long they are
        assert (index.verdict(tallies) or "").startswith(f"truncated: decoded {len(frames)} ")


def test_the_real_procedure(data_root: Path) -> None:
    path = data_root / "video" / "colonoscopy_560x480_25fps.mp4"
    index = index_of(path)
    with open_source(str(path)) as source:
        expected = list(source)
    frames, tallies = read(index, *cut(index, 0))
    assert_same(frames, expected)
    assert index.verdict(tallies) is None
