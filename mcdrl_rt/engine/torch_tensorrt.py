"""The second route to a TensorRT plan: Torch-TensorRT, from the exported program, without ONNX in between.

**Written against the sources of Torch-TensorRT 2.13 and never run:** its packages and a GPU were not to be had.
What runs without them, the making of a plugin out of an operator's arguments, is tested with TensorRT's bindings.
The plan does not carry the plugin: ``TensorRtEngine`` needs its path.

    >>> build_plan_torch_tensorrt(folded, Path("polyp.plan"), plugin=Path("libmcdrl_rt_plugin.so"))   # doctest: +SKIP
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcdrl_rt import ops as _ops  # noqa: F401 (registers the operators)
from mcdrl_rt.engine.tensorrt import INPUT, RESULTS, check_batches, write
from mcdrl_rt.engine.tensorrt_api import load_plugin, require_tensorrt
from mcdrl_rt.errors import EngineError, first_line
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.half import to_half

Shapes = list[tuple[int, ...]]  # of the least, the most usual and the greatest batch
SETTINGS = {"count": np.int32, "heads": np.int32, "eps": np.float32}  # the operators' arguments that are no tensors


def build_plan_torch_tensorrt(
    model: FoldedMCDRL,
    output: Path,
    *,
    plugin: Path,
    batches: tuple[int, int, int] = (1, 1, 1),
    on_stage: Callable[[str], None] | None = None,
) -> None:
    """Build an FP16 plan for this machine's GPU; it takes minutes.

    Args:
        model: the deployed form in float32.
        output: the plan's file.
        plugin: ``libmcdrl_rt_plugin.so``.
        batches: least, most usual and greatest number of frames at a time.
        on_stage: told what is being done.

    Raises:
        EngineError: Torch-TensorRT, TensorRT or a GPU is missing, the model is refused, or the file cannot be written.
    """
    require_tensorrt()
    try:
        import torch_tensorrt
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineError(f"Torch-TensorRT does not load ({error}); pip install 'mcdrl-rt[tensorrt]'") from error
    tell = on_stage or (lambda stage: None)
    load_plugin(plugin)
    _register_converters()
    shapes: Shapes = [(count, *model.spec.input_size, 3) for count in check_batches(batches)]
    tell("exporting the model")
    program = _export(model, shapes)
    tell("building the engine")
    try:
        plan = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
            program,
            arg_inputs=[_input(torch_tensorrt, shapes)],
            require_full_compilation=True,
            disable_tf32=True,  # where the model says float32, it is float32
        )
    except Exception as error:  # its errors have no common base but this
        raise EngineError(f"Torch-TensorRT cannot build {model.spec.name}: {first_line(error)}") from error
    write(output, plan)


def create_plugin(operator: str, settings: Mapping[str, Any]) -> Any:
    """One of our plugins for TensorRT's builder, its settings those of the torch operator of the same name.

    Raises:
        EngineError: the plugin refuses them, or is not loaded.
    """
    import tensorrt as trt

    kinds = {np.int32: trt.PluginFieldType.INT32, np.float32: trt.PluginFieldType.FLOAT32}
    values = {name: np.array([settings[name]], kind) for name, kind in SETTINGS.items() if name in settings}
    field: Any = trt.PluginField  # it takes a str for a name, which its signature does not say
    fields = [field(name, value, kinds[value.dtype.type]) for name, value in values.items()]
    creator: Any = trt.get_plugin_registry().get_creator(operator, "1", "")
    plugin = creator and creator.create_plugin(operator, trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
    if plugin is None:
        raise EngineError(f"the TensorRT plugin {operator} is not loaded, or does not take {dict(settings)}")
    return plugin


def arguments_of(target: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of one of our operators, by name."""
    names = [argument.name for argument in target._schema.arguments]
    return dict(zip(names, args, strict=False)) | dict(kwargs)


@functools.cache
def _register_converters() -> None:
    from torch_tensorrt.dynamo.conversion import dynamo_tensorrt_converter

    for operator in (torch.ops.mcdrl_rt.select_intervene.default, torch.ops.mcdrl_rt.intervene.default):
        dynamo_tensorrt_converter(operator, supports_dynamic_shapes=True)(_add_layer)


def _add_layer(ctx: Any, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> Sequence[Any]:
    """Torch-TensorRT's converter of both operators: one plugin layer."""
    from torch_tensorrt.dynamo.conversion.converter_utils import get_trt_tensor

    given = arguments_of(target, args, kwargs)
    tensors = [get_trt_tensor(ctx, value, f"{name}_{key}") for key, value in given.items() if key not in SETTINGS]
    plugin = create_plugin(target._schema.name.partition("::")[2], given)
    layer = ctx.net.add_plugin_v3(tensors, [], plugin)
    layer.name = name
    return tuple(layer.get_output(i) for i in range(layer.num_outputs))


class _Results(nn.Module):
    """The deployed form without its logits, which are for referees."""

    def __init__(self, model: FoldedMCDRL) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        return self.model(frames)[: len(RESULTS)]


def _export(model: FoldedMCDRL, shapes: Shapes) -> torch.export.ExportedProgram:
    (least, *_), _, (most, *_) = shapes
    program = _Results(to_half(model)).cuda().eval()
    frames = torch.zeros(shapes[-1], dtype=torch.uint8, device="cuda")
    open_batch = None if least == most else ({0: torch.export.Dim("batch", min=least, max=most)},)
    with torch.no_grad():
        return torch.export.export(program, (frames,), dynamic_shapes=open_batch, strict=False)


def _input(torch_tensorrt: Any, shapes: Shapes) -> Any:
    least, usual, most = shapes
    return torch_tensorrt.Input(min_shape=least, opt_shape=usual, max_shape=most, dtype=torch.uint8, name=INPUT)
