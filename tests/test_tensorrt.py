"""TensorRT: what can go wrong without one, and, where one can be imported, what its parser, builder and types say.

No test here needs an NVIDIA GPU but the last. Those that need TensorRT's Python bindings are skipped without them; the
libraries of TensorRT-RTX, under the names of TensorRT's, do for them (engines/README.md). MCDRL_TENSORRT_INCLUDE names
folders with TensorRT's headers, one for each version the plugin shall be compiled against; MCDRL_TENSORRT_LEAN the
library libnvinfer_lean.so of the last of them.
"""

from __future__ import annotations

import ast
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from test_model import with_depth

from mcdrl_rt.engine import tensorrt, tensorrt_api, torch_tensorrt
from mcdrl_rt.engine.onnx import export_onnx
from mcdrl_rt.engine.parity import compare
from mcdrl_rt.engine.tensorrt import TensorRtEngine, build_plan
from mcdrl_rt.engine.tensors import TensorEngine
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.errors import EngineError
from mcdrl_rt.model.folded import INPUT, OUTPUTS, FoldedMCDRL
from mcdrl_rt.model.mcdrl import MCDRL
from mcdrl_rt.types import ModelSpec, UInt8Array

SOURCES = ROOT / "engines" / "csrc"
HEADERS = [Path(part) for part in os.environ.get("MCDRL_TENSORRT_INCLUDE", "").split(os.pathsep) if part]
CHECKED = [f"mcdrl_rt/engine/{name}.py" for name in ("tensorrt", "tensorrt_api", "torch_tensorrt")]


# --- without TensorRT ------------------------------------------------------------------------------------------------


def pretend(version: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """For one test, TensorRT is installed in this version, or raises what ``version`` says."""
    if version[0].isdigit():
        module = types.ModuleType("tensorrt")
        module.__dict__["__version__"] = version
        patch.setitem(sys.modules, "tensorrt", module)
        return
    patch.delitem(sys.modules, "tensorrt", raising=False)
    (folder / "tensorrt.py").write_text(f"raise {version}")
    patch.syspath_prepend(str(folder))


def test_absence_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"^TensorRT is not installed; pip install 'mcdrl-rt\[tensorrt\]'$"):
        build_plan(b"", tmp_path / "x.plan")
    with pytest.raises(EngineError, match="is not installed"):
        tensorrt.parse(b"", None)


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("ImportError('libnvinfer.so: no such file\\nhere')", r"does not load \(libnvinfer.so: no such file\)"),
        ("8.6.1", r"TensorRT 8.6.1 is too old; pip install --upgrade"),
        ("10.13.0.35", r"needs an NVIDIA GPU, and torch sees none"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    version: str, line: str, small_model: MCDRL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(version, tmp_path, monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = FoldedMCDRL(small_model)
    attempts = [
        lambda: build_plan(b"", tmp_path / "x.plan"),
        lambda: TensorRtEngine(tmp_path / "x.plan", model.spec),
        lambda: torch_tensorrt.build_plan_torch_tensorrt(model, tmp_path / "x.plan", plugin=tmp_path / "x.so"),
    ]
    for attempt in attempts:
        with pytest.raises(EngineError, match=line) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_absence_of_torch_tensorrt_is_one_line(
    small_model: MCDRL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend("11.1.0", tmp_path, monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(EngineError, match=r"^Torch-TensorRT does not load .*pip install 'mcdrl-rt\[tensorrt\]'$"):
        torch_tensorrt.build_plan_torch_tensorrt(FoldedMCDRL(small_model), tmp_path / "x", plugin=tmp_path / "x.so")


def test_running_a_plan_imports_no_exporter_and_tensorrt_only_when_asked() -> None:
    program = (
        "import sys, mcdrl_rt.engine.tensorrt\n"
        "assert not {'tensorrt', 'onnxscript', 'open_clip', 'timm'} & set(sys.modules), 'too much'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_names_are_those_of_the_exported_file() -> None:
    assert tensorrt.INPUT == INPUT
    assert tensorrt.RESULTS == OUTPUTS[:4]


@given(st.integers(1, 50), st.integers(1, 9), st.integers(0, 30))
def test_frames_are_run_in_parts_the_plan_takes(count: int, least: int, more: int) -> None:
    parts = list(tensorrt.split(count, least, least + more))
    assert [i for part, _ in parts for i in range(count)[part]] == list(range(count))
    for part, run in parts:
        assert least <= run <= least + more and part.stop - part.start <= run
    assert all(part.stop - part.start == least + more for part, _ in parts[:-1])


def test_parts_do_not_overwrite_each_other(small_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own half of a run, over a plan that adds up the pixels of each frame, mod 256, and counts runs."""
    spec = dataclasses.replace(small_spec, input_size=(32, 32))
    engine = object.__new__(TensorRtEngine)
    TensorEngine.__init__(engine, spec, "tensorrt", torch.device("cpu"))
    engine._least, engine._most, engine._captures = 2, 4, {}
    runs = []

    def executor(count: int) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
        results = tuple(torch.zeros((count, 1), dtype=torch.uint8) for _ in range(4))

        def execute(frames: torch.Tensor) -> tuple[torch.Tensor, ...]:
            runs.append(len(frames))
            for result in results:
                result[:] = frames.flatten(1).sum(dim=1, keepdim=True).to(torch.uint8)
            return results

        return execute

    monkeypatch.setattr(engine, "_executor", executor)
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    expected = frames.reshape(9, -1).sum(axis=1, dtype=np.uint8)[:, None]
    answer = engine.infer(frames)
    assert runs == [4, 4, 2]
    assert all(np.array_equal(array, expected) for array in answer)
    again = engine.infer(frames[::-1][:1])
    assert all(np.array_equal(array, expected[-1:]) for array in again)
    assert all(np.array_equal(array, expected) for array in answer)  # the caller's own


def test_signals_are_held_back_and_answered_afterwards() -> None:
    """Raised inside a callback of TensorRT's, Ctrl-C would be lost."""
    before = signal.getsignal(signal.SIGINT)
    reached = False
    with pytest.raises(KeyboardInterrupt):
        with tensorrt_api.held_signals() as held:
            signal.raise_signal(signal.SIGINT)
            reached = held == [signal.SIGINT]
    assert reached and signal.getsignal(signal.SIGINT) is before
    with tensorrt_api.held_signals() as held:
        pass
    assert held == []


@pytest.mark.parametrize("batches", [(0, 1, 1), (2, 1, 3), (1, 3, 2)])
def test_batches_that_contradict_each_other_are_refused(batches: tuple[int, int, int]) -> None:
    assert tensorrt.check_batches((1, 2, 8)) == (1, 2, 8)
    with pytest.raises(EngineError, match="batches need 1 ≤ least ≤ usual ≤ greatest"):
        tensorrt.check_batches(batches)


@pytest.mark.parametrize(
    ("names", "results"),
    [
        (["frames", "selected", "score", "label", "confounders"], OUTPUTS[:4]),  # a file's names, in any order
        (["frames", "output0", "output1", "output2", "output3"], ("output0", "output1", "output2", "output3")),
        (["frames", "score"], None),
        (["images", "score", "label", "confounders", "selected"], None),
    ],
)
def test_results_of_a_plan_are_found_by_name_or_order(names: list[str], results: tuple[str, ...] | None) -> None:
    class Plan:
        num_io_tensors = len(names)

        def get_tensor_name(self, i: int) -> str:
            return names[i]

    engine: Any = Plan()
    if results is None:
        with pytest.raises(EngineError, match=r"x.plan is no plan of mcdrl-rt; build one with 'mcdrl-rt build'"):
            tensorrt.result_names(engine, Path("x.plan"))
    else:
        assert tensorrt.result_names(engine, Path("x.plan")) == results


def test_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    tensorrt.write(tmp_path / "x.plan", b"plan")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.plan", b"plan")]
    (tmp_path / "folder").mkdir()
    with pytest.raises(EngineError, match=r"cannot write .*folder: is a directory"):
        tensorrt.write(tmp_path / "folder", b"plan")
    with pytest.raises(EngineError, match=r"cannot write .*x.plan: no such file or directory"):
        tensorrt.write(tmp_path / "none" / "x.plan", b"plan")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "x.plan"]


def test_arguments_of_an_operator_have_their_names() -> None:
    names = torch_tensorrt.arguments_of(torch.ops.mcdrl_rt.intervene.default, ("t", "a", "c", "b"), {"heads": 8})
    assert names == {"tokens": "t", "a": "a", "c": "c", "b": "b", "heads": 8}


# --- the plugin ------------------------------------------------------------------------------------------------------


NVCC = ["nvcc", "-std=c++17", "-O2", "-arch=sm_90", "-cudart", "static", "-Xcompiler"]  # it knows CUDA's headers
STRICT = "-Wall,-Wextra,-Werror"


def compile_plugin(headers: Path, folder: Path) -> Path:
    """``libmcdrl_rt_plugin.so`` for a version of TensorRT and an architecture; what the compilers say is an error."""
    library, shared = folder / "libmcdrl_rt_plugin.so", "-fPIC,-fvisibility=hidden"
    kernels, plugin = folder / "launcher.o", folder / "tensorrt_plugin.o"
    commands = [
        [*NVCC, shared, "-c", SOURCES / "launcher.cu", "-o", kernels],
        [*NVCC, f"{shared},{STRICT}", "-isystem", headers, "-c", SOURCES / "tensorrt_plugin.cpp", "-o", plugin],
        [*NVCC, shared, "-shared", kernels, plugin, "-o", library],
    ]
    for command in commands:
        subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="module", params=HEADERS or [None], ids=str)
def headers(request: pytest.FixtureRequest) -> Path:
    if request.param is None:
        pytest.skip("needs TensorRT's headers: MCDRL_TENSORRT_INCLUDE names folders with NvInfer.h")
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc 13")
    return Path(request.param)


@pytest.fixture(scope="module")
def plugin(headers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_plugin(headers, tmp_path_factory.mktemp("plugin"))


def test_plugin_exports_its_two_symbols_and_links_no_tensorrt(plugin: Path) -> None:
    def read(*command: str) -> str:
        return subprocess.run([*command, str(plugin)], check=True, capture_output=True, text=True).stdout

    exported = [line.split()[-1] for line in read("nm", "-D", "--defined-only").splitlines()]
    assert exported == ["getCreators", "setLoggerFinder"]
    assert "nvinfer" not in read("readelf", "-d") and "cudart" not in read("readelf", "-d")
    assert "nvinfer" not in read("nm", "-D", "-u", "-C")


def test_plugin_answers_what_tensorrt_asks(headers: Path, plugin: Path) -> None:
    """``engines/tests/plugin.cpp`` asks; with MCDRL_TENSORRT_LEAN, out of the registry of TensorRT itself."""
    asker, source = plugin.with_name("asker"), ROOT / "engines" / "tests" / "plugin.cpp"
    subprocess.run([*NVCC, STRICT, "-isystem", headers, source, "-o", asker, "-ldl"], check=True)
    lean = os.environ.get("MCDRL_TENSORRT_LEAN")
    for runtime in ([], [lean] if lean and headers == HEADERS[-1] else []):
        ended = subprocess.run([str(asker), str(plugin), *runtime], capture_output=True, text=True)
        assert (ended.returncode, ended.stdout) == (0, "")


# --- with TensorRT's bindings ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trt() -> Any:
    try:
        import tensorrt as module
    except (ImportError, OSError) as error:
        pytest.skip(f"needs TensorRT's Python bindings: {error}")
    return module


@pytest.fixture(scope="module", params=[True, False], ids=["half", "full"])
def proto(request: pytest.FixtureRequest, small_model: MCDRL) -> onnx.ModelProto:
    return export_onnx(FoldedMCDRL(with_depth(small_model, 2)), None, half=request.param)


def test_calls_of_tensorrt_fit_its_types(trt: Any, tmp_path: Path) -> None:
    """mypy, over stubs made of the bindings that are installed, which are NVIDIA's and stay where they are."""
    stubs = make_stubs(trt, tmp_path / "stubs")
    assert mypy(stubs, [str(ROOT / name) for name in CHECKED], tmp_path) == ""
    wrong = tmp_path / "wrong.py"
    text = (ROOT / CHECKED[0]).read_text()
    wrong.write_text(
        text.replace("execute_async_v3(", "execute_async_v9(").replace("create_optimization_profile()", "x")
    )
    assert mypy(stubs, [str(wrong)], tmp_path).count("[attr-defined]") == 2


def make_stubs(trt: Any, folder: Path) -> Path:
    """Stubs of the bindings' compiled module, as package ``tensorrt``."""
    module = trt.Builder.__module__  # tensorrt_bindings.tensorrt
    command = [sys.executable, "-c", "from mypy.stubgen import main; main()", "--inspect-mode", "-m", module]
    subprocess.run([*command, "-o", str(folder)], check=True, capture_output=True)
    text = (folder / f"{module.replace('.', '/')}.pyi").read_text()
    lines = [line for line in text.splitlines() if line != "bool: DataType"]  # it would hide the type bool
    for _ in range(20):  # stubgen writes some signatures that are no Python
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            assert error.lineno is not None
            del lines[error.lineno - 1]
    at = lines.index("class IHostMemory:")  # the buffer protocol of C is invisible to stubgen
    lines.insert(at + 1, "    def __buffer__(self, flags: int) -> memoryview: ...")
    package = folder / "tensorrt"
    package.mkdir()
    (package / "bindings.pyi").write_text("\n".join(["# mypy: ignore-errors", *lines]))
    (package / "__init__.pyi").write_text("from tensorrt.bindings import *\n__version__: str\n")
    return folder


def mypy(stubs: Path, files: list[str], folder: Path) -> str:
    """What mypy complains of."""
    command = [sys.executable, "-m", "mypy", "--follow-imports", "silent", "--cache-dir", str(folder / "cache"), *files]
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"MYPYPATH": str(stubs)}, capture_output=True, text=True)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


def test_parser_takes_the_file_without_the_plugin(trt: Any, proto: onnx.ModelProto) -> None:
    """As ``parse`` gives it, and as it stands: for those who give the file to trtexec."""
    network = tensorrt.parse(proto.SerializeToString(), None).definition
    assert {network.get_output(i).name for i in range(network.num_outputs)} == set(tensorrt.RESULTS)
    shapes = {network.get_output(i).name: tuple(network.get_output(i).shape) for i in range(network.num_outputs)}
    assert shapes["confounders"] == (-1, 12) and shapes["score"] == (-1, 128, 160)
    log = tensorrt_api.make_log()
    builder = trt.Builder(log)
    whole = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert trt.OnnxParser(whole, log).parse(proto.SerializeToString()), log.errors


def test_parser_takes_the_file_with_the_plugin(trt: Any, plugin: Path, small_model: MCDRL, tmp_path: Path) -> None:
    """In a process of its own: TensorRT-RTX ends it where the plugin's layer is to be added, which it cannot."""
    onnx.save(export_onnx(FoldedMCDRL(with_depth(small_model, 2)), None, half=True), tmp_path / "half.onnx")
    program = (
        "import logging, sys; from pathlib import Path; from mcdrl_rt.engine.tensorrt import parse\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "network = parse(Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])).definition\n"
        "layers = [str(network.get_layer(i).type) for i in range(network.num_layers)]\n"
        "print(sum('PLUGIN_V3' in layer for layer in layers), 'plugin layers')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "half.onnx"), str(plugin)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "Successfully created plugin: select_intervene" in ended.stderr
    if ended.returncode and "libtensorrt_rtx" in Path("/proc/self/maps").read_text():
        pytest.skip("TensorRT-RTX found, read and created the plugin; it adds no plugin layers")
    assert ended.stdout == "2 plugin layers\n", ended.stderr


def test_plugin_and_float32_do_not_go_together(trt: Any, small_model: MCDRL, tmp_path: Path) -> None:
    full = export_onnx(FoldedMCDRL(with_depth(small_model, 1)))
    with pytest.raises(EngineError, match="the TensorRT plugin computes in FP16; export the model in FP16, or build"):
        tensorrt.parse(full, tmp_path / "any.so")


def test_file_that_is_no_plugin_is_refused(trt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "PLUGINS", ("another",))  # another test may have loaded ours
    with pytest.raises(EngineError, match=r"no TensorRT plugin at .*none.so; build it as engines/README.md says"):
        tensorrt_api.load_plugin(tmp_path / "none.so")
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(EngineError, match=r"text.so is no library for this machine: .*"):
        tensorrt_api.load_plugin(tmp_path / "text.so")
    libc = next(
        Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line
    )
    with pytest.raises(EngineError, match="is no TensorRT plugin of mcdrl-rt"):
        tensorrt_api.load_plugin(libc)


def test_model_that_is_not_understood_is_one_line(trt: Any, proto: onnx.ModelProto) -> None:
    with pytest.raises(EngineError, match=r"^this is no ONNX model: "):
        tensorrt.parse(b"not a model", None)
    broken = onnx.ModelProto()
    broken.CopyFrom(proto)
    next(node for node in broken.graph.node if node.op_type == "Conv").op_type = "Nonsense"
    with pytest.raises(EngineError, match=r"^TensorRT cannot read this model: Nonsense .*Plugin not found") as caught:
        tensorrt.parse(broken, None)
    assert "\n" not in str(caught.value)


@pytest.fixture
def builder_works(trt: Any) -> None:
    if not torch.cuda.is_available() and "libtensorrt_rtx" not in Path("/proc/self/maps").read_text():
        pytest.skip("TensorRT's builder needs an NVIDIA GPU")


def test_builder_makes_a_plan_and_tells_of_it(builder_works: None, proto: onnx.ModelProto, tmp_path: Path) -> None:
    cache, told = tmp_path / "timing", list[str]()
    plan = tensorrt.compile_network(tensorrt.parse(proto, None), None, (1, 1, 4), cache, told.append)
    assert len(plan) > 1_000_000 and cache.stat().st_size > 0
    assert len(told) > 10 and all("\n" not in stage for stage in told)
    cache.write_bytes(b"damaged")
    again = tensorrt.compile_network(tensorrt.parse(proto, None), None, (1, 2, 4), cache, told.append)
    assert len(again) > 1_000_000 and cache.read_bytes() != b"damaged"


def test_what_interrupts_a_build_comes_through(builder_works: None, proto: onnx.ModelProto, tmp_path: Path) -> None:
    def interrupt(stage: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tensorrt.compile_network(tensorrt.parse(proto, None), None, (1, 1, 1), tmp_path / "timing", interrupt)
    assert not any(tmp_path.iterdir())


def test_batches_the_export_is_not_for_are_refused(builder_works: None, small_model: MCDRL) -> None:
    network = tensorrt.parse(export_onnx(FoldedMCDRL(with_depth(small_model, 1)), 2), None)
    with pytest.raises(EngineError, match="this export is for batches of 2, not of 1 to 1"):
        tensorrt.compile_network(network, None, (1, 1, 1), None, lambda stage: None)


def test_plan_that_is_none_is_one_line(builder_works: None, trt: Any, tmp_path: Path) -> None:
    log = tensorrt_api.make_log()
    runtime = tensorrt_api.started(trt.Runtime, log)
    with pytest.raises(EngineError, match=r"cannot read .*none.plan: no such file or directory"):
        tensorrt.deserialise(runtime, tmp_path / "none.plan", log)
    (tmp_path / "bad.plan").write_bytes(b"no plan" * 100)
    with pytest.raises(EngineError, match=r"cannot load .*bad.plan: .*; rebuild it with 'mcdrl-rt build'$") as caught:
        tensorrt.deserialise(runtime, tmp_path / "bad.plan", log)
    assert "\n" not in str(caught.value) and "does not say why" not in str(caught.value)


def test_plugin_is_made_of_an_operators_arguments(trt: Any, plugin: Path) -> None:
    tensorrt_api.load_plugin(plugin)
    made = torch_tensorrt.create_plugin("select_intervene", {"count": 20, "heads": 8, "eps": 1e-5, "texts": None})
    assert made.get_capability_interface(trt.PluginCapabilityType.CORE).plugin_name == "select_intervene"
    assert torch_tensorrt.create_plugin("intervene", {"heads": 8, "eps": 1e-5}) is not None
    with pytest.raises(EngineError, match="the TensorRT plugin select_intervene is not loaded, or does not take"):
        torch_tensorrt.create_plugin("select_intervene", {"heads": 8, "eps": 1e-5})


# --- with a GPU ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_plan_answers_as_torch_does(trt: Any, small_model: MCDRL, pictures: UInt8Array, tmp_path: Path) -> None:
    """Not run yet. MCDRL_TENSORRT_PLUGIN names a plugin to be tried too, built for this GPU."""
    library = os.environ.get("MCDRL_TENSORRT_PLUGIN")
    model = FoldedMCDRL(with_depth(small_model, 2))
    exact = TorchEngine(model)
    for half, plugin in ((False, None), (True, None), *([(True, Path(library))] if library else [])):
        file = tmp_path / "model.plan"
        build_plan(export_onnx(model, None, half=half), file, plugin=plugin, batches=(2, 2, 4))
        engine = TensorRtEngine(file, model.spec, plugin=plugin)
        parity = compare(engine, exact, pictures)
        assert parity.label_flips <= (0.2 if half else 0.005)  # random weights: a tenth of all pixels is on the fence
        whole = engine.infer(pictures[:5])  # in parts of 4 and, for 1, 2
        parts = [engine.infer(pictures[i : i + 1]) for i in range(5)]
        for one, others in zip(whole, zip(*parts, strict=True), strict=True):
            assert np.abs(one.astype(float) - np.concatenate(others)).mean() <= 0.01 * max(1.0, np.abs(one).mean())
