"""Checkpoints: one safetensors file with every weight, every text feature and the ``ModelSpec`` in its metadata.

The text tower is not in it: prompts are baked into features, so a checkpoint needs no tokenizer to run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mcdrl_rt.errors import CheckpointError, SpecError, first_line, unreadable
from mcdrl_rt.model.mcdrl import MCDRL, build_empty
from mcdrl_rt.types import ModelSpec

FORMAT = "mcdrl-rt checkpoint 1"


def save_checkpoint(model: MCDRL, path: Path, dtype: torch.dtype = torch.float16) -> ModelSpec:
    """Write ``model`` to ``path`` (whole or not at all); returns the specification it carries.

    Args:
        model: any ``MCDRL``.
        path: a ``.safetensors`` file; replaced if there.
        dtype: storage type of floating-point tensors; one that holds a value too large for it stays as it is.

    Raises:
        CheckpointError: it cannot be written.
    """
    spec = dataclasses.replace(model.spec, dtype=str(dtype).removeprefix("torch."))
    tensors = {
        name: _stored(value, dtype).contiguous().cpu()
        for name, value in model.state_dict().items()
    }
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_tensors(tensors, partial, {"format": FORMAT, "spec": spec.to_json()})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write the checkpoint {path}: {first_line(error)}") from error
    return spec


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, into a file that others may read as any other of this user's: its own is closed."""
    path.touch()
    mode = path.stat().st_mode
    save_file(tensors, path, metadata=metadata)
    path.chmod(mode)


def _stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not value.is_floating_point() or value.abs().max() > torch.finfo(dtype).max:
        return value
    return value.to(dtype)


def read_spec(path: Path) -> ModelSpec:
    """The specification a checkpoint carries, without its weights.

    Raises:
        CheckpointError: the file is missing, corrupt, or not one of ours.
    """
    with _open(path) as file:
        return _spec(path, file.metadata())


def load_checkpoint(path: Path) -> MCDRL:
    """The model in a checkpoint, float32, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, corrupt, or not one of ours.
    """
    with _open(path) as file:
        spec = _spec(path, file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    try:
        model = build_empty(spec)
    except SpecError as error:
        raise CheckpointError(f"{path} carries no usable model specification ({error})") from error
    expected = model.state_dict()
    wrong = [n for n in expected if n not in tensors or tensors[n].shape != expected[n].shape]
    surplus = tensors.keys() - expected.keys()
    if wrong or surplus:
        raise CheckpointError(
            f"{path} does not hold the weights its specification describes: of {len(expected)} tensors {len(wrong)} "
            f"are missing or of another shape, and {len(surplus)} have no place; export it again"
        )
    if not all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point()):
        raise CheckpointError(f"{path} holds weights that are infinite or not numbers; its training went wrong")
    model.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()})
    return model.eval()


def _open(path: Path) -> safe_open:
    if why := unreadable(path):
        raise CheckpointError(f"no checkpoint at {path}: {why}")
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a safetensors file or is cut off ({error}); get it again") from error


def _spec(path: Path, metadata: dict[str, str] | None) -> ModelSpec:
    metadata = metadata or {}
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint of mcdrl-rt")
    try:
        return ModelSpec.from_json(metadata["spec"])
    except (KeyError, SpecError) as error:
        raise CheckpointError(f"{path} carries no usable model specification ({error})") from error
