"""What is read again and what is not: inputs that change, that lie behind links, that were done before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
from clips import picture, write_clip
from test_offline import StripesEngine, names, run

from mcdrl_rt.errors import SinkError
from mcdrl_rt.offline import Job, Settings, plan, procedure, process
from mcdrl_rt.offline.fingerprint import input_facts
from mcdrl_rt.progress import Bars, follow
from mcdrl_rt.segmenter import Segmenter


def test_what_was_done_before_still_tells_of_its_flaw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), picture(1))
    (folder / "2.png").touch()
    (first,) = run([folder], tmp_path / "out")
    assert first.summary is not None and "left out" in (first.summary.problem or "")
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
    assert places == ["more/b", "more/deep/c", "z/a"]
    (archive / "results").symlink_to(tmp_path / "results")
    (tmp_path / "results").mkdir()
    with pytest.raises(SinkError, match=r"the output folder .*today lies in the input .*in/results; choose one"):
        plan([archive], tmp_path / "results" / "today")


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
