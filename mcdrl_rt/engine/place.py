"""Where a built engine goes: its files are made in a hidden folder beside it, and take their places when all are whole.

Whoever builds holds a lock meanwhile, so what lies there when the next one begins was left by one that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mcdrl_rt.engine import sidecar
from mcdrl_rt.errors import EngineError
from mcdrl_rt.folders import cache_folder, state_folder
from mcdrl_rt.unfinished import begun, ended

_MAKE_ROOM = "make room there, or "
_ADVICE = {
    errno.ENOENT: "make it, or ",
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    None: _MAKE_ROOM,  # OpenVINO's own words, of a full disk
}


@contextlib.contextmanager
def place_of(output: Path, runtime: str) -> Iterator[Path]:
    """The file to build an engine in; with its companions it replaces ``output`` when the block ends well.

    Args:
        output: the engine's file; its folder must exist.
        runtime: one of ``sidecar.FILES``.

    Raises:
        EngineError: ``output`` is no name for such an engine, a file of somebody else's would be replaced, another
            process is building it, or it cannot be written: then an ``OSError`` of the block's is the cause.
    """
    suffix = sidecar.FILES[runtime][0]
    if os.path.isdir(output):
        raise EngineError(f"{output} is a folder; name a file in it, such as {output / 'engine'}{suffix}")
    if output.suffix != suffix:
        raise EngineError(f"the file of an engine for {runtime} ends in {suffix}, not {str(output)!r}")
    companions = [output.with_suffix(other) for other in sidecar.FILES[runtime][1:]] + [sidecar.sidecar_of(output)]
    folder = output.with_name(f".{output.name}.partial")
    try:
        _refuse_others(output, companions)
        with _locked(output):
            shutil.rmtree(folder, ignore_errors=True)
            begun(folder).mkdir(mode=0o700)
            try:
                yield folder / output.name
                _refuse_others(output, companions)  # it took minutes
                for path in (*companions, output):  # the file that users name last: with it, the engine exists
                    (folder / path.name).replace(path)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                ended(folder)
    except OSError as error:
        other = "set MCDRL_CACHE" if output.is_relative_to(cache_folder()) else "choose another place"
        advice = f"{str(error.strerror or error).lower()}; {_ADVICE.get(error.errno, '')}{other}"
        raise EngineError(f"cannot write an engine to {output.parent}: {advice}") from error


def _refuse_others(output: Path, companions: list[Path]) -> None:
    """Make sure that what users have not named is not replaced, unless it is of the engine that was there before."""
    known = sidecar.companions_of(output)
    if output.is_file():  # an engine whose sidecar was lost
        known |= {path.name for path in companions}
    for path in companions:
        if os.path.isdir(path) or (os.path.lexists(path) and path.name not in known):
            raise EngineError(f"{path} would be replaced, and is of no engine; move it away, or choose another name")


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Be the only one who builds this engine; a process that dies lets go of it."""
    name = hashlib.sha256(os.fsencode(output.resolve())).hexdigest()[:16]
    lock = FileLock(state_folder() / f"building-{name}.lock")  # where the key is; it stays, and is in nobody's way
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise EngineError(f"another process is building {output} just now") from None
    try:
        yield
    finally:
        lock.release()
