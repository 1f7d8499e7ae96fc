"""Workers: several processes make what one makes, bit for bit, and one that is killed costs what it had in hand."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from fractions import Fraction
from pathlib import Path

import pytest
from clips import write_clip
from streams import BrightEngine

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError
from mcdrl_rt.offline import Here, Loader, Outcome, Processes, Settings, plan, process, worker_count
from mcdrl_rt.offline.hands import Hands
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.source import open_source

SETTINGS = Settings(masks=("ffv1", "coco"), report=False, segment_s=0.5)


class Deadly(BrightEngine):
    """Kills its process on the first picture, as long as the file it knows of is there (or always, for ``always``)."""

    def __init__(self, fuse: Path, always: bool = False) -> None:
        super().__init__()
        self._fuse, self._always = fuse, always

    def infer(self, frames: UInt8Array) -> RawOutput:
        if self._fuse.exists():
            if not self._always:
                self._fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().infer(frames)


class Load:
    """What a test gives its workers; may be sent to them."""

    def __init__(self, fuse: Path | None = None, always: bool = False) -> None:
        self._fuse, self._always = fuse, always

    def __call__(self) -> Segmenter:
        return Segmenter(BrightEngine() if self._fuse is None else Deadly(self._fuse, self._always))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two procedures of several segments, and one of a single one."""
    folder = tmp_path_factory.mktemp("archive")
    options = {"g": "5", "bf": "0"}
    for name, frames in (("a", 60), ("b", 25), ("c", 5)):
        write_clip(folder / f"{name}.mp4", pts=range(frames), rate=Fraction(25), codec_options=options)
    return folder


def run(archive: Path, out: Path, hands: Hands | None = None) -> list[Outcome]:
    with hands or Here(Segmenter(BrightEngine())) as working:
        outcomes = process(plan([archive], out), out, Segmenter(BrightEngine()), SETTINGS, hands=working)
        return sorted(outcomes, key=lambda outcome: outcome.job.source)


def content(out: Path) -> dict[str, bytes]:
    """Of all results but the summaries, which tell how long it took."""
    ends = (".mp4", ".mkv", ".parquet", ".masks.json")
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name.endswith(ends)}


def test_two_workers_make_what_one_makes(archive: Path, tmp_path: Path) -> None:
    one = run(archive, tmp_path / "one")
    two = run(archive, tmp_path / "two", Processes(Load(), 2))
    for outcome, other in zip(one, two, strict=True):
        assert outcome.error is None is other.error
        assert outcome.summary is not None and other.summary is not None
        assert outcome.summary.frames_out == other.summary.frames_out
    assert len(content(tmp_path / "one")) == 12
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_worker_that_is_killed_costs_what_it_had_in_hand(archive: Path, tmp_path: Path) -> None:
    run(archive, tmp_path / "one")
    fuse = tmp_path / "fuse"
    fuse.touch()
    outcomes = run(archive, tmp_path / "two", Processes(Load(fuse), 2))
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert not fuse.exists()
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_segment_that_kills_whoever_works_on_it_is_an_error(archive: Path, tmp_path: Path) -> None:
    fuse = tmp_path / "fuse"
    fuse.touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").write_bytes((archive / "c.mp4").read_bytes())
    (outcome,) = run(tmp_path / "in", tmp_path / "out", Processes(Load(fuse, always=True), 2))
    assert outcome.error is not None
    assert "whoever works on segment 0 dies: 3 workers did (out of memory?)" in outcome.error


def test_breaking_off_dismisses_the_workers(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Processes(Load(), 2) as hands:
        outcomes = process(plan([archive], out), out, Segmenter(BrightEngine()), SETTINGS, hands=hands)
        next(outcomes)
        began = time.monotonic()
        outcomes.close()
        assert time.monotonic() - began < 20
    left = run(archive, out)  # and another goes on where they were
    assert [outcome.error for outcome in left] == [None] * 3
    assert any(outcome.before for outcome in left)


def no_engine() -> Segmenter:
    """What a worker gets whose engine does not load."""
    raise EngineError("the engine was not built here")


def test_an_engine_that_does_not_load_is_told_as_it_is(archive: Path, tmp_path: Path) -> None:
    outcomes = run(archive, tmp_path / "out", Processes(no_engine, 2))
    assert [str(outcome.error).endswith("the engine was not built here") for outcome in outcomes] == [True] * 3


def test_a_worker_with_another_engine_mixes_nothing(archive: Path, tmp_path: Path) -> None:
    outcomes = run(archive, tmp_path / "out", Processes(Load(), 2, "torch fp16 cuda"))
    assert all("a worker got another engine (bright) than the first" in str(outcome.error) for outcome in outcomes)


def test_only_workers_are_dismissed(archive: Path, tmp_path: Path) -> None:
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        run(archive, tmp_path / "out", Processes(Load(), 2))
        assert other.is_alive()
    finally:
        other.kill()
        other.join()


def test_a_part_is_the_same_to_the_bit_whatever_cores_there_are(archive: Path, tmp_path: Path) -> None:
    """Workers have a share of the cores, and x264 makes another file for each number of threads."""
    cores = sorted(os.sched_getaffinity(0))
    files = []
    try:
        for number, some in enumerate((cores[:1], cores)):
            os.sched_setaffinity(0, some)
            run(archive, tmp_path / str(number))
            files.append(content(tmp_path / str(number)))
    finally:
        os.sched_setaffinity(0, cores)
    assert files[0] == files[1]


def test_there_is_a_worker_for_every_few_cores(archive: Path, tmp_path: Path) -> None:
    jobs = plan([archive], tmp_path)
    assert worker_count(3, jobs, 60) == 3
    assert worker_count(None, jobs, 60) == max(1, min(3, len(os.sched_getaffinity(0)) // 4))
    assert pickle.loads(pickle.dumps(Loader(Path("a.xml"), "openvino"))) == Loader(Path("a.xml"), "openvino")


def test_no_worker_is_without_work(archive: Path, tmp_path: Path) -> None:
    """Each would have a share of the cores that the others cannot use."""
    jobs = plan([archive], tmp_path / "out")
    seconds = {job.source.name: recorded_s(job.source) for job in jobs}
    assert worker_count(8, jobs, 60) == 3
    assert worker_count(8, jobs[:1], 60) == 1
    assert worker_count(8, jobs[:1], seconds["a.mp4"] / 2) == 2
    assert worker_count(2, jobs[:1], seconds["a.mp4"] / 8) == 2
    assert worker_count(8, jobs[:1], seconds["a.mp4"] / 2.2) == 3
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert worker_count(8, plan([tmp_path / "broken.mp4"], tmp_path / "out"), 60) == 1
    jobs[0].summary.parent.mkdir()
    for job in jobs:
        job.summary.touch()  # done
    assert worker_count(8, jobs, 60) == 1


def recorded_s(video: Path) -> float:
    with open_source(str(video)) as source:
        assert source.frame_count is not None
        return float(source.frame_count / source.format.rate)
