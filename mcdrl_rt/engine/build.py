"""Turn a checkpoint into an engine for this machine: fold, export, convert, check against the reference.

An OpenVINO engine is three files of one name: ``X.xml`` and ``X.bin`` (the IR, float32 weights, compiled to the
precision wanted when loaded) and ``X.json``, the sidecar: specification, versions, hash of the checkpoint, parity.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import platformdirs

from mcdrl_rt.engine.openvino import OpenVinoEngine, resolve_precision
from mcdrl_rt.errors import EngineError
from mcdrl_rt.types import ModelSpec, UInt8Array
from mcdrl_rt.version import __version__

FORMAT = "mcdrl-rt engine 1"
MAX_FLIPS = {"fp32": 0.005, "bf16": 0.01}  # share of labels that may differ from float32 torch
_log = logging.getLogger("mcdrl_rt")


def build_openvino(checkpoint: Path, output: Path, precision: str = "auto", device: str = "CPU") -> dict[str, Any]:
    """Build an engine; ``output`` and its two companions appear whole or not at all.

    Args:
        checkpoint: a ``.safetensors`` checkpoint.
        output: the engine's ``.xml``; its folder must exist.
        precision: the one parity is measured in.
        device: the OpenVINO device it is measured on.

    Returns:
        The sidecar's content.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        EngineError: the export or conversion failed, ``output`` cannot be written, or the engine's labels are too far
            from the reference.
    """
    # heavy imports, and only building needs them: running a built engine imports neither torch nor open_clip
    from mcdrl_rt.engine.onnx import export_onnx, inlined
    from mcdrl_rt.engine.torch import TorchEngine
    from mcdrl_rt.model.checkpoint import load_checkpoint
    from mcdrl_rt.model.folded import FoldedMCDRL

    if output.suffix != ".xml" or output.is_dir():
        raise EngineError(f"an OpenVINO engine is an .xml file, not {str(output)!r}")
    precision = resolve_precision(precision, device)
    folded = FoldedMCDRL(load_checkpoint(checkpoint))
    _log.info("building the engine of %s for this machine, once (half a minute at most) …", checkpoint.stem)
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.stem}.", dir=output.parent))
        partial = folder / output.name
        model = _converted(inlined(export_onnx(folded)), folder / "model.onnx")
        _save(model, partial)
        engine = OpenVinoEngine(partial, folded.spec, precision, device)
        sidecar = _sidecar(checkpoint, folded.spec, _parity(engine, TorchEngine(folded), precision), precision)
        sidecar["sha256"] = _hashes(partial)
        partial.with_suffix(".json").write_text(json.dumps(sidecar, indent=1, sort_keys=True))
        for suffix in (".bin", ".json", ".xml"):  # the .xml last: with it, the engine exists
            partial.with_suffix(suffix).replace(output.with_suffix(suffix))
    except OSError as error:
        reason = f"{str(error.strerror or error).lower()}; make room there, or choose another folder"
        raise EngineError(f"cannot write an engine to {output.parent}: {reason}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return sidecar


def read_sidecar(engine: Path) -> dict[str, Any]:
    """What was recorded when ``engine`` (an ``.xml``) was built.

    Raises:
        EngineError: the engine or its sidecar is missing, not ours, or not as it was built.
    """
    if not engine.is_file():
        raise EngineError(f"no engine at {engine}; make one with 'mcdrl-rt build'")
    try:
        sidecar = json.loads(engine.with_suffix(".json").read_text())
        ours = sidecar["format"] == FORMAT and {"spec", "precision", "sha256"} <= sidecar.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise EngineError(f"{engine} has no sidecar of mcdrl-rt beside it; rebuild it with 'mcdrl-rt build'")
    if not engine.with_suffix(".bin").is_file() or sidecar["sha256"] != _hashes(engine):
        raise EngineError(f"{engine} or its .bin is not what was built; rebuild it with 'mcdrl-rt build'")
    return dict(sidecar)


def cached_engine(checkpoint: Path, precision: str = "auto") -> tuple[Path, dict[str, Any]]:
    """A checkpoint's engine for this machine and its sidecar, built and checked in ``precision`` the first time.

    The cache is the user's (``MCDRL_CACHE``, or the platform's cache folder); its key is the checkpoint's content and
    the versions involved, and the precision (a home may be shared between machines). A damaged entry is built again.
    """
    precision = resolve_precision(precision)
    key = hashlib.sha256(f"{file_hash(checkpoint)} {_versions()} {precision}".encode()).hexdigest()[:16]
    root = Path(os.environ.get("MCDRL_CACHE") or platformdirs.user_cache_dir("mcdrl-rt")) / "engines"
    engine = root / key / f"{checkpoint.stem}.xml"
    with contextlib.suppress(EngineError):  # none yet, or a damaged one
        return engine, read_sidecar(engine)
    try:
        engine.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EngineError(f"cannot write the engine cache {root}: {error.strerror}; set MCDRL_CACHE") from error
    try:
        return engine, build_openvino(checkpoint, engine, precision)
    finally:
        with contextlib.suppress(OSError):  # it holds an engine, unless building one failed
            engine.parent.rmdir()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        EngineError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(f"cannot read {path}: {error.strerror}") from error


def _hashes(engine: Path) -> dict[str, str]:
    """SHA-256 of an engine's two files."""
    return {suffix: file_hash(engine.with_suffix(suffix)) for suffix in (".xml", ".bin")}


def _converted(proto: Any, path: Path) -> ov.Model:
    path.write_bytes(proto.SerializeToString())
    try:
        return ov.convert_model(path)
    except Exception as error:  # the converter's errors have no common base but this
        reason = str(error).strip().splitlines()[-1:]
        raise EngineError(f"OpenVINO {ov.__version__} cannot convert this model: {' '.join(reason)}") from error


def _save(model: ov.Model, path: Path) -> None:
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # what OpenVINO makes of a full disk
        raise OSError(str(error).strip().splitlines()[-1]) from error


def _versions() -> dict[str, str]:
    return {"mcdrl_rt": __version__, "openvino": ov.__version__}


def _sidecar(checkpoint: Path, spec: ModelSpec, parity: dict[str, Any], precision: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "runtime": "openvino",
        "precision": precision,
        "spec": json.loads(spec.to_json()),
        "checkpoint": {"name": checkpoint.name, "sha256": file_hash(checkpoint)},
        "versions": _versions(),
        "parity": parity,
    }


def _parity(engine: OpenVinoEngine, reference: Any, precision: str) -> dict[str, Any]:
    from mcdrl_rt.engine.parity import compare

    parity = compare(engine, reference, _probe_frames(engine.spec.input_size))
    if parity.label_flips > MAX_FLIPS[precision]:
        advice = "--engine torch" if precision == "fp32" else "--precision fp32"
        raise EngineError(
            f"the {precision} engine of {engine.spec.name} disagrees with the reference on {parity.label_flips:.2%} of "
            f"labels (at most {MAX_FLIPS[precision]:.1%}); use {advice}"
        )
    return dataclasses.asdict(parity)


def _probe_frames(size: tuple[int, int], count: int = 10) -> Iterator[UInt8Array]:
    """Synthetic endoscopy, two frames of every imaging site: there may be no real frame on the user's machine."""
    import cv2

    from mcdrl_rt.video.phantom import SITES, Phantom

    for i in range(count):
        phantom = Phantom((288, 352), site=SITES[i % len(SITES)], seed=i)
        pixels = phantom.render(10 * i).pixels
        yield np.asarray(cv2.resize(pixels, (size[1], size[0]), interpolation=cv2.INTER_AREA), dtype=np.uint8)
