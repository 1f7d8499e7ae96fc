"""Exactly once: whatever kills a job, started again it gives what it would have given at once; little is done twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from clips import read_pixels, write_clip
from conftest import ROOT

CLI = [sys.executable, "-m", "mcdrl_rt.cli"]


def content(folder: Path) -> dict[str, bytes]:
    """All that lies in an output folder, but for how long it took: the summary says that."""
    held = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in held:
        if name.endswith(".summary.json"):
            written = json.loads(held[name])
            written["summary"] |= dict.fromkeys(("seconds", "fps", "realtime", "stages", "output"))
            held[name] = json.dumps(written).encode()
    return held


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_a_file_gets_its_name(step: int, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", pts=range(4), codec_options={"g": "2", "bf": "0"})
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, ROOT / "tests" / "killed.py", clip, tmp_path / "out", str(step)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    *killed, whole = sorted(int(path.name) for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert len(killed) > 25 // step
    expected = content(tmp_path / "out" / str(whole))  # which was not killed
    ends = {"annotated.mp4", "labels.mkv", "masks.json", "frames.parquet", "report.html", "summary.json"}
    assert {name.removeprefix("a.") for name in expected} >= ends
    frames = len((tmp_path / "out" / f"{whole}.frames").read_bytes())
    assert frames == 4
    for number in killed:
        assert content(tmp_path / "out" / str(number)) == expected, number
        assert len((tmp_path / "out" / f"{number}.frames").read_bytes()) <= frames + 2  # a segment


def test_the_command_killed_at_random(small_engine: Path, tmp_path: Path) -> None:
    """Three times, whatever it is doing; then it is left to finish."""
    frames, seconds = 500, 20
    clip = write_clip(tmp_path / "a.mp4", pts=range(frames), codec_options={"g": "25", "preset": "ultrafast"})

    def command(output: str) -> list[str]:
        given = ["process", clip, "--output", tmp_path / output, "--model", small_engine, "--segment", "1"]
        return [*CLI, *map(str, given), "--masks", "ffv1", "--masks", "coco"]

    manifest = tmp_path / "killed" / "a.parts" / "manifest.json"

    def done() -> int:
        return len(json.loads(manifest.read_text())["done"]) if manifest.exists() else 0

    chance = random.Random(5)
    for _ in range(3):
        before = done()
        process = subprocess.Popen(command("killed"), stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while process.poll() is None and done() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.2)
        kept = done()
        process.kill()
        process.communicate()
        assert before < kept <= done() < seconds
        assert not (tmp_path / "killed" / "a.annotated.mp4").exists()
    for output in ("killed", "whole"):
        ended = subprocess.run(command(output), capture_output=True, text=True, timeout=120)
        assert (ended.returncode, ended.stdout) == (0, "")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert len(pd.read_parquet(tmp_path / "killed" / "a.frames.parquet")) == frames
    assert len(read_pixels(tmp_path / "killed" / "a.annotated.mp4")) == frames
