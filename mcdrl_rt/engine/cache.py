"""This user's engines, each built the first time its checkpoint is run and kept (``MCDRL_CACHE``)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mcdrl_rt.engine import sidecar
from mcdrl_rt.engine.build import Stage, build_engine
from mcdrl_rt.engine.order import Order, resolved
from mcdrl_rt.errors import EngineError
from mcdrl_rt.folders import cache_folder

_log = logging.getLogger("mcdrl_rt")


def cached_engine(
    checkpoint: Path, order: Order | None = None, on_stage: Stage | None = None
) -> tuple[Path, dict[str, Any]]:
    """A checkpoint's engine for this machine and its sidecar, built the first time.

    The key is all that an engine depends on: the checkpoint's content, the versions involved, GPU, and what was
    ordered. An entry that is damaged, or signed with another key, is built again. Of several processes that want the
    same engine at once, one builds it and the others wait.

    Raises:
        EngineError: it cannot be built, or the cache cannot be written.
    """
    order = resolved(order or Order())
    engine = _place(checkpoint, order)
    entry = engine.parent
    with contextlib.suppress(EngineError):  # none yet, or a damaged one
        return engine, sidecar.read_sidecar(engine)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry.with_suffix(".lock")):
            with contextlib.suppress(EngineError):  # another process has built it meanwhile
                return engine, sidecar.read_sidecar(engine)
            return engine, _build_entry(checkpoint, engine, order, on_stage)
    except OSError as error:
        raise _closed(error) from error


def _build_entry(checkpoint: Path, engine: Path, order: Order, on_stage: Stage | None) -> dict[str, Any]:
    """Build an engine into its entry of the cache, whose lock is held."""
    if order.runtime == "tensorrt":
        from mcdrl_rt.engine.tensorrt_api import require_tensorrt

        require_tensorrt()  # said before anything is announced
    entry = engine.parent
    sidecar.engine_key()  # none can be made: said now, not after minutes
    shutil.rmtree(entry, ignore_errors=True)  # what is damaged, or a killed process left
    entry.mkdir(exist_ok=True)
    _log.info("building the engine of %s for this machine, once …", checkpoint.stem)
    try:
        return build_engine(checkpoint, engine, order, on_stage)
    finally:
        with contextlib.suppress(OSError):  # it holds an engine, unless building one failed
            entry.rmdir()


def find_cached(checkpoint: Path, order: Order) -> Path | None:
    """The engine ``cached_engine`` would give without building anything; None if it would have to."""
    engine = _place(checkpoint, resolved(order))
    try:
        if not engine.exists():
            return None
        sidecar.read_sidecar(engine)
    except (OSError, EngineError) as error:
        _log.warning("%s", _closed(error) if isinstance(error, OSError) else error)
        return None
    return engine


def timing_cache() -> Path:
    """TensorRT's own memory of what it measured, which makes the next build shorter."""
    path = folder() / "tensorrt.timing"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _closed(error) from error
    return path


def folder() -> Path:
    """Where this user's engines lie, each in a folder of its own, with nothing but its files."""
    return cache_folder() / "engines"


def _closed(error: OSError) -> EngineError:
    return EngineError(f"cannot use the engine cache {folder()}: {str(error.strerror).lower()}; set MCDRL_CACHE")


def _place(checkpoint: Path, order: Order) -> Path:
    """The engine's file; its folder is the entry's."""
    return folder() / _key(checkpoint, order) / f"{checkpoint.stem}{sidecar.FILES[order.runtime][0]}"


def _key(checkpoint: Path, order: Order) -> str:
    """Hash of all that the engine depends on (a home may be shared between machines)."""
    depends = {
        "checkpoint": sidecar.file_hash(checkpoint),
        "versions": sidecar.versions(order.runtime),
        "gpu": sidecar.gpu_of(order.runtime, order.device),
        "order": order.command(Path(checkpoint.name)) | {"model": ""},
        "precision": order.precision,
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a cache entry; a process that dies lets go of it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("another process is building this engine; waiting for it …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
