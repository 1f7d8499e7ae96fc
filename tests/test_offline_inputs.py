"""What is read again and what is not: inputs that change, that lie behind links, that were done before."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from clips import picture
from test_offline import run

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
