"""TensorRT: the engine of machines with an NVIDIA GPU, built there from the ONNX file and run as a CUDA graph.

TensorRT 10.3 and later, 11 included. It is an extra (``mcdrl-rt[tensorrt]``) and imported only where it is used. A plan
is native code for one GPU and one version of TensorRT: whoever calls ``TensorRtEngine`` vouches that the plan was built
here. The precision is that of the file (strong typing): FP16 means ``export_onnx(model, half=True)``.

    >>> build_plan(export_onnx(model, None, half=True), Path("polyp.plan"), batches=(1, 1, 8))   # doctest: +SKIP
    >>> engine = TensorRtEngine(Path("polyp.plan"), model.spec)                                  # doctest: +SKIP

Not run yet: no part below that needs a GPU has been executed. ``engines/README.md`` says what was checked, and how.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx
import torch
from torch import Tensor

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.engine.tensorrt_api import (
    held_signals,
    installed_tensorrt,
    load_plugin,
    logged,
    make_log,
    make_progress,
    require_tensorrt,
    started,
)
from mcdrl_rt.engine.tensors import Capture, TensorEngine, example_frames, find_device
from mcdrl_rt.errors import EngineError
from mcdrl_rt.types import ModelSpec

if TYPE_CHECKING:
    import tensorrt as trt

INPUT = "frames"
RESULTS = RawOutput._fields  # an export has logits too, which are for referees


def build_plan(
    model: bytes | onnx.ModelProto,
    output: Path,
    *,
    plugin: Path | None = None,
    batches: tuple[int, int, int] = (1, 1, 1),
    timing_cache: Path | None = None,
    on_stage: Callable[[str], None] | None = None,
) -> None:
    """Build a plan for this machine's GPU; it takes minutes.

    Args:
        model: an export, ``mcdrl_rt.engine.onnx.export_onnx``; of an open batch, unless all three batches are its own.
        output: the plan's file.
        plugin: ``libmcdrl_rt_plugin.so``; None builds the fused operator out of TensorRT's own layers.
        batches: least, most usual and greatest number of frames at a time.
        timing_cache: read if it is there and fits, and written: the next build is shorter.
        on_stage: told what is being done, in a few words, some hundred times.

    Raises:
        EngineError: no TensorRT or GPU here, the model or plugin is refused, or a file cannot be read or written.
    """
    require_tensorrt()
    tell = on_stage or (lambda stage: None)
    tell("reading the model")
    network = parse(model, plugin)
    write(output, compile_network(network, plugin, batches, timing_cache, tell))


class Network(NamedTuple):
    """What the parser made, with what has to live as long."""

    definition: trt.INetworkDefinition
    builder: trt.Builder
    log: Any


def parse(model: bytes | onnx.ModelProto, plugin: Path | None) -> Network:
    """Turn an export into a TensorRT network, the fused operator a plugin or plain layers. Needs no GPU.

    Raises:
        EngineError: no TensorRT, or the parser or plugin refuses.
    """
    installed_tensorrt()
    import tensorrt as trt

    from mcdrl_rt.engine.onnx import for_plugin, inlined, serialized  # and with it torch's exporter, open_clip, timm

    try:
        proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else model
    except Exception as error:  # protobuf's, which is onnx's affair
        raise EngineError(f"this is no ONNX model: {error}") from error
    if plugin is not None:
        _check_half(proto)
        load_plugin(plugin)
    log = make_log()
    builder = started(trt.Builder, log)
    definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(definition, log)
    if not parser.parse(serialized(inlined(proto) if plugin is None else for_plugin(proto))):
        errors = [describe(parser.get_error(i)) for i in range(parser.num_errors)]
        raise EngineError(f"TensorRT cannot read this model: {logged(log, errors)}")
    for i in reversed(range(definition.num_outputs)):
        if (tensor := definition.get_output(i)).name not in RESULTS:
            definition.unmark_output(tensor)
    return Network(definition, builder, log)


def describe(error: trt.ParserError) -> str:
    """What the parser says, and of which node."""
    said = " ".join(error.desc().split())
    return f"{error.node_operator()} {error.node_name()!r}: {said}" if error.node_name() else said


def compile_network(
    network: Network,
    plugin: Path | None,
    batches: tuple[int, int, int],
    timing_cache: Path | None,
    tell: Callable[[str], None],
) -> bytes:
    """Network → plan; see ``build_plan``."""
    import tensorrt as trt

    definition, builder, log = network
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # where the file says float32, it is float32
    if plugin is not None:
        config.plugins_to_serialize = [os.fspath(plugin)]
    frames = definition.get_input(0)
    count, *size = shape_of(frames.shape)
    if count == -1:
        profile = builder.create_optimization_profile()
        profile.set_shape(frames.name, *(trt.Dims((some, *size)) for some in check_batches(batches)))
        config.add_optimization_profile(profile)
    elif set(batches) != {count}:
        raise EngineError(f"this export is for batches of {count}, not of {batches[0]} to {batches[2]}")
    _use_timing_cache(config, timing_cache)
    with held_signals() as held:
        config.progress_monitor = progress = make_progress(tell, held)
        plan = builder.build_serialized_network(definition, config)
    if progress.error is not None:
        raise progress.error
    if plan is None:
        raise EngineError(f"TensorRT cannot build this model: {logged(log)}")
    if timing_cache is not None:
        write(timing_cache, bytes(memoryview(config.get_timing_cache().serialize())))
    return bytes(memoryview(plan))


class TensorRtEngine(TensorEngine):
    """A plan, ready to run: for each number of frames a CUDA graph.

    A graph is captured when its number of frames comes first (that call is slow). More frames than the plan takes are
    run in parts; for fewer, its least number is run.

    Args:
        plan: built on this machine by ``build_plan``: it is native code.
        spec: the model's specification.
        precision: what the plan computes in, for ``name``.
        plugin: the plugin's library, for a plan that needs it and does not carry it.
        device: the CUDA device.

    Raises:
        EngineError: no TensorRT or GPU here, or a plan of another version, GPU or model.
    """

    def __init__(
        self, plan: Path, spec: ModelSpec, *, precision: str = "fp16", plugin: Path | None = None, device: str = "cuda"
    ) -> None:
        require_tensorrt()
        import tensorrt as trt

        if not device.startswith("cuda"):
            raise EngineError(f"TensorRT runs on cuda or cuda:N, not on {device!r}")
        super().__init__(spec, f"tensorrt {precision} {device}", find_device(device))
        self._log = make_log()
        if plugin is not None:
            load_plugin(plugin)
        with torch.cuda.device(self.device):
            runtime = started(trt.Runtime, self._log)
            runtime.engine_host_code_allowed = True  # the plugin inside the plan
            self._runtime, self._engine = runtime, deserialise(runtime, plan, self._log)
        self._results = result_names(self._engine, plan)
        (self._least, *size), _, (self._most, *_) = map(shape_of, self._engine.get_tensor_profile_shape(INPUT, 0))
        self.max_batch = self._most
        if tuple(size) != (*spec.input_size, 3):
            raise EngineError(f"{plan} was not built from {spec.name}; rebuild it with 'mcdrl-rt build'")
        self._captures: dict[int, Capture] = {}

    def run(self, frames: Tensor) -> tuple[Tensor, ...]:
        """See ``TensorEngine.run``; without the logits, which a plan does not give."""
        parts = [self._run_part(frames[part], count) for part, count in split(len(frames), self._least, self._most)]
        return parts[0] if len(parts) == 1 else tuple(torch.cat(some) for some in zip(*parts, strict=True))

    def _run_part(self, frames: Tensor, count: int) -> tuple[Tensor, ...]:
        if count not in self._captures:
            self._captures[count] = Capture(self._executor(count), example_frames(self.spec, count, self.device))
        capture = self._captures[count]
        capture.input[: len(frames)].copy_(frames, non_blocking=True)
        return tuple(result[: len(frames)].clone() for result in capture.replay())  # the next one writes there

    def _executor(self, count: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """The plan as a function of ``count`` frames. A context must not change once captured: each has its own."""
        with torch.cuda.device(self.device):
            context = self._engine.create_execution_context()
        if context is None or not context.set_input_shape(INPUT, (count, *self.spec.input_size, 3)):
            raise EngineError(f"TensorRT cannot run a batch of {count} here: {logged(self._log)}")
        results = tuple(self._bind(context, name) for name in self._results)

        def execute(frames: Tensor) -> tuple[Tensor, ...]:
            context.set_tensor_address(INPUT, frames.data_ptr())
            if not context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream):
                raise EngineError(f"TensorRT cannot run a batch of {count} here: {logged(self._log)}")
            return results

        return execute

    def _bind(self, context: trt.IExecutionContext, name: str) -> Tensor:
        """Device memory for a result, its address known to the context."""
        kind = {"UINT8": torch.uint8, "FLOAT": torch.float32}[self._engine.get_tensor_dtype(name).name]
        result = torch.empty(shape_of(context.get_tensor_shape(name)), dtype=kind, device=self.device)
        context.set_tensor_address(name, result.data_ptr())
        return result


def deserialise(runtime: trt.Runtime, plan: Path, log: Any) -> trt.ICudaEngine:
    """Load a plan.

    Raises:
        EngineError: it is missing, damaged, or of another GPU or version of TensorRT.
    """
    try:
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    except OSError as error:
        raise EngineError(f"cannot read {plan}: {str(error.strerror or error).lower()}") from error
    if engine is None:
        raise EngineError(f"TensorRT cannot load {plan}: {logged(log)}; rebuild it with 'mcdrl-rt build'")
    return engine


def result_names(engine: trt.ICudaEngine, plan: Path) -> tuple[str, ...]:
    """The plan's names of ``RESULTS``, in their order; the torch-tensorrt route has names of its own.

    Raises:
        EngineError: the plan is of something else.
    """
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    outputs = [name for name in names if name != INPUT]
    if INPUT not in names or len(outputs) != len(RESULTS):
        raise EngineError(f"{plan} is no plan of mcdrl-rt; build one with 'mcdrl-rt build'")
    return RESULTS if set(outputs) == set(RESULTS) else tuple(outputs)


def shape_of(dims: trt.Dims) -> tuple[int, ...]:
    """TensorRT's form of a shape as Python's; -1 where it is open."""
    return tuple(dims[i] for i in range(len(dims)))


def check_batches(batches: tuple[int, int, int]) -> tuple[int, int, int]:
    """The three as they are.

    Raises:
        EngineError: not 1 ≤ least ≤ usual ≤ greatest.
    """
    least, usual, most = batches
    if not 1 <= least <= usual <= most:
        raise EngineError(f"batches need 1 ≤ least ≤ usual ≤ greatest, not {least}, {usual}, {most}")
    return batches


def split(count: int, least: int, most: int) -> Iterator[tuple[slice, int]]:
    """Cut ``count`` frames into parts a plan takes: which frames, and how many are run for them (``least`` or more)."""
    for start in range(0, count, most):
        stop = min(count, start + most)
        yield slice(start, stop), max(least, stop - start)


def _check_half(proto: onnx.ModelProto) -> None:
    from mcdrl_rt.engine.onnx import operator_nodes

    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    narrow = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    if any(types.get(node.input[-1]) not in narrow for node in operator_nodes(proto)):
        raise EngineError("the TensorRT plugin computes in FP16; export the model in FP16, or build without the plugin")


def _use_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    if path is None:
        return
    with contextlib.suppress(OSError):  # none yet, or not readable: an empty one is as good
        cache = config.create_timing_cache(path.read_bytes())
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        EngineError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        raise EngineError(f"cannot write {path}: {str(error.strerror or error).lower()}") from error
    finally:
        partial.unlink(missing_ok=True)
