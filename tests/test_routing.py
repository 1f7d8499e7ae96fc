"""Which input goes to which output; what must not be written over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.video.routing import distinct, route


def test_each_input_has_its_own_outputs() -> None:
    inputs = ["case/a.mp4", "rtsp://x/left?token=1", "-", "phantom:frames=3"]
    routes = route(inputs, ["{name}.mp4", "out-{n}.mkv", "null", "-"])
    assert [some[:2] for some in routes] == [
        ["a.mp4", "out-1.mkv"],
        ["left.mp4", "out-2.mkv"],
        ["input3.mp4", "out-3.mkv"],
        ["phantom.mp4", "out-4.mkv"],
    ]
    assert all(some[2:] == ["null", "-"] for some in routes)


@pytest.mark.parametrize(
    "outputs",
    [
        ("o.mp4", "o.mp4"),
        ("o.mp4", "./o.mp4"),
        ("o.mp4", "{here}/o.mp4"),
        ("o.mp4", "link/o.mp4"),
        ("masks:m", "masks:./m"),
        ("window", "window"),
        ("udp://x:1", "udp://x:1"),
    ],
)
def test_two_outputs_of_one_place(outputs: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SinkError, match="several outputs would go to"):
        route(["phantom"], [output.replace("{here}", os.fspath(tmp_path)) for output in outputs])
    with pytest.raises(SinkError, match=r"several inputs would go to .*; put \{n\} or \{name\} into"):
        route(["phantom", "phantom"], ["o.mp4"])


def test_no_password_of_an_output_is_shown() -> None:
    for output in ("rtsp://surgeon:secret@host/live", "rtmp://host/live/secret"):
        for inputs, outputs in ((["a", "b"], [output]), (["a"], [output, output])):
            with pytest.raises(SinkError) as caught:
                route(inputs, outputs)
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize("output", ["case/a.mp4", "./case/../case/a.mp4", "link.mp4", "hard.mp4"])
@pytest.mark.parametrize("given", ["case/a.mp4", "case", "case/*.mp4", "file://{here}/case/a.mp4"])
def test_an_input_is_not_replaced(given: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video = tmp_path / "case" / "a.mp4"
    video.parent.mkdir()
    video.touch()
    (tmp_path / "link.mp4").symlink_to(video)
    (tmp_path / "hard.mp4").hardlink_to(video)
    with pytest.raises(SinkError, match="is the input"):
        route([given.replace("{here}", os.fspath(tmp_path))], ["null", output])


def test_names_are_told_apart() -> None:
    assert distinct(["a", "b", "a"]) == ["a (1)", "b", "a (3)"]


@given(st.lists(st.sampled_from(["a", "b", "a (1)", "a (2)", "a (1) (1)", "b (3)"])))
def test_names_are_told_apart_whatever_they_are(names: list[str]) -> None:
    told_apart = distinct(names)
    assert len(set(told_apart)) == len(names)
    assert all(new.startswith(old) for old, new in zip(names, told_apart, strict=True))
    if len(set(names)) == len(names):
        assert told_apart == names


@pytest.mark.parametrize(
    ("log", "message"),
    [("case/a.mp4", "the log case/a.mp4 is the input"), ("./o.mkv", "the log o.mkv is an output; choose another name")],
)
def test_a_log_is_neither_input_nor_output(
    log: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "case").mkdir()
    (tmp_path / "case/a.mp4").touch()
    (tmp_path / "run.jsonl").touch()
    assert route(["case/a.mp4"], ["o.mkv", "null"], Path("run.jsonl"))  # it may be there
    with pytest.raises(SinkError, match=message):
        route(["case/a.mp4"], ["o.mkv", "null"], Path(log))


def test_the_standard_input_is_read_once() -> None:
    with pytest.raises(SourceError, match="name - once"):
        route(["-", "phantom", "-"], ["{n}.mkv"])
