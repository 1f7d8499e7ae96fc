"""Engines: every runtime gives the reference's labels; a build is whole or absent; refusals name the choices."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT

from mcdrl_rt.engine import build
from mcdrl_rt.engine.base import Engine, RawOutput
from mcdrl_rt.engine.build import build_openvino, cached_engine, read_sidecar
from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT, load_engine
from mcdrl_rt.engine.openvino import OpenVinoEngine, resolve_precision
from mcdrl_rt.engine.parity import Parity, compare
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import CheckpointError, EngineError
from mcdrl_rt.types import ModelSpec, UInt8Array


@pytest.fixture(scope="module")
def reference(small_checkpoint: Path) -> TorchEngine:
    return TorchEngine.from_checkpoint(small_checkpoint)


@pytest.fixture
def copied(small_engine: Path, tmp_path: Path) -> Path:
    """A copy of the engine that a test may spoil."""
    for suffix in (".xml", ".bin", ".json"):
        shutil.copy(small_engine.with_suffix(suffix), tmp_path)
    return tmp_path / small_engine.name


# --- agreement ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "flips"), [("fp32", 0.005), ("bf16", 0.2)])
def test_openvino_gives_the_references_labels(
    small_engine: Path, reference: TorchEngine, pictures: UInt8Array, precision: str, flips: float
) -> None:
    """bf16 is held to 1 % on a trained model below; random weights put far more pixels on the fence."""
    engine = load_engine(small_engine, "openvino", precision)
    assert engine.name == f"openvino {precision} CPU"
    parity = compare(engine, reference, pictures)
    assert parity.frames == len(pictures)
    assert parity.label_flips <= flips
    outputs = [e.infer(pictures[:1]) for e in (engine, reference)]
    np.testing.assert_allclose(outputs[0].confounders, outputs[1].confounders, atol=0.01)
    assert [a.dtype for a in outputs[0]] == [a.dtype for a in outputs[1]]
    assert [a.shape for a in outputs[0]] == [a.shape for a in outputs[1]]


def test_shipped_model_agrees_with_float32_torch_on_real_frames(data_root: Path) -> None:
    engine_file = cached_engine(DEFAULT_CHECKPOINT)[0]
    reference = TorchEngine.from_checkpoint(DEFAULT_CHECKPOINT)
    height, width = reference.spec.input_size
    paths = sorted((data_root / "Kvasir-SEG" / "images").iterdir())[::20][:50]
    pictures = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]
    frames = [cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8) for p in pictures]
    assert len(frames) == 50
    answers = [reference.infer(frame[None]) for frame in frames]
    for precision, flips in (("fp32", 0.005), ("bf16", 0.01)):
        parity = compare(OpenVinoEngine(engine_file, reference.spec, precision), Recorded(answers), frames)
        assert parity.label_flips <= flips, precision
        assert parity.mask_iou >= 0.95, precision


class Recorded:
    """An engine that gives the answers of another once more: torch is slow."""

    def __init__(self, answers: list[RawOutput]) -> None:
        self.answers = iter(answers)

    def infer(self, frames: UInt8Array) -> RawOutput:
        return next(self.answers)


class Canned:
    """An engine that always gives the same labels."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = np.array(labels, np.uint8).reshape(1, 2, 2)

    def infer(self, frames: UInt8Array) -> RawOutput:
        score = np.where(self.labels > 0, 128, 127).astype(np.uint8)
        return RawOutput(score, np.maximum(self.labels, 1), np.ones((1, 1), np.float32), self.labels)


@pytest.mark.parametrize(
    ("one", "other", "flips", "iou"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0], 0.0, 1.0),
        ([1, 1, 0, 0], [1, 0, 0, 0], 0.25, 0.5),
        ([1, 2, 0, 0], [1, 1, 0, 0], 0.25, 1.0),  # another class is a flip, but the same mask
        ([1, 1, 1, 1], [0, 0, 0, 0], 1.0, 0.0),
    ],
)
def test_parity_counts_flipped_labels_and_pools_masks(
    one: list[int], other: list[int], flips: float, iou: float
) -> None:
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    engines: list[Any] = [Canned(one), Canned(other)]
    assert compare(*engines, frames) == Parity(flips, iou, 3)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.usefixtures("small_engine")  # so that it is in the cache
def test_outputs_belong_to_the_caller(small_checkpoint: Path, pictures: UInt8Array, engine: str) -> None:
    runner = load_engine(small_checkpoint, engine)
    first = runner.infer(pictures[:1])
    kept = [array.copy() for array in first]
    runner.infer(pictures[3:4])
    assert all(np.array_equal(array, copy) for array, copy in zip(first, kept, strict=True))
    first.label[:] = 7  # and may be written to


def test_strided_frames_are_taken(small_engine: Path, reference: TorchEngine, pictures: UInt8Array) -> None:
    mirrored = pictures[:1, :, ::-1]
    for engine in (load_engine(small_engine), reference):
        strided, straight = engine.infer(mirrored), engine.infer(mirrored.copy())
        assert np.array_equal(strided.score, straight.score)


# --- building ----------------------------------------------------------------------------------------------------


def test_engine_is_built_once_and_whole(
    small_engine: Path, small_checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert small_engine.is_relative_to(cache)
    assert sorted(p.name for p in small_engine.parent.iterdir()) == ["small.bin", "small.json", "small.xml"]
    monkeypatch.setattr(build, "build_openvino", lambda *_: pytest.fail("built again"))
    assert cached_engine(small_checkpoint)[0] == small_engine


@pytest.mark.parametrize("suffix", [".xml", ".bin", ".json"])
def test_a_damaged_cache_entry_is_built_again(
    small_engine: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    entry = tmp_path / "engines" / small_engine.parent.name
    shutil.copytree(small_engine.parent, entry)
    (entry / "small").with_suffix(suffix).write_bytes(b"")
    asked = []
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "build_openvino", lambda _, output, precision: asked.append(output))
    assert [cached_engine(small_checkpoint)[0]] == asked == [entry / small_engine.name]


def test_another_content_or_precision_is_another_engine(
    small_engine: Path, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / small_checkpoint.name
    other.write_bytes(small_checkpoint.read_bytes() + b"\0")
    asked = []
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "build_openvino", lambda _, output, precision: asked.append((output, precision)))
    engines = [cached_engine(other, precision)[0] for precision in ("fp32", "bf16")]
    assert asked == list(zip(engines, ("fp32", "bf16"), strict=True))
    assert len({engine.parent.name for engine in (small_engine, *engines)}) == 3


def test_sidecar_says_what_the_engine_is(small_engine: Path, small_checkpoint: Path, reference: TorchEngine) -> None:
    sidecar = read_sidecar(small_engine)
    assert ModelSpec.from_json(json.dumps(sidecar["spec"])) == reference.spec
    assert sidecar["checkpoint"] == {"name": "small.safetensors", "sha256": build.file_hash(small_checkpoint)}
    assert sidecar["versions"].keys() == {"mcdrl_rt", "openvino"}
    assert sidecar["precision"] == resolve_precision("auto")
    assert sidecar["parity"].keys() == {"label_flips", "mask_iou", "frames"}


def test_engine_too_far_from_the_reference_is_refused_and_nothing_is_left(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(build.MAX_FLIPS, "fp32", -1.0)
    with pytest.raises(EngineError, match=r"fp32 engine of small disagrees .* on [0-9.]+% of labels") as caught:
        build_openvino(small_checkpoint, tmp_path / "engine.xml", "fp32")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def missing_folder(path: Path) -> Path:
    return path / "nowhere" / "engine.xml"


def wrong_suffix(path: Path) -> Path:
    return path / "engine.onnx"


def a_folder(path: Path) -> Path:
    (path / "engine.xml").mkdir()
    return path / "engine.xml"


@pytest.mark.parametrize(
    ("where", "complaint"),
    [(missing_folder, "cannot write an engine to"), (wrong_suffix, "is an .xml file"), (a_folder, "is an .xml file")],
)
def test_output_that_cannot_be_written_is_named(
    small_checkpoint: Path, tmp_path: Path, where: Callable[[Path], Path], complaint: str
) -> None:
    output = where(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EngineError, match=complaint):
        build_openvino(small_checkpoint, output)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_up_is_said_in_one_line(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large:
        def SerializeToString(self) -> bytes:
            return bytes(1 << 20)

    monkeypatch.setattr("mcdrl_rt.engine.onnx.inlined", lambda model: Large())
    monkeypatch.setattr("mcdrl_rt.engine.onnx.export_onnx", lambda model: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # the system's own refusal, not a pretended one
    try:
        with pytest.raises(EngineError, match=r"cannot write an engine to .*: file too large; make room") as caught:
            build_openvino(small_checkpoint, tmp_path / "engine.xml", "fp32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_written_names_the_variable(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="set MCDRL_CACHE"):
        cached_engine(small_checkpoint)


# --- loading -----------------------------------------------------------------------------------------------------


def without_sidecar(engine: Path) -> None:
    engine.with_suffix(".json").unlink()


def corrupt_sidecar(engine: Path) -> None:
    engine.with_suffix(".json").write_text('{"format": "mcdrl-rt engine 1", "spe')


def binary_sidecar(engine: Path) -> None:
    engine.with_suffix(".json").write_bytes(b"\xff\xfe\x00")


def foreign_sidecar(engine: Path) -> None:
    engine.with_suffix(".json").write_text('{"name": "something else"}')


def listed_sidecar(engine: Path) -> None:
    engine.with_suffix(".json").write_text("[]")


def poor_sidecar(engine: Path) -> None:
    engine.with_suffix(".json").write_text('{"format": "mcdrl-rt engine 1"}')


def without_weights(engine: Path) -> None:
    engine.with_suffix(".bin").unlink()


def truncated_weights(engine: Path) -> None:
    content = engine.with_suffix(".bin").read_bytes()
    engine.with_suffix(".bin").write_bytes(content[: len(content) // 2])


def truncated_graph(engine: Path) -> None:
    engine.write_text(engine.read_text()[:5000])


def flipped_byte(engine: Path) -> None:
    content = bytearray(engine.with_suffix(".bin").read_bytes())
    content[len(content) // 2] ^= 1
    engine.with_suffix(".bin").write_bytes(content)


def without_graph(engine: Path) -> None:
    engine.unlink()


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (without_sidecar, "rebuild it with 'mcdrl-rt build'"),
        (corrupt_sidecar, "rebuild it with 'mcdrl-rt build'"),
        (binary_sidecar, "rebuild it with 'mcdrl-rt build'"),
        (foreign_sidecar, "rebuild it with 'mcdrl-rt build'"),
        (listed_sidecar, "rebuild it with 'mcdrl-rt build'"),
        (poor_sidecar, "rebuild it with 'mcdrl-rt build'"),
        (flipped_byte, "not what was built; rebuild it"),
        (without_graph, "no engine at"),
        (without_weights, "not what was built; rebuild it"),
        (truncated_weights, "not what was built; rebuild it"),
        (truncated_graph, "not what was built; rebuild it"),
    ],
)
def test_spoilt_engine_is_refused_in_one_line(copied: Path, spoil: Callable[[Path], None], complaint: str) -> None:
    spoil(copied)
    with pytest.raises(EngineError, match=complaint) as caught:
        load_engine(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("small_engine")
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"engine": "tensorflow"}, "no engine 'tensorflow'; choose auto, openvino, torch"),
        ({"precision": "fp8"}, "fp32 and bf16, not 'fp8'"),
        ({"engine": "torch", "precision": "bf16"}, "computes in fp32, not bf16"),
        ({"device": "NPU9"}, "no device 'NPU9' here; it has CPU"),
        ({"device": "NPU9", "precision": "fp32"}, "no device 'NPU9' here; it has CPU"),
        ({"engine": "torch", "device": "abacus"}, "cpu, cuda or cuda:N, not on 'abacus'"),
    ],
)
def test_what_is_not_to_be_had_is_named_with_the_choices(
    small_checkpoint: Path, options: dict[str, str], complaint: str
) -> None:
    with pytest.raises(EngineError, match=complaint) as caught:
        load_engine(small_checkpoint, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["auto", "openvino", "torch"])
@pytest.mark.parametrize("name", ["absent.safetensors", "model.onnx", "notes"])
def test_what_is_no_model_file_is_refused(tmp_path: Path, engine: str, name: str) -> None:
    with pytest.raises(CheckpointError, match=name):
        load_engine(tmp_path / name, engine)


def test_torch_takes_no_openvino_engine(small_engine: Path) -> None:
    with pytest.raises(EngineError, match="the torch engine takes the checkpoint"):
        load_engine(small_engine, "torch")


@pytest.mark.usefixtures("small_engine")
@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (1, 128, 160, 4), (128, 160, 3)])
def test_frame_of_another_shape_is_an_engine_error(small_checkpoint: Path, engine: str, shape: tuple[int, ...]) -> None:
    runner: Engine = load_engine(small_checkpoint, engine)
    with pytest.raises(EngineError, match="failed on a frame") as caught:
        runner.infer(np.zeros(shape, np.uint8))
    assert "\n" not in str(caught.value)


def test_running_a_built_engine_loads_neither_torch_nor_the_export_stack(small_engine: Path, tmp_path: Path) -> None:
    script = """
import sys
import numpy as np
from mcdrl_rt import Segmenter
segmenter = Segmenter.load(sys.argv[1])
segmenter(np.full((240, 320, 3), 120, np.uint8))
heavy = {"torch", "torchvision", "open_clip", "timm", "onnx", "onnxscript", "transformers", "training"}
print(sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(small_engine)],
        cwd=ROOT, env=os.environ | {"MCDRL_CACHE": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert list(tmp_path.iterdir()) == []
