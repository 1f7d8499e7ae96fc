"""Turn a checkpoint into an engine for this machine: fold, export, compile, check against the reference, sign.

What comes out is the runtime's files under one name and the sidecar beside them (``mcdrl_rt.engine.sidecar``); they
appear when they are whole. ``mcdrl_rt.engine.cache`` keeps one for every checkpoint that is simply run.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcdrl_rt.engine import sidecar
from mcdrl_rt.engine.base import Engine
from mcdrl_rt.engine.frames import real_frames, synthetic_frames
from mcdrl_rt.engine.gpu import gpus
from mcdrl_rt.engine.order import Order, resolved
from mcdrl_rt.engine.place import place_of
from mcdrl_rt.errors import EngineError
from mcdrl_rt.types import ModelSpec, UInt8Array

if TYPE_CHECKING:  # heavy, and only building needs it: running a built engine imports neither torch nor open_clip
    from mcdrl_rt.engine.parity import Parity
    from mcdrl_rt.model.folded import FoldedMCDRL

SYNTHETIC_IOU = 0.9  # least overlap of masks on synthetic frames, whose lesions are a few hundred pixels
_TIMED_RUNS = 20
Stage = Callable[[str], None]  # told what is being done


@dataclass(frozen=True)
class Gate:
    """How far a built engine may be from float32 torch.

    Args:
        flips: share of pixels whose label may differ.
        mask_iou: least intersection over union of the lesion masks, all frames pooled.
    """

    flips: float
    mask_iou: float


READOUT_OFF = 0.3  # most of the confounders' weight that may be on others
GATES = {
    "fp32": Gate(0.005, 0.99),
    "fp16": Gate(0.005, 0.99),
    "bf16": Gate(0.01, 0.95),  # three digits: pixels on a lesion's edge fall either way
    "int8": Gate(0.01, 0.92),
}


def build_engine(checkpoint: Path, output: Path, order: Order, on_stage: Stage | None = None) -> dict[str, Any]:
    """Build an engine; returns its sidecar's content.

    Args:
        checkpoint: a ``.safetensors`` checkpoint.
        output: the engine's file, with its runtime's suffix; its folder must exist.
        order: what is wanted.
        on_stage: told what is being done: building can take minutes.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        EngineError: the export or compilation failed, ``output`` cannot be written or something else than an engine
            would be replaced with it, or the engine's labels are too far from the reference.
        SourceError: there is no picture in ``order.frames``.
    """
    order = resolved(order)
    stage = on_stage or (lambda _: None)
    sidecar.engine_key()  # none can be made: said now, not after minutes
    from mcdrl_rt.model.checkpoint import load_checkpoint
    from mcdrl_rt.model.folded import FoldedMCDRL

    with place_of(output, order.runtime) as partial:
        stage("reading the checkpoint")
        folded = FoldedMCDRL(load_checkpoint(checkpoint))
        size = folded.spec.input_size
        if order.frames:
            stage("reading frames")
        frames = real_frames(order.frames, size) if order.frames else synthetic_frames(size)
        engine = _COMPILE[order.runtime](folded, partial, order, frames, stage)
        stage("checking it against the reference")
        real = order.frames is not None
        checked = check(engine, folded, frames, order.precision, real, batches=order.batch) if engine else {}
        return sidecar.write_sidecar(partial, _describe(checkpoint, folded, order) | checked)


def _openvino(
    folded: FoldedMCDRL, path: Path, order: Order, frames: Sequence[UInt8Array], stage: Stage
) -> Engine | None:
    from mcdrl_rt.engine.onnx import export_onnx, inlined, serialized
    from mcdrl_rt.engine.openvino import OpenVinoEngine, convert, save

    stage("exporting")
    proto = inlined(export_onnx(folded, order.batch[0]))
    stage("compiling")
    model = convert(serialized(proto), path.with_suffix(".onnx"))
    if order.precision == "int8":
        from mcdrl_rt.engine.quantize import quantize

        stage("quantising: trying layers, some minutes")
        model = quantize(model, frames)
    save(model, path)
    return OpenVinoEngine(path, folded.spec, order.precision, order.device)


def _tensorrt(
    folded: FoldedMCDRL, path: Path, order: Order, frames: Sequence[UInt8Array], stage: Stage
) -> Engine | None:
    import torch

    from mcdrl_rt.engine.cache import timing_cache
    from mcdrl_rt.engine.tensorrt import TensorRtEngine, build_plan
    from mcdrl_rt.engine.tensorrt_api import require_tensorrt

    require_tensorrt()
    half, plugin = order.precision == "fp16", sidecar.native_library("tensorrt")
    plugin = plugin if half else None  # it computes in no other
    ordinal = sidecar.cuda_ordinal(order.device)
    if ordinal >= len(gpus()):
        raise EngineError(f"there is no GPU {ordinal} here for {order.device}: {len(gpus())} are; see mcdrl-rt doctor")
    least, most = order.batch
    batches = (least, least, most)
    if order.route == "torch-tensorrt":
        from mcdrl_rt.engine.torch_tensorrt import build_plan_torch_tensorrt

        if plugin is None:
            raise EngineError("--route torch-tensorrt needs --precision fp16 and the plugin (MCDRL_TENSORRT_PLUGIN)")
        with torch.cuda.device(ordinal):
            build_plan_torch_tensorrt(folded, path, plugin=plugin, batches=batches, on_stage=stage)
    else:
        from mcdrl_rt.engine.onnx import export_onnx

        stage("exporting")
        proto = export_onnx(folded, _fixed_batch(order), half)
        with torch.cuda.device(ordinal):
            build_plan(proto, path, plugin=plugin, batches=batches, timing_cache=timing_cache(), on_stage=stage)
    return TensorRtEngine(path, folded.spec, precision=order.precision, plugin=plugin, device=order.device)


def _torch(folded: FoldedMCDRL, path: Path, order: Order, frames: Sequence[UInt8Array], stage: Stage) -> Engine | None:
    from mcdrl_rt.engine.aoti import AotiEngine, build_aoti
    from mcdrl_rt.model.half import to_half

    stage("compiling")
    model = to_half(folded) if order.precision == "fp16" else copy.deepcopy(folded)
    build_aoti(model, path, order.device, order.batch[0])
    return AotiEngine(path, order.device)


def _onnx(folded: FoldedMCDRL, path: Path, order: Order, frames: Sequence[UInt8Array], stage: Stage) -> Engine | None:
    from mcdrl_rt.engine.onnx import OnnxRuntimeEngine, export_onnx, serialized

    stage("exporting")
    batch = _fixed_batch(order)
    path.write_bytes(serialized(export_onnx(folded, batch, order.precision == "fp16")))
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return OnnxRuntimeEngine(path, folded.spec, batch)


def _fixed_batch(order: Order) -> int | None:
    """The one number of frames that an ONNX file takes at a time; None where it is to take several: then any."""
    least, most = order.batch
    return least if least == most else None


_COMPILE: dict[str, Callable[..., Engine | None]] = {
    "openvino": _openvino,
    "tensorrt": _tensorrt,
    "torch": _torch,
    "onnx": _onnx,
}


def check(
    engine: Engine,
    folded: FoldedMCDRL,
    frames: Sequence[UInt8Array],
    precision: str,
    real: bool,
    device: str = "cpu",
    batches: tuple[int, int] = (1, 1),
) -> dict[str, Any]:
    """Hold an engine to float32 torch, and time it: its ``parity`` and ``latency_ms``.

    Args:
        engine: to be checked.
        folded: the model it is of.
        frames: at the model's input size.
        precision: whose gate it has to pass.
        real: whether the frames are; synthetic lesions are too small for their overlap to mean much.
        device: torch's, for the reference.
        batches: frames at a time, the least and the most that are wanted; tried are its ``max_batch`` at most.

    Raises:
        EngineError: it does not pass.
    """
    from mcdrl_rt.engine.parity import compare
    from mcdrl_rt.engine.torch import TorchEngine

    reference, gate = TorchEngine(folded, device), GATES[precision]
    least, most = batches[0], min(batches[1], engine.max_batch)
    parities = [compare(engine, reference, frames, least)]
    if most > least:
        enough = [frames[i % len(frames)] for i in range(max(most, len(frames)))]
        parities.append(compare(engine, reference, enough, most))
    for parity in parities:
        _refuse_far(parity, gate, engine.spec, precision, real)
    return {"parity": dataclasses.asdict(parities[0]), "latency_ms": _latency_ms(engine, frames[0])}


def _refuse_far(parity: Parity, gate: Gate, spec: ModelSpec, precision: str, real: bool) -> None:
    least = gate.mask_iou if real else min(gate.mask_iou, SYNTHETIC_IOU)
    advice = "stream and process run the model with --engine torch" if precision == "fp32" else "use --precision fp32"
    if parity.label_flips > gate.flips or parity.mask_iou < least:
        raise EngineError(
            f"the {precision} engine of {spec.name} is too far from float32: {parity.label_flips:.2%} of labels differ "
            f"(at most {gate.flips:.1%}), mask IoU {parity.mask_iou:.3f} (at least {least:.2f}), over {parity.frames} "
            f"frames; {advice}"
        )
    chance = spec.alpha**2 + (1 - spec.alpha) ** 2  # that a cell is selected by both, or by neither
    alike = (1 + chance) / 2
    if not (parity.selected >= alike and parity.readout <= READOUT_OFF):  # which are false of what is no number
        raise EngineError(
            f"the {precision} engine of {spec.name} is too far from float32: {parity.selected:.1%} of the cells are "
            f"selected alike (at least {alike:.1%}), {parity.readout:.0%} of the confounders' weight is on others (at "
            f"most {READOUT_OFF:.0%}); {advice}"
        )


def _latency_ms(engine: Engine, frame: UInt8Array) -> float:
    """Median time of one frame."""
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        engine.infer(frame[None])
        times.append(time.perf_counter() - started)
    return round(sorted(times)[_TIMED_RUNS // 2] * 1e3, 3)


def _describe(checkpoint: Path, folded: FoldedMCDRL, order: Order) -> dict[str, Any]:
    return {
        "runtime": order.runtime,
        "precision": order.precision,
        "device": order.device,
        "gpu": sidecar.gpu_of(order.runtime, order.device),
        "batch": list(order.batch),
        "frames": "synthetic" if order.frames is None else str(order.frames),
        "spec": json.loads(folded.spec.to_json()),
        "checkpoint": {"name": checkpoint.name, "sha256": sidecar.file_hash(checkpoint)},
        "versions": sidecar.versions(order.runtime),
        "command": order.command(checkpoint),
    }
