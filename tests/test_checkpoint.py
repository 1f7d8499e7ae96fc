"""Checkpoint: what is saved comes back, and what is no checkpoint is refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mcdrl_rt.errors import CheckpointError
from mcdrl_rt.model.checkpoint import load_checkpoint, read_spec, save_checkpoint
from mcdrl_rt.model.mcdrl import MCDRL


def test_float32_round_trip_is_exact(small_model: MCDRL, tmp_path: Path) -> None:
    save_checkpoint(small_model, tmp_path / "m.safetensors", torch.float32)
    loaded = load_checkpoint(tmp_path / "m.safetensors").state_dict()
    saved = small_model.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_float16_round_trip_is_rounding_and_half_the_size(
    small_model: MCDRL, small_checkpoint: Path, tmp_path: Path
) -> None:
    loaded, saved = load_checkpoint(small_checkpoint).state_dict(), small_model.state_dict()
    for name, value in saved.items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded[name], expected), name
    save_checkpoint(small_model, tmp_path / "m.safetensors", torch.float32)
    assert small_checkpoint.stat().st_size < 0.52 * (tmp_path / "m.safetensors").stat().st_size


def test_value_too_large_for_float16_is_kept(small_model: MCDRL, tmp_path: Path) -> None:
    model = copy.deepcopy(small_model)
    large = model.head.stem[0][1].running_var
    large[0] = 89_084.0  # seen in training: features far from unit variance
    save_checkpoint(model, tmp_path / "m.safetensors")
    assert torch.equal(load_checkpoint(tmp_path / "m.safetensors").head.stem[0][1].running_var, large)


def test_loaded_model_is_ready_to_run(small_checkpoint: Path) -> None:
    model = load_checkpoint(small_checkpoint)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_specification_travels_unchanged(small_model: MCDRL, small_checkpoint: Path, tmp_path: Path) -> None:
    assert read_spec(small_checkpoint) == dataclasses.replace(small_model.spec, dtype="float16")
    again = tmp_path / "again.safetensors"
    save_checkpoint(load_checkpoint(small_checkpoint), again)
    assert read_spec(again) == read_spec(small_checkpoint)


def test_text_tower_stays_behind(small_checkpoint: Path) -> None:
    with safe_open(small_checkpoint, "pt") as file:
        names = set(file.keys())
    assert {"text_classes", "text_dictionary", "text_targets"} <= names
    assert {name.split(".")[0] for name in names if "." in name} == {"encoder", "network", "head"}


def test_saving_replaces_and_leaves_nothing_else(small_model: MCDRL, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("old")
    save_checkpoint(small_model, path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert read_spec(path).name == "small"


def missing(path: Path, good: Path) -> None:
    pass


def a_folder(path: Path, good: Path) -> None:
    path.mkdir()


def text(path: Path, good: Path) -> None:
    path.write_text("not a checkpoint\n" * 50)


def empty(path: Path, good: Path) -> None:
    path.touch()


def truncated(path: Path, good: Path) -> None:
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def foreign(path: Path, good: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def without_spec(path: Path, good: Path) -> None:
    save_file(load_file(good), path, metadata={"format": "mcdrl-rt checkpoint 1"})


def broken_spec(path: Path, good: Path) -> None:
    save_file(load_file(good), path, metadata={"format": "mcdrl-rt checkpoint 1", "spec": "[]"})


def without_a_head(path: Path, good: Path) -> None:
    spec = dataclasses.replace(read_spec(good), head="tail")
    save_file(load_file(good), path, metadata={"format": "mcdrl-rt checkpoint 1", "spec": spec.to_json()})


def nested_spec(path: Path, good: Path) -> None:
    save_file(load_file(good), path, metadata={"format": "mcdrl-rt checkpoint 1", "spec": "[" * 100_000})


def without_a_tensor(path: Path, good: Path) -> None:
    rewrite(path, good, lambda tensors: tensors.pop("text_classes"))


def wrong_shape(path: Path, good: Path) -> None:
    rewrite(path, good, lambda tensors: tensors.update(text_classes=torch.zeros(2, 256)))


def one_too_many(path: Path, good: Path) -> None:
    rewrite(path, good, lambda tensors: tensors.update(more=torch.zeros(1)))


def not_a_number(path: Path, good: Path) -> None:
    rewrite(path, good, lambda tensors: tensors["text_classes"][0].fill_(math.nan))


def rewrite(path: Path, good: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    with safe_open(good, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(good)
    change(tensors)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (missing, "no checkpoint at"),
        (a_folder, "no checkpoint at"),
        (text, "not a safetensors file or is cut off"),
        (empty, "not a safetensors file or is cut off"),
        (truncated, "not a safetensors file or is cut off"),
        (foreign, "not a checkpoint of mcdrl-rt"),
        (without_spec, "no usable model specification"),
        (broken_spec, "no usable model specification"),
        (nested_spec, "no usable model specification"),
        (without_a_head, "no usable model specification .*no head 'tail'"),
        (without_a_tensor, "of [0-9]+ tensors 1 are missing or of another shape, and 0 have no place"),
        (wrong_shape, "of [0-9]+ tensors 1 are missing or of another shape, and 0 have no place"),
        (one_too_many, "0 are missing or of another shape, and 1 have no place"),
        (not_a_number, "infinite or not numbers"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(
    spoil: Callable[[Path, Path], None], complaint: str, small_checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.safetensors"
    spoil(path, small_checkpoint)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(small_model: MCDRL, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").mkdir()
    (tmp_path / "m.safetensors" / "kept").touch()
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        save_checkpoint(small_model, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        save_checkpoint(small_model, tmp_path / "gone" / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
