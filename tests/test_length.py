"""Length: whatever is cut off a file's end is told, be it a byte; whole files are whole, whatever hides in them."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import av
import pytest
from clips import with_sound, write_clip

from mcdrl_rt.video.index import cut, index_of
from mcdrl_rt.video.length import bytes_missing
from mcdrl_rt.video.segment import open_segment
from mcdrl_rt.video.source import open_source

KINDS = {
    "index first.mp4": {"movflags": "faststart"},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "a.mov": {"movflags": "faststart"},
    "a.mkv": {},
    "a.webm": {},
    "a.avi": {},
}
CODECS = {".webm": "libvpx-vp9", ".avi": "mpeg4"}


def clip(path: Path, frames: int = 100, **options: object) -> Path:
    codec = CODECS.get(path.suffix, "libx264")
    return write_clip(path, pts=range(frames), codec=codec, codec_options={"g": "10"}, **options)  # type: ignore[arg-type]


def read(path: Path) -> tuple[int, str | None]:
    with open_source(str(path)) as source:
        return len(list(source)), source.problem


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("sound", [False, True])
def test_any_end_that_is_cut_off_is_told(name: str, sound: bool, tmp_path: Path) -> None:
    path = clip(tmp_path / name, container_options=KINDS[name])
    if sound and path.suffix in (".mp4", ".mkv"):
        path = with_sound(tmp_path / f"sound{path.suffix}", path, seconds=6)
    data = path.read_bytes()
    assert bytes_missing(path) == 0
    assert read(path) == (100, None)
    index_last = data.rfind(b"moov") > data.find(b"mdat") > 0
    for missing in (1, 9, 300):
        path.write_bytes(data[:-missing])
        known = bytes_missing(path)
        assert known is not None
        assert 0 < known <= missing or (path.suffix == ".avi" and missing == 1)
        if known and not index_last:  # without which nothing of it can be read
            count, problem = read(path)
            assert problem is not None and problem.startswith(f"truncated: decoded {count} ")
            assert problem.endswith(f"; {known} bytes or more are missing at its end")


def test_parts_of_a_recording_tell_it_together(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mkv")
    path.write_bytes(path.read_bytes()[:-20])
    index, tallies = index_of(path), []
    for segment in cut(index, segment_s=1):
        with open_segment(index, segment) as source:
            list(source)
            tallies.append(source.tally)
    assert len(tallies) == 4
    assert (index.verdict(tallies) or "").endswith("; 20 bytes or more are missing at its end")


@pytest.mark.parametrize(("start", "length"), [(0, 100), (20, 80), (33, 40), (0, 50)])
@pytest.mark.parametrize("b_frames", ["0", "3"])
def test_frames_that_an_edit_list_hides_are_not_missing(start: int, length: int, b_frames: str, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", pts=range(100), codec_options={"g": "10", "bf": b_frames})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    duration, begin = struct.unpack_from(">Ii", data, place)
    struct.pack_into(">Ii", data, place, duration * length // 100, begin + start * 512)
    path.write_bytes(data)
    assert read(path) == (length, None)


@pytest.mark.parametrize("behind", [b"\0" * 40, b"TAG by somebody", b"\xff" * 7])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_what_follows_the_end_is_nothing_missing(name: str, behind: bytes, tmp_path: Path) -> None:
    path = clip(tmp_path / name, frames=20)
    path.write_bytes(path.read_bytes() + behind)
    assert bytes_missing(path) == 0
    assert read(path)[0] == 20


def test_what_was_not_finished_says_no_length(tmp_path: Path) -> None:
    path = clip(tmp_path / "live.mkv", container_options={"live": "1"})
    path.write_bytes(path.read_bytes()[:-1])
    assert bytes_missing(path) is None
    avi = clip(tmp_path / "a.avi")
    for size, known in ((b"\0" * 4, 0), (b"\xff" * 4, None), (b"\0\0\0\x80", None), (b"\0\xf0\xff\x7f", None)):
        avi.write_bytes(b"RIFF" + size + avi.read_bytes()[8:])
        assert bytes_missing(avi) == known
    mkv = clip(tmp_path / "a.mkv")
    data = mkv.read_bytes()
    place = data.index(b"\x18\x53\x80\x67") + 4
    mkv.write_bytes(data[:place] + b"\x01\xff\xff\xff\xff\xff\xff\xfe" + data[place + 8 :])
    assert read(mkv) == (100, None)
    other = clip(tmp_path / "b.avi")
    other.write_bytes(other.read_bytes() + b"RIFF\0\0\0\x10WAVE")
    assert read(other) == (100, None)


@pytest.mark.parametrize("seconds", [0.5, 2, 10])
@pytest.mark.parametrize(
    ("name", "options"), [("a.mp4", {}), ("a.mkv", {}), ("f.mp4", {"movflags": "frag_keyframe+empty_moov"})]
)
def test_a_last_picture_that_stays_is_no_missing_end(
    name: str, options: dict[str, str], seconds: float, tmp_path: Path
) -> None:
    """As screens, phones and recorders of what changes write it."""
    source = clip(tmp_path / "source.mp4")
    with av.open(source) as given, av.open(tmp_path / name, "w", container_options=options) as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        packets = [packet for packet in given.demux(stream) if packet.size]
        last = max(packets, key=lambda packet: packet.pts or 0)
        last.duration = round(seconds / (stream.time_base or 1))
        for packet in packets:
            packet.stream = copy
            made.mux(packet)
    assert read(tmp_path / name) == (100, None)


def test_pictures_that_begin_after_the_sound_are_whole(tmp_path: Path) -> None:
    """FFmpeg has not seen them begin when it says how long they are, and takes the length of all."""
    late = write_clip(tmp_path / "late.mkv", pts=range(400, 430))
    path = with_sound(tmp_path / "a.mkv", late, seconds=25)
    assert read(path) == (30, None)


def test_a_file_that_was_still_being_copied_is_judged_by_its_end(tmp_path: Path) -> None:
    whole = clip(tmp_path / "whole.mkv").read_bytes()
    path = tmp_path / "a.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    with open_source(str(path)) as source:
        frames = iter(source)
        next(frames)
        with path.open("ab") as file:
            file.write(whole[len(whole) // 2 :])
        assert 1 + len(list(frames)) == 100
        assert source.problem is None


@pytest.mark.parametrize("tagged", [True, False])
def test_sound_that_outlasts_the_pictures_cuts_nothing_off(tagged: bool, tmp_path: Path) -> None:
    path = with_sound(tmp_path / "a.mkv", clip(tmp_path / "silent.mkv"), seconds=12)
    if not tagged:  # as some write it: then only the duration of all is known
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIXN"))
    assert read(path) == (100, None)
    data = bytearray(path.read_bytes())
    data[len(data) // 3 :] = bytes(len(data) - len(data) // 3)  # a download that was never finished
    path.write_bytes(data)
    assert (read(path)[1] or "").startswith("truncated: decoded ") == tagged


def test_no_bytes_are_a_container_that_is_read_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "a"
    heads = (b"RIFF", b"\x1a\x45\xdf\xa3", b"\0\0\0\x08ftyp", b"\0\0\0\x01mdat")
    for head, rest in itertools.product(heads, (b"", b"\0", b"\0" * 100, b"\x80" * 100, b"\xff" * 100)):
        path.write_bytes(head + rest)
        missing = bytes_missing(path)
        assert missing is None or missing >= 0
