"""Parts of a stream for tests: an engine that needs no model, a source of given pictures, a sink that remembers."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from mcdrl_rt.engine.base import Engine, RawOutput
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.stream.pipeline import Stream
from mcdrl_rt.stream.supervisor import Supervisor
from mcdrl_rt.stream.telemetry import Summary
from mcdrl_rt.types import Frame, ModelSpec, Shown, UInt8Array
from mcdrl_rt.video.sink import Sink
from mcdrl_rt.video.source import Source


class BrightEngine:
    """Calls bright pixels lesion: a device that needs no model. Raises ``failure`` on frame number ``fails_at``."""

    name = "bright"
    max_batch = 1
    spec = ModelSpec(
        name="bright",
        encoder="none",
        input_size=(64, 64),
        classes=("polyp",),
        confounders=("blur", "blood"),
        grid=(4, 4),
    )

    def __init__(self, fails_at: int | None = None, failure: BaseException | None = None) -> None:
        self._frames, self._fails_at, self._failure = itertools.count(), fails_at, failure

    def infer(self, frames: UInt8Array) -> RawOutput:
        if next(self._frames) == self._fails_at and self._failure is not None:
            raise self._failure
        grey = frames.mean(axis=3).astype(np.uint8)
        batch = len(frames)
        shares = np.full((batch, 2), 0.5, np.float32)
        return RawOutput(grey, np.ones_like(grey), shares, np.ones((batch, 4, 4), np.uint8))


class ListSource(Source):
    """Frames of given pictures, as fast as they are taken or ``every_s``; raises ``failure`` after the last one."""

    name = "list"
    rate, time_base = Fraction(25), Fraction(1, 25)

    def __init__(
        self,
        pictures: Sequence[UInt8Array],
        live: bool = False,
        failure: BaseException | None = None,
        every_s: float = 0.0,
        name: str = "list",
    ) -> None:
        self.size = (pictures[0].shape[0], pictures[0].shape[1])
        self.live, self.name = live, name
        self.delivered = 0
        self.exhausted = threading.Event()
        self._pictures, self._failure, self._every_s = pictures, failure, every_s

    def __iter__(self) -> Iterator[Frame]:
        for index, pixels in enumerate(self._pictures):
            time.sleep(self._every_s)
            self.delivered += 1
            yield Frame(pixels, index, self.time_base, index)
        self.exhausted.set()
        if self._failure is not None:
            raise self._failure


class Kept(Sink):
    """Remembers what it was given; does ``then`` with it first."""

    def __init__(self, then: Callable[[Shown], None] = lambda shown: None) -> None:
        self.shown: list[Shown] = []
        self.ended = ""
        self._then = then

    def write(self, shown: Shown) -> None:
        self._then(shown)
        self.shown.append(shown)
        self.frames += 1

    def close(self) -> None:
        self.ended = "kept"

    def abort(self) -> None:
        self.ended = "discarded"


class AlwaysFailing(BrightEngine):
    """Raises on every frame from the given one on."""

    def infer(self, frames: UInt8Array) -> RawOutput:
        assert self._fails_at is not None and self._failure is not None
        if next(self._frames) >= self._fails_at:
            raise self._failure
        return BrightEngine().infer(frames)

    def __init__(self, failure: BaseException, fails_at: int = 0) -> None:
        super().__init__(fails_at, failure)


def run(source: Source, sinks: Mapping[str, Sink], engine: Engine | None = None, **options: Any) -> Summary:
    with Supervisor(Segmenter(engine or BrightEngine())) as supervisor:
        return Stream(source, supervisor.seat(), sinks, **options).run()
