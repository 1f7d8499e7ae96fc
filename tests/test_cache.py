"""The engine cache: built once for all that an engine depends on, by one process, and never half."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import ROOT

from mcdrl_rt.engine import cache, sidecar
from mcdrl_rt.engine.cache import cached_engine, find_cached
from mcdrl_rt.engine.order import Order
from mcdrl_rt.errors import EngineError


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Order]]:
    """What would be built, into an empty cache."""
    orders: list[tuple[Path, Order]] = []
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path))
    monkeypatch.setattr(cache, "build_engine", lambda _, output, order, stage: orders.append((output, order)))
    return orders


def test_engine_is_built_once_and_whole(
    small_engine: Path, small_checkpoint: Path, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small_engine.is_relative_to(cache_folder)
    assert sorted(p.name for p in small_engine.parent.iterdir()) == ["small.bin", "small.xml", "small.xml.json"]
    monkeypatch.setattr(cache, "build_engine", lambda *_: pytest.fail("built again"))
    assert cached_engine(small_checkpoint)[0] == small_engine


@pytest.mark.parametrize("suffix", [".xml", ".bin", ".xml.json"])
def test_a_damaged_entry_is_built_again(
    small_engine: Path, small_checkpoint: Path, tmp_path: Path, asked: list[tuple[Path, Order]], suffix: str
) -> None:
    entry = tmp_path / "engines" / small_engine.parent.name
    shutil.copytree(small_engine.parent, entry)
    (entry / "small").with_suffix(suffix).write_bytes(b"")
    assert cached_engine(small_checkpoint)[0] == asked[0][0] == entry / small_engine.name


def test_an_entry_signed_with_another_key_is_built_again(
    small_engine: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    asked: list[tuple[Path, Order]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(small_engine.parent, tmp_path / "engines" / small_engine.parent.name)
    cached_engine(small_checkpoint)
    assert not asked
    monkeypatch.setenv("MCDRL_STATE", str(tmp_path / "state"))
    cached_engine(small_checkpoint)
    assert len(asked) == 1


def test_another_content_precision_version_or_gpu_is_another_engine(
    small_engine: Path,
    small_checkpoint: Path,
    tmp_path: Path,
    asked: list[tuple[Path, Order]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / small_checkpoint.name
    other.write_bytes(small_checkpoint.read_bytes() + b"\0")
    monkeypatch.setattr("mcdrl_rt.engine.openvino.resolve_precision", lambda precision, device: precision)
    engines = [cached_engine(other, Order(precision=precision))[0] for precision in ("fp32", "bf16")]
    monkeypatch.setattr(sidecar, "versions", lambda runtime: {"openvino": "2099.1"})
    engines.append(cached_engine(other, Order(precision="fp32"))[0])
    monkeypatch.setattr(sidecar, "gpu_of", lambda runtime, device: "A (sm_90)")
    engines.append(cached_engine(other, Order(precision="fp32"))[0])
    assert [output for output, _ in asked] == engines
    assert [order.precision for _, order in asked] == ["fp32", "bf16", "fp32", "fp32"]
    assert len({engine.parent.name for engine in (small_engine, *engines)}) == 5


def test_what_is_cached_is_found_without_building(
    small_engine: Path, small_checkpoint: Path, asked: list[tuple[Path, Order]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_cached(small_checkpoint, Order()) is None
    monkeypatch.setenv("MCDRL_CACHE", str(small_engine.parents[2]))
    assert find_cached(small_checkpoint, Order()) == small_engine
    assert not asked


def test_what_is_cached_and_damaged_is_not_found(
    small_engine: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    copy = tmp_path / "cache" / "engines" / small_engine.parent.name
    shutil.copytree(small_engine.parent, copy)
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path / "cache"))
    assert find_cached(small_checkpoint, Order()) == copy / small_engine.name
    with (copy / small_engine.name).open("ab") as file:
        file.write(b" ")
    with caplog.at_level(logging.WARNING, "mcdrl_rt"):
        assert find_cached(small_checkpoint, Order()) is None
    assert "rebuild it: mcdrl-rt build" in caplog.messages[-1]


def test_cache_that_cannot_be_written_names_the_variable(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="set MCDRL_CACHE"):
        cached_engine(small_checkpoint)


def test_without_tensorrt_no_plan_is_announced(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with caplog.at_level(logging.INFO, "mcdrl_rt"), pytest.raises(EngineError, match="TensorRT is not installed"):
        cached_engine(small_checkpoint, Order(runtime="tensorrt"))
    assert caplog.messages == [] and not [path for path in (tmp_path / "engines").iterdir() if path.is_dir()]


def test_a_key_that_cannot_be_read_is_said_before_anything_is_begun(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "engine.key").write_bytes(b"short")
    monkeypatch.setenv("MCDRL_STATE", str(tmp_path))
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO, "mcdrl_rt"), pytest.raises(EngineError, match="is damaged; delete"):
        cached_engine(small_checkpoint)
    assert caplog.messages == []


CLOSED = """
import os, sys
from pathlib import Path
from mcdrl_rt import doctor
from mcdrl_rt.engine import build, cache, choice, sidecar
from mcdrl_rt.engine.order import Order
from mcdrl_rt.errors import McdrlError
from mcdrl_rt.model import checkpoint, folded, mcdrl
home, good, engine = map(Path, sys.argv[1:])
sidecar.engine_key()
for path in (home / "cache", home / "closed.safetensors"):
    path.chmod(0)
os.chmod(home, 0o711)
if os.geteuid() == 0:  # modes bind all others
    os.setegid(65534)
    os.seteuid(65534)
for attempt in (
    lambda: cache.cached_engine(good, Order()),
    lambda: print(cache.find_cached(good, Order())),
    cache.timing_cache,
    lambda: choice.load_engine(home / "cache" / "x.safetensors"),
    lambda: checkpoint.read_spec(home / "closed.safetensors"),
    lambda: sidecar.read_sidecar(home / "cache" / "x.xml"),
    lambda: print(doctor._kept()[1]),
):
    try:
        attempt()
    except McdrlError as error:
        print(error)
"""


def test_what_may_not_be_entered_is_said_in_one_line(small_checkpoint: Path, small_engine: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to others
        home = Path(name)
        (home / "cache" / "engines").mkdir(parents=True)
        shutil.copy(small_checkpoint, home / "good.safetensors")
        (home / "closed.safetensors").touch()
        environment = os.environ | {"MCDRL_CACHE": str(home / "cache"), "MCDRL_STATE": str(home / "state")}
        command = [sys.executable, "-c", CLOSED, str(home), str(home / "good.safetensors"), str(small_engine)]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    refused = f"cannot use the engine cache {home}/cache/engines: permission denied; set MCDRL_CACHE"
    assert ended.stderr.splitlines() == [refused]
    lines = ended.stdout.splitlines()
    assert lines[:3] == [refused, "None", refused]
    assert lines[3] == f"no checkpoint at {home}/cache/x.safetensors: permission denied"
    assert lines[4] == f"no checkpoint at {home}/closed.safetensors: permission denied"
    assert lines[5].startswith(f"no engine at {home}/cache/x.xml (permission denied); make one: ")
    assert lines[6] == f"cannot be read: permission denied: {home}/cache/engines; set MCDRL_CACHE"


SCRIPT = """
import sys, time
from pathlib import Path
from mcdrl_rt.engine import build, cache
from mcdrl_rt.engine.order import Order, resolved
build.GATES[resolved(Order()).precision] = build.Gate(1.0, 0.0)
slow = float(sys.argv[2])
def stage(text):
    print(text, flush=True)
    time.sleep(slow)
print(cache.cached_engine(Path(sys.argv[1]), None, stage)[0])
"""


def start(checkpoint: Path, folder: Path, slow: float = 0.0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(slow)]
    environment = os.environ | {"MCDRL_CACHE": str(folder)}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_two_processes_build_an_engine_once(small_checkpoint: Path, tmp_path: Path) -> None:
    told = [p.communicate(timeout=120)[0].splitlines() for p in [start(small_checkpoint, tmp_path) for _ in range(2)]]
    assert sorted("compiling" in lines for lines in told) == [False, True]  # the other one waited, and built nothing
    assert told[0][-1] == told[1][-1]
    assert sidecar.read_sidecar(Path(told[0][-1]))


@pytest.mark.slow
def test_who_waits_builds_where_the_first_gave_up(small_checkpoint: Path, tmp_path: Path) -> None:
    first = start(small_checkpoint, tmp_path, slow=0.3)
    assert first.stdout is not None
    while not first.stdout.readline().startswith("compiling"):
        pass
    second = start(small_checkpoint, tmp_path)
    time.sleep(1)
    first.send_signal(signal.SIGINT)  # a clean end: its folder is removed
    first.communicate(timeout=60)
    assert first.returncode != 0
    assert sidecar.read_sidecar(Path(second.communicate(timeout=120)[0].splitlines()[-1]))


@pytest.mark.slow
def test_a_build_killed_half_way_leaves_nothing_usable_and_no_lock(small_checkpoint: Path, tmp_path: Path) -> None:
    process = start(small_checkpoint, tmp_path, slow=0.3)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("compiling"):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert list((tmp_path / "engines").glob("*/.small.*"))  # it was in the midst of it
    assert not list((tmp_path / "engines").glob("*/*.xml"))
    started = time.monotonic()
    again = start(small_checkpoint, tmp_path)
    engine = Path(again.communicate(timeout=120)[0].splitlines()[-1])
    assert time.monotonic() - started < 110  # nobody waits for the dead
    assert sidecar.read_sidecar(engine)
    assert sorted(p.name for p in engine.parent.iterdir()) == ["small.bin", "small.xml", "small.xml.json"]
