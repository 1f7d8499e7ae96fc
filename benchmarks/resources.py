"""What a form takes besides time: memory and energy, as far as the system tells."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MEMORY = {
    "cuda": "the most GPU memory allocated by torch beyond what was before, while the form was made ready and ran once",
    "cpu": "how far the process's resident memory rose at most while the form was made ready and ran once (Linux); "
    "the weights of eager torch, which all depths share, were there before",
}
RAPL = Path("/sys/class/powercap")


def peak_mib(work: Callable[[], Any], device: torch.device) -> float | None:
    """Memory that ``work`` needs beyond what there is when it begins, see ``MEMORY``; None where nobody tells."""
    if device.type != "cuda":
        return _resident_peak_mib(work)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def _resident_peak_mib(work: Callable[[], Any]) -> float | None:
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # what others gave back, this one would take without a rise
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except OSError:
        work()
        return None
    before = _status_kib("VmRSS")
    work()
    return round((_status_kib("VmHWM") - before) / 1024, 1)


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def energy_meter(device: torch.device, rapl: Path = RAPL) -> Callable[[], float] | None:
    """What reads the joules a GPU, or all processor packages, have taken so far; None where that cannot be read."""
    return _gpu_meter() if device.type == "cuda" else _package_meter(rapl)


def joules(form: Callable[[], Any], wait: Callable[[], Any], meter: Callable[[], float], seconds: float) -> float:
    """Energy of one call: of as many as fit into ``seconds``, with all else the device does meanwhile."""
    form()
    wait()
    began, before, calls = time.perf_counter(), meter(), 0
    while time.perf_counter() - began < seconds:
        form()
        wait()
        calls += 1
    return round((meter() - before) / calls, 4)


def _package_meter(rapl: Path) -> Callable[[], float] | None:
    packages = [path for path in sorted(rapl.glob("*-rapl:*")) if path.name.count(":") == 1]
    counters = [Counter(path) for path in packages if Counter.is_readable(path)]
    return (lambda: sum(counter() for counter in counters)) if counters else None


class Counter:
    """Joules of one processor package since the first look; its register begins again when it is full.

    Args:
        folder: of the package, with ``energy_uj`` and ``max_energy_range_uj``.
    """

    def __init__(self, folder: Path) -> None:
        self._register = folder / "energy_uj"
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._last, self._sum = self._read(), 0

    @staticmethod
    def is_readable(folder: Path) -> bool:
        """Whether we may look: as a rule, only root may."""
        try:
            return Counter(folder)._range > 0
        except (OSError, ValueError):
            return False

    def __call__(self) -> float:
        """Look again."""
        now = self._read()
        self._sum += (now - self._last) % self._range
        self._last = now
        return self._sum / 1e6

    def _read(self) -> int:
        return int(self._register.read_text())


def _gpu_meter() -> Callable[[], float] | None:
    """NVML's counter of the GPU that torch is at work on."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}".encode()
    failed = nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle))
    if failed or nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return None

    def read() -> float:
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    return read
