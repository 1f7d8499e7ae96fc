"""Chunks: what is joined of them is what one file would have held, packet by packet and at its own times."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import SIZE, picture, read_pixels, read_pts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Frame, Shown, VideoFormat
from mcdrl_rt.video.chunks import Chunk, join
from mcdrl_rt.video.file import VideoFile
from mcdrl_rt.video.output import partial_path

TICK = Fraction(1, 90_000)
CODECS = {".mp4": "libx264", ".mkv": "ffv1"}


def write(
    path: Path, pts: list[int], first: int = 0, time_base: Fraction = TICK, aspect: Fraction = Fraction(1)
) -> Chunk:
    format = VideoFormat(SIZE, time_base, Fraction(25), "bt601", aspect)
    with VideoFile(path, CODECS[path.suffix], format, joinable=True) as file:
        for number, time in enumerate(pts, start=first):
            file.write(Shown(Frame(picture(number), time, time_base)))
    return Chunk(path, pts[0] * time_base, len(pts))


@pytest.mark.parametrize("suffix", list(CODECS))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gaps=st.lists(st.integers(180, 20_000), min_size=1, max_size=20),
    first=st.integers(-100_000, 2**31),
    cuts=st.lists(st.integers(1, 20), max_size=4),
)
def test_what_is_joined_is_the_whole(suffix: str, tmp_path: Path, gaps: list[int], first: int, cuts: list[int]) -> None:
    pts = list(itertools.accumulate(gaps, initial=first))
    edges = sorted({0, len(pts), *(cut for cut in cuts if cut < len(pts))})
    parts = [write(tmp_path / f"{begin}{suffix}", pts[begin:end], begin) for begin, end in itertools.pairwise(edges)]
    whole, joined = tmp_path / f"whole{suffix}", tmp_path / f"joined{suffix}"
    write(whole, pts)
    assert join(parts, joined) == []
    if suffix == ".mp4":
        assert read_pts(joined) == read_pts(whole) == [(time - min(first, 0)) * TICK for time in pts]
    else:
        apart = zip(read_pts(joined), read_pts(whole), strict=True)
        assert all(abs(one - other) <= Fraction(1, 1000) for one, other in apart)
    if suffix == ".mkv":
        np.testing.assert_array_equal(read_pixels(joined), read_pixels(whole))
    assert len(read_pixels(joined)) == len(pts)


@pytest.mark.parametrize("time_base", [Fraction(1001, 30_000), Fraction(1, 1000)])
def test_the_shape_and_colours_of_the_pictures_are_kept(time_base: Fraction, tmp_path: Path) -> None:
    aspect = Fraction(4, 3)
    parts = [write(tmp_path / f"{i}.mp4", [10 * i, 10 * i + 4], 2 * i, time_base, aspect) for i in range(3)]
    write(tmp_path / "whole.mp4", [0, 4, 10, 14, 20, 24], 0, time_base, aspect)
    join(parts, tmp_path / "joined.mp4")
    facts = []
    for name in ("whole", "joined"):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            colors = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
            facts.append((stream.sample_aspect_ratio, *colors, stream.time_base, stream.duration, stream.frames))
    assert facts[0] == facts[1] and facts[0][0] == aspect


def test_the_same_chunks_give_the_same_bytes(tmp_path: Path) -> None:
    for suffix in CODECS:
        parts = [write(tmp_path / f"{i}{suffix}", [9000 * i], i) for i in range(3)]
        for name in ("a", "b"):
            join(parts, tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_what_cannot_be_joined_leaves_nothing(tmp_path: Path) -> None:
    chunk = write(tmp_path / "0.mp4", [0])
    (tmp_path / "bad.mp4").write_text("no video")
    target = tmp_path / "joined.mp4"
    for path, why in ((tmp_path / "bad.mp4", "invalid data"), (tmp_path / "gone.mp4", "no such file")):
        with pytest.raises(SinkError, match=rf"cannot read {path}: .*{why}.*; delete it and start again"):
            join([chunk, Chunk(path, Fraction(1), 1)], target)
    with pytest.raises(SinkError, match=r"cannot write .*joined\.mp4: no such file"):
        join([chunk], tmp_path / "nowhere" / "joined.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "bad.mp4"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    target = tmp_path / "joined.mp4"
    partial_path(target).symlink_to("/dev/full")
    with pytest.raises(SinkError, match=r"cannot write .*joined\.mp4: the disk is full"):
        join([write(tmp_path / "0.mp4", [0])], target)
    assert not target.exists() and not partial_path(target).is_symlink()


def test_a_chunk_that_was_cut_off_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    chunks = [write(tmp_path / f"{i}.mkv", list(range(9000 * i, 9000 * i + 4000, 200)), i) for i in range(2)]
    os.truncate(chunks[0].path, chunks[0].path.stat().st_size * 2 // 3)
    with pytest.raises(SinkError, match=r"0\.mkv is damaged, \d+ of its 20 frames are there; delete it"):
        join(chunks, tmp_path / "joined.mkv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mkv", "1.mkv"]
