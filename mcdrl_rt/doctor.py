"""What this machine has for the job, one line each, and what to install for more."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from mcdrl_rt import __version__


@dataclass(frozen=True)
class Finding:
    """One thing looked for: what, whether it is there, and what to know or do."""

    what: str
    present: bool
    detail: str


def examine() -> Iterator[Finding]:
    """Look at everything the package can use; never raises."""
    for look in (_package, _gpu, _torch, _tensorrt, _openvino, _codecs, _devices, _model):
        try:
            yield look()
        except Exception as error:  # a broken driver or library is a finding, not a crash
            yield Finding(look.__name__.strip("_"), False, f"broken: {_first_line(error)}")


def _package() -> Finding:
    return Finding("mcdrl-rt", True, f"{__version__} on Python {platform.python_version()}, {platform.machine()}")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("NVIDIA GPU", False, "none found (no nvidia-smi); the CPU engine is used")
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    lines = answer.stdout.strip().splitlines()
    return Finding("NVIDIA GPU", bool(lines), "; ".join(lines) or "nvidia-smi finds none")


def _torch() -> Finding:
    import torch

    cuda = torch.cuda.is_available()
    return Finding("PyTorch", True, f"{torch.__version__}, {'CUDA ready' if cuda else 'CPU only'}")


def _tensorrt() -> Finding:
    if importlib.util.find_spec("tensorrt") is None:
        return Finding("TensorRT", False, "not installed, and not used by this version yet")
    return Finding("TensorRT", True, f"{importlib.metadata.version('tensorrt')}, not used by this version yet")


def _openvino() -> Finding:
    import openvino as ov

    core = ov.Core()
    devices = [
        f"{name} ({core.get_property(name, 'FULL_DEVICE_NAME')}: "
        f"{' '.join(p for p in core.get_property(name, 'OPTIMIZATION_CAPABILITIES') if p in {'FP32', 'BF16', 'FP16', 'INT8'})})"
        for name in core.available_devices
    ]
    version = ov.__version__.split("-")[0]
    return Finding("OpenVINO", bool(devices), f"{version}, devices: {', '.join(devices) or 'none'}")


def _codecs() -> Finding:
    import av

    wanted = ("libx264", "libvpx-vp9", "ffv1", "h264_nvenc", "hevc_nvenc")
    have = [name for name in wanted if name in av.codecs_available]
    return Finding("codecs", "libx264" in have, f"PyAV {av.__version__}, encoders: {' '.join(have)}")


def _devices() -> Finding:
    from pathlib import Path

    devices = sorted(str(path) for path in Path("/dev").glob("video*"))
    return Finding("capture devices", bool(devices), " ".join(devices) or "none (/dev/video*)")


def _model() -> Finding:
    from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
    from mcdrl_rt.model.checkpoint import read_spec

    spec = read_spec(DEFAULT_CHECKPOINT)
    size = "×".join(map(str, spec.input_size))
    return Finding("default model", True, f"{spec.name}: {spec.encoder}, {size}, classes {', '.join(spec.classes)}")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
