"""What a result was measured on: the part of every results file that makes it comparable."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any


def describe() -> dict[str, Any]:
    """Processor, cores, GPU where torch is at work on one, and versions, without anything that names the machine."""
    versions = {}
    for name in ("torch", "openvino", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # a GPU needs no OpenVINO
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": _cpuinfo("model name") or platform.machine(),
        "family": " ".join(filter(None, map(_cpuinfo, ("vendor_id", "cpu family", "model")))) or None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
        **_gpu(),
    }


def _gpu() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def _cpuinfo(field: str) -> str | None:
    """What Linux says of the first processor; the name alone may stand for many."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    values = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in values if name.strip() == field), None)
