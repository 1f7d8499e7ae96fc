"""Graph and AOTInductor engines: the reference's labels, buffers that stay apart, and on a GPU the fused operator."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mcdrl_rt import ops
from mcdrl_rt.engine import aoti
from mcdrl_rt.engine.aoti import AotiEngine, build_aoti
from mcdrl_rt.engine.base import LESION
from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.device import DeviceSegmenter
from mcdrl_rt.engine.graph import GraphEngine, precision
from mcdrl_rt.engine.parity import compare
from mcdrl_rt.engine.tensors import Capture, TensorEngine
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import EngineError
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.half import to_half
from mcdrl_rt.model.mcdrl import MCDRL
from mcdrl_rt.types import ModelSpec, UInt8Array
from mcdrl_rt.video.phantom import Phantom


@pytest.fixture(scope="module")
def reference() -> TorchEngine:
    return TorchEngine.from_checkpoint(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def frames(reference: TorchEngine) -> list[UInt8Array]:
    """Synthetic endoscopy at the embedded default's size."""
    return [Phantom(reference.spec.input_size, seed=seed).render(10 * seed).pixels for seed in range(4)]


# --- graphs, which on a CPU are calls ----------------------------------------------------------------------------


def test_half_precision_has_the_references_labels(reference: TorchEngine, frames: list[UInt8Array]) -> None:
    engine = GraphEngine.from_checkpoint(DEFAULT_CHECKPOINT, "cpu")
    assert engine.name == "torch fp16 cpu"
    parity = compare(engine, reference, frames)
    assert parity.label_flips <= 0.005 and parity.mask_iou >= 0.99
    one, other = engine.infer(frames[0][None]), reference.infer(frames[0][None])
    assert [a.dtype for a in one] == [a.dtype for a in other]
    assert [a.shape for a in one] == [a.shape for a in other]


class Operators(TorchDispatchMode):
    """Notes what the fused operators are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, set[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "mcdrl_rt":
            self.calls.append((func.name(), {value.dtype for value in args if isinstance(value, Tensor)}))
        return func(*args, **(kwargs or {}))


def test_half_model_calls_the_operators_with_what_the_kernels_take(small_model: MCDRL, pictures: UInt8Array) -> None:
    """One half type throughout: with any other mixture a GPU would run the reference, right and slow."""
    model = to_half(FoldedMCDRL(small_model))
    with Operators() as operators, torch.no_grad():
        model(torch.from_numpy(pictures[:1]))
    expected = ["mcdrl_rt::select_intervene", "mcdrl_rt::intervene"]
    assert operators.calls == [(name, {torch.float16}) for name in expected]


def test_full_precision_runs_the_same_way(small_model: MCDRL, pictures: UInt8Array) -> None:
    folded = FoldedMCDRL(small_model)
    assert (precision(folded), precision(to_half(folded))) == ("fp32", "fp16")
    engine = GraphEngine(FoldedMCDRL(small_model), "cpu")
    assert engine.name == "torch fp32 cpu"
    expected = TorchEngine(folded).infer(pictures)
    got = engine.infer(pictures)  # all six at once
    assert got.score.shape == (6, 128, 160)
    assert (got.score != expected.score).mean() < 0.01  # channels lie in another order, sums too
    alone = engine.infer(pictures[2:3])
    assert np.abs(alone.score[0].astype(int) - got.score[2]).max() <= 2


def test_outputs_belong_to_the_caller(small_model: MCDRL, pictures: UInt8Array) -> None:
    engine = GraphEngine(FoldedMCDRL(small_model), "cpu")
    first = engine.infer(pictures[:1])
    kept = [array.copy() for array in first]
    engine.infer(pictures[3:4])
    assert all(np.array_equal(array, copy) for array, copy in zip(first, kept, strict=True))
    first.label[:] = 7


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (1, 128, 160, 4), (128, 160, 3)])
def test_frame_of_another_shape_is_an_engine_error(small_model: MCDRL, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=r"failed on a frame: it is \(.*\), not \(B, 128, 160, 3\)"):
        GraphEngine(FoldedMCDRL(small_model), "cpu").infer(np.zeros(shape, np.uint8))


def test_device_that_is_not_there_is_named(small_model: MCDRL) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match="torch has no device 'cuda' here"):
            GraphEngine(FoldedMCDRL(small_model))
    with pytest.raises(EngineError, match="on cpu, cuda or cuda:N, not on 'tpu'"):
        GraphEngine(FoldedMCDRL(small_model), "tpu")


def test_device_without_room_is_an_engine_error(small_model: MCDRL, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr("mcdrl_rt.engine.graph.Capture", refuse)
    with pytest.raises(EngineError, match=r"cannot ready small on cpu: out of memory$"):
        GraphEngine(FoldedMCDRL(small_model), "cpu")


def test_capture_reads_its_own_buffer() -> None:
    capture = Capture(lambda x: (x * 2, x.sum()), torch.zeros(3))
    value = torch.tensor([1.0, 2, 3])
    assert capture(value)[0].tolist() == [2, 4, 6]
    value.zero_()
    assert capture.replay()[1].item() == 6
    capture.input[0] = 5
    assert capture.replay()[0].tolist() == [10, 4, 6]


class Doubling(TensorEngine):
    """An engine as compiled ones are: one buffer for all that come, and a switch of threads before it is read."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, "doubling", torch.device("cpu"))
        self._capture = Capture(self._slowly, torch.zeros((1, *spec.input_size, 3), dtype=torch.uint8))

    def _slowly(self, frames: Tensor) -> tuple[Tensor, ...]:
        time.sleep(0.01)
        score = frames[..., 0] * 2
        return score, torch.ones_like(score), torch.ones(1, len(self.spec.confounders)), torch.ones(1, *self.spec.grid)

    def run(self, frames: Tensor) -> tuple[Tensor, ...]:
        return self._capture(frames)


def test_threads_that_share_an_engine_of_one_buffer_get_each_its_own(small_model: MCDRL) -> None:
    engine = Doubling(small_model.spec)
    levels = [44, 84] * 20  # half of them lesion all over
    frames = [np.full((1, *engine.spec.input_size, 3), level, np.uint8) for level in levels]
    with ThreadPoolExecutor(4) as threads:
        scores = list(threads.map(lambda frame: int(engine.infer(frame).score.max()), frames))
        labels = list(threads.map(lambda frame: int(DeviceSegmenter(engine)(frame[0]).labels.max()), frames))
    assert scores == [88, 168] * 20
    assert labels == [0, 1] * 20


# --- AOTInductor -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_package_has_the_references_labels(tmp_path: Path, reference: TorchEngine, frames: list[UInt8Array]) -> None:
    path = tmp_path / "model.pt2"
    build_aoti(FoldedMCDRL(load_checkpoint(DEFAULT_CHECKPOINT)), path, "cpu")
    assert list(tmp_path.iterdir()) == [path]
    engine = AotiEngine(path, "cpu")
    assert (engine.name, engine.batch, engine.spec) == ("torch compiled fp32 cpu", 1, reference.spec)
    assert compare(engine, reference, frames).label_flips <= 0.0005
    first = engine.infer(frames[0][None])
    kept = first.score.copy()
    engine.infer(frames[1][None])
    assert np.array_equal(first.score, kept)
    with pytest.raises(EngineError, match="compiled for 1 frames at a time, not 2"):
        engine.infer(np.stack(frames[:2]))


def no_file(path: Path) -> None: ...


def no_package(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 nothing of the kind")


@pytest.mark.parametrize(("make", "complaint"), [(no_file, "no engine at"), (no_package, "is no engine of mcdrl-rt")])
def test_what_is_no_package_is_refused_in_one_line(
    tmp_path: Path, make: Callable[[Path], None], complaint: str
) -> None:
    path = tmp_path / "model.pt2"
    make(path)
    with pytest.raises(EngineError, match=complaint) as caught:
        AotiEngine(path, "cpu")
    assert "\n" not in str(caught.value)


def test_package_must_be_named_as_one(small_model: MCDRL, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"is a .pt2 file"):
        build_aoti(FoldedMCDRL(small_model), tmp_path / "model.so", "cpu")


def test_model_the_compiler_refuses_leaves_nothing_and_of_cuda_nothing_is_told(
    small_model: MCDRL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found, using CUDA_HOME='/usr'")
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", refuse)
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    with pytest.raises(EngineError, match=r"cannot compile small for cpu: no such operator$"):
        build_aoti(FoldedMCDRL(small_model), tmp_path / "model.pt2", "cpu")
    assert list(tmp_path.iterdir()) == []
    assert not [message for message in caplog.messages if "CUDA" in message]


@pytest.mark.parametrize(
    ("python", "complaint"),
    [
        ("", "does not load: .*is no engine of mcdrl-rt"),
        ("kill -SEGV $$", "does not load: it crashes; without"),
        ("exec sleep 60", "does not load: not within 1 s; without"),
    ],
)
def test_package_that_does_not_load_is_none(
    small_model: MCDRL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str, complaint: str
) -> None:
    if python:
        other = tmp_path / "python"
        other.write_text(f"#!/bin/sh\n{python}\n")
        other.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(other))
        monkeypatch.setattr(aoti, "_LOAD_S", 1)

    def compiled(*_: object, package_path: str, **__: object) -> None:
        no_package(Path(package_path))

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiled)
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: None)
    (tmp_path / "engines").mkdir()
    with pytest.raises(EngineError, match=complaint) as caught:
        build_aoti(FoldedMCDRL(small_model), tmp_path / "engines" / "model.pt2", "cpu")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "engines").iterdir()) == []


# --- on a GPU ----------------------------------------------------------------------------------------------------


def native() -> bool:
    """Whether the CUDA implementations are loaded: what 'fused' means below."""
    return torch._C._dispatch_has_kernel_for_dispatch_key("mcdrl_rt::select_intervene", "CUDA")


@pytest.mark.gpu
def test_the_native_library_is_loaded() -> None:
    assert native(), "build it (engines/README.md) and set MCDRL_NATIVE_LIBRARY"


@pytest.mark.gpu
def test_torch_on_cuda_gives_the_cpus_labels(reference: TorchEngine, frames: list[UInt8Array]) -> None:
    engine = TorchEngine.from_checkpoint(DEFAULT_CHECKPOINT, "cuda")
    assert engine.name == "torch fp32 cuda"
    assert compare(engine, reference, frames).label_flips <= 0.005


@pytest.mark.gpu
def test_half_precision_in_a_graph_has_the_references_labels(
    reference: TorchEngine, frames: list[UInt8Array]
) -> None:
    engine = GraphEngine.from_checkpoint(DEFAULT_CHECKPOINT)
    assert engine.name == "torch fp16 cuda"
    parity = compare(engine, reference, frames)
    assert parity.label_flips <= 0.005 and parity.mask_iou >= 0.99


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 3])
def test_replay_is_the_eager_model_every_time(frames: list[UInt8Array], batch: int) -> None:
    """Same kernels or others chosen while warming up: equal but for rounding; and each replay equal to the last."""
    model = to_half(FoldedMCDRL(load_checkpoint(DEFAULT_CHECKPOINT))).cuda()
    engine = GraphEngine.from_checkpoint(DEFAULT_CHECKPOINT)
    for start in (0, 1):
        batch_of = np.stack([frames[(start + i) % len(frames)] for i in range(batch)])
        with torch.no_grad():
            expected = model(torch.from_numpy(batch_of).cuda())
        got, again = engine.infer(batch_of), engine.infer(batch_of)
        assert all(np.array_equal(one, other) for one, other in zip(got, again, strict=True))
        score = expected[0].cpu().numpy()
        assert np.percentile(np.abs(got.score.astype(int) - score), 99) <= 8
        assert ((got.score >= LESION) != (score >= LESION)).mean() < 0.005
        np.testing.assert_allclose(got.confounders, expected[2].cpu().numpy(), atol=0.01)


@pytest.mark.gpu
def test_outputs_of_a_graph_belong_to_the_caller(frames: list[UInt8Array]) -> None:
    engine = GraphEngine.from_checkpoint(DEFAULT_CHECKPOINT)
    first = engine.infer(frames[0][None])
    kept = [array.copy() for array in first]
    engine.infer(frames[1][None])
    assert all(np.array_equal(array, copy) for array, copy in zip(first, kept, strict=True))


class Unfused(torch.nn.Module):
    """A folded network with the reference in the operators' place."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        network = self.network
        first, *later = network.blocks
        f, indices, readout = ops.select_intervene_reference(
            features, network.texts, first.a, first.c, first.b, network.count, first.heads, first.eps
        )
        f, readouts = first.feed_forward(f), [readout]
        for block in later:
            f, readout = ops.intervene_reference(f, block.a, block.c, block.b, block.heads, block.eps)
            f = block.feed_forward(f)
            readouts.append(readout)
        return f, indices, torch.stack(readouts).mean(dim=(0, 2))


def test_unfused_network_is_the_fused_one(small_model: MCDRL) -> None:
    """On a CPU both are the reference: what the test below compares on a GPU differs in the kernels alone."""
    network = FoldedMCDRL(small_model).network
    features = torch.randn(2, small_model.spec.tokens, small_model.spec.embed_dim)
    pairs = zip(network(features), Unfused(network)(features), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 5])
def test_fused_network_is_the_unfused_one(small_model: MCDRL, batch: int) -> None:
    network = to_half(FoldedMCDRL(small_model)).cuda().network
    generator = torch.Generator().manual_seed(0)
    shape = (batch, small_model.spec.tokens, small_model.spec.embed_dim)
    features = torch.randn(*shape, generator=generator).half().cuda()
    with torch.no_grad():
        (f, indices, readout), (f2, indices2, readout2) = network(features), Unfused(network)(features)
    best = ops.similarity(features, network.texts).amax(dim=-1)
    assert torch.allclose(best.gather(1, indices), best.gather(1, indices2), atol=1e-3)
    same = (indices == indices2).all(dim=1)
    assert same.any()
    assert (f[same] - f2[same]).float().norm() <= 5e-3 * f2[same].float().norm()
    assert torch.allclose(readout[same], readout2[same], atol=2e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_native_operators_pass_torchs_own_checks(dtype: torch.dtype) -> None:
    """Of shapes the kernels take, which those of ``test_ops`` are not."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 49, 64), (3, 64), (96, 64), (96,), (64, 96))
    features, texts, a, c, b = (torch.randn(*shape, generator=generator).to("cuda", dtype) for shape in shapes)
    torch.library.opcheck(torch.ops.mcdrl_rt.select_intervene.default, (features, texts, a, c, b, 20, 8, 1e-5))
    torch.library.opcheck(torch.ops.mcdrl_rt.intervene.default, (features, a, c, b, 8, 1e-5))
    torch.library.opcheck(torch.ops.mcdrl_rt.norm_shift.default, (features, None, texts[0], texts[1], 1e-5))


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [1, 3, 5])
def test_models_of_any_depth_run_captured(
    make_model: Callable[[ModelSpec], MCDRL], small_spec: ModelSpec, pictures: UInt8Array, depth: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # random weights see every rounded bit
    model = make_model(dataclasses.replace(small_spec, depth=depth))
    engine: TensorEngine = GraphEngine(FoldedMCDRL(model))  # float32: the reference, captured
    parity = compare(engine, TorchEngine(FoldedMCDRL(model)), pictures)
    assert parity.label_flips <= 0.02  # random weights put a tenth of all pixels on the fence


@pytest.mark.gpu
@pytest.mark.slow
def test_package_on_cuda_is_captured_and_has_the_references_labels(
    tmp_path: Path, reference: TorchEngine, frames: list[UInt8Array]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # what the compiler says of itself decides nothing here
        build_aoti(to_half(FoldedMCDRL(load_checkpoint(DEFAULT_CHECKPOINT))), tmp_path / "model.pt2", "cuda")
    engine = AotiEngine(tmp_path / "model.pt2")
    assert engine.name == "torch compiled fp16 cuda"
    assert compare(engine, reference, frames).label_flips <= 0.005
