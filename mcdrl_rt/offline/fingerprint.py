"""What results depend on: the engine, the settings, the input. Where one of them differs, nothing is mixed.

>>> difference({"engine": {"name": "torch"}}, {"engine": {"name": "openvino"}})
'engine name: torch there, openvino now'
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import av
import cv2

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.sidecar import FILES, file_hash, gpu_of, processor, runtime_of, versions
from mcdrl_rt.errors import SourceError
from mcdrl_rt.segmenter import AnySegmenter
from mcdrl_rt.video.output import reason
from mcdrl_rt.video.playlist import pictures_of

Fingerprint = Mapping[str, Mapping[str, Any]]


def engine_facts(segmenter: AnySegmenter, model: Path | None = None) -> dict[str, str]:
    """What an engine is: its name (runtime, precision, device), its model, the content of its files, and versions.

    Those of the libraries that prepare its pictures are among them.

    Args:
        segmenter: loaded.
        model: the checkpoint or engine it was loaded from; None is the embedded default.

    Raises:
        EngineError: a file of the model cannot be read.
    """
    path = model or DEFAULT_CHECKPOINT
    runtime = runtime_of(path)
    files = [path] if runtime is None else [path.with_suffix(suffix) for suffix in FILES[runtime]]
    content = hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest()
    name = segmenter.engine.name
    kind, device = name.split()[0], name.split()[-1]
    facts = {"name": name, "model": segmenter.spec.name, "content": content[:16], **versions(kind)}
    facts |= {"av": av.__version__, "opencv": cv2.__version__}  # they decode pictures, and bring them to size
    gpu = gpu_of(kind, device)
    return facts | ({"processor": processor()} if gpu is None else {"gpu": gpu})


def input_facts(source: Path) -> dict[str, Any]:
    """What an input is: its size and all that is in it, wherever it lies and whenever it was copied.

    Raises:
        SourceError: it cannot be read.
    """
    size, content = 0, hashlib.sha256()
    try:
        for path in _files(source):
            with path.open("rb") as file:
                content.update(hashlib.file_digest(file, "sha256").digest())
                its = file.tell()
            content.update(f"{path.name if source.is_dir() else ''} {its}".encode(errors="surrogateescape"))
            size += its
    except OSError as error:
        raise SourceError(f"cannot read {source}: {reason(error)}") from None
    return {"bytes": size, "sha256": content.hexdigest()[:16]}


def stamp(source: Path) -> str:
    """What an input has another one of whenever something was written to it, or another was put in its place.

    It is told without reading the input, and nobody can tell from it when that was made: it is no date.

    Raises:
        SourceError: it cannot be found.
    """
    content = hashlib.sha256()
    try:
        for path in _files(source):
            its = path.stat()
            facts = (its.st_size, its.st_mtime_ns, its.st_ctime_ns, its.st_ino)
            content.update(f"{path.name} {facts}".encode(errors="surrogateescape"))
    except OSError as error:
        raise SourceError(f"cannot read {source}: {reason(error)}") from None
    return content.hexdigest()[:16]


def _files(source: Path) -> Iterable[Path]:
    """The files that an input consists of."""
    if not source.exists():
        raise SourceError(f"no such file: {source}")
    if not (source.is_file() or source.is_dir()):
        raise SourceError(f"{source} is neither a file nor a folder of pictures")
    return sorted(pictures_of(source), key=lambda file: file.name)


def is_fingerprint(value: Any) -> TypeGuard[Fingerprint]:
    """Whether something that was read may be one; a file may be called anything, and hold anything."""
    return isinstance(value, dict) and all(isinstance(part, dict) for part in value.values())


def difference(there: Fingerprint, now: Fingerprint) -> str | None:
    """The first thing that differs, in words; None where nothing does."""
    for part in dict.fromkeys((*now, *there)):
        was, is_ = there.get(part, {}), now.get(part, {})
        for name in dict.fromkeys((*is_, *was)):
            if was.get(name) != is_.get(name):
                return f"{part} {name}: {_text(was.get(name))} there, {_text(is_.get(name))} now"
    return None


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
