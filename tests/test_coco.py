"""Masks as COCO: pycocotools reads them, they are the labels pixel for pixel, and their areas are the table's."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools.coco import COCO
from test_records import CLASSES, shown
from test_table import FACTS, some_frames

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline.coco import Coco, concatenate
from mcdrl_rt.offline.table import row
from mcdrl_rt.types import Shown, UInt8Array
from mcdrl_rt.video.output import partial_path


def write(target: Path, frames: list[Shown]) -> bytes:
    with Coco(target, CLASSES, FACTS) as sink:
        for frame in frames:
            sink.write(frame)
    return target.read_bytes()


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        return COCO(path)


SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, max_side=20)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # in its decode()
@settings(max_examples=40, deadline=None)
@given(st.lists(arrays.arrays(np.uint8, SHAPES, elements=st.integers(0, 3)), max_size=4))
def test_masks_are_the_labels_and_areas_are_those_of_the_table(
    tmp_path_factory: pytest.TempPathFactory, labels: list[UInt8Array]
) -> None:
    path = tmp_path_factory.mktemp("coco") / "masks.json"
    frames = [shown(index, one) for index, one in enumerate(labels)]
    write(path, frames)
    coco = load(path)
    assert sorted(coco.imgs) == list(range(len(labels)))
    for frame, one in zip(frames, labels, strict=True):
        image = coco.imgs[frame.frame.index]
        assert (image["height"], image["width"]) == one.shape
        again = np.zeros_like(one)
        lesions = {}
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            again[coco.annToMask(annotation) == 1] = annotation["category_id"]
            (category,) = coco.loadCats(annotation["category_id"])
            box = dict(zip(("x", "y", "width", "height"), annotation["bbox"], strict=True))
            lesions[category["name"]] = annotation["area"], box
        assert np.array_equal(again, one)
        assert lesions == {known["label"]: (known["pixels"], known["box"]) for known in row(frame)["lesions"]}


def test_what_is_said_of_images_and_classes(tmp_path: Path) -> None:
    labels = np.zeros((48, 64), np.uint8)
    labels[10:20, 30:35] = 2
    path = tmp_path / "masks.json"
    write(path, [shown(4, labels), shown(5), shown(6, np.zeros_like(labels))])
    said = json.loads(path.read_text())
    assert said["info"] == FACTS
    assert [(category["id"], category["name"]) for category in said["categories"]] == [*enumerate(CLASSES, start=1)]
    image = {"id": 4, "width": 64, "height": 48, "frame_index": 4, "pts": 12, "time_s": 0.48}
    assert said["images"] == [image, image | {"id": 6, "frame_index": 6, "pts": 18, "time_s": 0.72}]
    (annotation,) = said["annotations"]
    assert annotation["bbox"] == [30, 10, 5, 10]
    assert (annotation["id"], annotation["image_id"], annotation["category_id"]) == (14, 4, 2)
    assert (annotation["area"], annotation["iscrowd"]) == (50, 0)


@settings(max_examples=15, deadline=None)
@given(cuts=st.sets(st.integers(0, 40), max_size=4), seed=st.integers(0, 9))
def test_parts_joined_are_the_file_written_at_once(
    tmp_path_factory: pytest.TempPathFactory, cuts: set[int], seed: int
) -> None:
    folder, frames = tmp_path_factory.mktemp("coco"), some_frames(40, seed)
    bounds = [0, *sorted(cuts), 40]
    parts = [folder / f"{i}.json" for i in range(len(bounds) - 1)]
    for part, first, last in zip(parts, bounds, bounds[1:], strict=False):
        write(part, frames[first:last])
    concatenate(parts, folder / "joined.json")
    assert (folder / "joined.json").read_bytes() == write(folder / "all.json", frames)
    coco = load(folder / "joined.json")
    assert len(coco.anns) == sum(len(frame.segmentation.boxes) for frame in frames if frame.segmentation)
    assert sorted(folder.glob(".*")) == []


def test_parts_that_cannot_be_joined_are_named(tmp_path: Path) -> None:
    good, other, cut, absent = (tmp_path / f"{name}.json" for name in ("good", "other", "cut", "absent"))
    whole = write(good, some_frames(5))
    with Coco(other, CLASSES[:2], FACTS) as sink:
        sink.write(shown())
    cut.write_bytes(whole[:-30])
    for part, message in [
        (other, f"cannot join {good} and {other}: they were made with different settings"),
        (cut, f"cannot read {cut}: it is not whole"),
        (absent, f"cannot read {absent}: no such file or directory"),
    ]:
        with pytest.raises((SinkError, SourceError)) as caught:
            concatenate([good, part], tmp_path / "joined.json")
        assert str(caught.value) == message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.json", "good.json", "other.json"]


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "masks.json"
    sink = Coco(target, CLASSES, FACTS)
    sink.write(shown(0, np.ones((4, 4), np.uint8)))
    assert not target.exists()
    sink.abort()
    sink.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    target = tmp_path / "masks.json"
    partial_path(target).symlink_to("/dev/full")
    with pytest.raises(SinkError, match=r"cannot write .*masks\.json: the disk is full"):
        write(target, some_frames(300))
    with pytest.raises(SinkError, match=r"cannot write .*absent/masks\.json: no such file or directory"):
        Coco(tmp_path / "absent" / "masks.json", CLASSES, FACTS)
    assert list(tmp_path.iterdir()) == []
