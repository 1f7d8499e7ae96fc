"""Workers on many machines, as tasks of a Ray cluster.

Ray starts the processes, shares the machines' cores and GPUs among them, and does a task again elsewhere when a machine
is lost. All machines see input and output under the same names (NFS, say), have mcdrl-rt installed, and processors of
one kind: bits differ between kinds, so a worker whose engine is not the head's is refused. Ray is an extra:
``pip install 'mcdrl-rt[cluster]'``.

    >>> with Cluster("auto", Loader(), about) as hands:                     # doctest: +SKIP
    ...     outcomes = list(process(jobs, output, segmenter, hands=hands, engine=about))       # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mcdrl_rt.errors import EngineError, McdrlError, SinkError, first_line
from mcdrl_rt.offline.fingerprint import difference, engine_facts
from mcdrl_rt.offline.hands import CORES_EACH, Hands, Loader, OnFrame
from mcdrl_rt.offline.manifest import Part
from mcdrl_rt.offline.work import Task, work
from mcdrl_rt.segmenter import AnySegmenter
from mcdrl_rt.video.index import Segment

_ANSWER_S = 5.0
_PATIENCE_S = 30.0  # without a segment done, before it is looked whether anybody is there
_TRIES = 3  # of a segment, when machines are lost


class Cluster(Hands):
    """The workers of a Ray cluster, each with an engine of its own.

    Args:
        address: of the cluster as Ray takes it: ``HOST:PORT``, ``ray://HOST:PORT``, ``auto`` for the one this machine
            is a part of, or ``local`` for one of this machine alone.
        load: gives each worker its engine.
        engine: what it is, from ``engine_facts``.

    A worker has four cores, or all of a machine that has less; on a GPU it has that alone.

    Raises:
        EngineError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str, load: Loader, engine: Mapping[str, str]) -> None:
        ray = self._ray = _import_ray()
        self._load, self._engine = load, dict(engine)
        try:
            _call(address)
            ray.init(address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except Exception as error:
            raise EngineError(f"cannot join the Ray cluster at {address}: {first_line(error)}") from None
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(word in engine["name"].split() for word in ("cuda", "tensorrt")):
            self.count = int(sum(machine.get("GPU", 0) for machine in machines))
            self._needs = {"num_gpus": 1}
        else:
            each = min([CORES_EACH, *(int(machine.get("CPU", 0)) or CORES_EACH for machine in machines)])
            self.count = sum(int(machine.get("CPU", 0)) // each for machine in machines)
            self._needs = {"num_cpus": each}
        if not self.count:
            self.close()
            raise EngineError(f"no machine of the Ray cluster at {address} has what a worker needs: {self._needs}")

    def do(self, tasks: Sequence[Task], on_frame: OnFrame | None = None) -> Iterator[tuple[int, Part]]:
        """See ``Hands.do``."""
        ray = self._ray
        remote = ray.remote(_do).options(**self._needs, max_retries=_TRIES, scheduling_strategy="SPREAD")
        # what a task carries grows with the length of its recording: all segments share the first one's
        shared = ray.put(tasks[0]) if tasks else None
        pending = {remote.remote(self._load, self._engine, shared, task.segment): task.segment.number for task in tasks}
        try:
            while pending:
                done, _ = ray.wait(list(pending), num_returns=1, timeout=_PATIENCE_S)
                if done:
                    yield pending.pop(done[0]), self._result(done[0])
                elif not any(self._suits(node) for node in ray.nodes()):
                    raise EngineError(
                        f"no machine of the Ray cluster is left that has what a worker needs: {self._needs}"
                    )
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)

    def _suits(self, node: Mapping[str, Any]) -> bool:
        """Whether a machine can have a worker."""
        resources = {"num_cpus": "CPU", "num_gpus": "GPU"}
        return node["Alive"] and all(
            node["Resources"].get(resources[name], 0) >= count for name, count in self._needs.items()
        )

    def close(self) -> None:
        """Leave the cluster; what it is at for us is broken off."""
        self._ray.shutdown()

    def _result(self, reference: Any) -> Part:
        ray = self._ray
        try:
            part: Part = ray.get(reference)
            return part
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, McdrlError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise EngineError(f"the Ray cluster gave a segment up after {_TRIES} tries: {first_line(error)}") from None


def _call(address: str) -> None:
    """Find out whether anybody answers: Ray itself would try for ever."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()


def _do(load: Loader, engine: Mapping[str, str], shared: Task, segment: Segment) -> Part:
    """Work on a segment, on whatever machine this is."""
    task, here = dataclasses.replace(shared, segment=segment), platform.node()
    for path in (task.recording.path, task.folder):
        if not path.exists():
            raise SinkError(
                f"{here} does not see {path}: input and output must be on storage that all machines share, and so must "
                "MCDRL_CACHE where one of them is an address"
            )
    segmenter, facts = _engine(load)
    if differs := difference({"engine": engine}, {"engine": facts}):
        raise EngineError(f"{here} has another engine than the head ({differs}); use machines of one kind")
    return work(task, segmenter)


@functools.cache
def _engine(load: Loader) -> tuple[AnySegmenter, dict[str, str]]:
    """A worker's engine: loaded for its first segment, kept for the next."""
    segmenter = load()
    return segmenter, engine_facts(segmenter, load.model)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise EngineError("a cluster needs Ray: pip install 'mcdrl-rt[cluster]'") from None
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)  # it would warn that signals are for others
    return ray
