"""Inputs and where each goes: what cannot come again replaces nothing that was recorded before."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest
from clips import serving, with_sound, write_clip
from test_live import Camera

from mcdrl_rt.stream import lane
from mcdrl_rt.stream.lane import open_lanes
from mcdrl_rt.video.live import Live
from mcdrl_rt.video.source import Source


def outputs_of(inputs: list[str], routes: list[list[str]]) -> list[list[str]]:
    """What each input's outputs are called in the end."""
    with contextlib.ExitStack() as sources, contextlib.ExitStack() as sinks:
        lanes = open_lanes(inputs, routes, sources, sinks)
        assert [list(lane.sinks) for lane in lanes] == [lane.outputs for lane in lanes]
        return [lane.outputs for lane in lanes]


def test_a_recording_of_what_is_live_does_not_replace_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def camera(uri: str, **_: object) -> Source:
        return Live(Camera(1, size=(48, 64)))

    monkeypatch.setattr(lane, "open_source", camera)
    for name in ("a.mkv", "a-2.mkv", ".a.partial-1.mkv", ".a-2.partial-7-2.mkv", ".ab.partial-1.mkv", "l.jsonl"):
        (tmp_path / name).write_bytes(b"earlier")
    names = ["a.mkv", "a-3.mkv", "b.mkv", "l.jsonl"]
    found = outputs_of(["rtsp://h/1"], [[*(f"{tmp_path}/{name}" for name in names), "null"]])
    assert found == [[*(f"{tmp_path}/{name}" for name in ("a-4.mkv", "a-3.mkv", "b.mkv", "l-2.jsonl")), "null"]]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/.a-2.partial-7-2.mkv holds what was recorded until something cut it off, or is being recorded",
        f"{tmp_path}/.a.partial-1.mkv holds what was recorded until something cut it off, or is being recorded",
        f"{tmp_path}/a.mkv is there already: this recording goes to {tmp_path}/a-4.mkv",
        f"{tmp_path}/l.jsonl is there already: this recording goes to {tmp_path}/l-2.jsonl",
    ]
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / ".a.partial-1.mkv").read_bytes() == b"earlier"


def test_that_sound_is_left_out_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = with_sound(tmp_path / "case" / "a.mkv", write_clip(tmp_path / "silent.mp4"))
    video, others = f"{tmp_path}/out.mkv", [f"{tmp_path}/out.jsonl", "null"]
    with serving(clip.parent) as address:
        for uri in (f"{address}/a.mkv?token=secret", str(clip.parent)):
            caplog.clear()
            outputs_of([uri], [[video, *others]])
            (record,) = caplog.records
            assert f": its sound is left out of {video}: only that of a single file" in record.getMessage()
            assert "secret" not in record.getMessage()
        caplog.clear()
        outputs_of([f"{address}/a.mkv"], [others])  # which have none
        outputs_of([str(clip)], [[video]])
        shutil.copy(tmp_path / "silent.mp4", clip.parent)
        outputs_of([f"{address}/silent.mp4"], [[video]])
    assert not caplog.records


def test_what_can_be_made_again_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.mkv").touch()
    routes = [[f"{tmp_path}/a.mkv"]]
    assert outputs_of(["phantom:size=96x64,frames=3"], routes) == routes
    assert not caplog.records
