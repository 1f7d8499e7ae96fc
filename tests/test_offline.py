"""Recorded procedures: what becomes of each input, and that one bad input costs nothing but itself."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from clips import picture, read_pixels, read_pts, write_clip
from pycocotools.coco import COCO

from mcdrl_rt import unfinished
from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError, SinkError, SourceError
from mcdrl_rt.offline import Job, Outcome, Settings, engine_facts, plan, process
from mcdrl_rt.offline.archive import LOCK
from mcdrl_rt.offline.fingerprint import difference
from mcdrl_rt.offline.plan import RESULTS
from mcdrl_rt.offline.products import products
from mcdrl_rt.offline.settings import MASKS
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import ModelSpec, UInt8Array
from mcdrl_rt.video.source import open_source

ENGINE = {"name": "stripes", "model": "stripes"}
PARTS = ("annotated.mp4", "frames.parquet", "labels.mkv")


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
        score[:, 10:40, 10 + index % 50 :] = 255
        label[:] = 1 + np.arange(64) // 8 % 3
        return RawOutput(score, label, np.full((1, 2), 0.5, np.float32), np.ones((1, 4, 4), np.uint8))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def of(name: str) -> list[str]:
    """What lies in an output folder after one procedure."""
    ends = ("annotated.mp4", "frames.parquet", "labels.mkv", "report.html", "summary.json")
    return [LOCK, *(f"{name}.{end}" for end in ends)]


def run(
    inputs: Sequence[Path], output: Path, settings: Settings | None = None, engine: StripesEngine | None = None
) -> list[Outcome]:
    return list(process(plan(inputs, output), output, Segmenter(engine or StripesEngine()), settings))


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
    assert jobs == [Job(archive / "a.mp4", out / "a"), Job(archive / "deep" / "B.MP4", out / "deep" / "B")]
    assert jobs[1].result(".annotated.mp4") == out / "deep" / "B.annotated.mp4"
    assert jobs[1].summary == out / "deep" / "B.summary.json"
    assert not out.exists()  # it is not made before the engine is there, or in a dry run
    assert plan([archive / "notes.txt"], out)[0].source.name == "notes.txt"  # what is named is tried


def test_plan_tells_files_of_one_name_apart(tmp_path: Path) -> None:
    paths = [tmp_path / "in" / name for name in ("p1/video.mp4", "p2/day.2/video.mp4", "p2/other.mp4")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    places = [str(job.place.relative_to(tmp_path / "out")) for job in plan(paths, tmp_path / "out")]
    assert places == ["p1/video", "p2/day.2/video", "other"]
    assert [job.source for job in plan([tmp_path / "in"], tmp_path / "out")] == sorted(paths)


def test_plan_keeps_the_extension_where_it_tells_files_apart(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.avi", "b.mp4"):
        (tmp_path / name).touch()
    places = [job.place.name for job in plan([tmp_path], tmp_path.parent / "out")]
    assert places == ["a.avi", "a.mp4", "b"]


def test_results_keep_their_name_when_another_of_it_comes(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    write_clip(folder / "a.mp4", pts=range(3))
    run([folder], out)
    write_clip(folder / "a.mkv", pts=range(4))
    new, old = run([folder], out)
    assert (old.job.place.name, old.before, new.job.place.name, new.before) == ("a", True, "a.mkv", False)
    assert all(outcome.before for outcome in run([folder], out))
    write_clip(folder / "a.mp4", pts=range(5))  # it is another one now, and takes nothing's place
    assert sorted(job.place.name for job in plan([folder], out)) == ["a.mkv", "a.mp4"]


def test_plan_refuses_what_cannot_work(archive: Path, tmp_path: Path) -> None:
    out, empty, file = tmp_path / "out", tmp_path / "empty", tmp_path / "other" / "a.mp4"
    empty.mkdir()
    file.parent.mkdir()
    file.touch()
    refused: list[tuple[type[Exception], str, list[Path], Path]] = [
        (SourceError, "no such file or folder: .*gone", [tmp_path / "gone"], out),
        (SourceError, "no video in .*empty, and no pictures; looked for .3gp .asf .avi", [empty], out),
        (SourceError, r"no file matches .*/e\*\.mp4", [tmp_path / "e*.mp4"], out),
        (SourceError, "several inputs are named a;", [archive, file], out),
        (SinkError, "lies in the input", [archive], archive / "results"),
        (SinkError, "lies in the input", [archive], archive),
    ]
    for kind, message, inputs, output in refused:
        with pytest.raises(kind, match=message):
            plan(inputs, output)
    assert not out.exists()
    with pytest.raises(SinkError, match=r"cannot make the output folder .*/out: .*/notes\.txt is not a folder"):
        plan([archive], archive / "notes.txt" / "out")


def test_a_dot_in_a_name_without_extension_is_part_of_it(tmp_path: Path) -> None:
    inputs = [tmp_path / "case.2023", tmp_path / "case.2024"]
    for path in inputs:
        path.write_text("a video, say")
    names = [job.summary.name for job in plan(inputs, tmp_path / "out")]
    assert names == ["case.2023.summary.json", "case.2024.summary.json"]


@pytest.mark.parametrize("result", ["a.annotated.mp4", "a.labels.mkv", "a.frames.parquet"])
def test_plan_never_replaces_an_input(tmp_path: Path, result: str) -> None:
    first, second = tmp_path / "a.mp4", tmp_path / result
    for path in (first, second):
        path.write_text("a video, say")
    with pytest.raises(SinkError, match=f"the input {result} would be replaced by a result"):
        plan([first, second], tmp_path)
    plan([first], tmp_path)  # alone, it is an earlier result


def test_plan_takes_globs_and_lists(archive: Path, tmp_path: Path) -> None:
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text(f"# of the first day\n\n{archive / 'a.mp4'}\n{archive}/d*/*.MP4\n")
    assert [job.source for job in plan([f"@{listed}"], out)] == [archive / "a.mp4", archive / "deep" / "B.MP4"]
    assert [job.place.name for job in plan([f"{archive}/**/[aB].[mM][pP]4"], out)] == ["a", "B"]
    odd = tmp_path / "@odd[1].mp4"
    odd.touch()
    assert plan([odd], out) == [Job(odd, out / "@odd[1]")]  # a file may be called anything


def test_another_gpu_is_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter, facts = Segmenter(StripesEngine()), list[dict[str, str]]()
    monkeypatch.setattr(StripesEngine, "name", "torch fp16 cuda:0")
    for name in ("H100", "A100"):
        monkeypatch.setattr("mcdrl_rt.engine.sidecar.gpus", lambda name=name: [name])
        facts.append(engine_facts(segmenter))
    assert difference({"engine": facts[0]}, {"engine": facts[1]}) == "engine gpu: H100 there, A100 now"
    monkeypatch.setattr(StripesEngine, "name", "openvino bf16 CPU")
    assert "processor" in engine_facts(segmenter)


def test_globs_and_folders_pass_over_what_process_made_and_what_it_has_begun(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.annotated.mp4", "a.summary.json", "b.mp4", "b.annotated.mp4", "c.annotated.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "b.parts").mkdir()
    for name in ("manifest.json", "00000.annotated.mp4"):
        (tmp_path / "b.parts" / name).touch()
    expected = [tmp_path / name for name in ("a.mp4", "b.mp4", "c.annotated.mp4")]  # the last is somebody's
    for given in (f"{tmp_path}/*.mp4", f"{tmp_path}/**/*.mp4", tmp_path):
        assert [job.source for job in plan([given], Path("/out"))] == expected
    assert plan([f"{tmp_path}/*.mp4"], tmp_path)  # again, beside the results
    with pytest.raises(SourceError, match="no file matches"):
        plan([f"{tmp_path}/b.parts/*.mp4"], tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the list .*list.txt: no such file or directory"),
        ("# nothing\n", "the list .*list.txt names no input"),
        ("@other.txt\n", "the list .*list.txt names another list; name both"),
        ("nowhere/*.mp4\n", r"no file matches nowhere/\*\.mp4"),
        ("gone.mp4\n", r"no such file or folder: gone\.mp4"),
        ("a.mp4\0b.mp4\0", r"the list .*list.txt has zero bytes in it; write one name a line \(find -print"),
    ],
)
def test_plan_refuses_a_list_of_nothing(content: str | None, message: str, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    if content is not None:
        listed.write_text(content)
    with pytest.raises(SourceError, match=message):
        plan([f"@{listed}"], tmp_path / "out")


def test_pictures_are_procedures_where_there_is_no_video(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stills = tmp_path / "stills"
    for name in ("1.png", "2.png", "day/1.jpg", "day/notes.txt"):
        (stills / name).parent.mkdir(parents=True, exist_ok=True)
        (stills / name).touch()
    assert plan([stills], out) == [Job(stills, out / "stills"), Job(stills / "day", out / "day")]
    assert plan([stills / "1.png"], out) == [Job(stills / "1.png", out / "1")]
    (archive / "1.png").touch()
    assert [job.source.suffix for job in plan([archive], out)] == [".mp4", ".MP4"]


# --- what is made ------------------------------------------------------------------------------------------------


def test_the_label_video_holds_the_labels(archive: Path, tmp_path: Path) -> None:
    (outcome,) = run([archive / "a.mp4"], tmp_path / "out")
    assert outcome.error is None and outcome.summary is not None
    assert names(tmp_path / "out") == of("a")
    segmenter = Segmenter(StripesEngine()).for_stream()
    with open_source(str(archive / "a.mp4")) as source:
        expected = [segmenter(frame.pixels).labels for frame in source]
    decoded = read_pixels(outcome.job.result(".labels.mkv"))
    assert len(decoded) == len(expected) == outcome.summary.frames_out == 5
    for video, labels in zip(decoded, expected, strict=True):
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        np.testing.assert_array_equal(video, np.repeat(labels[:, :, None], 3, axis=2))
    times = read_pts(archive / "a.mp4")
    assert read_pts(outcome.job.result(".annotated.mp4")) == read_pts(outcome.job.result(".labels.mkv")) == times


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # in pycocotools
def test_all_forms_of_masks_say_the_same(archive: Path, tmp_path: Path) -> None:
    settings = Settings(masks=("coco", "png", "ffv1"), segment_s=0.1)
    clip = write_clip(tmp_path / "c.mp4", pts=range(12), codec_options={"g": "4", "bf": "0"})
    (outcome,) = run([clip], tmp_path / "out", settings)
    video = [picture[:, :, 0] for picture in read_pixels(outcome.job.result(".labels.mkv"))]
    folder = outcome.job.result(".masks")
    pictures = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(folder.glob("*.png"))]
    coco = COCO(outcome.job.result(".masks.json"))
    table = pd.read_parquet(outcome.job.result(".frames.parquet"))
    assert len(video) == len(pictures) == len(coco.imgs) == len(table) == 12
    classes = json.loads((folder / "masks.json").read_text())["classes"]
    assert classes == list(StripesEngine.spec.classes)
    for index, (labels, png) in enumerate(zip(video, pictures, strict=True)):
        np.testing.assert_array_equal(labels, png)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index]))
        areas = {classes[one["category_id"] - 1]: one["area"] for one in annotations}
        assert areas == {lesion["label"]: lesion["pixels"] for lesion in table.lesions[index]}
        assert areas == {name: int((labels == i).sum()) for i, name in enumerate(classes, 1) if (labels == i).any()}
        for one in annotations:
            np.testing.assert_array_equal(coco.annToMask(one), labels == one["category_id"])


def test_the_plan_knows_the_names_of_all_results() -> None:
    """So that none of them replaces an input."""
    ends = {kind.end for kind in products(Settings(masks=MASKS))}
    assert ends | {".report.html", ".summary.json", ".parts"} == set(RESULTS)


def test_only_what_is_asked_for_is_made(archive: Path, tmp_path: Path) -> None:
    settings = Settings(annotated=False, masks=(), report=False)
    (outcome,) = run([archive / "a.mp4"], tmp_path / "out", settings)
    assert names(tmp_path / "out") == [LOCK, "a.frames.parquet", "a.summary.json"]
    assert outcome.summary is not None and outcome.summary.output == str(tmp_path / "out" / "a.frames.parquet")
    with pytest.raises(SinkError, match="nothing is to be written"):
        Settings(annotated=False, masks=(), table=False)
    with pytest.raises(SinkError, match="no masks 'gif'; choose ffv1, png, coco, or none alone"):
        Settings(masks=("ffv1", "gif"))


def test_a_report_without_annotated_video_and_with_one(archive: Path, tmp_path: Path) -> None:
    for annotated in (True, False):
        (outcome,) = run([archive / "a.mp4"], tmp_path / str(annotated), Settings(annotated=annotated))
        page = outcome.job.result(".report.html").read_text()
        assert ("a.annotated.mp4" in page) == ("data:image/jpeg" in page) == annotated
        assert "stripes" in page


def test_pictures_are_segmented(tmp_path: Path) -> None:
    (tmp_path / "stills").mkdir()
    for index in range(3):
        cv2.imwrite(str(tmp_path / "stills" / f"{index}.png"), picture(index))
    settings = Settings(masks=("png",))
    (folder,) = run([tmp_path / "stills"], tmp_path / "folder", settings)
    (single,) = run([tmp_path / "stills" / "1.png"], tmp_path / "single", settings)
    assert [outcome.summary and outcome.summary.frames_out for outcome in (folder, single)] == [3, 1]
    assert names(tmp_path / "folder" / "stills.masks")[:2] == ["00000000-0.png", "00000001-1.png"]
    assert names(tmp_path / "single" / "1.masks") == ["00000000-0.png", "masks.json"]


def test_a_single_pixel_is_a_picture(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((1, 1, 3), 200, np.uint8))
    (outcome,) = run([tmp_path / "a.png"], tmp_path / "out", Settings(masks=("ffv1", "png", "coco")))
    assert outcome.summary is not None and outcome.summary.frames_out == 1 and outcome.summary.problem is None


# --- what goes wrong ---------------------------------------------------------------------------------------------


def test_one_bad_input_does_not_stop_the_others(archive: Path, tmp_path: Path) -> None:
    (archive / "aa.mp4").write_text("not a video at all")
    started: list[tuple[str, int | None]] = []
    counts: dict[str, list[int]] = {}

    def start(job: Job, frames: int | None) -> Callable[[int], None]:
        started.append((job.source.name, frames))
        return counts.setdefault(job.source.stem, []).append

    out = tmp_path / "out"
    outcomes = process(plan([archive], out), out, Segmenter(StripesEngine()), on_start=start)
    assert isinstance(outcomes, Iterator)  # each is told when it is done, not at the end of the night
    assert next(outcomes).summary is not None
    assert names(out) == of("a")
    bad, good = outcomes
    assert bad.summary is None and bad.error is not None and "aa.mp4" in bad.error
    assert good.summary is not None and good.summary.frames_out == 5
    assert names(out) == sorted([*of("a"), *of("B")[1:], "deep"])
    assert (started, counts) == ([("a.mp4", 5), ("B.MP4", 5)], {"a": [1, 2, 3, 4, 5], "B": [1, 2, 3, 4, 5]})


def test_a_failing_engine_is_named_with_its_file(archive: Path, tmp_path: Path) -> None:
    engine = StripesEngine(range(3, 5), EngineError("out of memory"))  # on a frame, and when it is tried again
    bad, good = run([archive], tmp_path / "out", engine=engine)
    assert bad.error == f"{archive / 'a.mp4'}: frame 3 could not be segmented: out of memory"
    assert good.error is None
    assert names(tmp_path / "out") == sorted([*of("B"), "deep"])


def test_an_engine_that_fails_once_is_started_again_and_nothing_is_missing(archive: Path, tmp_path: Path) -> None:
    engine = StripesEngine(range(3, 4), EngineError("out of memory"))
    outcome, _ = run([archive], tmp_path / "out", engine=engine)
    assert outcome.summary is not None and outcome.summary.problem is None
    assert (outcome.summary.frames_out, outcome.summary.frames_without_overlay) == (5, 0)
    assert outcome.summary.engine_restarts == 1


def test_an_interruption_keeps_only_what_is_whole(archive: Path, tmp_path: Path) -> None:
    def on_frame(frames: int) -> None:
        raise KeyboardInterrupt

    def start(job: Job, frames: int | None) -> Callable[[int], None] | None:
        return on_frame if job.source.name == "B.MP4" else None

    out = tmp_path / "out"
    outcomes = process(plan([archive], out), out, Segmenter(StripesEngine()), on_start=start)
    next(outcomes)
    with pytest.raises(KeyboardInterrupt):
        next(outcomes)
    assert names(out) == sorted([*of("a"), "deep"])


def test_two_jobs_do_not_work_in_one_folder(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = process(plan([archive], out), out, Segmenter(StripesEngine()))
    next(first)
    with pytest.raises(SinkError, match=r"another job is at work in .*out: wait for it, or choose another"):
        next(process(plan([archive], out), out, Segmenter(StripesEngine())))
    first.close()
    assert [outcome.before for outcome in run([archive], out)] == [True, False]


def test_a_folder_that_cannot_be_written_is_named(archive: Path, tmp_path: Path) -> None:
    """Where not even root may write."""
    with pytest.raises(SinkError, match="cannot work in the folder /proc/self: no such file or directory"):
        run([archive], Path("/proc/self"))
    with pytest.raises(SinkError, match="cannot make the output folder /proc/self/out: "):
        run([archive], Path("/proc/self/out"))


def test_other_settings_another_engine_or_input_are_refused(archive: Path, tmp_path: Path) -> None:
    clip, out = archive / "a.mp4", tmp_path / "out"
    run([clip], out)
    assert [outcome.before for outcome in run([clip], out)] == [True]
    content = {path: path.read_bytes() for path in out.iterdir()}
    refused: list[tuple[str, Settings, dict[str, str]]] = [
        ("settings masks: ffv1 there, ffv1 png now", Settings(masks=("png", "ffv1")), ENGINE),
        ("settings masks: ffv1 there, none now", Settings(masks=()), ENGINE),
        ("settings segment_s: 60.0 there, 30.0 now", Settings(segment_s=30.0), ENGINE),
        ("engine name: stripes there, other now", Settings(), {"name": "other", "model": "stripes"}),
        ("engine version: unknown there, 2 now", Settings(), ENGINE | {"version": "2"}),
    ]
    for differs, settings, engine in refused:
        for inputs in ([clip], [archive / "deep"]):  # nor is anything new put beside them
            message = rf"a\.summary\.json is of another job \({differs}\); choose another output folder, or delete"
            with pytest.raises(SinkError, match=message):
                list(process(plan(inputs, out), out, Segmenter(StripesEngine()), settings, engine=engine))
    write_clip(clip, pts=range(7), codec_options={"bf": "0"})
    (outcome,) = run([clip], out)
    assert outcome.error is not None and "a.summary.json is of another job (input bytes: " in outcome.error
    assert {path: path.read_bytes() for path in out.iterdir()} == content


def test_what_is_installed_is_asked_for_only_where_it_is_needed(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "mcdrl_rt.offline.coco", raising=False)
    monkeypatch.delattr("mcdrl_rt.offline.coco", raising=False)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(SinkError, match=r"masks as COCO need pycocotools: pip install 'mcdrl-rt\[coco\]'"):
        run([archive], tmp_path / "out", Settings(masks=("coco",), table=False))
    outcomes = run([archive], tmp_path / "out", Settings(table=False))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert names(tmp_path / "out" / "deep") == ["B.annotated.mp4", "B.labels.mkv", "B.summary.json"]


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs root, to mount a small disk")
def test_a_full_disk_costs_what_does_not_fit(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    noise = [np.random.default_rng(i).integers(0, 255, (240, 320, 3)).astype(np.uint8) for i in range(24)]
    write_clip(archive / "aa.mp4", pts=range(24), size=(240, 320), pictures=noise)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", out]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        first, full, last = run([archive], out, Settings(masks=()))
        assert first.error is None and last.error is None
        assert full.error is not None and full.error.startswith(f"{archive / 'aa.mp4'}: cannot ")
        assert full.error.endswith(": the disk is full")
        assert not [name for name in names(out) if name.startswith("aa")]
    finally:
        subprocess.run(["umount", out], check=True)


# --- what was begun ----------------------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, Path, Settings]:
    """A clip of three segments, the first two of which are done; its output; the settings."""
    clip = write_clip(tmp_path / "a.mp4", pts=range(12), codec_options={"g": "4", "bf": "0"})
    settings = Settings(segment_s=0.1)
    (outcome,) = run([clip], tmp_path / "out", settings, StripesEngine(range(8, 10), EngineError("out of memory")))
    assert outcome.error == f"{clip}: frame 8 could not be segmented: out of memory"
    assert names(tmp_path / "out") == sorted(
        [LOCK, "a.parts", "manifest.json", *(f"0000{i}.{end}" for i in range(2) for end in PARTS)]
    )
    return clip, tmp_path / "out", settings


def asked(engine: StripesEngine) -> int:
    """How many frames an engine was asked about."""
    return next(engine._frames)


def test_what_was_begun_is_taken_up(begun: tuple[Path, Path, Settings]) -> None:
    clip, out, settings = begun
    (out / "a.parts" / ".00002.labels.partial-1.mkv").write_text("what a killed process left")
    (out / "a.parts" / "00002.frames.parquet").write_text("whole, but not yet known to be")
    counts: list[int] = []
    engine = StripesEngine()
    (outcome,) = process(plan([clip], out), out, Segmenter(engine), settings, on_start=lambda *_: counts.append)
    assert outcome.summary is not None and outcome.summary.frames_out == 12
    assert asked(engine) == 4 and counts == [8, 9, 10, 11, 12]
    assert names(out) == of("a")
    assert pd.read_parquet(out / "a.frames.parquet")["index"].tolist() == list(range(12))


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: os.truncate(path, path.stat().st_size - 1)])
@pytest.mark.parametrize("kind", ["labels.mkv", "annotated.mp4", "frames.parquet"])
def test_parts_that_were_deleted_or_cut_off_are_made_again(
    begun: tuple[Path, Path, Settings], kind: str, damage: Callable[[Path], None]
) -> None:
    clip, out, settings = begun
    damage(out / "a.parts" / f"00000.{kind}")
    engine = StripesEngine()
    (outcome,) = run([clip], out, settings, engine)
    assert outcome.error is None and asked(engine) == 8
    assert len(read_pixels(out / "a.labels.mkv")) == 12


def test_what_was_begun_otherwise_is_refused(begun: tuple[Path, Path, Settings]) -> None:
    clip, out, settings = begun
    held = {path: path.read_bytes() for path in (out / "a.parts").iterdir()}
    with pytest.raises(SinkError, match=r"a\.parts/manifest\.json is of another job \(settings opacity: 0\.35 there, "):
        run([clip], out, dataclasses.replace(settings, opacity=0.5))
    write_clip(clip, pts=range(9))
    (outcome,) = run([clip], out, settings)
    assert outcome.error is not None and "a.parts is of another job (input " in outcome.error
    assert {path: path.read_bytes() for path in (out / "a.parts").iterdir()} == held


@pytest.mark.parametrize(
    ("content", "why"),
    [("{", "it is damaged; delete "), ('{"segments": 3}', "it is not of this version of mcdrl-rt")],
)
def test_a_damaged_manifest_is_named(begun: tuple[Path, Path, Settings], content: str, why: str) -> None:
    clip, out, settings = begun
    manifest = out / "a.parts" / "manifest.json"
    manifest.write_text(content)
    (outcome,) = run([clip], out, settings)
    assert outcome.error is not None and f"cannot read {manifest}: {why}" in outcome.error
    shutil.rmtree(manifest.parent)
    (outcome,) = run([clip], out, settings)
    assert outcome.error is None and names(out) == of("a")


def test_strange_files_cost_only_themselves(archive: Path, tmp_path: Path) -> None:
    long = "x" * 245 + ".mp4"
    strange = os.fsdecode(b"caf\xe9.mp4")
    (archive / "dangling.mp4").symlink_to("nowhere")
    os.mkfifo(archive / "pipe.mp4")
    for name in (long, strange):
        (archive / name).write_bytes((archive / "a.mp4").read_bytes())
    jobs = plan([archive], tmp_path / "out")
    assert {job.size > 0 for job in jobs} == {True, False} and {job.state for job in jobs} == {"new"}
    settings = Settings(masks=("ffv1", "coco"))
    outcomes = {o.job.source.name: o for o in process(jobs, tmp_path / "out", Segmenter(StripesEngine()), settings)}
    assert outcomes["dangling.mp4"].error == f"no such file: {archive}/dangling.mp4"
    assert outcomes["pipe.mp4"].error == f"{archive}/pipe.mp4 is neither a file nor a folder of pictures"
    assert outcomes[long].error == f"{archive}/{long}: file name too long"
    for name in ("a.mp4", "B.MP4", strange):
        assert outcomes[name].error is None, name
    summary = json.loads((tmp_path / "out" / os.fsdecode(b"caf\xe9.summary.json")).read_text(encoding="utf-8"))
    assert summary["summary"]["source"].endswith("caf\N{REPLACEMENT CHARACTER}.mp4")


def test_a_fault_of_ours_costs_only_its_procedure(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_frame(frames: int) -> None:
        raise ZeroDivisionError("a bug")

    def start(job: Job, frames: int | None) -> Callable[[int], None] | None:
        return on_frame if job.source.name == "a.mp4" else None

    out = tmp_path / "out"
    first, second = process(plan([archive], out), out, Segmenter(StripesEngine()), on_start=start)
    text = f"{archive}/a.mp4: a fault of mcdrl-rt itself, please report it: ZeroDivisionError: a bug"
    assert (first.error, second.error) == (text, None)
    assert any(record.exc_info for record in caplog.records)


def test_what_is_named_twice_is_done_once(archive: Path, tmp_path: Path) -> None:
    jobs = plan([archive / "a.mp4", archive, archive / "a.mp4"], tmp_path / "out")
    assert [job.place.name for job in jobs] == ["a", "B"]


def test_a_file_that_is_gone_costs_only_itself(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + os.fsencode(archive / "a.mp4") + b"\n/gone/b\xff.mp4\n")
    good, gone = run([f"@{tmp_path / 'list.txt'}"], tmp_path / "out")
    assert good.summary is not None
    assert gone.error == "no such file: /gone/b\N{REPLACEMENT CHARACTER}.mp4"
    with pytest.raises(SourceError, match="an input is an empty name"):
        plan(["", archive], tmp_path / "out")


@pytest.mark.parametrize("theirs", ["a.annotated.mp4", "a.parts/notes.txt"])
def test_what_is_somebody_elses_is_left_alone(archive: Path, tmp_path: Path, theirs: str) -> None:
    path = tmp_path / "out" / theirs
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    first, other = run([archive], tmp_path / "out")
    assert other.summary is not None
    assert first.error is not None and "is there already, of no job; move it" in first.error
    assert path.read_text() == "mine"


@pytest.mark.parametrize("folder", ["a.parts", "a.masks"])
def test_results_do_not_lie_in_a_folder_that_is_for_others(archive: Path, tmp_path: Path, folder: str) -> None:
    (archive / folder).mkdir()
    (archive / folder / "c.mp4").touch()
    with pytest.raises(SinkError, match=r"the results of .*c\.mp4 would lie in .*; process them into different"):
        plan([archive], tmp_path / "out")


@pytest.mark.parametrize(("one", "other"), [("", "deep"), ("deep", "")])
def test_jobs_in_folders_of_one_another_do_not_meet(archive: Path, tmp_path: Path, one: str, other: str) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    at_work = process(plan([archive], out / one), out / one, Segmenter(StripesEngine()))
    next(at_work)
    with pytest.raises(SinkError, match="another job is at work in"):
        run([archive / "a.mp4"], out / other)
    assert [outcome.error for outcome in at_work] == [None]


def test_nothing_of_what_is_done_is_kept_in_memory(archive: Path, tmp_path: Path) -> None:
    before = set(unfinished._paths)
    assert [outcome.error for outcome in run([archive], tmp_path / "out", Settings(masks=MASKS))] == [None, None]
    assert unfinished._paths == before


def test_a_job_that_did_not_one_segment_stands_in_nobodys_way(archive: Path, tmp_path: Path) -> None:
    place = tmp_path / "out" / "a.parts"
    place.mkdir(parents=True)
    content = {"fingerprint": {"engine": {"name": "another"}}, "segments": [[None, None]], "done": {}}
    (place / "manifest.json").write_text(json.dumps(content))
    (outcome,) = run([archive / "a.mp4"], tmp_path / "out")
    assert outcome.summary is not None and not place.exists()


def test_a_result_that_is_gone_is_told_of(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", pts=range(4))
    (outcome,) = run([path], tmp_path / "out")
    assert outcome.gone == ()
    outcome.job.result(".labels.mkv").unlink()
    (outcome,) = run([path], tmp_path / "out")
    assert outcome.before and outcome.gone == ("a.labels.mkv",)
