"""Masks, records and loopback devices: what is said of a frame is what the model said, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from clips import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Frame, Region, Segmentation, Shown, UInt8Array, VideoFormat
from mcdrl_rt.video.loopback import Loopback
from mcdrl_rt.video.masks import Masks
from mcdrl_rt.video.records import record
from mcdrl_rt.video.sink import open_sink

TICK = Fraction(1, 25)
FORMAT = VideoFormat((48, 64), TICK, Fraction(25))
CLASSES = ("polyp", "tumor", "cyst")


def segmentation(labels: UInt8Array) -> Segmentation:
    return Segmentation(
        labels=labels,
        classes=CLASSES,
        confounders=np.array([0.75, 0.25], np.float32),
        confounder_names=("blood", "blur"),
        selected=np.array([[True, False], [False, False]]),
        region=Region(0, 0, *labels.shape),
        latency_ms=12.0,
    )


def shown(index: int = 0, labels: UInt8Array | None = None, **known: Any) -> Shown:
    found = None if labels is None else segmentation(labels)
    return Shown(Frame(picture(index), 3 * index, TICK, index), segmentation=found, **known)


@settings(max_examples=50, deadline=None)
@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 3)))
def test_areas_and_boxes_are_those_of_the_pixels(labels: UInt8Array) -> None:
    lesions = record(shown(0, labels))["lesions"]
    assert [lesion["label"] for lesion in lesions] == [CLASSES[i - 1] for i in (1, 2, 3) if (labels == i).any()]
    for lesion in lesions:
        rows, columns = np.nonzero(labels == 1 + CLASSES.index(lesion["label"]))
        assert lesion["pixels"] == len(rows)
        box = lesion["box"]
        assert (box["x"], box["y"]) == (columns.min(), rows.min())
        assert (box["width"], box["height"]) == (np.ptp(columns) + 1, np.ptp(rows) + 1)


def test_a_line_says_all_that_is_known(tmp_path: Path) -> None:
    labels = np.zeros((48, 64), np.uint8)
    labels[10:20, 30:35] = 2
    path = tmp_path / "a.jsonl"
    with open_sink(str(path), FORMAT, stream="theatre 1") as sink:
        sink.write(shown(4, labels, age_ms=31.25, stages_ms={"segment": 14.123}))
        assert len(path.read_text().splitlines()) == 1  # before it is closed
        sink.write(shown(5, note="too old"))
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {
        "stream": "theatre 1",
        "index": 4,
        "pts": 12,
        "pts_s": 0.48,
        "signal": True,
        "note": "",
        "age_ms": 31.2,
        "lesions": [{"label": "tumor", "pixels": 50, "box": {"x": 30, "y": 10, "width": 5, "height": 10}}],
        "confounders": {"blood": 0.75, "blur": 0.25},
        "selected": 0.25,
        "stages_ms": {"segment": 14.12},
    }
    assert (second["note"], second["lesions"], second["confounders"], second["age_ms"]) == ("too old", None, None, None)
    assert sink.frames == 2


def test_records_of_before_are_replaced_by_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("the earlier records\n")
    open_sink(str(path), FORMAT).close()
    assert path.read_text() == "the earlier records\n"
    with open_sink(str(path), FORMAT) as sink:
        sink.write(shown())
        sink.write(shown(1))
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 1]


@pytest.mark.parametrize("reader", ["head -n 2", "cat"])
def test_the_standard_output_may_be_closed(reader: str) -> None:
    script = """
        import sys
        sys.path.insert(0, "tests")
        from test_records import FORMAT, shown
        from mcdrl_rt.errors import SinkError
        from mcdrl_rt.video.sink import open_sink
        try:
            with open_sink("-", FORMAT) as sink:
                for index in range(3000):
                    sink.write(shown(index))
        except SinkError as error:
            print(error, file=sys.stderr)
    """
    command = f"{sys.executable} -c '{textwrap.dedent(script)}' | {reader}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    lines = [json.loads(line)["index"] for line in done.stdout.splitlines()]
    if reader == "cat":
        assert (lines, done.stderr) == (list(range(3000)), "")
    else:
        assert lines == [0, 1]
        assert done.stderr == "cannot write the standard output: the program that read it has ended\n"


def test_masks_are_class_ids_by_frame_and_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (48, 64)).astype(np.uint8)
    folder = tmp_path / "new" / "masks"
    with open_sink(f"masks:{folder}", FORMAT) as sink:
        sink.write(shown(0, labels))
        sink.write(shown(1))  # nobody looked
        sink.write(shown(2, np.zeros((48, 64), np.uint8)))  # nothing found
    assert sorted(path.name for path in folder.iterdir()) == ["00000000-0.png", "00000002-6.png", "masks.json"]
    assert np.array_equal(cv2.imread(str(folder / "00000000-0.png"), cv2.IMREAD_UNCHANGED), labels)
    assert not cv2.imread(str(folder / "00000002-6.png"), cv2.IMREAD_UNCHANGED).any()
    assert json.loads((folder / "masks.json").read_text()) == {"classes": list(CLASSES), "time_base": "1/25"}
    assert sink.frames == 2


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("masks:{tmp}/full", "cannot write masks into .*full: the folder is not empty; name another, or empty it"),
        ("masks:{tmp}/full/file", "cannot make the folder .*file for masks: file exists"),
        ("masks:", "cannot write masks: name a folder, as in masks:results/masks"),
        ("masks:/proc/masks", "cannot make the folder /proc/masks for masks: no such file or directory"),
        ("{tmp}/absent/a.jsonl", r"cannot write .*a\.jsonl: no such file or directory"),
        ("{tmp}/full.jsonl", r"cannot write .*full\.jsonl: is a directory"),
        ("/dev/video77", "cannot write to /dev/video77: there is no such device; load one: sudo modprobe v4l2loopback"),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, uri: str, message: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_bytes(b"")
    (tmp_path / "full.jsonl").mkdir()
    with pytest.raises(SinkError, match=message) as caught:
        open_sink(uri.format(tmp=tmp_path), FORMAT)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_none_is_named() -> None:
    with pytest.raises(SinkError, match=r"cannot write to /dev/null: .*; is it a v4l2loopback device, and not in use"):
        Loopback("/dev/null", FORMAT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to("/dev/full")
    with pytest.raises(SinkError, match=r"cannot write .*a\.jsonl: the disk is full"):
        with open_sink(str(tmp_path / "a.jsonl"), FORMAT) as sink:
            sink.write(shown())
    masks = Masks(str(tmp_path / "masks"), FORMAT)
    (tmp_path / "masks" / ".00000000-0.png.partial").symlink_to("/dev/full")
    with pytest.raises(SinkError, match=r"cannot write masks into .*masks: the disk is full"):
        masks.write(shown(0, np.zeros((48, 64), np.uint8)))
    assert os.listdir(tmp_path / "masks") == ["masks.json"]


def test_a_pipe_is_written_once_somebody_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcdrl_rt.video.records._READER_S", 0.3)
    pipe = tmp_path / "o.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(SinkError, match=r"cannot write .*o\.jsonl: nobody reads that pipe$"):
        open_sink(str(pipe), FORMAT)
    read = list[bytes]()
    reader = threading.Thread(target=lambda: (time.sleep(0.1), read.append(pipe.read_bytes())))
    reader.start()
    with open_sink(str(pipe), FORMAT) as sink:
        sink.write(Shown(Frame(np.zeros((48, 64, 3), np.uint8), 0, Fraction(1, 25))))
    reader.join()
    assert json.loads(read[0])["index"] == 0
