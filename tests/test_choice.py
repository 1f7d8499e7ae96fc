"""The choice of an engine: the best one that loads, the reason where one does not, and no other where one is named."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mcdrl_rt.engine import choice
from mcdrl_rt.engine.choice import candidates, load_engine
from mcdrl_rt.engine.gpu import Gpu, gpus
from mcdrl_rt.engine.sidecar import read_sidecar
from mcdrl_rt.errors import CheckpointError, EngineError
from mcdrl_rt.model.folded import FoldedMCDRL

H100 = Gpu("NVIDIA H100", "9.0")


@pytest.mark.parametrize(
    ("here", "plan", "precision", "device", "expected"),
    [
        ((), False, "auto", "auto", ["openvino auto", "torch cpu"]),
        ((), True, "auto", "auto", ["openvino auto", "torch cpu"]),
        ((H100,), False, "auto", "auto", ["torch cuda", "openvino auto", "torch cpu"]),
        ((H100,), True, "auto", "auto", ["tensorrt cuda", "torch cuda", "openvino auto", "torch cpu"]),
        ((H100,), True, "fp32", "auto", ["torch cuda", "openvino auto", "torch cpu"]),
        ((H100,), True, "auto", "cuda:0", ["tensorrt cuda:0", "torch cuda:0"]),
        ((), False, "auto", "cuda", ["torch cuda"]),
        ((H100,), True, "auto", "cpu", ["openvino cpu", "torch cpu"]),
        ((H100,), True, "bf16", "auto", ["openvino auto"]),
        ((), False, "auto", "GPU", ["openvino GPU"]),
    ],
)
def test_best_engine_first_and_only_what_can_do_what_is_asked(
    monkeypatch: pytest.MonkeyPatch,
    here: tuple[Gpu, ...],
    plan: bool,
    precision: str,
    device: str,
    expected: list[str],
) -> None:
    monkeypatch.setattr(choice, "gpus", lambda: here)
    monkeypatch.setattr(choice, "_has_plan", lambda *_: plan)
    assert [" ".join(pair) for pair in candidates(Path("x.safetensors"), precision, device)] == expected


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of engines that fail to load; the others are there."""
    broken: set[str] = set()

    def load(path: Path, engine: str, precision: str, device: str) -> Any:
        if engine in broken:
            raise EngineError(f"{engine} broke")
        return SimpleNamespace(name=f"{engine} {device}")

    monkeypatch.setattr(choice, "_from_checkpoint", load)
    monkeypatch.setattr(choice, "gpus", lambda: (H100,))
    monkeypatch.setattr(choice, "_has_plan", lambda *_: True)
    return broken


def test_one_that_fails_is_passed_over_with_its_reason(
    small_checkpoint: Path, failing: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert load_engine(small_checkpoint).name == "tensorrt cuda"
    assert not caplog.records
    failing |= {"tensorrt", "torch"}
    with caplog.at_level(logging.WARNING, "mcdrl_rt"):
        assert load_engine(small_checkpoint).name == "openvino auto"
    assert caplog.messages == [
        "tensorrt cannot run here, torch cuda is taken: tensorrt broke",
        "torch cannot run here, openvino is taken: torch broke",
    ]


def test_a_runtime_that_cannot_be_imported_is_passed_over(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choice, "gpus", lambda: ())
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("mcdrl_rt.engine.openvino", "mcdrl_rt.engine.cache"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with caplog.at_level(logging.WARNING, "mcdrl_rt"):
        assert load_engine(small_checkpoint).name == "torch fp32 cpu"
    assert caplog.messages[-1].startswith("openvino cannot run here, torch cpu is taken: ")


def test_a_gpu_that_float16_fails_on_runs_float32(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_far(path: Path, device: str) -> Any:
        raise EngineError("too far from float32")

    monkeypatch.setattr(choice, "_graph", too_far)
    monkeypatch.setattr("mcdrl_rt.engine.tensors.find_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr("mcdrl_rt.engine.torch.find_device", lambda name: torch.device("cpu"))
    with caplog.at_level(logging.WARNING, "mcdrl_rt"):
        assert load_engine(small_checkpoint, "torch", device="cuda").name == "torch fp32 cuda"
    assert caplog.messages == ["torch runs in fp32 on cuda: too far from float32"]
    with pytest.raises(EngineError, match="too far from float32"):
        load_engine(small_checkpoint, "torch", "fp16", "cuda")


def test_a_gpu_that_torch_cannot_use_is_passed_over_at_once(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU that torch can use")
    monkeypatch.setattr(choice, "gpus", lambda: (H100,))
    monkeypatch.setattr(choice, "_graph", lambda *_: pytest.fail("tried"))
    monkeypatch.setattr(choice, "candidates", lambda *_: iter([("torch", "cuda"), ("torch", "cpu")]))
    with caplog.at_level(logging.WARNING, "mcdrl_rt"):
        assert load_engine(small_checkpoint).name == "torch fp32 cpu"
    (said,) = caplog.messages
    assert said.startswith("torch cannot run here, torch cpu is taken: torch has no device 'cuda' here")


def test_a_gpu_without_room_is_passed_over(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: torch.nn.Module, *_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nsome")

    monkeypatch.setattr(choice, "gpus", lambda: (H100,))
    monkeypatch.setattr(choice, "_has_plan", lambda *_: False)
    monkeypatch.setattr("mcdrl_rt.engine.tensors.find_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr("mcdrl_rt.engine.torch.find_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr("mcdrl_rt.engine.graph.find_device", lambda name: torch.device("cpu"))
    monkeypatch.setattr(FoldedMCDRL, "to", full)
    monkeypatch.setattr(choice, "candidates", lambda *_: iter([("torch", "cuda"), ("other", "cpu")]))
    real = choice._from_checkpoint

    def load(path: Path, name: str, *rest: str) -> Any:
        return SimpleNamespace(name="other") if name == "other" else real(path, name, *rest)

    monkeypatch.setattr(choice, "_from_checkpoint", load)
    with caplog.at_level(logging.WARNING, "mcdrl_rt"):
        assert load_engine(small_checkpoint).name == "other"
    assert "torch cannot run here, other cpu is taken: cannot ready " in caplog.messages[-1]
    assert caplog.messages[-1].endswith("CUDA out of memory. Tried to allocate")


def test_an_engine_of_one_gpu_is_not_opened_on_another(
    small_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = read_sidecar(small_engine) | {"runtime": "torch", "device": "cuda:0", "gpu": "A (sm_90)"}
    monkeypatch.setattr("mcdrl_rt.engine.sidecar.gpus", lambda: ("A (sm_90)", "B (sm_100)"))
    for device, here in (("cuda:1", r"B \(sm_100\)"), ("cpu", "no GPU")):
        with pytest.raises(EngineError, match=rf"was built for A \(sm_90\), and {device} is {here}; build one"):
            choice._open(small_engine, recorded, "auto", device)


def test_where_all_fail_the_last_reason_is_given(small_checkpoint: Path, failing: set[str]) -> None:
    failing |= {"tensorrt", "torch", "openvino"}
    with pytest.raises(EngineError, match="torch broke"):
        load_engine(small_checkpoint)


@pytest.mark.parametrize("engine", ["tensorrt", "openvino", "torch"])
def test_one_that_was_named_has_no_substitute(small_checkpoint: Path, failing: set[str], engine: str) -> None:
    failing.add(engine)
    with pytest.raises(EngineError, match=f"{engine} broke"):
        load_engine(small_checkpoint, engine)


def test_a_broken_openvino_leaves_the_reference(
    small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MCDRL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(choice, "gpus", lambda: ())
    with caplog.at_level(logging.WARNING, "mcdrl_rt"):
        assert load_engine(small_checkpoint).name == "torch fp32 cpu"
    assert "set MCDRL_CACHE" in caplog.messages[-1]


@pytest.mark.usefixtures("small_engine")
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"engine": "tensorflow"}, "no engine 'tensorflow'; choose auto, tensorrt, openvino, torch"),
        ({"device": None}, "no device None; auto takes the best"),
        ({"precision": "fp8"}, "no precision 'fp8'; choose auto, fp32, fp16, bf16, int8"),
        ({"precision": "int8"}, "calibrated on real pictures or videos"),
        ({"engine": "torch", "precision": "bf16"}, "computes in fp32, and in fp16 on a GPU, not in bf16 on cpu"),
        ({"device": "cuda", "precision": "bf16"}, "nothing computes in bf16 on cuda"),
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
    with pytest.raises(EngineError, match="is an engine for openvino; the torch engine takes the checkpoint"):
        load_engine(small_engine, "torch")


def test_a_built_engine_is_no_other_precision_than_its_files_hold(small_engine: Path) -> None:
    assert load_engine(small_engine, precision="fp32").name == "openvino fp32 CPU"
    with pytest.raises(EngineError, match=r"is an engine in (bf16|fp32), not int8"):
        load_engine(small_engine, precision="int8")


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    monkeypatch.setattr("ctypes.WinDLL", missing, raising=False)
    assert gpus.__wrapped__() == ()


@pytest.mark.gpu
def test_the_driver_and_torch_see_the_same_gpus() -> None:
    import torch

    seen = [
        (torch.cuda.get_device_name(i), "{}.{}".format(*torch.cuda.get_device_capability(i)))
        for i in range(torch.cuda.device_count())
    ]
    assert [(gpu.name, gpu.capability) for gpu in gpus()] == seen
