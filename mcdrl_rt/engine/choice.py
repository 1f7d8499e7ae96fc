"""Which engine runs a model here: the best one this machine has, or the one asked for."""

from __future__ import annotations

import json
from pathlib import Path

from mcdrl_rt.engine.base import Engine
from mcdrl_rt.errors import CheckpointError, EngineError
from mcdrl_rt.types import ModelSpec

ENGINES = ("auto", "openvino", "torch")
DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "weights" / "mcdrl-small.safetensors"


def load_engine(
    model: str | Path | None = None, engine: str = "auto", precision: str = "auto", device: str = "auto"
) -> Engine:
    """An engine ready to run.

    Args:
        model: a checkpoint (``.safetensors``), a built engine (``.xml``), or None for the embedded default.
        engine: ``auto`` takes OpenVINO, or torch for a CUDA device.
        precision: ``auto``, ``fp32`` or ``bf16``.
        device: ``auto``, an OpenVINO device (``CPU``, ``GPU``) or a torch one (``cpu``, ``cuda``).

    Raises:
        EngineError: an unknown engine, or one that cannot run this model here.
        CheckpointError: the model file cannot be used.
    """
    if engine not in ENGINES:
        raise EngineError(f"no engine {engine!r}; choose {', '.join(ENGINES)}")
    path = Path(model) if model is not None else DEFAULT_CHECKPOINT
    if path.suffix not in (".safetensors", ".xml"):
        raise CheckpointError(f"{path} is neither a checkpoint (.safetensors) nor a built engine (.xml)")
    if engine == "auto":
        engine = "torch" if device.startswith("cuda") else "openvino"
    if engine == "torch":
        return _torch(path, precision, device)
    return _openvino(path, precision, device)


def _torch(path: Path, precision: str, device: str) -> Engine:
    from mcdrl_rt.engine.torch import TorchEngine

    if path.suffix == ".xml":
        raise EngineError(f"{path} is an OpenVINO engine; the torch engine takes the checkpoint")
    if precision not in ("auto", "fp32"):
        raise EngineError(f"the torch engine computes in fp32, not {precision}; use --engine openvino")
    return TorchEngine.from_checkpoint(path, "cpu" if device == "auto" else device.lower())


def _openvino(path: Path, precision: str, device: str) -> Engine:
    from mcdrl_rt.engine.build import cached_engine, read_sidecar
    from mcdrl_rt.engine.openvino import OpenVinoEngine

    if path.suffix == ".safetensors":
        if not path.is_file():
            raise CheckpointError(f"no checkpoint at {path}")
        path, sidecar = cached_engine(path, precision)
    else:
        sidecar = read_sidecar(path)
    spec = ModelSpec.from_json(json.dumps(sidecar["spec"]))
    if precision == "auto":
        precision = sidecar["precision"]
    return OpenVinoEngine(path, spec, precision, "CPU" if device == "auto" else device.upper())
