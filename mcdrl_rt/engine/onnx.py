"""Export to ONNX, the one file every other runtime is built from.

The fused operator stays one node: a call of a local function of the same name in the domain ``mcdrl_rt``, whose body
below is plain ONNX. ONNX Runtime runs it as it stands, OpenVINO takes the inlined file (``inlined``), and TensorRT
puts its plugin in the function's place. The ``ModelSpec`` travels in the file's metadata.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnxscript import FLOAT, INT64, opset18, script, values
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mcdrl_rt import ops as _ops  # noqa: F401 (registers the operators the exporter translates)
from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError, first_line
from mcdrl_rt.model.folded import INPUT, OUTPUTS, FoldedMCDRL
from mcdrl_rt.model.half import to_half
from mcdrl_rt.model.norms import without_batch_norms
from mcdrl_rt.types import ModelSpec, UInt8Array

SPEC_KEY = "mcdrl_rt.spec"
BATCH = "batch"  # the name of the first dimension of a file for any batch
_ANY_BATCH = 8  # frames that a file for any number is checked with: of the most it may not find room here
OPSET = 18  # what the exporter translates to
op: Any = opset18  # its stubs know tensors only as unions, which no arithmetic fits
_domain = values.Opset("mcdrl_rt", 1)
# of one class and a small picture the label map is a constant, which is an output: the exporter warns of that, and
# nothing is wrong with it
logging.getLogger("onnx_ir.passes.common.initializer_deduplication").setLevel(logging.ERROR)


@script(_domain, default_opset=op)
def intervene(tokens: FLOAT, a: FLOAT, c: FLOAT, b: FLOAT, heads: int, eps: float) -> tuple[FLOAT, FLOAT]:
    """``mcdrl_rt.ops.intervene_reference`` in ONNX; float32 inside whatever the type of ``tokens``."""
    wide = op.Cast(tokens, to=1)
    centred = wide - op.ReduceMean(wide, op.Constant(value_ints=[-1]), keepdims=1)
    variance = op.ReduceMean(centred * centred, op.Constant(value_ints=[-1]), keepdims=1)
    normed = centred / op.Sqrt(variance + op.Constant(value_float=eps))
    scores = op.MatMul(normed, op.Transpose(op.Cast(a, to=1), perm=[1, 0])) + op.Cast(c, to=1)
    by_head = op.Concat(
        op.Constant(value_ints=[0, 0]),
        op.Reshape(op.Constant(value_int=heads), op.Constant(value_ints=[1])),
        op.Constant(value_ints=[-1]),
        axis=0,
    )
    weights = op.Softmax(op.Reshape(scores, by_head), axis=-1)  # (B, N, heads, M)
    update = op.MatMul(op.Reshape(weights, op.Shape(scores)), op.Transpose(op.Cast(b, to=1), perm=[1, 0]))
    readout = op.ReduceMean(weights, op.Constant(value_ints=[2]), keepdims=0)
    return op.CastLike(wide + update, tokens), readout


@script(_domain, default_opset=op)
def select_intervene(
    features: FLOAT, texts: FLOAT, a: FLOAT, c: FLOAT, b: FLOAT, count: int, heads: int, eps: float
) -> tuple[FLOAT, INT64, FLOAT]:
    """``mcdrl_rt.ops.select_intervene_reference`` in ONNX; TopK gives ties to the lower index by definition."""
    wide = op.Cast(features, to=1)
    e = op.Cast(texts, to=1)
    floor = op.Constant(value_float=1e-12)
    unit = wide / op.Max(op.ReduceL2(wide, op.Constant(value_ints=[-1]), keepdims=1), floor)
    texts_unit = e / op.Max(op.ReduceL2(e, op.Constant(value_ints=[-1]), keepdims=1), floor)
    similarities = op.MatMul(unit, op.Transpose(texts_unit, perm=[1, 0]))  # (B, T, K)
    best = op.ReduceMax(similarities, op.Constant(value_ints=[-1]), keepdims=0)
    k = op.Reshape(op.Constant(value_int=count), op.Constant(value_ints=[1]))
    _scores, indices = op.TopK(best, k, axis=-1, largest=1, sorted=1)
    tokens = op.GatherND(features, op.Unsqueeze(indices, op.Constant(value_ints=[-1])), batch_dims=1)
    out, readout = intervene(tokens, a, c, b, heads=heads, eps=eps)
    return out, indices, readout


def export_onnx(model: FoldedMCDRL, batch: int | None = 1, half: bool = False) -> onnx.ModelProto:
    """Export the deployed form.

    Args:
        model: the folded model, in float32.
        batch: frames at a time; None leaves it open, the dimension ``batch``, for runtimes with batch profiles.
        half: float16 weights and tensors, with what ``mcdrl_rt.model.half`` keeps in float32, LayerNorm and softmax in
            float32 between casts. The outputs have the same types either way.

    Returns:
        A checked ONNX model with the input ``frames`` and the outputs of ``mcdrl_rt.model.folded.OUTPUTS``.

    Raises:
        EngineError: the exporter refused the model.
    """
    model = to_half(model) if half else without_batch_norms(model)
    frames = torch.zeros((batch or 2, *model.spec.input_size, 3), dtype=torch.uint8)  # of one, torch makes a constant
    shapes = None if batch else ({0: torch.export.Dim(BATCH)},)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside the exporter, nothing a user can act on
            with _OperatorsAsNodes():
                program = torch.export.export(model, (frames,), dynamic_shapes=shapes, strict=False)
            exported: Any = torch.onnx.export(
                program.run_decompositions(torch.export.default_decompositions() | _WIDE) if half else program,
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise EngineError(f"cannot export {model.spec.name} to ONNX: {first_line(error)}") from error
    proto = exported.model_proto
    for value in (*proto.graph.input, *proto.graph.output) if batch is None else ():
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    proto.functions.extend(local_functions())
    proto.metadata_props.add(key=SPEC_KEY, value=model.spec.to_json())
    with _weights_as_inputs(proto):
        onnx.checker.check_model(proto)
    return proto


def serialized(proto: onnx.ModelProto) -> bytes:
    """A model as the bytes of one file.

    Raises:
        EngineError: it is too large for that.
    """
    try:
        return bytes(proto.SerializeToString())
    except Exception as error:  # of what kind depends on protobuf
        raise EngineError("the model is too large for one ONNX file (2 GB); use --engine torch") from error


class OnnxRuntimeEngine:
    """An exported file in ONNX Runtime on the CPU, to hold it to the reference; nothing is run in it here.

    Args:
        path: of the file.
        spec: the model's specification.
        batch: frames that the file takes at a time; None for any number.
    """

    def __init__(self, path: Path, spec: ModelSpec, batch: int | None = 1) -> None:
        import onnxruntime

        self.spec, self.name, self.max_batch = spec, "ONNX Runtime", batch or _ANY_BATCH
        self._batch = batch
        with _told():
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def infer(self, frames: UInt8Array) -> RawOutput:
        """See ``Engine.infer``; the last frame again where the file takes more."""
        short = max(0, (self._batch or 0) - len(frames))
        whole = np.concatenate([frames, np.repeat(frames[-1:], short, axis=0)])
        with _told():
            results = self._session.run(list(RawOutput._fields), {INPUT: whole})
        return RawOutput(*(result[: len(frames)] for result in results))


def _intervene_node(tokens: Tensor, a: Tensor, c: Tensor, b: Tensor, heads: int, eps: float) -> Sequence[Tensor]:
    readout = (*tokens.shape[:2], a.shape[0] // heads)
    return torch.onnx.ops.symbolic_multi_out(
        "mcdrl_rt::intervene",
        (tokens, a, c, b),
        {"heads": heads, "eps": eps},
        dtypes=(tokens.dtype, torch.float32),
        shapes=(tokens.shape, readout),
        version=1,
    )


def _select_intervene_node(
    features: Tensor, texts: Tensor, a: Tensor, c: Tensor, b: Tensor, count: int, heads: int, eps: float
) -> Sequence[Tensor]:
    batch, _, dim = features.shape
    return torch.onnx.ops.symbolic_multi_out(
        "mcdrl_rt::select_intervene",
        (features, texts, a, c, b),
        {"count": count, "heads": heads, "eps": eps},
        dtypes=(features.dtype, torch.int64, torch.float32),
        shapes=((batch, count, dim), (batch, count), (batch, count, a.shape[0] // heads)),
        version=1,
    )


class _OperatorsAsNodes(TorchFunctionMode):
    """While a model is traced, its fused operators become symbolic nodes.

    The exporter's own translation would inline their bodies; so they stay, and the bodies are attached to the finished
    file.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _NODES.get(func, func)(*args, **(kwargs or {}))


_NODES: dict[Any, Any] = {
    torch.ops.mcdrl_rt.intervene: _intervene_node,
    torch.ops.mcdrl_rt.select_intervene: _select_intervene_node,
}


def _wide_layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5, cudnn: bool = True
) -> Tensor:
    weight, bias = (None if part is None else part.float() for part in (weight, bias))
    return torch.ops.aten.native_layer_norm(x.float(), shape, weight, bias, eps)[0].to(x.dtype)


def _wide_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: None = None, dropout: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(q·kᵀ)·v, q and k scaled before their product: float16 ends at 65504, and TensorRT asks for it."""
    assert mask is None and not is_causal  # no image encoder has either
    root = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    scores = (query * root) @ (key * root).mT
    return scores.float().softmax(dim=-1).to(query.dtype) @ value


# A float16 LayerNorm or softmax computes in float32 in torch; a file has to say so.
_WIDE: dict[Any, Any] = {
    torch.ops.aten.layer_norm.default: _wide_layer_norm,
    torch.ops.aten.scaled_dot_product_attention.default: _wide_attention,
}


def local_functions() -> list[onnx.FunctionProto]:
    """The bodies of the two operators, neither calling the other.

    ``select_intervene`` calls ``intervene`` with attributes of its own, and TensorRT's parser reads those of a function
    within a function as 0 (seen: TensorRT-RTX 1.7; the parser's 10.1 sources show why): of one block, unnoticed.
    """
    inner, outer = intervene.to_function_proto(), select_intervene.to_function_proto()
    nodes: list[onnx.NodeProto] = []
    for node in outer.node:
        nodes.extend([node] if node.op_type != inner.name else _body(inner, node))
    del outer.node[:]
    outer.node.extend(nodes)
    return [inner, outer]


def _body(function: onnx.FunctionProto, call: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes of ``function`` in the place of a call that hands on its attributes under their own names."""
    assert all(attribute.ref_attr_name == attribute.name for attribute in call.attribute)
    names = dict(zip([*function.input, *function.output], [*call.input, *call.output], strict=True))
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in function.node]
    for node in nodes:
        node.name = f"{function.name}.{node.name}"
        for places in (node.input, node.output):
            places[:] = [names.get(name, name and f"{function.name}.{name}") for name in places]
    return nodes


def operator_nodes(proto: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The calls of the fused operator in a model with its local functions."""
    return [node for node in proto.graph.node if node.domain == _domain.domain]


def for_plugin(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without the operators' bodies, for TensorRT with the plugin of their names.

    Its parser prefers a body to a plugin before 10.7, and takes a node's domain for a plugin's namespace from 10.10 on;
    without body and domain, every version looks for the plugin and complains if there is none.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(proto)
    for node in operator_nodes(stripped):
        node.domain = ""
    del stripped.functions[:]
    return stripped


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without local functions, for runtimes that do not take them."""
    with _weights_as_inputs(proto) as weights:
        result = onnx.inliner.inline_local_functions(proto)
    del result.graph.input[len(proto.graph.input) :]
    result.graph.initializer.extend(weights)
    return result


@contextmanager
def _weights_as_inputs(proto: onnx.ModelProto) -> Iterator[list[onnx.TensorProto]]:
    """Take the weights out, and make inputs of them, while onnx works on the graph: it copies all it gets, often."""
    weights, inputs = list(proto.graph.initializer), len(proto.graph.input)
    del proto.graph.initializer[:]
    proto.graph.input.extend(onnx.helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights)
    try:
        yield weights
    finally:
        del proto.graph.input[inputs:]
        proto.graph.initializer.extend(weights)


@contextmanager
def _told() -> Iterator[None]:
    """What ONNX Runtime says, whose errors have no class in common, as an ``EngineError``."""
    try:
        yield
    except Exception as error:
        raise EngineError(f"ONNX Runtime does not run the file: {first_line(error)}") from error
