"""Engines: every runtime gives the reference's labels, and what it gives is the caller's."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT

from mcdrl_rt.engine.base import Engine, RawOutput
from mcdrl_rt.engine.cache import cached_engine
from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT, load_engine
from mcdrl_rt.engine.openvino import OpenVinoEngine, resolve_precision
from mcdrl_rt.engine.parity import Parity, compare
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import EngineError
from mcdrl_rt.types import UInt8Array


@pytest.fixture(scope="module")
def reference(small_checkpoint: Path) -> TorchEngine:
    return TorchEngine.from_checkpoint(small_checkpoint)


@pytest.mark.parametrize(("precision", "points"), [("fp32", 0.1), ("bf16", 25)])
def test_openvino_gives_the_references_answers(
    small_engine: Path, reference: TorchEngine, pictures: UInt8Array, precision: str, points: float
) -> None:
    """Scores on average, of 255; bf16's labels are held to 1 % on a trained model below: random weights make chaos."""
    if precision == "bf16" != resolve_precision("auto"):
        pytest.skip("this processor does not compute in bf16")
    engine = load_engine(small_engine, "openvino", precision)
    assert engine.name == f"openvino {precision} CPU"
    outputs = [e.infer(pictures[:1]) for e in (engine, reference)]
    assert outputs[1].score.std() > 20
    assert np.abs(outputs[0].score.astype(int) - outputs[1].score).mean() <= points
    np.testing.assert_allclose(outputs[0].confounders, outputs[1].confounders, atol=0.01)
    assert [a.dtype for a in outputs[0]] == [a.dtype for a in outputs[1]]
    assert [a.shape for a in outputs[0]] == [a.shape for a in outputs[1]]
    if precision == "fp32":
        assert compare(engine, reference, pictures).label_flips <= 0.005


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_the_device_lacks_is_refused(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO would take it, and compute in float32."""
    plain: Any = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr("mcdrl_rt.engine.openvino.core", lambda: plain)
    assert (resolve_precision("auto"), resolve_precision("int8")) == ("fp32", "int8")
    with pytest.raises(EngineError, match=f"CPU does not compute in {precision}; it has FP32, INT8"):
        resolve_precision(precision)


def test_openvino_transposes_nothing_on_a_cpu(small_engine: Path) -> None:
    """It keeps channels last: what the export turns, it turns in name alone.

    Without AVX-512 it keeps them in eights, and turns the grid, the smallest of all maps, on the way in and out.
    """
    engine = load_engine(small_engine, "openvino", "fp32")
    executed = engine._request.get_compiled_model().get_runtime_model().get_ops()  # type: ignore[attr-defined]
    kinds = {node.get_friendly_name(): node.get_rt_info()["layerType"].astype(str) for node in executed}
    turned = [name for name, kind in kinds.items() if kind == "Transpose"]
    assert "Convolution" in kinds.values()
    turned = [name for name in turned if not name.endswith("/transpose_b")]  # those are weights, turned once
    cpu = Path("/proc/cpuinfo")
    wide = not cpu.exists() or "avx512f" in cpu.read_text() or "avx2" not in cpu.read_text()
    assert len(turned) <= (0 if wide else 2), turned


def test_shipped_model_agrees_with_float32_torch_on_real_frames(data_root: Path) -> None:
    engine_file = cached_engine(DEFAULT_CHECKPOINT)[0]
    reference = TorchEngine.from_checkpoint(DEFAULT_CHECKPOINT)
    height, width = reference.spec.input_size
    paths = sorted((data_root / "Kvasir-SEG" / "images").iterdir())[::20][:50]
    pictures = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in paths]
    frames = [cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8) for p in pictures]
    assert len(frames) == 50
    answers = [reference.infer(frame[None]) for frame in frames]
    for precision, flips in {resolve_precision("auto"): 0.01, "fp32": 0.005}.items():
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
    selected = float(np.mean(np.array(one, bool) == np.array(other, bool)))
    assert compare(*engines, frames) == Parity(flips, iou, 3, 3 * any(other), selected)


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.usefixtures("small_engine")  # so that it is in the cache
def test_outputs_belong_to_the_caller(small_checkpoint: Path, pictures: UInt8Array, engine: str) -> None:
    runner = load_engine(small_checkpoint, engine)
    first = runner.infer(pictures[:1])
    kept = [array.copy() for array in first]
    runner.infer(pictures[3:4])
    assert all(np.array_equal(array, copy) for array, copy in zip(first, kept, strict=True))
    first.label[:] = 7  # and may be written to


@pytest.mark.parametrize("engine", ["openvino", "torch"])
@pytest.mark.usefixtures("small_engine")
def test_threads_may_share_an_engine(small_checkpoint: Path, pictures: UInt8Array, engine: str) -> None:
    runner = load_engine(small_checkpoint, engine)
    alone = [runner.infer(pictures[i : i + 1]) for i in range(4)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda i: runner.infer(pictures[i % 4 : i % 4 + 1]), range(12)))
    for i, answer in enumerate(together):
        assert all(np.array_equal(one, other) for one, other in zip(answer, alone[i % 4], strict=True))


def test_strided_frames_are_taken(small_engine: Path, reference: TorchEngine, pictures: UInt8Array) -> None:
    mirrored = pictures[:1, :, ::-1]
    for engine in (load_engine(small_engine), reference):
        strided, straight = engine.infer(mirrored), engine.infer(mirrored.copy())
        assert np.array_equal(strided.score, straight.score)


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
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(small_engine)],
        cwd=ROOT, env=os.environ | {"MCDRL_CACHE": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert importlib.metadata.version("openvino-telemetry")  # it is there, and would report to a server
    assert (done.stdout, done.stderr) == ("[]\nopenvino.tools.ovc.telemetry_stub\n", "")
    assert list(tmp_path.iterdir()) == []


def test_signals_are_heard_after_another_thread_freed_the_engine(small_engine: Path) -> None:
    """Ctrl-C during a restart of the engine; see ``openvino.core``."""
    script = """
import signal, sys, threading
from mcdrl_rt import Segmenter
signal.signal(signal.SIGINT, lambda *_: print("heard"))
held = [Segmenter.load(sys.argv[1])]
freed = threading.Thread(target=held.clear)
freed.start()
freed.join()
signal.raise_signal(signal.SIGINT)
"""
    done = subprocess.run([sys.executable, "-c", script, str(small_engine)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "heard\n")
