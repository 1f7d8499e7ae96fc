"""The sidecar of an engine: what it was built from and with, and proof that it is what was built here.

Every engine file ``X.xml``, ``X.plan``, ``X.pt2`` or ``X.onnx`` has its own ``….json`` beside it: specification,
precision, hash of the checkpoint, versions, GPU, parity, latency, the hashes of the engine's files, and over all of
this an HMAC under a key that is made on first use in the user's state folder (``MCDRL_STATE``). An engine is code that
runs with the user's rights: one that was changed, built by somebody else or for something else is refused, with the
command that builds it anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import importlib.metadata
import json
import os
import platform
import re
import shlex
from pathlib import Path
from typing import Any

from mcdrl_rt.engine.gpu import gpus
from mcdrl_rt.engine.key import user_key
from mcdrl_rt.errors import EngineError, unreadable
from mcdrl_rt.version import __version__

FORMAT = "mcdrl-rt engine 2"
FILES = {"openvino": (".xml", ".bin"), "tensorrt": (".plan",), "torch": (".pt2",), "onnx": (".onnx",)}
"""A runtime's engine files; the first is the one that users name."""
_PACKAGES = {
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt_cu12", "tensorrt_cu13"),
    "torch": ("torch",),
    "onnx": (),
}
_VECTORS = re.compile(r"s?sse|avx|fma|f16c|amx|neon|asimd|fphp|sve|sme|bf16|i8mm")  # as Linux calls them
_KNOWN = {"runtime", "precision", "spec", "files", "versions", "gpu"}


def runtime_of(engine: Path) -> str | None:
    """The runtime an engine file is for, by its suffix; None if it is none."""
    return next((runtime for runtime, suffixes in FILES.items() if suffixes[0] == engine.suffix), None)


def versions(runtime: str) -> dict[str, str]:
    """What an engine of ``runtime`` depends on: this package, the runtime's, the native library if there is one."""
    found = {"mcdrl_rt": __version__}
    for package in _PACKAGES.get(runtime, ()):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if runtime == "torch":  # its packages are compiled for the very processor
        found["processor"] = processor()
    library = native_library(runtime)
    return found | ({"native": file_hash(library)} if library else {})


def processor() -> str:
    """The processor's name, and a hash of the vector instructions it has: kinds of processors round differently.

    Of what Linux lists only these count: the rest of the list changes with the kernel.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in reversed(lines))}
    vectors = sorted(filter(_VECTORS.match, facts.get("flags", facts.get("Features", "")).split()))
    known = hashlib.sha256(" ".join(vectors).encode()).hexdigest()[:8] if vectors else ""
    return " ".join(filter(None, (facts.get("model name") or platform.processor() or platform.machine(), known)))


def native_library(runtime: str) -> Path | None:
    """Where the fused operator's library for ``runtime`` lies: beside the package, or where the environment says."""
    names = {
        "torch": ("MCDRL_NATIVE_LIBRARY", "libmcdrl_rt_native.so"),
        "tensorrt": ("MCDRL_TENSORRT_PLUGIN", "libmcdrl_rt_plugin.so"),
    }
    if runtime not in names:
        return None
    variable, name = names[runtime]
    path = Path(os.environ.get(variable) or Path(__file__).parents[1] / name)
    return path if os.path.isfile(path) else None  # nor where nobody may look


def gpu_of(runtime: str, device: str) -> str | None:
    """The GPU an engine is compiled for; None where it is for no GPU in particular."""
    if runtime == "tensorrt" or (runtime == "torch" and device.startswith("cuda")):
        ordinal = cuda_ordinal(device)
        return str(gpus()[ordinal]) if ordinal < len(gpus()) else "none"
    return None


def cuda_ordinal(device: str) -> int:
    """N of ``cuda:N``, 0 of ``cuda`` and ``auto``.

    Raises:
        EngineError: it is none of them.
    """
    name, _, number = device.partition(":")
    if name not in ("cuda", "auto") or not (number or "0").isdecimal():
        raise EngineError(f"a GPU's device is cuda or cuda:N, not {device!r}")
    return int(number or 0)


def write_sidecar(engine: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Hash an engine's files, sign, and write the sidecar beside it; returns what was written.

    Raises:
        EngineError: there is no key and none can be made.
        OSError: a file cannot be read or written.
    """
    files = {suffix: file_hash(engine.with_suffix(suffix)) for suffix in FILES[content["runtime"]]}
    content = {"format": FORMAT, **content, "files": files}
    content["signature"] = _signature(content, engine_key())
    sidecar_of(engine).write_text(json.dumps(content, indent=1, sort_keys=True))
    return content


def read_sidecar(engine: Path) -> dict[str, Any]:
    """What was recorded when ``engine`` was built, checked in every respect.

    Raises:
        EngineError: the engine is missing, changed, foreign, or built for other versions or another GPU than are here.
    """
    if why := unreadable(engine):
        raise EngineError(f"no engine at {engine} ({why}); make one: {rebuild_command(engine, {})}")
    try:
        content = json.loads(sidecar_of(engine).read_text())
        ours = content["format"] == FORMAT and content.keys() >= _KNOWN
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        ours, content = False, {}
    problem = _problem(engine, content) if ours else "has no sidecar of this version of mcdrl-rt beside it"
    if problem:
        raise EngineError(f"{engine} {problem}; rebuild it: {rebuild_command(engine, content if ours else {})}")
    return dict(content)


def sidecar_of(engine: Path) -> Path:
    """Where an engine's sidecar lies: ``X.xml.json`` beside ``X.xml``, so that ``X.onnx`` has one of its own."""
    return engine.with_name(f"{engine.name}.json")


def companions_of(engine: Path) -> set[str]:
    """Names of an engine's files by its sidecar, whoever signed that, and the sidecar's own; none without one."""
    try:
        content = json.loads(sidecar_of(engine).read_text())
        if content["format"].startswith(FORMAT.rstrip("0123456789")):
            return {sidecar_of(engine).name, *(engine.with_suffix(suffix).name for suffix in content["files"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    return set()


def rebuild_command(engine: Path, content: dict[str, Any]) -> str:
    """The command that builds an engine anew, as far as its sidecar's content tells."""
    words = ["mcdrl-rt", "build", "--output", str(engine)]
    command = content.get("command")
    if not isinstance(command, dict):  # there is none, or it is forged; without --model it would be another model's
        return f"{shlex.join(words)} --model CHECKPOINT"
    for option, value in command.items():
        words += [f"--{option}", str(value)]
    return shlex.join(words)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        EngineError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(f"cannot read {path}: {str(error.strerror or error).lower()}") from error


def engine_key(create: bool = True) -> bytes | None:
    """The key this user's engines are signed with, made on first use; None if there is none and none is to be made.

    Raises:
        EngineError: it can be neither read nor made.
    """
    return user_key("engine", "engines are signed with", create)


def _problem(engine: Path, content: dict[str, Any]) -> str | None:
    """Why an engine with this sidecar is not to be trusted or will not run here; None if all is well."""
    key, signature = engine_key(create=False), str(content.get("signature"))
    if key is None or not hmac.compare_digest(_signature(content, key).encode(), signature.encode(errors="replace")):
        return "was not built by this user here, or its sidecar or this user's key was changed since"
    # the signature is of these files; it says nothing of another one that lies beside them
    if content["files"].keys() != set(FILES[content["runtime"]]) or runtime_of(engine) != content["runtime"]:
        return f"is no engine for {content['runtime']}, as its sidecar says"
    for suffix, digest in content["files"].items():
        path = engine.with_suffix(suffix)
        if not os.path.isfile(path) or file_hash(path) != digest:
            return f"is not what was built: {path.name} is missing or was changed"
    was, here = content["versions"], versions(content["runtime"])
    for name in sorted(was.keys() | here.keys()):
        if was.get(name) != here.get(name):
            told = (was.get(name, "none")[:12], here.get(name, "none")[:12])
            return f"was built with {name} {told[0]}, and here is {told[1]}"
    gpu = gpu_of(content["runtime"], content.get("device", ""))
    return f"was built for {content['gpu']}, and here is {gpu}" if content["gpu"] != gpu else None


def _signature(content: dict[str, Any], key: bytes | None) -> str:
    signed = {name: value for name, value in content.items() if name != "signature"}
    assert key
    return hmac.new(key, json.dumps(signed, sort_keys=True).encode(), "sha256").hexdigest()
