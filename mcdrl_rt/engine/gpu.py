"""Which NVIDIA GPUs are here, asked of the driver itself: importing torch to find out takes seconds."""

from __future__ import annotations

import ctypes
import functools
import logging
import sys
from dataclasses import dataclass

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Args:
        name: as the driver calls it.
        capability: compute capability, ``9.0``.
    """

    name: str
    capability: str

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.capability.replace('.', '')})"


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Every GPU that CUDA can use here, in CUDA's order; none where there is no driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_describe(driver, i) for i in range(count.value))


def hush_cuda() -> None:
    """Keep torch from telling of a CUDA toolkit without a GPU, where none is wanted: to compile, and to load."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def _describe(driver: ctypes.CDLL, ordinal: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    driver.cuDeviceGetName(name, len(name), device)
    parts = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(str(value.value))
    return Gpu(name.value.decode(errors="replace"), ".".join(parts))
