"""Encoder: every codec of the table has options that FFmpeg knows, and ``auto`` is one that works."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import picture, read_pts
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Frame, Shown, VideoFormat
from mcdrl_rt.video import encoder
from mcdrl_rt.video.encoder import CODECS, Encoder, codec_name, hardware_codec
from mcdrl_rt.video.sink import open_sink

TICK = Fraction(1, 25)
LIVE = VideoFormat((48, 64), TICK, Fraction(25), live=True)


@pytest.mark.parametrize("name", CODECS)
def test_ffmpeg_knows_every_option_of_the_table(name: str) -> None:
    try:
        codec = av.Codec(name, "w")
    except ValueError:
        pytest.skip(f"this FFmpeg has no {name}")
    known = av.CodecContext.create(name, "w").supported_options
    options = {option.name: option for option in (*known.generic, *known.private)}
    wanted = CODECS[name].options | CODECS[name].live
    assert set(wanted) <= set(options)
    for option, value in wanted.items():
        choices = {choice.name for choice in options[option].choices}
        assert not choices or value in choices or value.isdigit(), (option, value, choices)
    formats = codec.video_formats
    assert formats is None or CODECS[name].pix_fmt in {format.name for format in formats}


def test_auto_is_what_works_here_and_h264_only_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "hardware_codec", lambda: "h264_nvenc")
    assert codec_name("auto", "libx264") == "h264_nvenc"
    assert codec_name("auto", "libvpx-vp9") == "libvpx-vp9"
    monkeypatch.setattr(encoder, "hardware_codec", lambda: None)
    assert codec_name("auto", "libx264") == "libx264"
    assert codec_name(None, "mpeg4") == "mpeg4"
    with pytest.raises(SinkError, match=r"unknown codec 'h266'; use one of libx264, .* or auto"):
        codec_name("h266", "libx264")


def test_the_probe_asks_once_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def works(name: str) -> bool:
        asked.append(name)
        return name == "h264_qsv"

    monkeypatch.setattr(encoder, "_works", works)
    hardware_codec.cache_clear()
    assert [hardware_codec(), hardware_codec()] == ["h264_qsv"] * 2
    assert asked == ["h264_nvenc", "h264_qsv"]
    hardware_codec.cache_clear()
    monkeypatch.undo()
    script = "from mcdrl_rt.video.encoder import hardware_codec as probe; print(probe())"
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert (said.stderr, said.returncode) == ("", 0)
    assert said.stdout.strip() in (*CODECS, "None")


def test_the_probe_believes_pictures_only() -> None:
    assert encoder._works("libx264")
    assert not encoder._works("h264_videotoolbox") or sys.platform == "darwin"


def test_auto_writes_a_file(tmp_path: Path) -> None:
    with open_sink(str(tmp_path / "a.mp4"), LIVE, codec="auto") as sink:
        for index in range(10):
            sink.write(Shown(Frame(picture(index), index, TICK, index)))
    assert read_pts(tmp_path / "a.mp4") == [i * TICK for i in range(10)]


@pytest.mark.parametrize("name", ["libx264", "libvpx-vp9", "mpeg4", "ffv1", "rawvideo"])
def test_each_live_frame_leaves_at_once(tmp_path: Path, name: str) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        live = Encoder(container, name, LIVE, TICK, live=True)
        assert [len(live.encode(picture(index), index)) for index in range(30)] == [1] * 30
        assert live.flush() == []


@pytest.mark.parametrize(
    ("suffix", "codec"), [("mp4", "libx264"), ("webm", None), ("mkv", "ffv1"), ("mkv", "mpeg4"), ("mkv", "rawvideo")]
)
def test_live_video_has_a_start_each_second_of_time(tmp_path: Path, suffix: str, codec: Any) -> None:
    path = tmp_path / f"a.{suffix}"
    times = [*range(0, 60), *range(60, 200, 10)]  # a source that falls to 2.5 frames a second
    with open_sink(str(path), LIVE, codec=codec) as sink:
        for index, time in enumerate(times):
            sink.write(Shown(Frame(picture(index), time, TICK, index)))
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        starts = [float(p.pts * p.time_base) for p in packets if p.is_keyframe and p.pts is not None]
    assert len(packets) == len(times)
    assert max(b - a for a, b in itertools.pairwise(starts)) < 1 + 10 / 25


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.sampled_from([(48, 64), (31, 33), (1, 1)]))
def test_masks_that_are_alike_are_encoded_once_and_stored_each(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[int], size: tuple[int, int]
) -> None:
    masks = [np.random.default_rng(kind).integers(0, kind + 1, (*size, 1), np.uint8) for kind in kinds]
    path, tick = tmp_path_factory.mktemp("masks") / "a.mkv", Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        encoder = Encoder(container, "ffv1", VideoFormat(size, tick, Fraction(25)), tick, live=False, grey=True)
        container.start_encoding()
        for index, mask in enumerate(masks):
            container.mux(encoder.encode(np.broadcast_to(mask, (*size, 3)), 40 * index + index % 2))
        container.mux(encoder.flush())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert [packet.pts for packet in packets] == [40 * index + index % 2 for index in range(len(masks))]
        assert all(packet.is_keyframe and packet.duration == 40 for packet in packets)
        assert len({bytes(packet) for packet in packets}) == len(set(kinds))
        for packet, mask in zip(packets, masks, strict=True):  # each can be decoded without those before it
            (frame,) = packet.stream.codec_context.decode(packet) or packet.stream.codec_context.decode(None)
            assert np.array_equal(frame.to_ndarray(), mask[:, :, 0])
            packet.stream.codec_context.flush_buffers()
