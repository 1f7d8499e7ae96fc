"""Building: an engine is whole, checked and described, or absent; what cannot be built is said in one line."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from mcdrl_rt.engine import build
from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.engine.build import Gate, build_engine
from mcdrl_rt.engine.cache import cached_engine
from mcdrl_rt.engine.choice import load_engine
from mcdrl_rt.engine.order import Order, resolved
from mcdrl_rt.engine.parity import Parity, compare
from mcdrl_rt.engine.place import place_of
from mcdrl_rt.engine.sidecar import FILES, read_sidecar
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import EngineError, SourceError
from mcdrl_rt.types import UInt8Array

FP32 = Order(precision="fp32")


def test_stages_are_told_in_order_and_the_sidecar_is_what_is_returned(
    small_checkpoint: Path, data_root: Path, tmp_path: Path
) -> None:
    stages: list[str] = []
    video = data_root / "video" / "colonoscopy_560x480_25fps.mp4"
    content = build_engine(small_checkpoint, tmp_path / "x.xml", Order(precision="fp32", frames=video), stages.append)
    assert [stage.split()[0] for stage in stages] == ["reading", "reading", "exporting", "compiling", "checking"]
    assert content == read_sidecar(tmp_path / "x.xml")
    assert content["parity"]["frames"] == 53  # the user's own
    assert content["frames"] == str(video)
    assert content["command"]["frames"] == str(video.resolve())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "x.xml", "x.xml.json"]


def test_without_frames_an_engine_is_checked_on_synthetic_ones(small_engine: Path) -> None:
    content = read_sidecar(small_engine)
    assert content["parity"]["frames"] == 10
    assert content["frames"] == "synthetic"


def test_engine_too_far_from_the_reference_is_refused_and_nothing_is_left(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(build.GATES, "fp32", Gate(-1.0, 0.0))
    with pytest.raises(EngineError, match=r"fp32 engine of small is too far .*: [0-9.]+% of labels") as caught:
        build_engine(small_checkpoint, tmp_path / "engine.xml", FP32)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_masks_count_more_on_real_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic lesions are of a few hundred pixels: a pixel's shift is a tenth of their overlap."""
    monkeypatch.setattr("mcdrl_rt.engine.parity.compare", lambda *_: Parity(0.001, 0.95, 10))
    monkeypatch.setattr("mcdrl_rt.engine.torch.TorchEngine", lambda *_: None)
    monkeypatch.setattr(build, "_latency_ms", lambda *_: 1.0)
    engine: Any = SimpleNamespace(max_batch=1, spec=SimpleNamespace(name="x", alpha=0.5))
    frames: Any = [None]
    assert build.check(engine, engine, frames, "fp16", real=False)["parity"]["mask_iou"] == 0.95
    with pytest.raises(EngineError, match=r"mask IoU 0\.950 \(at least 0\.99\)"):
        build.check(engine, engine, frames, "fp16", real=True)
    monkeypatch.setattr("mcdrl_rt.engine.parity.compare", lambda *_: Parity(0.001, 0.85, 10))
    with pytest.raises(EngineError, match=r"mask IoU 0\.850 \(at least 0\.90\)"):
        build.check(engine, engine, frames, "fp16", real=False)


def test_other_cells_or_other_weights_are_refused_whatever_the_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcdrl_rt.engine.torch.TorchEngine", lambda *_: None)
    engine: Any = SimpleNamespace(max_batch=1, spec=SimpleNamespace(name="x", alpha=0.5))
    frames: Any = [None]
    for selected, readout, message in (
        (0.6, 0.0, r"60\.0% of the cells are selected alike \(at least 75\.0%\)"),
        (1.0, 0.4, "40% of the confounders' weight is on others"),
        (1.0, float("nan"), "nan% of the confounders' weight"),
    ):
        monkeypatch.setattr(
            "mcdrl_rt.engine.parity.compare",
            lambda *_, s=selected, r=readout: Parity(0.0, 1.0, 10, 9, s, r),
        )
        with pytest.raises(EngineError, match=message):
            build.check(engine, engine, frames, "fp32", real=True)


def test_frames_together_are_compared_each_with_its_own(small_checkpoint: Path, pictures: UInt8Array) -> None:
    reference = TorchEngine.from_checkpoint(small_checkpoint)
    same = compare(reference, reference, list(pictures), batch=3)
    assert (same.frames, same.selected) == (len(pictures), 1.0)
    assert same.label_flips < 1e-4 and same.readout < 1e-6  # three at once are rounded otherwise than one by one

    class Turned:
        spec, name, max_batch = reference.spec, "turned", 3

        def infer(self, frames: UInt8Array) -> RawOutput:
            return RawOutput(*(part[::-1] for part in reference.infer(frames)))

    assert compare(Turned(), reference, list(pictures), batch=3).selected < 1
    assert compare(Turned(), reference, list(pictures)) == compare(reference, reference, list(pictures))


@pytest.mark.slow
def test_onnx_is_for_other_peoples_runtimes(
    small_checkpoint: Path, pictures: UInt8Array, tmp_path: Path
) -> None:
    path = tmp_path / "x.onnx"
    content = build_engine(small_checkpoint, path, Order(runtime="onnx"))
    assert content["parity"]["frames"] == 10 and content["parity"]["label_flips"] <= 0.005
    assert {node.domain for node in onnx.load(path).graph.node} >= {"mcdrl_rt"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    score = session.run(["score"], {"frames": pictures[:1]})[0]
    reference = TorchEngine.from_checkpoint(small_checkpoint).infer(pictures[:1])
    assert np.mean((score >= 128) != (reference.score >= 128)) <= 0.005


@pytest.mark.slow
@pytest.mark.parametrize("batch", [(4, 4), (2, 3), (1, 1024)])
def test_onnx_is_checked_in_any_batch(small_checkpoint: Path, tmp_path: Path, batch: tuple[int, int]) -> None:
    order = Order(runtime="onnx", batch=batch)
    content = build_engine(small_checkpoint, tmp_path / "x.onnx", order)
    assert content["parity"]["frames"] == 10


def test_without_onnxruntime_a_file_is_not_checked(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    missing = "onnxruntime"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest))
    monkeypatch.setattr("mcdrl_rt.engine.onnx.export_onnx", lambda *_: onnx.ModelProto())
    assert "parity" not in build_engine(small_checkpoint, tmp_path / "x.onnx", Order(runtime="onnx"))


@pytest.mark.slow
def test_a_range_of_batches_is_any_batch_in_onnx(small_checkpoint: Path, pictures: UInt8Array, tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    build_engine(small_checkpoint, path, Order(runtime="onnx", batch=(1, 4)))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        assert session.run(["score"], {"frames": pictures[:batch]})[0].shape[0] == batch


@pytest.mark.slow
def test_a_torch_package_is_built_checked_and_run(
    small_checkpoint: Path, pictures: UInt8Array, tmp_path: Path
) -> None:
    path = tmp_path / "x.pt2"
    content = build_engine(small_checkpoint, path, Order(runtime="torch", device="cpu"))
    assert (content["precision"], content["device"], content["gpu"]) == ("fp32", "cpu", None)
    assert content["versions"].keys() >= {"mcdrl_rt", "torch"}
    engine = load_engine(path)
    assert engine.name == "torch compiled fp32 cpu"
    reference = TorchEngine.from_checkpoint(small_checkpoint)
    assert compare(engine, reference, pictures).label_flips <= 0.005
    with pytest.raises(EngineError, match="is an engine in fp32, not fp16"):
        load_engine(path, precision="fp16")


def test_without_tensorrt_a_plan_is_refused_in_one_line(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"pip install 'mcdrl-rt\[tensorrt\]'"):
        build_engine(small_checkpoint, tmp_path / "x.plan", Order(runtime="tensorrt"))
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
    [
        (missing_folder, "cannot write .*nowhere: no such file or directory; make it, or choose another place"),
        (wrong_suffix, "ends in .xml"),
        (a_folder, "is a folder; name"),
    ],
)
def test_output_that_cannot_be_written_is_named(
    small_checkpoint: Path, tmp_path: Path, where: Callable[[Path], Path], complaint: str
) -> None:
    output = where(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EngineError, match=complaint):
        build_engine(small_checkpoint, output, FP32)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("order", "complaint"),
    [
        (Order(runtime="coreml"), "no runtime 'coreml'; choose openvino, tensorrt, torch, onnx"),
        (Order(precision="int3"), "OpenVINO engines come in fp32, .*, not 'int3'"),
        (Order(precision="int8"), "calibrated on real pictures or videos: mcdrl-rt build .*--frames"),
        (Order(batch=(4, 4)), "openvino takes one frame at a time"),
        (Order(precision="fp16"), "CPU does not compute in fp16"),
        (Order(route="torch-tensorrt"), "--route is for TensorRT"),
        (Order(runtime="torch", device="cuda:abc"), "cuda or cuda:N, not 'cuda:abc'"),
        (Order(runtime="tensorrt", device="cuda:-1"), "cuda or cuda:N, not 'cuda:-1'"),
        (Order(device="NPU9"), "no device 'NPU9' here; it has CPU"),
        (Order(runtime="onnx", device="cuda"), "--device is for engines"),
        (Order(runtime="onnx", precision="int8"), "ONNX files come in fp32"),
        (Order(runtime="tensorrt", precision="bf16"), "tensorrt engines come in fp32 and fp16, not 'bf16'"),
        (Order(runtime="tensorrt", device="cpu"), "TensorRT runs on cuda or cuda:N, not on 'cpu'"),
        (Order(runtime="tensorrt", route="mail"), "--route onnx or torch-tensorrt, not 'mail'"),
        (Order(runtime="torch", device="cpu", batch=(1, 4)), "torch takes one frame at a time"),
    ],
)
def test_what_cannot_be_had_is_refused_before_any_work(
    small_checkpoint: Path, tmp_path: Path, order: Order, complaint: str
) -> None:
    output = tmp_path / f"x{FILES.get(order.runtime, ['.xml'])[0]}"
    with pytest.raises(EngineError, match=complaint):
        build_engine(small_checkpoint, output, order, lambda stage: pytest.fail(stage))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["nowhere", "notes.txt"])
def test_frames_that_are_none_are_named(small_checkpoint: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(SourceError, match=name):
        build_engine(small_checkpoint, tmp_path / "x.xml", Order(precision="fp32", frames=tmp_path / name))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_disk_that_fills_up_is_said_in_one_line(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Large:
        def SerializeToString(self) -> bytes:
            return bytes(1 << 20)

    monkeypatch.setattr("mcdrl_rt.engine.onnx.inlined", lambda model: Large())
    monkeypatch.setattr("mcdrl_rt.engine.onnx.export_onnx", lambda *model: None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # the system's own refusal, not a pretended one
    try:
        with pytest.raises(EngineError, match=r"cannot write an engine to .*: file too large; choose") as caught:
            build_engine(small_checkpoint, tmp_path / "engine.xml", FP32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("companion", ["engine.bin", "engine.xml.json"])
def test_a_file_that_is_of_no_engine_is_not_replaced(small_checkpoint: Path, tmp_path: Path, companion: str) -> None:
    (tmp_path / companion).write_text('{"notes": "of somebody"}')
    with pytest.raises(EngineError, match=f"{companion} would be replaced"):
        build_engine(small_checkpoint, tmp_path / "engine.xml", FP32, lambda stage: pytest.fail(stage))
    assert [path.name for path in tmp_path.iterdir()] == [companion]


def test_an_engine_is_replaced_whole_and_what_a_killed_build_left_is_removed(
    small_engine: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    for suffix in (".xml", ".bin", ".xml.json"):
        shutil.copy(small_engine.with_suffix(suffix), tmp_path)
    engine = tmp_path / small_engine.name
    (tmp_path / f".{engine.name}.partial").mkdir()
    (tmp_path / f".{engine.name}.partial" / "a").touch()
    build_engine(small_checkpoint, engine, FP32)
    assert read_sidecar(engine)["precision"] == "fp32"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.bin", "small.xml", "small.xml.json"]


def test_an_engine_whose_sidecar_is_lost_is_built_again(
    small_engine: Path, small_checkpoint: Path, tmp_path: Path
) -> None:
    """As the message says that refuses to load it."""
    for suffix in (".xml", ".bin"):
        shutil.copy(small_engine.with_suffix(suffix), tmp_path)
    engine = tmp_path / small_engine.name
    with pytest.raises(EngineError, match=f"build --output {engine}"):
        read_sidecar(engine)
    build_engine(small_checkpoint, engine, FP32)
    assert read_sidecar(engine)


def test_one_process_at_a_time_builds_an_engine(small_checkpoint: Path, tmp_path: Path) -> None:
    def stage(_: str) -> None:
        with pytest.raises(EngineError, match="another process is building"), place_of(output, "openvino"):
            pass

    output = tmp_path / "x.xml"
    build_engine(small_checkpoint, output, FP32, stage)
    assert read_sidecar(output)


def test_a_name_that_is_taken_meanwhile_leaves_all_as_it_was(tmp_path: Path) -> None:
    output = tmp_path / "x.xml"
    with pytest.raises(EngineError, match="json would be replaced"), place_of(output, "openvino") as partial:
        for path in (partial, partial.with_suffix(".bin"), partial.with_name("x.xml.json")):
            path.touch()
        (tmp_path / "x.xml.json").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["x.xml.json"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "no space left on device; make room there, or choose another place"),
        (errno.EACCES, "permission denied; choose another place"),
    ],
)
def test_advice_fits_the_cause(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setitem(build._COMPILE, "openvino", refuse)
    with pytest.raises(EngineError, match=f"cannot write an engine to {tmp_path}: {advice}$"):
        build_engine(small_checkpoint, tmp_path / "x.xml", FP32)
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match=r"set MCDRL_CACHE$"):
        cached_engine(small_checkpoint, FP32)


def test_an_fp32_engine_that_is_too_far_is_done_without(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(build.GATES, "fp32", Gate(-1.0, 0.0))
    with pytest.raises(EngineError, match=r"frames; stream and process run the model with --engine torch$"):
        build_engine(small_checkpoint, tmp_path / "engine.xml", FP32)


def test_the_command_says_what_was_ordered_and_no_more(tmp_path: Path) -> None:
    assert resolved(resolved(Order(runtime="onnx"))).command(tmp_path).keys() == {"model", "runtime", "precision"}
    checkpoint = tmp_path / "a.safetensors"
    assert Order().command(checkpoint) == {"model": str(checkpoint), "runtime": "openvino"}
    order = Order(runtime="tensorrt", precision="fp16", batch=(1, 8), route="torch-tensorrt")
    assert json.loads(json.dumps(order.command(checkpoint))) == {
        "model": str(checkpoint),
        "runtime": "tensorrt",
        "batch": "1-8",
        "precision": "fp16",
        "route": "torch-tensorrt",
    }
