"""Which engine runs a model here: the best one this machine has, or the one asked for.

The order is TensorRT, torch on an NVIDIA GPU, OpenVINO, torch on the CPU. One that fails to load is passed over with a
warning that says why; one that was asked for by name is not.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcdrl_rt.engine.base import Engine
from mcdrl_rt.engine.gpu import gpus
from mcdrl_rt.errors import CheckpointError, EngineError, first_line, unreadable
from mcdrl_rt.types import ModelSpec

ENGINES = ("auto", "tensorrt", "openvino", "torch")
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
DEFAULT_CHECKPOINT = Path(__file__).parents[1] / "weights" / "mcdrl-small.safetensors"
_log = logging.getLogger("mcdrl_rt")


def load_engine(
    model: str | Path | None = None, engine: str = "auto", precision: str = "auto", device: str = "auto", skip: int = 0
) -> Engine:
    """An engine ready to run.

    Args:
        model: a checkpoint (``.safetensors``), a built engine (``.plan``, ``.pt2``, ``.xml``), or None for the
            embedded default.
        engine: ``auto`` takes the first that loads, in the module's order; by name, that one or none.
        precision: ``auto``, or one that the engine comes in.
        device: ``auto``, an OpenVINO device (``CPU``, ``GPU``) or a torch one (``cpu``, ``cuda``).
        skip: pass over this many of the runtimes that ``auto`` would try: they failed at work. One is always left.

    Raises:
        EngineError: an unknown engine, or none that can run this model here.
        CheckpointError: the model file cannot be used.
    """
    if engine not in ENGINES:
        raise EngineError(f"no engine {engine!r}; choose {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise EngineError(f"no precision {precision!r}; choose {', '.join(PRECISIONS)}")
    if not isinstance(device, str):
        raise EngineError(f"no device {device!r}; auto takes the best")
    path = Path(model) if model is not None else DEFAULT_CHECKPOINT
    device = device.lower() if device.lower().startswith(("cpu", "cuda")) else device
    if path.suffix != ".safetensors":
        return _from_file(path, engine, precision, device)
    if why := unreadable(path):
        raise CheckpointError(f"no checkpoint at {path}: {why}")
    if engine != "auto":
        return _from_checkpoint(path, engine, precision, device)
    return _first_that_loads(path, precision, device, skip)


def candidates(path: Path, precision: str, device: str) -> Iterator[tuple[str, str]]:
    """Engines worth trying for a checkpoint, best first, each with its device.

    A TensorRT plan takes minutes to make, so one is taken only where it was made before.
    """
    cuda = "cuda" if device == "auto" else device
    if cuda.startswith("cuda") and (gpus() or device != "auto") and precision in ("auto", "fp16", "fp32"):
        if precision != "fp32" and _has_plan(path, device):
            yield "tensorrt", cuda
        yield "torch", cuda
    if device.startswith("cuda"):
        return
    yield "openvino", device
    if device.lower() in ("auto", "cpu") and precision in ("auto", "fp32"):
        yield "torch", "cpu"


def _has_plan(path: Path, device: str) -> bool:
    if importlib.util.find_spec("tensorrt") is None:
        return False
    from mcdrl_rt.engine.cache import find_cached
    from mcdrl_rt.engine.order import Order

    return find_cached(path, Order(runtime="tensorrt", device=device)) is not None


def _first_that_loads(path: Path, precision: str, device: str, skip: int) -> Engine:
    tries = list(candidates(path, precision, device))
    tries = tries[min(skip, len(tries) - 1) :]
    if not tries:
        raise EngineError(f"nothing computes in {precision} on {device}; choose another --precision or --device")
    for (name, where), following in zip(tries, [*tries[1:], None], strict=True):
        try:
            return _from_checkpoint(path, name, precision, where)
        except (EngineError, ImportError, OSError) as error:
            if following is None:
                raise EngineError(f"{name} cannot run here: {first_line(error)}") from error
            other = " ".join(part for part in following if part != "auto")
            _log.warning("%s cannot run here, %s is taken: %s", name, other, first_line(error))
    raise AssertionError("the last candidate returns or raises")


def _from_checkpoint(path: Path, engine: str, precision: str, device: str) -> Engine:
    if engine == "torch":
        return _torch(path, precision, "cuda" if device == "auto" and gpus() else device)
    from mcdrl_rt.engine.cache import cached_engine
    from mcdrl_rt.engine.order import Order

    return _open(*cached_engine(path, Order(runtime=engine, precision=precision, device=device)), precision, device)


def _from_file(path: Path, engine: str, precision: str, device: str) -> Engine:
    from mcdrl_rt.engine.sidecar import read_sidecar, runtime_of

    runtime = runtime_of(path)
    if runtime in (None, "onnx"):
        raise CheckpointError(f"{path} is neither a checkpoint (.safetensors) nor an engine (.plan, .pt2, .xml)")
    if engine not in ("auto", runtime):
        raise EngineError(f"{path} is an engine for {runtime}; the {engine} engine takes the checkpoint")
    return _open(path, read_sidecar(path), precision, device)


def _open(path: Path, sidecar: dict[str, Any], precision: str, device: str) -> Engine:
    """A built engine, in the precision it was checked in unless another is asked for that its file can do, too."""
    from mcdrl_rt.engine.sidecar import gpu_of

    spec, built = ModelSpec.from_json(json.dumps(sidecar["spec"])), sidecar["precision"]
    if precision not in ("auto", built) and (sidecar["runtime"] != "openvino" or "int8" in (precision, built)):
        raise EngineError(f"{path} is an engine in {built}, not {precision}; build one that is")
    precision = built if precision == "auto" else precision
    device = sidecar["device"] if device == "auto" else device
    if (here := gpu_of(sidecar["runtime"], device.lower())) != sidecar["gpu"]:
        there = sidecar["gpu"] or "CPUs"
        raise EngineError(f"{path} was built for {there}, and {device} is {here or 'no GPU'}; build one for it")
    if sidecar["runtime"] == "tensorrt":
        from mcdrl_rt.engine.sidecar import native_library
        from mcdrl_rt.engine.tensorrt import TensorRtEngine

        plugin = native_library("tensorrt") if precision == "fp16" else None
        return TensorRtEngine(path, spec, precision=precision, plugin=plugin, device=device)
    if sidecar["runtime"] == "torch":
        from mcdrl_rt.engine.aoti import AotiEngine

        return AotiEngine(path, device.lower())
    from mcdrl_rt.engine.openvino import OpenVinoEngine

    return OpenVinoEngine(path, spec, precision, device.upper())


def _torch(path: Path, precision: str, device: str) -> Engine:
    """Eager float32, the reference; or on a GPU, where nothing else is asked for, float16 in a CUDA graph if it can."""
    from mcdrl_rt.engine.tensors import find_device
    from mcdrl_rt.engine.torch import TorchEngine

    device = "cpu" if device == "auto" else device.lower()
    fast = device.startswith("cuda") and precision in ("auto", "fp16")
    if not fast and precision not in ("auto", "fp32"):
        raise EngineError(f"the torch engine computes in fp32, and in fp16 on a GPU, not in {precision} on {device}")
    if not fast:
        return TorchEngine.from_checkpoint(path, device)
    find_device(device)  # before all else: no form of the model runs where it is not
    try:
        return _graph(path, device)
    except EngineError as error:
        if precision == "fp16":
            raise
        engine = TorchEngine.from_checkpoint(path, device)
        _log.warning("torch runs in fp32 on %s: %s", device, error)
        return engine


def _graph(path: Path, device: str) -> Engine:
    """The float16 form, held to float32 like every built engine: it loses accuracy silently in some models."""
    from mcdrl_rt.engine.build import check
    from mcdrl_rt.engine.frames import synthetic_frames
    from mcdrl_rt.engine.graph import GraphEngine
    from mcdrl_rt.model.checkpoint import load_checkpoint
    from mcdrl_rt.model.folded import FoldedMCDRL
    from mcdrl_rt.model.fused import fuse
    from mcdrl_rt.model.half import to_half

    folded = FoldedMCDRL(load_checkpoint(path))
    engine = GraphEngine(to_half(fuse(folded)), device)
    check(engine, folded, synthetic_frames(folded.spec.input_size), "fp16", real=False, device=device)
    return engine
