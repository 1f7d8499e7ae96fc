"""Archives of all kinds of files: every frame is there at its own time, whatever was recorded, wherever it is cut."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pandas as pd
import pytest
from clips import SIZE, picture, read_pixels, read_pts, with_sound, write_clip
from test_index import CUT, Write, clip, cut_off, joined, transport
from test_offline import run

from mcdrl_rt.offline import Settings
from mcdrl_rt.offline.products import About, Product, Together, products
from mcdrl_rt.offline.recording import open_recording
from mcdrl_rt.offline.work import Task, work
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import Frame, Shown, VideoFormat
from mcdrl_rt.video.file import VideoFile
from mcdrl_rt.video.index import cut, index_of
from mcdrl_rt.video.source import open_source

FORMATS = (
    "variable rate",
    "b-frames",
    "hevc",
    "counter wraps",
    "interlaced mpeg-2, ts",
    "turned",
    "before zero",
    "far from zero",
    "edit list",
    "sound before pictures",
)
MILLISECOND = Fraction(1, 1000)


def broken(at: Path) -> Path:
    return cut_off(at, "a.mp4", 0.7, container_options={"movflags": "faststart"})


@pytest.mark.parametrize(
    "write", [*(pytest.param(CUT[name], id=name) for name in FORMATS), pytest.param(broken, id="broken tail")]
)
def test_every_frame_keeps_its_time(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path)
    index = index_of(path)
    assert len(cut(index, 0.3)) > 2
    with open_source(str(path)) as source:
        frames = list(source)
    (outcome,) = run([path], tmp_path / "out", Settings(segment_s=0.3))
    assert outcome.summary is not None
    table = pd.read_parquet(outcome.job.result(".frames.parquet"))
    times = [int(pts) * source.time_base for pts in table.pts]
    assert outcome.summary.frames_out == len(times)
    if source.problem is None:
        assert times == [frame.pts * source.time_base for frame in frames]
        assert table.time_s.tolist() == [frame.pts_s for frame in frames]
    assert (outcome.summary.problem is None) == (source.problem is None)
    zero = min(times[0], Fraction(0))
    assert read_pts(outcome.job.result(".annotated.mp4")) == [time - zero for time in times]
    labels = read_pts(outcome.job.result(".labels.mkv"))
    assert all(abs(label - (time - zero)) <= MILLISECOND for label, time in zip(labels, times, strict=True))
    with av.open(str(outcome.job.result(".annotated.mp4"))) as container:
        video = container.streams.video[0]
        assert (video.height, video.width) == source.size
        length_s = float(times[-1] - times[0] + 1 / source.rate)
        assert float(video.duration * video.time_base) == pytest.approx(length_s, abs=1.5 / float(source.rate))


def test_the_last_frame_is_shown_as_long_as_it_was(tmp_path: Path) -> None:
    tick = Fraction(1, 1000)
    path = write_clip(tmp_path / "a.mp4", pts=[0, 40, 400, 440, 900, 940], time_base=tick, codec_options={"bf": "0"})
    (outcome,) = run([path], tmp_path / "out")
    lengths = []
    for file in (path, outcome.job.result(".annotated.mp4"), outcome.job.result(".labels.mkv")):
        with av.open(str(file)) as container:
            lengths.append(container.duration)
    assert lengths == [980_000] * 3


def test_frames_within_a_millisecond_are_all_there(tmp_path: Path) -> None:
    pts = [0, 10, 3600, 3610, 7200]
    path = write_clip(tmp_path / "a.mp4", pts=pts, time_base=Fraction(1, 90_000), codec_options={"bf": "0"})
    (outcome,) = run([path], tmp_path / "out")
    assert outcome.error is None and outcome.summary is not None and outcome.summary.problem is None
    labels = read_pts(outcome.job.result(".labels.mkv"))
    assert labels == [MILLISECOND * time for time in (0, 1, 40, 41, 80)]
    assert read_pts(outcome.job.result(".annotated.mp4")) == [Fraction(time, 90_000) for time in pts]
    many = write_clip(tmp_path / "b.mp4", pts=range(9), time_base=Fraction(1, 90_000), codec_options={"bf": "0"})
    (outcome,) = run([many], tmp_path / "out")
    assert outcome.summary is not None and "shown up to 0.008 s late" in (outcome.summary.problem or "")
    assert len(read_pts(outcome.job.result(".labels.mkv"))) == 9


def test_what_cannot_be_cut_is_done_at_once(tmp_path: Path) -> None:
    """A clock that jumps back."""
    path = joined(tmp_path / "ab.ts", transport(tmp_path / "a.ts", 900_000, 20), transport(tmp_path / "b.ts", 0, 20))
    (outcome,) = run([path], tmp_path / "out", Settings(segment_s=0.3))
    assert outcome.summary is not None and outcome.summary.frames_out == 40
    assert outcome.summary.problem == "its clock jumped back once: time was counted on"
    with open_source(str(path)) as source:
        times = [frame.pts * frame.time_base for frame in source]
    assert read_pts(outcome.job.result(".annotated.mp4")) == times


def test_what_segments_count_is_added_up(tmp_path: Path) -> None:
    """Frames of another size than the first, in several segments."""
    first = transport(tmp_path / "a.ts", 0, 20)
    other = transport(tmp_path / "b.ts", 40 * 3600, 40, size=(32, 32))
    (outcome,) = run([joined(tmp_path / "ab.ts", first, other)], tmp_path / "out", Settings(segment_s=0.3))
    assert outcome.summary is not None and outcome.summary.frames_out == 60
    height, width = SIZE
    assert outcome.summary.problem == f"40 frames were of another size and were scaled into {width}×{height}"


def test_sound_is_carried_over_once(tmp_path: Path) -> None:
    with_sound(tmp_path / "a.mp4", clip(tmp_path / "silent.mp4"))
    (outcome,) = run([tmp_path / "a.mp4"], tmp_path / "out", Settings(segment_s=0.3))

    def sound(path: Path) -> list[tuple[Fraction, bytes]]:
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(audio=0) if packet.size]
            return [(packet.pts * packet.time_base, bytes(packet)) for packet in packets]

    assert len(sound(tmp_path / "a.mp4")) > 20
    assert sound(outcome.job.result(".annotated.mp4")) == sound(tmp_path / "a.mp4")
    assert outcome.summary is not None and outcome.summary.problem is None


def test_half_of_the_files_are_corrupt(tmp_path: Path) -> None:
    archive = tmp_path / "in"
    archive.mkdir()
    whole = write_clip(archive / "0.mp4", codec_options={"bf": "0"}).read_bytes()
    spoiled = [b"", b"not a video", whole[: len(whole) // 2], bytes(len(whole))]
    for number, content in enumerate(spoiled):
        (archive / f"{2 * number + 1}.mp4").write_bytes(content)
        (archive / f"{2 * number + 2}.mp4").write_bytes(whole)
    outcomes = run([archive], tmp_path / "out")
    assert [outcome.error is None for outcome in outcomes] == [True, False] * 4 + [True]
    for outcome in outcomes[1::2]:
        assert outcome.error is not None and outcome.job.source.name in outcome.error
        assert len(outcome.error.splitlines()) == 1
        assert not list((tmp_path / "out").glob(f"{outcome.job.place.name}.*"))


def test_a_segment_by_itself_is_what_it_is_among_others(small_engine: Path, tmp_path: Path) -> None:
    """With a real engine: in order, and the last one alone in an engine that has seen nothing before."""
    path = clip(tmp_path / "a.mp4")
    recording = open_recording(path)
    segments = recording.segments(0.3)
    settings = Settings(masks=("ffv1", "png", "coco"))
    kinds = products(settings)
    results = []
    for name, chosen in (("all", segments), ("last", segments[-1:])):
        segmenter = Segmenter.load(small_engine)
        about = About(recording.format, segmenter.spec.classes, {}, None)
        (tmp_path / name).mkdir()
        for segment in chosen:
            part = work(Task(recording, segment, settings, about, tmp_path / name), segmenter)
        results.append(content(kinds, tmp_path / name, segments[-1].number) | {"frames": part.frames})
        assert part.frames and part.frames_with_lesion
    assert results[0] == results[1]


def content(kinds: list[Product], folder: Path, number: int) -> dict[str, Any]:
    """What a segment's parts hold."""
    held: dict[str, Any] = {}
    for path in (kind.part(folder, number) for kind in kinds):
        if path.is_dir():
            held |= {file.name: file.read_bytes() for file in path.iterdir()}
        elif path.suffix in (".mp4", ".mkv"):  # containers bear a number of their own
            held[path.name] = [picture.tobytes() for picture in read_pixels(path)]
        else:
            held[path.name] = path.read_bytes()
    return held


def test_what_two_results_have_to_say_alike_is_said_once(tmp_path: Path) -> None:
    form = VideoFormat((48, 64), Fraction(1, 25), Fraction(25))
    sinks = [VideoFile(tmp_path / name, "ffv1", form) for name in ("a.mkv", "b.mkv")]
    with Together(sinks) as together:
        for index, size in enumerate([(48, 64), (24, 32)]):
            together.write(Shown(Frame(picture(index, size), index, Fraction(1, 25), index)))
        assert together.problem == "1 frames were of another size and were scaled into 64×48"
