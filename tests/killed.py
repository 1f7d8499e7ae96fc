"""A job that is killed just before its n-th file gets its name, then taken up again; for one n in STEP, to the last.

Run as a program of its own, which has no threads when it forks: CLIP, FOLDER, STEP. It writes what came of each n into
FOLDER/n, and beside it ``FOLDER/n.frames``, a byte for each time that the engine was asked.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streams import BrightEngine

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.offline import Settings, coco, plan, process, report, table  # noqa: F401 (before there are children)
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import UInt8Array

SETTINGS = Settings(masks=("ffv1", "png", "coco"), segment_s=0.05)


class CountedEngine(BrightEngine):
    """Adds a byte to a file for each frame, which a kill cannot take back."""

    def __init__(self, counter: Path) -> None:
        super().__init__()
        self._counter = counter

    def infer(self, frames: UInt8Array) -> RawOutput:
        with self._counter.open("ab") as file:
            file.write(b".")
        return super().infer(frames)


def work(clip: Path, output: Path, killed_at: int | None = None) -> int:
    """Work in a process of its own; its exit status."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        calls = itertools.count()

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def counting(*arguments: Any) -> Any:
                if next(calls) == killed_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments)

            return counting

        os.replace, os.rename = counted(os.replace), counted(os.rename)
        engine = CountedEngine(output.with_name(f"{output.name}.frames"))
        (outcome,) = process(plan([clip], output), output, Segmenter(engine), SETTINGS)
        code = 0 if outcome.error is None else 2
    finally:
        os._exit(code)


def main(clip: Path, folder: Path, step: int) -> None:
    """One after the other; the last n is more than there are, and nothing is killed."""
    for killed_at in itertools.count(0, step):
        if not (first := work(clip, folder / str(killed_at), killed_at)):
            return
        second = work(clip, folder / str(killed_at))
        assert (first, second) == (-signal.SIGKILL, 0), (killed_at, first, second)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
