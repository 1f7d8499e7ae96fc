"""What engine is wanted: runtime, precision, device, batch; and what is refused before any work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcdrl_rt.engine import sidecar
from mcdrl_rt.engine.gpu import gpus
from mcdrl_rt.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Order:
    """What engine is wanted.

    Args:
        runtime: one of ``sidecar.FILES``.
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8``, or ``auto``: what the device computes in.
        device: ``auto``, or a device name of the runtime.
        batch: frames it can take at a time, least and most; a runtime without such profiles takes the least.
        frames: the user's own pictures or videos to calibrate with and be checked on; None for synthetic ones.
        route: how a TensorRT plan is made: ``onnx`` or ``torch-tensorrt``.
    """

    runtime: str = "openvino"
    precision: str = "auto"
    device: str = "auto"
    batch: tuple[int, int] = (1, 1)
    frames: Path | None = None
    route: str = "onnx"

    def command(self, checkpoint: Path) -> dict[str, Any]:
        """Options of the command that asks for this."""
        asked = {"model": str(checkpoint.resolve()), "runtime": self.runtime}
        if self.batch != (1, 1):
            asked["batch"] = "-".join(map(str, self.batch))
        if self.frames is not None:
            asked["frames"] = str(self.frames.resolve())
        plain = Order()
        for name in ("precision", "device", "route"):
            if getattr(self, name) not in (getattr(plain, name), ""):
                asked[name] = getattr(self, name)
        return asked


def resolved(order: Order) -> Order:
    """The order with nothing left to ``auto``; what cannot be had is refused before any work.

    Raises:
        EngineError: no such runtime, or one that lacks the device or precision.
    """
    if order.runtime not in sidecar.FILES:
        raise EngineError(f"no runtime {order.runtime!r}; choose {', '.join(sidecar.FILES)}")
    if order.route != "onnx" and order.runtime != "tensorrt":
        raise EngineError(f"--route is for TensorRT; {order.runtime} engines have one way")
    if order.runtime == "openvino":
        from mcdrl_rt.engine.openvino import resolve_precision

        device = "CPU" if order.device == "auto" else order.device.upper()
        order = dataclasses.replace(order, device=device, precision=resolve_precision(order.precision, device))
        _check_single(order)
        if order.precision == "int8" and order.frames is None:
            how = "mcdrl-rt build --precision int8 --frames FOLDER --output engine.xml, then --model engine.xml"
            raise EngineError(f"an int8 engine is calibrated on real pictures or videos: {how}")
    elif order.runtime in ("tensorrt", "torch"):
        order = _resolved_for_torch(order)
    else:
        if order.device not in ("auto", ""):  # the latter once it is resolved
            raise EngineError("--device is for engines; whoever runs an ONNX file chooses what on")
        precision = "fp32" if order.precision == "auto" else order.precision
        order = dataclasses.replace(order, device="", precision=precision)
        if order.precision not in ("fp32", "fp16"):
            raise EngineError(f"ONNX files come in fp32 and fp16, not {order.precision!r}")
    return order


def _check_single(order: Order) -> None:
    if order.batch != (1, 1):
        raise EngineError(f"an engine for {order.runtime} takes one frame at a time; TensorRT and .onnx take --batch")


def _resolved_for_torch(order: Order) -> Order:
    device = order.device.lower()
    gpu = order.runtime == "tensorrt" or device.startswith("cuda") or (device == "auto" and bool(gpus()))
    device = device if device != "auto" else "cuda" if gpu else "cpu"
    precision = order.precision if order.precision != "auto" else "fp16" if gpu else "fp32"
    if precision not in ("fp32", "fp16"):
        raise EngineError(f"{order.runtime} engines come in fp32 and fp16, not {precision!r}")
    if order.runtime == "tensorrt" and not device.startswith("cuda"):
        raise EngineError(f"TensorRT runs on cuda or cuda:N, not on {order.device!r}")
    if order.route not in ("onnx", "torch-tensorrt"):
        raise EngineError(f"a TensorRT plan is made by --route onnx or torch-tensorrt, not {order.route!r}")
    if gpu:
        sidecar.cuda_ordinal(device)
    if order.runtime == "torch":
        _check_single(order)
    return dataclasses.replace(order, device=device, precision=precision)
