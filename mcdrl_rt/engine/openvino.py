"""OpenVINO: the engine of machines without an NVIDIA GPU, and the embedded default.

Neither torch nor open_clip is imported here: a built engine starts in well under a second.
"""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError
from mcdrl_rt.types import ModelSpec, UInt8Array

PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": None}  # int8: what is not quantised, as is fastest
_RESULTS = ("score", "label", "confounders", "selected")


@functools.cache
def core() -> ov.Core:
    """OpenVINO's entry, the only one there is, and never released.

    Its CPU plugin gives the thread that loads it a stack for signals, and frees that when it is unloaded, on whichever
    thread: the next Ctrl-C would end the process with a segmentation fault (seen: 2026.4).
    """
    return ov.Core()


class OpenVinoEngine:
    """A model compiled for an OpenVINO device.

    Args:
        path: an OpenVINO IR (``.xml``) or an ONNX file without local functions.
        spec: the model's specification.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the processor computes in it.
        device: an OpenVINO device name.
        threads: CPU threads; 0 leaves it to OpenVINO.

    Raises:
        EngineError: no such device, or the file does not compile on it.
    """

    max_batch = 1  # the batch is part of the file, and two cores are busy with one frame

    def __init__(
        self, path: Path, spec: ModelSpec, precision: str = "auto", device: str = "CPU", threads: int = 0
    ) -> None:
        self.spec = spec
        precision = resolve_precision(precision, device)
        hint = PRECISIONS[precision] or PRECISIONS[resolve_precision("auto", device)]
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
        if threads and device == "CPU":
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core().read_model(path)
            results = [model.output(name) for name in _RESULTS]  # logits are for referees, not for running
            model = _ties_to_lower_index(ov.Model(results, model.get_parameters(), spec.name))
            self._request = core().compile_model(model, device, options).create_infer_request()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO cannot run {path.name} on {device}: {_last_line(error)}") from error
        self.name = f"openvino {precision} {device}"
        self._turn = threading.Lock()

    def infer(self, frames: UInt8Array) -> RawOutput:
        """See ``Engine.infer``. Threads wait for one another: one frame keeps all cores busy."""
        with self._turn:
            try:
                results = self._request.infer({0: np.ascontiguousarray(frames)}, share_inputs=True)
            except RuntimeError as error:
                raise EngineError(f"OpenVINO failed on a frame: {_last_line(error)}") from error
            return RawOutput(*(np.array(results[i]) for i in range(len(_RESULTS))))


def resolve_precision(precision: str, device: str = "CPU") -> str:
    """``auto`` as the fastest precision the device computes in; others are checked and passed on.

    Raises:
        EngineError: an unknown precision, or no such device.
    """
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"OpenVINO engines come in {', '.join(PRECISIONS)}, not {precision!r}")
    try:
        capable = core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        have = ", ".join(core().available_devices)
        raise EngineError(f"OpenVINO has no device {device!r} here; it has {have}") from error
    if precision == "auto":
        return next((name for name in ("bf16", "fp16") if name.upper() in capable), "fp32")
    if precision in ("bf16", "fp16") and precision.upper() not in capable:
        raise EngineError(f"{device} does not compute in {precision}; it has {', '.join(sorted(capable))}")
    return precision


def convert(onnx: bytes, path: Path) -> ov.Model:
    """An ONNX file without local functions as an OpenVINO model; ``path`` is where it may be put meanwhile.

    Raises:
        EngineError: OpenVINO cannot take it.
        OSError: ``path`` cannot be written.
    """
    path.write_bytes(onnx)
    try:
        return core().read_model(path)  # not convert_model, which reports every use to its makers
    except RuntimeError as error:
        raise EngineError(f"OpenVINO {ov.__version__} cannot convert this model: {_last_line(error)}") from error


def save(model: ov.Model, path: Path) -> None:
    """Write ``path`` (an ``.xml``) and its ``.bin``, weights in float32.

    Raises:
        OSError: they cannot be written.
    """
    try:
        ov.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # what OpenVINO makes of a full disk
        raise OSError(_last_line(error)) from error


def _ties_to_lower_index(model: ov.Model) -> ov.Model:
    """ONNX's TopK gives ties to the lower index, and so does MTRS; OpenVINO's reader drops that (seen: 2026.4).

    Its own stable TopK compares neighbours in turn: nothing among a few classes, but 3 % of a frame among its tokens.
    """
    for node in model.get_ops():
        if node.get_type_name() == "TopK":
            node.set_attribute("stable", True)
            if node.get_attributes()["axis"] in (-1, len(node.get_output_shape(0)) - 1):
                _by_counting(node)
    return model


def _by_counting(node: ov.Node) -> None:
    """Let every score of a row count those in front of it, all at once, and order these places: no two are the same."""
    scores = node.input_value(0)
    count = scores.get_shape()[-1]
    one, other = (op.unsqueeze(scores, op.constant([axis])) for axis in (-1, -2))
    earlier = op.constant(np.tri(count, k=-1, dtype=np.bool_))  # (T, T), which of two that are alike
    ahead = op.logical_or(op.greater(other, one), op.logical_and(op.equal(other, one), earlier))
    place = op.reduce_sum(op.convert(ahead, "i32"), op.constant([-1]))
    ordered = op.topk(place, node.input_value(1), -1, "min", "value", node.get_output_element_type(1).get_type_name())
    for target in node.output(1).get_target_inputs():
        target.replace_source_output(ordered.output(1))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
