"""Archives elsewhere: fetched one by one, results sent whole, nothing done twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
from clips import serving, write_clip
from streams import BrightEngine
from test_hands import content

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline import Outcome, Settings, Store, is_remote, plan, process
from mcdrl_rt.offline.remote import find
from mcdrl_rt.progress import list_results
from mcdrl_rt.segmenter import Segmenter

SETTINGS = Settings(masks=("ffv1", "png"), segment_s=0.4)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A store in memory, with an archive of two procedures and what is none."""
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    for name, frames in (("day1/a", 25), ("day2/b", 5)):
        clip = write_clip(tmp_path / "clip.mp4", pts=range(frames), codec_options={"g": "5", "bf": "0"})
        files.pipe(f"/bucket/in/{name}.mp4", clip.read_bytes())
    files.pipe("/bucket/in/notes.txt", b"no video")
    yield files
    files.rm("/bucket", recursive=True)


def run(inputs: list[str], output: str, engine: BrightEngine | None = None) -> list[Outcome]:
    store = Store(output)
    store.prepare()
    jobs = plan(inputs, store.folder, store=store)
    return list(process(jobs, store.folder, Segmenter(engine or BrightEngine()), SETTINGS, store=store))


def test_an_output_in_an_input_elsewhere_is_refused_and_results_are_no_inputs(far: Any) -> None:
    store = Store("memory://bucket/in/results")
    with pytest.raises(SinkError, match="the output folder memory://bucket/in/results lies in the input memory://"):
        plan(["memory://bucket/in"], store.folder, store=store)
    far.pipe("/bucket/in/day1/a.summary.json", b"{}")
    far.pipe("/bucket/in/day1/a.annotated.mp4", b"")
    far.pipe("/bucket/in/day1/c.annotated.mp4", b"")  # of no summary
    places = [str(place) for _, place in find("memory://bucket/in")]
    assert places == ["day1/a.mp4", "day1/c.annotated.mp4", "day2/b.mp4"]


def test_an_archive_elsewhere_becomes_what_it_would_here(far: Any, tmp_path: Path) -> None:
    outcomes = run(["memory://bucket/in"], "memory://bucket/out")
    assert [outcome.error for outcome in outcomes] == [None, None]
    there = {path.removeprefix("/bucket/out/") for path in far.find("/bucket/out")}
    ends = ("annotated.mp4", "labels.mkv", "frames.parquet", "report.html", "summary.json")
    results = {f"{place}.{end}" for place in ("day1/a", "day2/b") for end in ends}
    assert {path for path in there if ".masks/" not in path} == results | {".mcdrl-rt.json"}
    assert sum(".masks/" in path for path in there) == 25 + 5 + 2  # and what the grey levels mean
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".mcdrl-rt.lock"]
    far.get("/bucket/in", str(tmp_path / "in"), recursive=True)
    out = tmp_path / "out"
    list(process(plan([tmp_path / "in"], out), out, Segmenter(BrightEngine()), SETTINGS))
    summary = json.loads(far.cat("/bucket/out/day1/a.summary.json"))["summary"]
    assert summary["source"] == "memory:///bucket/in/day1/a.mp4"
    assert summary["output"] == "memory:///bucket/out/day1/a.annotated.mp4"
    here = content(out / "day1")
    assert len(here) == 3
    assert all(far.cat(f"/bucket/out/day1/{name}") == data for name, data in here.items())


def test_folders_of_pictures_elsewhere_are_procedures(far: Any, tmp_path: Path) -> None:
    for name, grey in (("day1/2.png", 90), ("day1/10.png", 200), ("day2/x.jpg", 30), (".hidden/y.png", 0)):
        _, data = cv2.imencode(name[-4:], np.full((48, 64, 3), grey, np.uint8))
        far.pipe(f"/bucket/stills/{name}", data.tobytes())
    far.pipe("/bucket/stills/day2/z.summary.json", b"{}")
    far.pipe("/bucket/stills/day2/z.masks/0.png", b"")
    assert [str(place) for _, place in find("memory://bucket/stills")] == ["day1", "day2"]
    assert [str(place) for _, place in find("memory://bucket/stills/day1")] == ["day1"]
    outcomes = run(["memory://bucket/stills"], "memory://bucket/out")
    assert [outcome.error for outcome in outcomes] == [None, None]
    far.get("/bucket/stills", str(tmp_path / "stills"), recursive=True)
    here = tmp_path / "here"
    list(process(plan([tmp_path / "stills"], here), here, Segmenter(BrightEngine()), SETTINGS))
    made = content(here)
    assert len(made) == 6
    for name, data in made.items():
        assert far.cat(f"/bucket/out/{name}") == data, name
    assert not list((tmp_path / "cache" / "inputs").rglob("*.png"))
    (before, _) = run(["memory://bucket/stills"], "memory://bucket/out")
    assert before.before
    far.pipe("/bucket/stills/day1/2.png", far.cat("/bucket/stills/day1/10.png"))
    (changed, _) = run(["memory://bucket/stills"], "memory://bucket/out")
    assert changed.error is not None and "is of another job" in changed.error


def test_an_album_that_changes_or_is_gone_is_an_error_and_nothing_of_it_is_kept(far: Any, tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        far.pipe(f"/bucket/.partial/{name}.png", name.encode())
    ((album, place),) = find("memory://bucket/.partial")
    assert str(place) == ".partial" and album.pictures == ("1.png", "2.png", "3.png")
    with album.fetched():
        assert sorted(path.name for path in album.copy.iterdir()) == ["1.png", "2.png", "3.png"]
    far.pipe("/bucket/.partial/2.png", b"another")
    with pytest.raises(SourceError, match=r"memory:///bucket/.partial changed since it was found"), album.fetched():
        pass
    far.rm("/bucket/.partial/3.png")
    with pytest.raises(SourceError, match=r"cannot fetch memory:///bucket/.partial: "), album.fetched():
        pass
    assert not list((tmp_path / "cache" / "inputs").iterdir())


def test_names_are_the_stores_own(far: Any) -> None:
    """Keys may hold what paths and addresses do not; a glob's folders are looked into; no folder has an extension."""
    for name in ("v//a.mp4", "v/k.mp4", "u/a/1.png", "u/a::b/1.png", "s/x.png/1.jpg", "s/y/z.mp4"):
        far.pipe(f"/bucket/{name}", name.encode())
    assert [str(place) for _, place in find("memory://bucket/v")] == ["a.mp4", "k.mp4"]
    for origin, place in find("memory://bucket/u"):
        with origin.fetched():
            assert (origin.copy / "1.png").read_bytes() == f"u/{place}/1.png".encode()
    assert [str(place) for _, place in find("memory://bucket/s/*")] == ["x.png", "z.mp4"]
    assert [job.place.name for job in plan(["memory://bucket/s/x.png"], Path("out"))] == ["x.png"]
    assert len(find("memory://")) >= 4


def test_folders_and_globs_pass_over_what_process_made_and_what_is_hidden(far: Any) -> None:
    made = ("a.annotated.mp4", "a.summary.json", "b.parts/manifest.json", "b.parts/00000.annotated.mp4", ".c.mp4")
    for name in ("a.mp4", "b.mp4", *made):
        far.pipe(f"/bucket/mixed/{name}", name.encode())
    for given in ("mixed", "mixed/*.mp4", "mixed/**/*.mp4"):
        assert [str(place) for _, place in find(f"memory://bucket/{given}")] == ["a.mp4", "b.mp4"]


def test_web_servers_are_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in" / "d").mkdir(parents=True)
    (tmp_path / "in" / "d" / "a.mp4").write_bytes(b"video")
    with serving(tmp_path / "in") as address:
        ((origin, place),) = find(f"{address}/d/a.mp4")
        assert (str(place), origin.url) == ("a.mp4", f"{address}/d/a.mp4")
        with origin.fetched():
            assert origin.copy.read_bytes() == b"video"
        ((signed, place),) = find(f"{address}/d/a.mp4?key=secret/x")
        assert (str(place), signed.copy.name) == ("a.mp4", "a.mp4")
        with signed.fetched():
            assert signed.copy.read_bytes() == b"video"
        for given, expected in ((f"{address}/", "d/a.mp4"), (f"{address}/d", "a.mp4"), (f"{address}/d/*.mp4", "a.mp4")):
            assert [(one.url, str(place)) for one, place in find(given)] == [(origin.url, expected)]


def test_what_is_done_is_not_fetched_again(far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run(["memory://bucket/in/day1/a.mp4"], "memory://bucket/out")
    monkeypatch.setattr("mcdrl_rt.offline.remote.Origin.fetched", None)
    (outcome,) = run(["memory://bucket/in/day1/a.mp4"], "memory://bucket/out")
    assert outcome.before and outcome.error is None
    assert json.loads(far.cat("/bucket/out/a.summary.json"))["summary"]["frames_out"] == 25


def test_work_that_was_broken_off_goes_on_and_what_cannot_be_sent_is_kept(
    far: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Exception): ...

    def refuses(*_: object, **__: object) -> None:
        raise Full("Quota exceeded\nfor good")

    with monkeypatch.context() as patch:
        patch.setattr(type(far), "put_file", refuses)
        (outcome,) = run(["memory://bucket/in/day1/*.mp4"], "memory://bucket/out")
    assert outcome.error is not None and "cannot write to memory://bucket/out: Quota exceeded" in outcome.error
    monkeypatch.setattr(BrightEngine, "infer", None)  # nothing is segmented again
    (outcome,) = run(["memory://bucket/in/day1/*.mp4"], "memory://bucket/out")
    assert outcome.error is None and far.exists("/bucket/out/a.report.html")


def test_two_jobs_have_copies_of_their_own(far: Any, tmp_path: Path) -> None:
    given = ["memory://bucket/in/day1/a.mp4"]
    first, second = (plan(given, tmp_path / name)[0].origin for name in ("one", "two"))
    assert first is not None and second is not None
    with first.fetched():
        with second.fetched():
            assert second.copy.exists()
        assert first.copy.read_bytes() == far.cat("/bucket/in/day1/a.mp4")


def test_another_engine_or_other_settings_are_refused_for_one_output(far: Any) -> None:
    run(["memory://bucket/in/day1/a.mp4"], "memory://bucket/out")
    store = Store("memory://bucket/out/")
    assert store.folder == Store("memory://bucket/out").folder  # a slash makes no other output
    jobs = plan(["memory://bucket/in/day2/b.mp4"], store.folder, store=store)
    other = Settings(masks=("ffv1",), segment_s=0.4)
    message = r"memory:///bucket/out/\.mcdrl-rt\.json is of another job \(settings masks: ffv1 png there, ffv1 now\)"
    with pytest.raises(SinkError, match=message):
        list(process(jobs, store.folder, Segmenter(BrightEngine()), other, store=store))
    assert not far.exists("/bucket/out/b.summary.json")


def test_a_video_that_was_changed_is_another(far: Any, tmp_path: Path) -> None:
    run(["memory://bucket/in/day2/b.mp4"], "memory://bucket/out")
    other = write_clip(tmp_path / "other.mp4", pts=range(7))
    far.pipe("/bucket/in/day2/b.mp4", other.read_bytes())
    (outcome,) = run(["memory://bucket/in/day2/b.mp4"], "memory://bucket/out")
    assert outcome.error is not None and "is of another job (input bytes" in outcome.error


def test_an_unsent_result_of_what_was_changed_is_named_where_it_lies(
    far: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "send", lambda *_: (_ for _ in ()).throw(SinkError("no room")))
        run(["memory://bucket/in/day2/b.mp4"], "memory://bucket/out")
    far.pipe("/bucket/in/day2/b.mp4", write_clip(tmp_path / "other.mp4", pts=range(7)).read_bytes())
    (outcome,) = run(["memory://bucket/in/day2/b.mp4"], "memory://bucket/out")
    assert outcome.error is not None and f"{Store('memory://bucket/out').folder}/b.summary.json is of" in outcome.error


def test_a_list_of_what_would_be_written_changes_nothing(far: Any, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, store = ["memory://bucket/in"], Store("memory://bucket/out")
    run(inputs[:1], "memory://bucket/out")
    far.rm("/bucket/out/day2/b.summary.json")
    kept = store.folder / "day1" / "a.summary.json"  # as a kill leaves it that comes while results are cleared away
    kept.write_text("{}")
    for job in plan(inputs, store.folder, store=store):
        list_results(job, SETTINGS, store, as_json=True)
    assert [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()] == ["done", "new"]
    assert kept.read_text() == "{}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("memory://bucket/gone.mp4", "no video and no pictures at memory://bucket/gone.mp4"),
        ("memory://bucket/in/*.mkv", r"no video and no pictures at memory://bucket/in/\*.mkv"),
        ("nowhere://user:secret@bucket/in", "cannot read nowhere://…@bucket/in: Protocol not known: nowhere"),
    ],
)
def test_what_is_not_there_is_one_line(given: str, message: str, far: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        plan([given], tmp_path)


def test_a_store_nobody_knows_is_one_line() -> None:
    with pytest.raises(SinkError, match=r"cannot write to nowhere://bucket: Protocol not known: nowhere"):
        Store("nowhere://bucket")
    assert [is_remote(name) for name in ("s3://b/x", "file:///x", "/x", "C:/x", "@list")] == [True] + [False] * 4


def test_of_what_cannot_be_read_no_copy_is_kept(far: Any, tmp_path: Path) -> None:
    far.pipe("/bucket/in/day1/a.mp4", b"no video")
    bad, good = run(["memory://bucket/in"], "memory://bucket/out")
    assert bad.error is not None and good.error is None
    assert not list((tmp_path / "cache" / "inputs").rglob("*.mp4"))


def test_what_a_store_no_longer_has_is_done_again(far: Any) -> None:
    inputs, output = ["memory://bucket/in/day2/b.mp4"], "memory://bucket/out"
    run(inputs, output)
    store = Store(output)
    (job,) = plan(inputs, store.folder)
    with store.recalled(job.summary):
        assert job.state == "done"
    assert job.state == "new"
    far.rm("/bucket/out", recursive=True)
    (outcome,) = run(inputs, output)
    assert not outcome.before and far.exists("/bucket/out/b.summary.json")


def test_what_is_somebody_elses_in_a_store_is_left_alone(far: Any) -> None:
    far.pipe("/bucket/out/a.annotated.mp4", b"of somebody")
    inputs = ["memory://bucket/in/day1/a.mp4", "memory://bucket/in/day2/b.mp4"]
    bad, good = run(inputs, "memory://bucket/out")
    assert good.error is None and bad.error is not None
    assert "memory:///bucket/out/a.annotated.mp4 is there already, of no job; move it, or" in bad.error
    assert far.cat("/bucket/out/a.annotated.mp4") == b"of somebody"
    assert not far.exists("/bucket/out/a.summary.json")


def test_what_a_store_has_keeps_its_name_when_another_of_that_name_comes(far: Any, tmp_path: Path) -> None:
    run(["memory://bucket/in"], "memory://bucket/out")
    other = write_clip(tmp_path / "a.avi", pts=range(5))
    far.pipe("/bucket/in/day1/a.avi", other.read_bytes())
    outcomes = run(["memory://bucket/in"], "memory://bucket/out")
    places = {outcome.job.source.name: outcome.job.place.name for outcome in outcomes}
    assert places == {"a.mp4": "a", "a.avi": "a.avi", "b.mp4": "b"}
    assert {outcome.job.source.name for outcome in outcomes if outcome.before} == {"a.mp4", "b.mp4"}


def test_what_is_not_there_costs_the_others_nothing(far: Any, tmp_path: Path) -> None:
    inputs = ["memory://bucket/nothing.mp4", "nowhere://x/a.mp4", "memory://bucket/in/day2/b.mp4"]
    lost, unknown, good = run(inputs, "memory://bucket/out")
    assert good.error is None and far.exists("/bucket/out/b.summary.json")
    assert lost.error == "no video and no pictures at memory://bucket/nothing.mp4"
    assert unknown.error is not None and unknown.error.startswith("cannot read nowhere://x/a.mp4: ")
    store = Store("memory://bucket/out")
    assert [job.problem is None for job in plan(inputs, store.folder, store=store)] == [False, False, True]
    with pytest.raises(SourceError, match=r"no video and no pictures at memory://bucket/nothing\.mp4"):
        plan(inputs[:1], store.folder, store=store)


@pytest.mark.parametrize(("there", "said"), [(True, "the server answers 404 File"), (False, "Cannot connect")])
def test_why_a_web_server_gives_nothing_is_told(there: bool, said: str, tmp_path: Path) -> None:
    with serving(tmp_path) as address:
        given = f"{address}/nothing.mp4" if there else "http://127.0.0.1:9/a.mp4"
        with pytest.raises(SourceError, match=f"cannot read {given}: {said}"):
            find(given)
