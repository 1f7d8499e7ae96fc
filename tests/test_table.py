"""The table of frames: what it says is what the pixels say, and the same frames always give the same bytes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_records import CLASSES, segmentation, shown

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline import table
from mcdrl_rt.offline.table import SCHEMA, Table, concatenate, read_facts, row
from mcdrl_rt.types import Shown, UInt8Array
from mcdrl_rt.video.output import partial_path

FACTS = {"model": "mcdrl-small", "engine": "3fa2", "classes": list(CLASSES), "source": "Fall 1 – Ü.mp4"}
LABELS = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=16), elements=st.integers(0, 3))


def patches(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Pixels that touch, at least at a corner, found one by one."""
    left = set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    found = []
    while left:
        patch, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            patch.add((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(patch)
    return found


def box_of(pixels: Any) -> dict[str, int]:
    rows, columns = zip(*pixels, strict=True)
    top, left = min(rows), min(columns)
    return {"x": left, "y": top, "width": max(columns) - left + 1, "height": max(rows) - top + 1}


def as_set(components: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted((part["pixels"], *part["box"].values()) for part in components)


@settings(max_examples=150, deadline=None)
@given(LABELS)
def test_areas_boxes_and_components_are_those_of_the_pixels(labels: UInt8Array) -> None:
    lesions = row(shown(0, labels))["lesions"]
    assert [lesion["label"] for lesion in lesions] == [CLASSES[i - 1] for i in (1, 2, 3) if (labels == i).any()]
    for lesion in lesions:
        mask = labels == 1 + CLASSES.index(lesion["label"])
        assert lesion["pixels"] == mask.sum()
        assert lesion["share"] == mask.mean()
        assert lesion["box"] == box_of(np.argwhere(mask).tolist())
        sizes = [part["pixels"] for part in lesion["components"]]
        assert sizes == sorted(sizes, reverse=True)
        expected = [{"pixels": len(patch), "box": box_of(patch)} for patch in patches(mask)]
        assert as_set(lesion["components"]) == as_set(expected)


def write(target: Path, frames: list[Shown], facts: dict[str, Any] = FACTS) -> bytes:
    with Table(target, facts) as sink:
        for frame in frames:
            sink.write(frame)
    return target.read_bytes()


def some_frames(count: int, seed: int = 0) -> list[Shown]:
    """Noise, frames that nothing was found on, and frames that nobody looked at."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        labels = (rng.integers(1, 4, (6, 8)) * (rng.random((6, 8)) < 0.2)).astype(np.uint8)
        kinds = (labels, labels, np.zeros_like(labels), None)
        frames.append(shown(index, kinds[rng.integers(4)], age_ms=rng.random(), stages_ms={"segment": rng.random()}))
    return frames


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    labels = np.zeros((48, 64), np.uint8)
    labels[10:20, 30:35] = 2
    labels[0, 63] = 2  # a patch of one pixel
    write(tmp_path / "a.parquet", [shown(4, labels), shown(5, np.zeros_like(labels)), shown(6)])
    first, empty, unknown = pq.read_table(tmp_path / "a.parquet").to_pylist()
    box = {"x": 30, "y": 10, "width": 5, "height": 10}
    pixel = {"x": 63, "y": 0, "width": 1, "height": 1}
    assert first == {
        "index": 4,
        "pts": 12,
        "time_s": 0.48,
        "file": None,
        "selected_share": 0.25,
        "lesions": [
            {
                "label": "tumor",
                "pixels": 51,
                "share": np.float32(51 / (48 * 64)),
                "box": {"x": 30, "y": 0, "width": 34, "height": 20},
                "components": [{"pixels": 50, "box": box}, {"pixels": 1, "box": pixel}],
            }
        ],
        "confounders": [("blood", 0.75), ("blur", 0.25)],
        "region": {"y": 0, "x": 0, "height": 48, "width": 64},
    }
    assert empty == {**first, "index": 5, "pts": 15, "time_s": 0.6, "lesions": []}
    nothing = dict.fromkeys(("selected_share", "lesions", "confounders", "region"))
    assert unknown == {"index": 6, "pts": 18, "time_s": 0.72, "file": None, **nothing}


def test_the_table_opens_in_pandas(tmp_path: Path) -> None:
    frames = some_frames(40)
    write(tmp_path / "a.parquet", frames)
    seen = pd.read_parquet(tmp_path / "a.parquet")
    assert list(seen.columns) == SCHEMA.names
    assert seen["index"].tolist() == list(range(40))
    for frame, lesions in zip(frames, seen["lesions"], strict=True):
        if frame.segmentation is None:
            assert lesions is None
        else:
            assert sum(lesion["pixels"] for lesion in lesions) == np.count_nonzero(frame.segmentation.labels)
    weights = dict(seen["confounders"].dropna().iloc[0])
    assert weights == {"blood": 0.75, "blur": 0.25}


def test_all_classes_of_a_large_model_are_told(tmp_path: Path) -> None:
    classes = tuple(f"class {i}" for i in range(1, 255))
    labels = np.arange(256, dtype=np.uint16).clip(0, 254).astype(np.uint8).reshape(16, 16)
    known = dataclasses.replace(segmentation(labels), classes=classes)
    lesions = row(dataclasses.replace(shown(0), segmentation=known))["lesions"]
    assert [lesion["label"] for lesion in lesions] == list(classes)
    assert [lesion["pixels"] for lesion in lesions] == [1] * 253 + [2]


@settings(max_examples=15, deadline=None)
@given(
    cuts=st.sets(st.integers(0, 60), max_size=5),
    group=st.sampled_from([1, 7, 16, 60, 4096]),
    unpacked=st.sampled_from([1, 5, 256]),
    seed=st.integers(0, 9),
)
def test_parts_joined_are_the_table_written_at_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int], group: int, unpacked: int, seed: int
) -> None:
    folder, frames = tmp_path_factory.mktemp("table"), some_frames(60, seed)
    bounds = [0, *sorted(cuts), 60]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "ROWS_PER_GROUP", group)
        patch.setattr(table, "_ROWS_UNPACKED", unpacked)
        parts = [folder / f"{i}.parquet" for i in range(len(bounds) - 1)]
        for part, first, last in zip(parts, bounds, bounds[1:], strict=False):
            write(part, frames[first:last])
        concatenate(parts, folder / "joined.parquet")
        patch.setattr(table, "_ROWS_UNPACKED", 256)
        at_once = write(folder / "all.parquet", frames)
    assert (folder / "joined.parquet").read_bytes() == at_once
    assert pq.ParquetFile(folder / "all.parquet").num_row_groups == -(-60 // group)
    assert sorted(folder.glob(".*")) == []


def test_the_same_frames_give_the_same_bytes_whatever_they_cost(tmp_path: Path) -> None:
    frames = some_frames(30)
    again = [Shown(frame.frame, segmentation=frame.segmentation, age_ms=1.0) for frame in frames]
    first = write(tmp_path / "a.parquet", frames)
    assert write(tmp_path / "b.parquet", again, dict(reversed(FACTS.items()))) == first
    group = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0)
    assert {group.column(i).compression for i in range(group.num_columns)} == {"ZSTD"}
    assert json.dumps(read_facts(tmp_path / "a.parquet"), sort_keys=True) == json.dumps(FACTS, sort_keys=True)


def test_a_long_table_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """Python's objects of a row take three kilobytes: those of a group would be 12 MiB, and fill up by the minute."""
    frames = some_frames(30)
    write(tmp_path / "warm.parquet", frames)
    peaks = []
    for count in (600, 3000):
        tracemalloc.start()
        with Table(tmp_path / f"{count}.parquet", FACTS) as sink:
            for i in range(count):
                sink.write(frames[i % 30])
            peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_no_frames_are_a_table_too(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [])
    concatenate([tmp_path / "a.parquet"] * 2, tmp_path / "b.parquet")
    assert pq.read_table(tmp_path / "b.parquet").num_rows == 0


def test_a_table_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.parquet"
    target.write_bytes(b"of before")
    sink = Table(target, FACTS)
    sink.write(shown(0, np.ones((4, 4), np.uint8)))
    assert target.read_bytes() == b"of before"
    sink.abort()
    sink.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    assert target.read_bytes() == b"of before"
    sink = Table(target, FACTS)
    sink.close()
    sink.close()
    sink.abort()
    assert read_facts(target) == FACTS


def test_parts_that_cannot_be_joined_are_named(tmp_path: Path) -> None:
    good, other, damaged, foreign = (tmp_path / f"{name}.parquet" for name in ("good", "other", "damaged", "foreign"))
    whole = write(good, some_frames(5))
    write(other, some_frames(5), FACTS | {"engine": "9c01"})
    pq.write_table(pa.table({"index": [1]}), foreign)
    for part, message in [
        (other, f"cannot join {good} and {other}: they were made with different settings"),
        (damaged, f"cannot read {damaged}: no such file or directory"),
        (foreign, f"cannot read {foreign}: it is no table of frames of this version of mcdrl-rt"),
    ]:
        with pytest.raises((SinkError, SourceError)) as caught:
            concatenate([good, part], tmp_path / "joined.parquet")
        assert str(caught.value) == message
    for content in (whole[:-20], whole[: len(whole) // 2], b"", whole[:300] + b"x" * 600 + whole[900:]):
        damaged.write_bytes(content)
        with pytest.raises(SourceError, match=r"damaged\.parquet: it is damaged, or no Parquet file$"):
            concatenate([good, damaged], tmp_path / "joined.parquet")
    assert not (tmp_path / "joined.parquet").exists()
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    target = tmp_path / "a.parquet"
    partial_path(target).symlink_to("/dev/full")
    with pytest.raises(SinkError, match=r"cannot write .*a\.parquet: the disk is full"):
        write(target, some_frames(300))
    with pytest.raises(SinkError, match=r"cannot write .*absent/a\.parquet: no such file or directory"):
        Table(tmp_path / "absent" / "a.parquet", FACTS)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.delitem(sys.modules, "mcdrl_rt.offline.coco", raising=False)
    with pytest.raises(SinkError, match=r"masks as COCO need pycocotools: pip install 'mcdrl-rt\[coco\]'"):
        importlib.import_module("mcdrl_rt.offline.coco")
