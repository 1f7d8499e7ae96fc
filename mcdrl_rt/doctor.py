"""What this machine has for the job, one line each, and what to install for more."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcdrl_rt.errors import first_line
from mcdrl_rt.version import __version__


@dataclass(frozen=True)
class Finding:
    """One thing looked for: what, whether it is there, and what to know or do."""

    what: str
    present: bool
    detail: str


def examine() -> Iterator[Finding]:
    """Look at everything the package can use; never raises."""
    looks: dict[str, Callable[[], tuple[bool, str]]] = {
        "mcdrl-rt": _package,
        "NVIDIA GPU": _gpu,
        "fused operator": _operator,
        "PyTorch": _torch,
        "TensorRT": _tensorrt,
        "OpenVINO": _openvino,
        "int8": _quantiser,
        "codecs": _codecs,
        "COCO": _coco,
        "capture devices": _devices,
        "default model": _model,
        "engines kept": _kept,
    }
    for what, look in looks.items():
        try:
            yield Finding(what, *look())
        except ModuleNotFoundError as error:
            yield Finding(what, False, f"needs {error.name}, which is not installed; reinstall mcdrl-rt")
        except Exception as error:  # a broken driver or library is a finding, not a crash
            yield Finding(what, False, f"broken: {first_line(error)}")


def _package() -> tuple[bool, str]:
    return True, f"{__version__} on Python {platform.python_version()}, {platform.machine()}"


def _gpu() -> tuple[bool, str]:
    from mcdrl_rt.engine.gpu import gpus

    return bool(gpus()), "; ".join(map(str, gpus())) or "none that CUDA can use; the CPU engine is taken"


def _operator() -> tuple[bool, str]:
    from mcdrl_rt.engine.sidecar import native_library

    parts = {"torch": native_library("torch"), "TensorRT": native_library("tensorrt")}
    have = [f"{name} ({path})" for name, path in parts.items() if path]
    return bool(have), ", ".join(have) or "not built; GPUs run the plain form (engines/README.md says how to build it)"


def _torch() -> tuple[bool, str]:
    import torch

    cuda = torch.cuda.is_available()
    return True, f"{torch.__version__}, {'CUDA ready' if cuda else 'CPU only'}"


def _tensorrt() -> tuple[bool, str]:
    if importlib.util.find_spec("tensorrt") is None:
        return False, "not installed; for NVIDIA GPUs: pip install 'mcdrl-rt[tensorrt]'"
    version = importlib.import_module("tensorrt").__version__
    return True, f"{version}; 'mcdrl-rt build --runtime tensorrt' makes a plan"


def _quantiser() -> tuple[bool, str]:
    if importlib.util.find_spec("nncf") is None:
        return False, "not installed; to build int8 engines: pip install 'mcdrl-rt[int8]'"
    return True, f"NNCF {importlib.metadata.version('nncf')}"


def _openvino() -> tuple[bool, str]:
    from mcdrl_rt.engine.openvino import core

    devices = []
    for name in core().available_devices:
        types = {"FP32", "BF16", "FP16", "INT8"} & set(core().get_property(name, "OPTIMIZATION_CAPABILITIES"))
        devices.append(f"{name} ({core().get_property(name, 'FULL_DEVICE_NAME')}: {' '.join(sorted(types))})")
    return bool(devices), f"{importlib.metadata.version('openvino')}, devices: {', '.join(devices) or 'none'}"


def _codecs() -> tuple[bool, str]:
    import av

    wanted = ("libx264", "libvpx-vp9", "mpeg4", "ffv1")
    have = [name for name in wanted if name in av.codecs_available]
    return "libx264" in have, f"PyAV {av.__version__}, encoders: {' '.join(have)}"


def _coco() -> tuple[bool, str]:
    if importlib.util.find_spec("pycocotools") is None:
        return False, "not installed; for masks as COCO: pip install 'mcdrl-rt[coco]'"
    return True, f"pycocotools {importlib.metadata.version('pycocotools')}"


def _devices(root: Path = Path("/")) -> tuple[bool, str]:
    numbered = [path for path in (root / "dev").glob("video*") if path.name[5:].isdecimal()]
    devices = []
    for path in sorted(numbered, key=lambda path: int(path.name[5:])):
        label = root / "sys" / "class" / "video4linux" / path.name / "name"
        devices.append(f"{path} ({label.read_text().strip()})" if label.is_file() else str(path))
    return bool(devices), ", ".join(devices) or "none (/dev/video*)"


def _model() -> tuple[bool, str]:
    from safetensors import safe_open

    from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
    from mcdrl_rt.model.checkpoint import read_spec

    spec = read_spec(DEFAULT_CHECKPOINT)
    with safe_open(DEFAULT_CHECKPOINT, "np") as file:
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
    (height, width), classes = spec.input_size, ", ".join(spec.classes)
    return True, f"{spec.name}, classes {classes}, sees {width}×{height}, {count / 1e6:.1f} million weights"


def _kept() -> tuple[bool, str]:
    from mcdrl_rt.engine.cache import folder

    try:
        entries = [entry for entry in folder().iterdir() if entry.is_dir()] if folder().exists() else []
        size = sum(file.stat().st_size for entry in entries for file in entry.iterdir())
    except OSError as error:
        return False, f"cannot be read: {first_line(error)}; set MCDRL_CACHE"
    if not entries:
        return False, f"none yet in {folder()}; the first start builds one"
    return True, f"{len(entries)}, {size / 1e6:.0f} MB, in {folder()}; what is deleted is built again when it is wanted"
