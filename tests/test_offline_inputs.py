"""What is read again and what is not: inputs that change, that lie behind links, that were done before."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from clips import picture
from test_offline import run

from mcdrl_rt.errors import SinkError
from mcdrl_rt.offline import plan
from mcdrl_rt.progress import Bars, follow


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
