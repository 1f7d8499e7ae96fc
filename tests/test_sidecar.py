"""Sidecars: an engine that is not what was built here, for this, is refused with the command that rebuilds it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from mcdrl_rt.engine import sidecar
from mcdrl_rt.engine.build import build_engine
from mcdrl_rt.engine.choice import load_engine
from mcdrl_rt.engine.gpu import Gpu
from mcdrl_rt.engine.openvino import resolve_precision
from mcdrl_rt.engine.order import Order
from mcdrl_rt.engine.sidecar import engine_key, read_sidecar, rebuild_command, sidecar_of, write_sidecar
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import EngineError
from mcdrl_rt.types import ModelSpec


@pytest.fixture
def copied(small_engine: Path, tmp_path: Path) -> Path:
    """A copy of the engine that a test may spoil."""
    for suffix in (".xml", ".bin", ".xml.json"):
        shutil.copy(small_engine.with_suffix(suffix), tmp_path)
    return tmp_path / small_engine.name


@pytest.fixture
def own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this session's key that a test may spoil."""
    shutil.copytree(os.environ["MCDRL_STATE"], tmp_path / "state")
    monkeypatch.setenv("MCDRL_STATE", str(tmp_path / "state"))
    return tmp_path / "state" / "engine.key"


def flip(path: Path, place: float) -> None:
    """Change one bit, ``place`` of the way into a file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


def test_sidecar_says_what_the_engine_is(small_engine: Path, small_checkpoint: Path) -> None:
    content = read_sidecar(small_engine)
    assert ModelSpec.from_json(json.dumps(content["spec"])) == TorchEngine.from_checkpoint(small_checkpoint).spec
    assert content["checkpoint"] == {"name": "small.safetensors", "sha256": sidecar.file_hash(small_checkpoint)}
    assert content["versions"].keys() == {"mcdrl_rt", "openvino"}
    assert content["precision"] == resolve_precision("auto")
    assert content["parity"].keys() == {"label_flips", "mask_iou", "frames", "with_lesion", "selected", "readout"}
    assert content["latency_ms"] > 0
    assert content["files"].keys() == {".xml", ".bin"}


def without_sidecar(engine: Path) -> None:
    sidecar_of(engine).unlink()


def corrupt_sidecar(engine: Path) -> None:
    sidecar_of(engine).write_text('{"format": "mcdrl-rt engine 2", "spe')


def binary_sidecar(engine: Path) -> None:
    sidecar_of(engine).write_bytes(b"\xff\xfe\x00")


def foreign_sidecar(engine: Path) -> None:
    sidecar_of(engine).write_text('{"name": "something else"}')


def listed_sidecar(engine: Path) -> None:
    sidecar_of(engine).write_text("[]")


def poor_sidecar(engine: Path) -> None:
    sidecar_of(engine).write_text('{"format": "mcdrl-rt engine 2"}')


def older_sidecar(engine: Path) -> None:
    path = sidecar_of(engine)
    path.write_text(path.read_text().replace("engine 2", "engine 1"))


def edited_sidecar(engine: Path) -> None:
    path = sidecar_of(engine)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"precision": "bf16" if content["precision"] == "fp32" else "fp32"}))


def unsigned_sidecar(engine: Path) -> None:
    path = sidecar_of(engine)
    content = json.loads(path.read_text())
    del content["signature"]
    path.write_text(json.dumps(content))


def strangely_signed_sidecar(engine: Path) -> None:
    path = sidecar_of(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"signature": ["é"]}))


def surrogate_sidecar(engine: Path) -> None:
    path = sidecar_of(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"signature": "\ud800"}))


def commanding_sidecar(engine: Path) -> None:
    path = sidecar_of(engine)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"command": []}))


def nested_sidecar(engine: Path) -> None:
    sidecar_of(engine).write_text("[" * 100_000)


def without_weights(engine: Path) -> None:
    engine.with_suffix(".bin").unlink()


def truncated_weights(engine: Path) -> None:
    content = engine.with_suffix(".bin").read_bytes()
    engine.with_suffix(".bin").write_bytes(content[: len(content) // 2])


def truncated_graph(engine: Path) -> None:
    engine.write_text(engine.read_text()[:5000])


def flipped_weights(engine: Path) -> None:
    flip(engine.with_suffix(".bin"), 0.5)


def flipped_graph(engine: Path) -> None:
    flip(engine, 0.9)


def without_graph(engine: Path) -> None:
    engine.unlink()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without_sidecar, "no sidecar of this version"),
        (corrupt_sidecar, "no sidecar of this version"),
        (binary_sidecar, "no sidecar of this version"),
        (foreign_sidecar, "no sidecar of this version"),
        (listed_sidecar, "no sidecar of this version"),
        (poor_sidecar, "no sidecar of this version"),
        (older_sidecar, "no sidecar of this version"),
        (edited_sidecar, "its sidecar or this user's key was changed"),
        (unsigned_sidecar, "its sidecar or this user's key was changed"),
        (strangely_signed_sidecar, "its sidecar or this user's key was changed"),
        (surrogate_sidecar, "its sidecar or this user's key was changed"),
        (commanding_sidecar, "its sidecar or this user's key was changed"),
        (nested_sidecar, "no sidecar of this version"),
        (flipped_weights, "not what was built: small.bin"),
        (flipped_graph, "not what was built: small.xml"),
        (without_graph, "no engine at"),
        (without_weights, "not what was built: small.bin is missing"),
        (truncated_weights, "not what was built: small.bin"),
        (truncated_graph, "not what was built: small.xml"),
    ],
)
def test_spoilt_engine_is_refused_with_the_command_that_rebuilds_it(
    copied: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    spoil(copied)
    with pytest.raises(EngineError, match=complaint) as caught:
        load_engine(copied)
    assert f"mcdrl-rt build --output {copied}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [0.0, 0.2, 0.4, 0.6, 0.8, 0.999])
def test_any_flipped_bit_of_a_sidecar_is_refused(copied: Path, place: float) -> None:
    flip(sidecar_of(copied), place)
    with pytest.raises(EngineError, match="rebuild it: mcdrl-rt build"):
        read_sidecar(copied)


def test_a_flipped_bit_of_the_key_is_refused_and_so_is_its_loss(copied: Path, own_key: Path) -> None:
    assert read_sidecar(copied)
    flip(own_key, 0.5)
    with pytest.raises(EngineError, match="this user's key was changed"):
        read_sidecar(copied)
    own_key.unlink()
    with pytest.raises(EngineError, match="not built by this user here"):
        read_sidecar(copied)
    assert not own_key.exists()  # reading makes none


@pytest.mark.parametrize("name", ["small.pt2", "small.plan", "other.xml"])
def test_a_signed_sidecar_vouches_for_its_own_files_alone(copied: Path, name: str) -> None:
    """Another file's sidecar, copied beside a file that nobody has signed."""
    stranger = copied.with_name(name)
    stranger.write_bytes(b"native code, perhaps")
    shutil.copy(sidecar_of(copied), sidecar_of(stranger))
    with pytest.raises(EngineError, match=r"is no engine for openvino, as its sidecar says|is not what was built"):
        load_engine(stranger)


def test_engines_of_one_stem_have_sidecars_of_their_own(small_checkpoint: Path, copied: Path) -> None:
    build_engine(small_checkpoint, copied.with_suffix(".onnx"), Order(runtime="onnx"))
    assert read_sidecar(copied)["runtime"] == "openvino"
    assert read_sidecar(copied.with_suffix(".onnx"))["runtime"] == "onnx"


def test_a_damaged_key_is_said(own_key: Path, copied: Path) -> None:
    own_key.write_bytes(b"short")
    with pytest.raises(EngineError, match=f"is damaged; delete {own_key}"):
        read_sidecar(copied)


def test_another_users_engine_is_refused(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCDRL_STATE", str(tmp_path / "other"))
    engine_key()
    with pytest.raises(EngineError, match="not built by this user here"):
        read_sidecar(copied)


def test_other_versions_and_gpus_are_refused_by_name(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads(sidecar_of(copied).read_text())
    was = content["versions"]["openvino"]
    monkeypatch.setattr(sidecar, "versions", lambda runtime: content["versions"] | {"openvino": "2099.1"})
    with pytest.raises(EngineError, match=rf"built with openvino {was}, and here is 2099\.1"):
        read_sidecar(copied)


def test_a_plan_is_for_one_gpu_one_tensorrt_and_one_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "plugin.so"
    plugin.write_bytes(b"one")
    monkeypatch.setenv("MCDRL_TENSORRT_PLUGIN", str(plugin))
    monkeypatch.setattr(sidecar, "gpus", lambda: (Gpu("A", "9.0"),))
    plan = tmp_path / "x.plan"
    plan.write_bytes(b"plan")
    content = {"runtime": "tensorrt", "precision": "fp16", "device": "auto", "spec": {}}
    content |= {"versions": sidecar.versions("tensorrt"), "gpu": sidecar.gpu_of("tensorrt", "auto")}
    write_sidecar(plan, content)
    assert read_sidecar(plan)["gpu"] == "A (sm_90)"
    monkeypatch.setattr(sidecar, "gpus", lambda: (Gpu("B", "8.9"),))
    with pytest.raises(EngineError, match=r"was built for A \(sm_90\), and here is B \(sm_89\)"):
        read_sidecar(plan)
    monkeypatch.setattr(sidecar, "gpus", lambda: (Gpu("A", "9.0"),))
    plugin.write_bytes(b"two")
    with pytest.raises(EngineError, match="was built with native"):
        read_sidecar(plan)


def test_key_is_the_users_alone_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCDRL_STATE", str(tmp_path / "state"))
    assert engine_key(create=False) is None
    key = engine_key()
    path = tmp_path / "state" / "engine.key"
    assert key == path.read_bytes() == engine_key()
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_processes_that_make_the_key_at_once_agree(tmp_path: Path) -> None:
    script = "from mcdrl_rt.engine.sidecar import engine_key; print(engine_key().hex())"
    command = [sys.executable, "-c", script]
    environment = os.environ | {"MCDRL_STATE": str(tmp_path / "state")}
    started = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    assert len({process.communicate(timeout=60)[0] for process in started}) == 1


def test_a_state_folder_that_cannot_be_written_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MCDRL_STATE", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="set MCDRL_STATE"):
        engine_key()


def test_rebuild_command_can_be_pasted(tmp_path: Path) -> None:
    command = {"model": "a b.safetensors", "runtime": "openvino", "precision": "int8"}
    assert rebuild_command(Path("my engine.xml"), {"command": command}) == (
        "mcdrl-rt build --output 'my engine.xml' --model 'a b.safetensors' --runtime openvino --precision int8"
    )
