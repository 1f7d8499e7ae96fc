"""What is read again and what is not: inputs that change, that lie behind links, that were done before."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import PIL.Image
import pyarrow.parquet as pq
import pytest
from clips import picture, read_pts, write_clip
from streams import BrightEngine
from test_offline import StripesEngine, names, run

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline import Job, Outcome, Settings, plan, procedure, process
from mcdrl_rt.offline.fingerprint import input_facts
from mcdrl_rt.progress import Bars, follow
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.video.packets import Packets


def test_what_was_done_before_still_tells_of_its_flaw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), picture(1))
    (folder / "2.png").touch()
    (first,) = run([folder], tmp_path / "out")
    assert first.summary is not None and "1 of the files could not be read" in (first.summary.problem or "")
    again = run([folder], tmp_path / "out")
    assert follow(again, Bars({folder: 1}, False), False) == (False, True)
    said = capsys.readouterr().err
    assert said == f"{folder}: already done, with a flaw: {first.summary.problem}\n"


def test_folders_behind_links_are_looked_through_once_each(tmp_path: Path) -> None:
    store, archive, out = tmp_path / "store", tmp_path / "in", tmp_path / "out"
    for place in (store / "b.mp4", store / "deep" / "c.mp4", archive / "z" / "a.mp4"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    (archive / "first").symlink_to("z")  # what is there without a link has the name it has without one
    (archive / "more").symlink_to(store)
    (archive / "same").symlink_to(store / "deep")
    (store / "deep" / "loop").symlink_to(archive)
    (archive / "itself").symlink_to("itself")
    (archive / "nowhere").symlink_to("gone")
    places = sorted(str(job.place.relative_to(out)) for job in plan([archive], out))
    # and links to what is not there, which is a store that was not mounted, say, will be told of
    assert places == ["itself", "more/b", "more/deep/c", "nowhere", "z/a"]
    (archive / "results").symlink_to(tmp_path / "results")
    (tmp_path / "results").mkdir()
    with pytest.raises(SinkError, match=r"the output folder .*today lies in the input .*in/results; choose one"):
        plan([archive], tmp_path / "results" / "today")


def test_what_cannot_be_looked_at_is_told_of_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, out, empty = tmp_path / "in", tmp_path / "out", tmp_path / "empty"
    empty.mkdir()
    write_clip(archive / "day1" / "a.mp4", codec_options={"bf": "0"})
    (archive / "day2").symlink_to(tmp_path / "not mounted")
    (archive / "loop.mp4").symlink_to("loop.mp4")
    (archive / "closed").mkdir()

    def refusing(look: Callable[[Path], Any]) -> Callable[[Path], Any]:  # nothing is closed to root
        def looks(folder: Path) -> Any:
            if str(folder).endswith("closed"):  # it may be a number, of one that is open
                raise PermissionError(13, "Permission denied", str(folder))
            return look(folder)

        return looks

    monkeypatch.setattr(Path, "iterdir", refusing(Path.iterdir))
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    outcomes = run([archive, empty, tmp_path / "gone*.mp4"], out)
    errors = {outcome.job.source.name: outcome.error for outcome in outcomes}
    assert errors.pop("a.mp4") is None
    assert errors == {
        "loop.mp4": f"no such file: {archive / 'loop.mp4'}",
        "day2": f"no such file: {archive / 'day2'}",
        "closed": f"cannot read {archive / 'closed'}: permission denied",
        "empty": f"{empty} holds no video and no pictures",
        "gone*.mp4": f"no such file: {tmp_path / 'gone*.mp4'}",
    }


def test_hidden_folders_and_results_are_no_procedures(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "in" / "a.mp4", codec_options={"bf": "0"})
    run([clip], tmp_path / "in" / "results", Settings(masks=("ffv1", "png")))
    (tmp_path / "in" / ".Trash-1000").mkdir()
    (tmp_path / "in" / ".Trash-1000" / "b.mp4").touch()
    (tmp_path / "in" / "c.labels.mkv").touch()  # of no summary
    jobs = plan([tmp_path / "in"], tmp_path / "out")
    assert [job.source.name for job in jobs] == ["a.mp4", "c.labels.mkv"]


def test_a_file_is_done_once_however_it_is_named(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    clip = write_clip(folder / "day1" / "b.mp4", codec_options={"bf": "0"})
    (folder / "day1" / "a.mp4").symlink_to("b.mp4")
    places = [job.place.relative_to(out) for job in plan([folder, folder / "day1", clip], out)]
    assert places == [Path("day1/b")]


def test_what_was_done_is_found_whatever_comes_and_goes_beside_it(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    one = write_clip(folder / "day1" / "a.mp4", pts=range(3))
    other = write_clip(folder / "day1" / "a.mkv", pts=range(4))
    run([folder], out)
    other.unlink()
    assert [outcome.before for outcome in run([folder], out)] == [True]  # as a.mp4, not anew as a
    alone = tmp_path / "alone"
    run([one], alone)
    write_clip(folder / "day2" / "a.mp4", pts=range(5))
    outcomes = run(sorted(folder.glob("*/*.mp4")), alone)
    assert [outcome.before for outcome in outcomes] == [True, False]


def begin(inputs: list[Path], out: Path, settings: Settings) -> None:
    """Break a job off when its first segment is done."""

    def start(job: Job, frames: int | None) -> Callable[[int], None]:
        def on_frame(done: int) -> None:
            if done >= 25:
                raise KeyboardInterrupt

        return on_frame

    with pytest.raises(KeyboardInterrupt):
        list(process(plan(inputs, out), out, Segmenter(StripesEngine()), settings, on_start=start))
    assert (out / "a.parts" / "00000.frames.parquet").exists()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """40 frames in several segments."""
    return write_clip(tmp_path / "in" / "a.mp4", pts=range(40), codec_options={"g": "10", "bf": "0"})


PIECES = Settings(masks=("png", "ffv1"), segment_s=0.4)


def test_what_was_begun_is_gone_on_with_whatever_comes_beside_it(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin([clip.parent], out, PIECES)
    write_clip(clip.with_suffix(".mkv"), pts=range(3))
    outcomes = run([clip.parent], out, PIECES)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert sorted(path.name for path in out.glob("*.summary.json")) == ["a.mkv.summary.json", "a.summary.json"]
    assert not list(out.glob("*.parts"))


def test_a_begun_input_may_be_renamed(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin([clip], out, PIECES)
    (outcome,) = run([clip.rename(clip.with_suffix(".m4v"))], out, PIECES)
    assert outcome.error is None and len(list((out / "a.masks").glob("*.png"))) == 40


def test_masks_that_were_deleted_meanwhile_are_made_again(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    begin([clip], out, PIECES)
    (parts,) = out.glob("a.parts/00000.masks")
    min(parts.glob("*.png")).unlink()
    (outcome,) = run([clip], out, PIECES)
    assert outcome.error is None and len(list((out / "a.masks").glob("*.png"))) == 40


@pytest.mark.parametrize("lost", ["all masks", "a mask", "a part's mask", "table"])
def test_what_is_lost_before_all_is_done_is_made_again(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr("mcdrl_rt.offline.join._report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run([clip], out, PIECES)
    assert len(list((out / "a.masks").glob("*.png"))) == 40
    if lost == "all masks":
        shutil.rmtree(out / "a.masks")
    elif lost == "a mask":
        min((out / "a.masks").glob("*.png")).unlink()
    elif lost == "a part's mask":
        min((out / "a.parts" / "00001.masks").glob("*.png")).unlink()
    else:
        (out / "a.frames.parquet").unlink()
        (out / "a.parts" / "00001.frames.parquet").unlink()
    (outcome,) = run([clip], out, PIECES)
    assert outcome.error is None and len(list((out / "a.masks").glob("*.png"))) == 40
    assert pq.read_table(out / "a.frames.parquet").num_rows == 40


@pytest.mark.parametrize("name", ["a.annotated.mp4", "a.report.html", "a.masks"])
def test_what_somebody_puts_in_a_results_place_meanwhile_is_left_alone(clip: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    begin([clip], out, PIECES)
    (out / name).write_text("precious")
    (outcome,) = run([clip], out, PIECES)
    assert outcome.error is not None and f"{out / name} is there already, of no job; move it, or" in outcome.error
    assert (out / name).read_text() == "precious"
    (out / name).unlink()
    (outcome,) = run([clip], out, PIECES)
    assert outcome.error is None


@pytest.mark.parametrize("attempt", range(1, 7))
@pytest.mark.parametrize("lasts", [False, True])
def test_a_disk_that_fails_costs_no_frame(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: int, lasts: bool
) -> None:
    """Whenever the file is read for the ``attempt``-th time, and from then on, where it lasts."""
    openings, whole = itertools.count(), Packets._in_time

    def failing(self: Packets, packets: Any) -> Any:
        number = next(openings)
        for count, packet in enumerate(whole(self, packets)):
            if count == 7 and (number == attempt or (lasts and number > attempt)):
                raise av.error.OSError(errno.EIO, "Input/output error")
            yield packet

    def unreadable(path: Path) -> None:
        raise SourceError(f"cannot read {path}: input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(Packets, "_in_time", failing)
        if lasts:
            patched.setattr("mcdrl_rt.video.index.read_through", unreadable)
            patched.setattr("mcdrl_rt.offline.recording.read_through", unreadable)
        (outcome,) = run([clip], tmp_path / "out", PIECES)
    if lasts and outcome.error is not None:
        assert outcome.error == f"cannot read {clip}: input/output error"
        (outcome,) = run([clip], tmp_path / "out", PIECES)
    assert outcome.summary is not None and outcome.summary.problem is None
    assert outcome.summary.frames_out == pq.read_table(tmp_path / "out" / "a.frames.parquet").num_rows == 40


def test_pictures_are_told_apart_by_name(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), picture(1))
    (folder / "2.png").write_text("no picture")
    palette = PIL.Image.fromarray(picture(3)).quantize(16)
    palette.save(folder / "3.png")
    (outcome,) = run([folder], out, Settings(masks=("coco",), report=False))
    assert outcome.error is None
    assert [image["file_name"] for image in json.loads((out / "in.masks.json").read_text())["images"]] == [
        "1.png",
        "3.png",
    ]
    assert pq.read_table(out / "in.frames.parquet")["file"].to_pylist() == ["1.png", "3.png"]
    private = Settings(masks=("coco",), report=False, private=True)
    run([folder], tmp_path / "private", private)
    assert "3.png" not in (tmp_path / "private" / "in.masks.json").read_text()
    (folder / ".DS_Store").write_text("of a Mac")
    (folder / "Thumbs.db").write_text("of Windows")
    assert run([folder], out, Settings(masks=("coco",), report=False))[0].before


def test_pictures_are_cut_into_segments_and_taken_up_where_they_were_left(tmp_path: Path) -> None:
    folder, stills = tmp_path / "a", Settings(masks=("png",), report=False, segment_s=0.4)
    folder.mkdir()
    bad = [3, *range(10, 20)]  # the second segment has none to see
    for number in range(44):
        cv2.imwrite(str(folder / f"{number}.png"), picture(number))
    for number in bad:
        (folder / f"{number}.png").write_text("no picture")

    def work(out: Path, settings: Settings, **more: Any) -> Outcome:
        (outcome,) = process(plan([folder], out), out, Segmenter(BrightEngine()), settings, **more)
        return outcome

    def breaks(frames: int) -> None:
        if frames > 25:
            raise KeyboardInterrupt

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    outcome = work(whole, stills)
    assert outcome.summary is not None
    assert str(outcome.summary.problem).startswith("11 of the files could not be read; cannot decode 3.png: ")
    told = json.loads((whole / "a.summary.json").read_text())["problems"]
    assert [any(f" {number}.png: " in problem for problem in told) for number in bad] == [True] * len(bad)
    table = pq.read_table(whole / "a.frames.parquet")
    good = [number for number in range(44) if number not in bad]
    assert table["file"].to_pylist() == [f"{number}.png" for number in good]
    assert table["index"].to_pylist() == table["pts"].to_pylist() == good
    assert read_pts(whole / "a.annotated.mp4")[-1] == 43 * read_pts(whole / "a.annotated.mp4")[1]
    with pytest.raises(KeyboardInterrupt):
        work(broken, stills, on_start=lambda *_: breaks)
    assert (broken / "a.parts" / "00002.frames.parquet").exists()
    assert work(broken, stills).error is None
    made = [path for path in sorted(whole.rglob("*")) if path.is_file() and path.name != "a.summary.json"]
    assert len(made) > len(good)
    for path in made:
        assert path.read_bytes() == (broken / path.relative_to(whole)).read_bytes(), path
    private = work(tmp_path / "private", dataclasses.replace(stills, private=True))
    assert private.summary is not None and private.summary.frames_out == len(good)
    told = json.loads((tmp_path / "private" / "a.summary.json").read_text())["problems"]
    assert [any(f" picture {number + 1}: " in problem for problem in told) for number in bad] == [True] * len(bad)


def test_a_job_knows_its_own_results_whatever_is_lost_of_its_parts(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, single = tmp_path / "out", dataclasses.replace(PIECES, segment_s=1000.0)
    with monkeypatch.context() as patched:
        patched.setattr("mcdrl_rt.offline.join._report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run([clip], out, single)
    (out / "a.parts" / "00000.annotated.mp4").unlink()
    with monkeypatch.context() as patched:  # and then the segment cannot be done again at once
        patched.setattr("mcdrl_rt.offline.hands.work", lambda *_: (_ for _ in ()).throw(SourceError("not now")))
        (outcome,) = run([clip], out, single)
    assert outcome.error is not None and "not now" in outcome.error
    (outcome,) = run([clip], out, single)
    assert outcome.error is None and outcome.summary is not None and outcome.summary.frames_out == 40


def test_results_that_lie_among_pictures_are_not_taken_for_them(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), picture(number))
    run([folder / "0.png"], folder)
    assert (folder / "0.annotated.mp4").exists()
    for private in (False, True):
        (outcome,) = run([folder], out / str(private), Settings(private=private))
        assert outcome.summary is not None and outcome.summary.frames_out == 3
    assert pq.read_table(out / "False" / "in.frames.parquet")["file"].to_pylist() == ["0.png", "1.png", "2.png"]


def test_a_picture_may_be_called_anything(tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / os.fsdecode(b"\xff.png")).write_bytes(cv2.imencode(".png", picture(0))[1].tobytes())
    (folder / os.fsdecode(b"\xfe.png")).write_text("no picture")
    (outcome,) = run([folder], out, Settings(masks=("coco", "ffv1")))
    assert outcome.summary is not None and "\N{REPLACEMENT CHARACTER}.png" in (outcome.summary.problem or "")
    assert pq.read_table(out / "in.frames.parquet")["file"].to_pylist() == ["\N{REPLACEMENT CHARACTER}.png"]
    assert json.loads((out / "in.masks.json").read_text())["images"][0]["file_name"] == "\N{REPLACEMENT CHARACTER}.png"


def test_a_name_that_cannot_be_looked_up_costs_nothing_else(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, long = tmp_path / "closed" / "b.mp4", tmp_path / f"{'n' * 300}.mp4"
    looked_up = Path.stat

    def refused(self: Path, **options: Any) -> Any:  # nothing is closed to root
        if self == closed:
            raise PermissionError(13, "Permission denied", str(self))
        return looked_up(self, **options)

    monkeypatch.setattr(Path, "stat", refused)
    errors = [outcome.error or "" for outcome in run([closed, clip, long], tmp_path / "out")]
    assert errors[:2] == [f"cannot read {closed}: permission denied", ""] and "file name too long" in errors[2]
    with pytest.raises(SourceError, match=r"cannot read .*closed/b\.mp4: permission denied"):
        plan([closed], tmp_path / "out")


def test_clearing_that_is_broken_off_stands_in_nobodys_way(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    begin([clip], out, PIECES)
    content = json.loads((out / "a.parts" / "manifest.json").read_text())
    (out / "a.parts" / "manifest.json").write_text(json.dumps(content | {"done": {}}))
    remove = Path.unlink

    def broken_off(self: Path, missing_ok: bool = False) -> None:
        remove(self, missing_ok)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", broken_off)
        with pytest.raises(KeyboardInterrupt):
            run([clip], out, PIECES)
    assert any((out / "a.parts").iterdir())
    assert [outcome.error for outcome in run([clip], out, PIECES)] == [None]


def test_what_was_touched_is_read_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, out = write_clip(tmp_path / "a.mp4", codec_options={"bf": "0"}), tmp_path / "out"
    run([clip], out)
    os.utime(clip)
    assert run([clip], out)[0].before
    monkeypatch.setattr("hashlib.file_digest", None)
    assert run([clip], out)[0].before


def test_the_folder_one_stands_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "visit 7"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), picture(1))
    monkeypatch.chdir(folder)
    (job,) = plan([Path(".")], tmp_path / "out")
    assert (job.place.name, job.name(Settings())) == ("visit 7", "visit 7")


def test_a_change_anywhere_in_a_file_is_noticed_even_under_its_old_date(tmp_path: Path) -> None:
    clip, out = write_clip(tmp_path / "a.mp4", codec_options={"bf": "0"}), tmp_path / "out"
    with clip.open("ab") as file:
        file.write(bytes(3 << 20))  # longer than what is usually looked at
    run([clip], out)
    facts, times = json.loads((out / "a.summary.json").read_text())["fingerprint"]["input"], clip.stat()
    assert facts == input_facts(clip)
    content = bytearray(clip.read_bytes())
    content[len(content) // 2] = 1
    clip.write_bytes(content)
    os.utime(clip, ns=(times.st_atime_ns, times.st_mtime_ns))
    (outcome,) = run([clip], out)
    assert outcome.error is not None and "a.summary.json is of another job (input sha256: " in outcome.error
    content[len(content) // 2] = 0
    clip.write_bytes(content)
    assert run([clip], out)[0].before  # written anew, but the same


def test_what_is_done_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, out = write_clip(tmp_path / "a.mp4", codec_options={"bf": "0"}), tmp_path / "out"
    run([clip], out)
    monkeypatch.setattr("hashlib.file_digest", None)
    assert run([clip], out)[0].before


@pytest.mark.parametrize("content", ['{"fingerprint": 5}', '{"fingerprint": {"engine": 5}}', '{"summary": 1}', "{}"])
def test_a_file_of_somebody_else_costs_only_the_procedure_of_its_name(tmp_path: Path, content: str) -> None:
    clip, out = write_clip(tmp_path / "a.mp4", codec_options={"bf": "0"}), tmp_path / "out"
    out.mkdir()
    (out / "z.summary.json").write_text(content)
    assert run([clip], out)[0].error is None
    (tmp_path / "z.mp4").write_bytes(clip.read_bytes())
    (outcome,) = run([tmp_path / "z.mp4"], out)
    what = "is no summary of a procedure; move it away, or delete it"
    assert outcome.error == f"{tmp_path}/z.mp4: {out}/z.summary.json {what}"
    assert (out / "z.summary.json").read_text() == content


@pytest.mark.parametrize("seconds", [float("inf"), float("nan")])
def test_segments_end(seconds: float) -> None:
    with pytest.raises(SinkError, match=f"a segment has a number of seconds, not {seconds}"):
        Settings(segment_s=seconds)


def _others(path: Path) -> None:
    new = write_clip(path.with_name("new.mp4"), pts=range(3, 33), codec_options={"bf": "0", "g": "5"})
    new.replace(path)


def _shortened(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("change", "kept"), [(_others, False), (_shortened, False), (lambda path: path.chmod(0o600), True)]
)
def test_an_input_that_changes_meanwhile_is_never_mixed(
    tmp_path: Path, change: Callable[[Path], None], kept: bool
) -> None:
    first, second, out = tmp_path / "in" / "a.mp4", tmp_path / "in" / "b.mp4", tmp_path / "out"
    first.parent.mkdir()
    clip = write_clip(first, pts=range(25), codec_options={"bf": "0", "g": "5"}).read_bytes()
    second.write_bytes(clip)
    changed: list[Path] = []

    def start(job: Job, frames: int | None) -> Callable[[int], None]:
        def on_frame(done: int) -> None:
            if done >= 12 and job.source == first and not changed:  # of 25, in the second segment
                changed.append(first)
                change(first)

        return on_frame

    settings = Settings(segment_s=0.4)
    jobs = plan([first, second], out)
    one, other = process(jobs, out, Segmenter(StripesEngine()), settings, on_start=start)
    assert changed and other.error is None
    if kept:
        assert one.error is None
        return
    assert one.error == f"{first} changed while it was processed; process it again"
    assert not [name for name in names(out) if name.startswith("a.")]
    if change is _others:
        again = run([first, second], out, settings)
        assert [outcome.before for outcome in again] == [False, True]
        assert again[0].summary is not None and again[0].summary.frames_out == 30


def test_an_input_that_changes_while_its_results_are_joined_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, out = write_clip(tmp_path / "a.mp4", codec_options={"bf": "0"}), tmp_path / "out"
    finish = procedure.finish

    def and_change(*arguments: Any) -> Any:
        _others(clip)
        return finish(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(procedure, "finish", and_change)
        (outcome,) = run([clip], out)
    assert outcome.error == f"{clip} changed while it was processed; process it again"
    assert not (out / "a.summary.json").exists()
    assert not run([clip], out)[0].before
    assert run([clip], out)[0].before
