"""Recorded procedures: what becomes of each input, and that one bad input costs nothing but itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from clips import read_pixels, read_pts, write_clip

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError, SinkError, SourceError
from mcdrl_rt.offline import Job, plan, process
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import ModelSpec, UInt8Array
from mcdrl_rt.video.source import Source, open_source


class StripesEngine:
    """Calls stripes of each frame class 1, 2 and 3; raises ``failure`` on frames ``fails_at`` (a range)."""

    name = "stripes"
    max_batch = 1
    spec = ModelSpec(
        name="stripes",
        encoder="none",
        input_size=(48, 64),
        classes=("polyp", "tumor", "cyst"),
        confounders=("blur", "blood"),
        grid=(4, 4),
    )

    def __init__(self, fails_at: range = range(0), failure: BaseException | None = None) -> None:
        self._frames, self._fails_at, self._failure = itertools.count(), fails_at, failure

    def infer(self, frames: UInt8Array) -> RawOutput:
        index = next(self._frames)
        if index in self._fails_at and self._failure is not None:
            raise self._failure
        score, label = np.zeros((2, *frames.shape[:3]), np.uint8)
        score[:, 10:40, 10 + index :] = 255
        label[:] = 1 + np.arange(64) // 8 % 3
        return RawOutput(score, label, np.full((1, 2), 0.5, np.float32), np.ones((1, 4, 4), np.uint8))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two videos, one of them in a folder of its own and in capitals, among what is none."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    clip = write_clip(tmp_path / "in" / "a.mp4", pts=[0, 1, 2, 5, 9], codec_options={"bf": "0"}).read_bytes()
    (tmp_path / "in" / "deep" / "B.MP4").write_bytes(clip)
    (tmp_path / "in" / "notes.txt").write_text("not a video")
    (tmp_path / "in" / "._a.mp4").write_text("what a Mac leaves beside a file")
    (tmp_path / "in" / "folder.mp4").mkdir()
    return tmp_path / "in"


def test_plan_finds_videos_and_names_results(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "today"
    jobs = plan([archive], out)
    assert jobs == [
        Job(archive / "a.mp4", out / "a.annotated.mp4", out / "a.labels.mkv"),
        Job(archive / "deep" / "B.MP4", out / "deep" / "B.annotated.mp4", out / "deep" / "B.labels.mkv"),
    ]
    assert out.is_dir()
    assert plan([archive / "notes.txt"], out)[0].source.name == "notes.txt"  # what is named is tried


def test_plan_tells_files_of_one_name_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "in" / name for name in ("p1/video.mp4", "p2/day.2/video.mp4", "p2/other.mp4")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    places = [str(job.labels.relative_to(tmp_path / "out")) for job in plan(paths, tmp_path / "out")]
    assert places == ["p1/video.labels.mkv", "p2/day.2/video.labels.mkv", "other.labels.mkv"]
    assert [job.source for job in plan([tmp_path / "in"], tmp_path / "out")] == sorted(paths)


def test_plan_refuses_what_cannot_work(archive: Path, tmp_path: Path) -> None:
    out, empty, file = tmp_path / "out", tmp_path / "empty", archive / "a.mp4"
    empty.mkdir()
    refused: list[tuple[type[Exception], str, list[Path], Path]] = [
        (SourceError, "no such file or folder: .*gone", [archive, tmp_path / "gone"], out),
        (SourceError, "no video in .*empty; looked for .avi", [empty], out),
        (SourceError, "several inputs are named a;", [archive, file], out),
        (SourceError, "several inputs are named a;", [file, file], out),
        (SinkError, "lies in the input", [archive], archive / "results"),
        (SinkError, "lies in the input", [archive], archive),
        (SinkError, "cannot make the output folder .*: not a directory", [file], archive / "notes.txt" / "out"),
        (SinkError, "cannot make the output folder .*: file exists", [file], archive / "notes.txt"),
    ]
    for kind, message, inputs, output in refused:
        with pytest.raises(kind, match=message):
            plan(inputs, output)
    assert not out.exists()


def test_a_dot_in_a_name_without_extension_is_part_of_it(tmp_path: Path) -> None:
    inputs = [tmp_path / "case.2023", tmp_path / "case.2024"]
    for path in inputs:
        path.write_text("a video, say")
    names = [job.annotated.name for job in plan(inputs, tmp_path / "out")]
    assert names == ["case.2023.annotated.mp4", "case.2024.annotated.mp4"]


@pytest.mark.parametrize("result", ["a.annotated.mp4", "a.labels.mkv"])
def test_plan_never_replaces_an_input(tmp_path: Path, result: str) -> None:
    first, second = tmp_path / "a.mp4", tmp_path / result
    for path in (first, second):
        path.write_text("a video, say")
    with pytest.raises(SinkError, match=f"the input {result} would be replaced by a result"):
        plan([first, second], tmp_path)
    plan([first], tmp_path)  # alone, it is an earlier result


def test_the_label_video_holds_the_labels(archive: Path, tmp_path: Path) -> None:
    (outcome,) = process(plan([archive / "a.mp4"], tmp_path / "out"), Segmenter(StripesEngine()))
    assert outcome.error is None and outcome.summary is not None
    assert names(tmp_path / "out") == ["a.annotated.mp4", "a.labels.mkv"]
    segmenter = Segmenter(StripesEngine()).for_stream()
    with open_source(str(archive / "a.mp4")) as source:
        expected = [segmenter(frame.pixels).labels for frame in source]
    decoded = read_pixels(outcome.job.labels)
    assert len(decoded) == len(expected) == outcome.summary.frames_out == 5
    for video, labels in zip(decoded, expected, strict=True):
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        np.testing.assert_array_equal(video, np.repeat(labels[:, :, None], 3, axis=2))
    times = read_pts(archive / "a.mp4")
    assert read_pts(outcome.job.annotated) == read_pts(outcome.job.labels) == times


def test_one_bad_input_does_not_stop_the_others(archive: Path, tmp_path: Path) -> None:
    (archive / "aa.mp4").write_text("not a video at all")
    started: list[str] = []
    counts: dict[str, list[int]] = {}

    def start(job: Job, source: Source) -> object:
        started.append(job.source.name)
        return counts.setdefault(job.source.stem, []).append

    outcomes = process(plan([archive], tmp_path / "out"), Segmenter(StripesEngine()), on_start=start)  # type: ignore[arg-type]
    assert isinstance(outcomes, Iterator)  # each is told when it is done, not at the end of the night
    assert next(outcomes).summary is not None
    assert names(tmp_path / "out") == ["a.annotated.mp4", "a.labels.mkv"]
    bad, good = outcomes
    assert bad.summary is None and bad.error is not None and "aa.mp4" in bad.error
    assert good.summary is not None and good.summary.frames_out == 5
    assert names(tmp_path / "out") == ["B.annotated.mp4", "B.labels.mkv", "a.annotated.mp4", "a.labels.mkv", "deep"]
    assert (started, counts) == (["a.mp4", "B.MP4"], {"a": [1, 2, 3, 4, 5], "B": [1, 2, 3, 4, 5]})


def test_a_failing_engine_is_named_with_its_file(archive: Path, tmp_path: Path) -> None:
    engine = StripesEngine(range(3, 5), EngineError("out of memory"))  # on a frame, and when it is tried again
    bad, good = process(plan([archive], tmp_path / "out"), Segmenter(engine))
    assert bad.error == f"{archive / 'a.mp4'}: frame 3 could not be segmented: out of memory"
    assert good.error is None
    assert names(tmp_path / "out") == ["B.annotated.mp4", "B.labels.mkv", "deep"]


def test_an_engine_that_fails_once_is_started_again_and_nothing_is_missing(archive: Path, tmp_path: Path) -> None:
    engine = StripesEngine(range(3, 4), EngineError("out of memory"))
    outcome, _ = process(plan([archive], tmp_path / "out"), Segmenter(engine))
    assert outcome.summary is not None and outcome.summary.problem is None
    assert (outcome.summary.frames_out, outcome.summary.frames_without_overlay) == (5, 0)
    assert outcome.summary.engine_restarts == 1


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ZeroDivisionError("a bug")])
def test_an_interruption_keeps_only_what_is_whole(archive: Path, tmp_path: Path, failure: BaseException) -> None:
    def on_frame(frames: int) -> None:
        raise failure

    def start(job: Job, source: Source) -> Callable[[int], None] | None:
        return on_frame if job.source.name == "B.MP4" else None

    outcomes = process(plan([archive], tmp_path / "out"), Segmenter(StripesEngine()), on_start=start)
    next(outcomes)
    with pytest.raises(type(failure)):
        next(outcomes)
    assert names(tmp_path / "out") == ["a.annotated.mp4", "a.labels.mkv", "deep"]
