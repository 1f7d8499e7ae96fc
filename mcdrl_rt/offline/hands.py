"""Whoever works on segments: this process, or several on this machine, each with an engine and cores of its own.

>>> with Processes(Loader(), count=4) as hands:                         # doctest: +SKIP
...     for number, part in hands.do(tasks):                            # doctest: +SKIP
...         manifest.done[number] = part                                # doctest: +SKIP
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Self

from mcdrl_rt.errors import EngineError, McdrlError
from mcdrl_rt.offline.manifest import Part
from mcdrl_rt.offline.plan import Job
from mcdrl_rt.offline.recording import expected_segments
from mcdrl_rt.offline.work import Task, work
from mcdrl_rt.segmenter import AnySegmenter, Segmenter

CORES_EACH = 4  # that a worker makes use of
_TRIES = 3  # of a segment whose worker dies

OnFrame = Callable[[int], None]


@dataclass(frozen=True)
class Loader:
    """How each worker gets its engine; see ``Segmenter.load``."""

    model: Path | None = None
    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"

    def __call__(self) -> AnySegmenter:
        """Load it."""
        return Segmenter.load(self.model, engine=self.engine, precision=self.precision, device=self.device)


class Hands(ABC):
    """Whoever works on segments; what is done does not depend on who did it.

    Attributes:
        count: how many segments are worked on at once, and so many procedures.
    """

    count: int = 1

    @abstractmethod
    def do(self, tasks: Sequence[Task], on_frame: OnFrame | None = None) -> Iterator[tuple[int, Part]]:
        """Work on segments of one procedure; their numbers and parts, each as it is done. From any thread.

        Args:
            tasks: of different segments.
            on_frame: called with the number of frames done of the one at work, where there is but one.

        Raises:
            McdrlError: one of them cannot be done.
        """

    def close(self) -> None:  # noqa: B027 (this process has nothing to dismiss)
        """Dismiss them, whatever they are at."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Here(Hands):
    """This process, one segment after the other."""

    def __init__(self, segmenter: AnySegmenter) -> None:
        self._segmenter = segmenter

    def do(self, tasks: Sequence[Task], on_frame: OnFrame | None = None) -> Iterator[tuple[int, Part]]:
        """See ``Hands.do``."""
        for task in tasks:
            yield task.segment.number, work(task, self._segmenter, on_frame)


class Processes(Hands):
    """Processes of this machine; one that dies costs what they all had in hand, which is done again.

    Args:
        load: gives each its engine.
        count: of them.
        engine: the name of the one they must all get: two kinds would be mixed in one video.
    """

    def __init__(self, load: Callable[[], AnySegmenter], count: int, engine: str | None = None) -> None:
        self.count, self._load, self._engine = count, load, engine
        self._lock, self._alone = threading.Lock(), threading.Lock()
        self._closed = False
        self._pool = self._new_pool()

    def do(self, tasks: Sequence[Task], on_frame: OnFrame | None = None) -> Iterator[tuple[int, Part]]:
        """See ``Hands.do``; who calls it from several threads has all their procedures worked on at once."""
        waiting, given, pool = deque(tasks), dict[Future[Part], Task](), self._pool
        try:
            while waiting or given:
                try:
                    while waiting and len(given) < self.count:
                        future = self._submit(pool, waiting[0])
                        given[future] = waiting.popleft()
                    ended = wait(given, return_when=FIRST_COMPLETED).done
                    for future in sorted(ended, key=lambda one: one.exception() is not None):  # what is done is kept
                        part = future.result()
                        yield given.pop(future).segment.number, part
                except BrokenProcessPool:
                    self._replace(pool)
                    for future, task in given.items():  # one by one: so it is known which of them it is that kills
                        try:
                            part = future.result()
                        except BrokenProcessPool:
                            part = self._do_alone(task)
                        yield task.segment.number, part
                    given, pool = {}, self._pool
        finally:
            for future in given:
                future.cancel()

    def close(self) -> None:
        """End them, in the midst of what they are at; from any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for process in multiprocessing.active_children():
            if isinstance(process, _Worker):  # others are somebody else's
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def _do_alone(self, task: Task) -> Part:
        for _ in range(_TRIES):
            with self._alone:
                pool = self._pool
                try:
                    return self._submit(pool, task).result()
                except BrokenProcessPool:
                    self._replace(pool)
        raise EngineError(f"whoever works on segment {task.segment.number} dies: {_TRIES} workers did (out of memory?)")

    def _submit(self, pool: ProcessPoolExecutor, task: Task) -> Future[Part]:
        try:
            return pool.submit(_do, task)
        except BrokenProcessPool:
            raise
        except RuntimeError:  # it was shut down meanwhile
            raise EngineError("the work was broken off") from None

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._closed:
                raise EngineError("the work was broken off")
            if self._pool is broken:
                self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.count, _Context(), _begin, (self._load, self.count, self._engine))


class _Worker(SpawnProcess):
    pass


class _Context(SpawnContext):
    Process = _Worker


_segmenter: AnySegmenter | McdrlError | None = None  # of a worker, or why it has none


def _begin(load: Callable[[], AnySegmenter], count: int, engine: str | None) -> None:
    """Begin as a worker: with its share of the cores, and an engine of its own; it ends when who leads is no more."""
    global _segmenter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who leads
    logging.disable()  # and so is what is to be said
    number = int(multiprocessing.current_process().name.rpartition("-")[2])  # children are numbered as they are born
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % count :: count] or cores)
    threading.Thread(target=_end_with_leader, name="leader", daemon=True).start()
    try:
        _segmenter = load()
        its = _segmenter.engine.name
        if engine is not None and its != engine:
            raise EngineError(f"a worker got another engine ({its}) than the first ({engine}): take fewer --workers")
    except McdrlError as error:  # who gives out work is told: raised here, it would be a worker that died
        _segmenter = error


def _end_with_leader() -> None:
    leader = multiprocessing.parent_process()
    assert leader is not None
    leader.join()
    os._exit(1)


def _do(task: Task) -> Part:
    assert _segmenter is not None
    if isinstance(_segmenter, McdrlError):
        raise _segmenter
    return work(task, _segmenter)


def worker_count(wish: int | None, jobs: Sequence[Job], segment_s: float) -> int:
    """How many workers to take: as many as are wished for, or one for every few cores of this machine.

    No more than there are segments left, as far as can be told beforehand: cores of a worker without work would idle.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count, segments = wish or max(1, cores // CORES_EACH), 0
    for job in jobs:
        if segments >= count:
            break
        if job.state != "done":
            segments += count if job.origin else expected_segments(job.source, segment_s) or count
    return max(1, min(count, segments))
