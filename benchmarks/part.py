"""One part of the GPU benchmark: a program of its own, so that what breaks one part does not lose the others."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe


class Part:
    """What a part is asked for, and where it leaves what it has found so far.

    Attributes:
        rehearse: run on a CPU with tiny sizes, to see that the program works.
        device: ``cuda``, or ``cpu`` in a rehearsal.
    """

    def __init__(self, result: Path, until: float, rehearse: bool) -> None:
        self.rehearse, self._result, self._until = rehearse, result, until
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.values: dict[str, Any] = {}

    @classmethod
    def from_arguments(cls, description: str | None) -> Part:
        """Read the command line, which is the same for every part."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--result", type=Path, required=True, help="JSON file, rewritten with every figure")
        parser.add_argument("--until", type=float, default=float("inf"), help="Unix time to begin nothing new after")
        parser.add_argument("--rehearse", action="store_true")
        given = parser.parse_args()
        part = cls(given.result, given.until, given.rehearse)
        part.save(machine=describe(), native=is_native())
        return part

    def has_time(self, seconds: float = 0.0) -> bool:
        """Whether something that takes so long may still begin."""
        return time.time() + seconds < self._until

    def save(self, **values: Any) -> None:
        """Add figures to the result; the file is whole at any time."""
        self.values |= values
        partial = self._result.with_suffix(".partial")
        partial.write_text(json.dumps(self.values))
        partial.replace(self._result)

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """What ``work`` gives; None where it raised, which is noted under ``errors``."""
        try:
            return work()
        except Exception as error:
            text = str(error).strip().splitlines() or [""]
            note = f"{type(error).__name__}: {text[0]}"
            print(f"{name}: {note}", flush=True)
            self.save(errors=self.values.get("errors", {}) | {name: note})
            return None

    def leave_out(self, name: str) -> None:
        """Note what there is no time for, under ``left_out``."""
        self.save(left_out=[*self.values.get("left_out", []), name])

    def wait(self) -> None:
        """Until the device has done all it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def is_native() -> bool:
    """Whether the fused operators' CUDA implementations are loaded."""
    from mcdrl_rt import ops as _ops  # noqa: F401 (loads them)

    return bool(torch._C._dispatch_has_kernel_for_dispatch_key("mcdrl_rt::select_intervene", "CUDA"))
