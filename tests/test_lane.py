"""Inputs and where each goes: what cannot come again replaces nothing that was recorded before."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
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


def test_what_can_be_made_again_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.mkv").touch()
    routes = [[f"{tmp_path}/a.mkv"]]
    assert outputs_of(["phantom:size=96x64,frames=3"], routes) == routes
    assert not caplog.records
