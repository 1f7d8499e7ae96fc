"""Export to ONNX, the one file every other runtime is built from.

The fused operator stays one node: a call of a local function of the same name in the domain ``mcdrl_rt``, whose body
below is plain ONNX. ONNX Runtime runs it as it stands, OpenVINO takes the inlined file (``inlined``), and TensorRT
puts its plugin in the function's place. The ``ModelSpec`` travels in the file's metadata.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import onnx.inliner
import torch
from onnxscript import FLOAT, INT64, opset18, script, values
from torch import Tensor

from mcdrl_rt import ops as _ops  # noqa: F401 (registers the operators the exporter translates)
from mcdrl_rt.errors import EngineError
from mcdrl_rt.model.folded import INPUT, OUTPUTS, FoldedMCDRL

SPEC_KEY = "mcdrl_rt.spec"
OPSET = 18  # what the exporter translates to
op: Any = opset18  # its stubs know tensors only as unions, which no arithmetic fits
_domain = values.Opset("mcdrl_rt", 1)


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
    readout = op.ReduceMean(weights, op.Constant(value_ints=[1, 2]), keepdims=0)
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
    _, indices = op.TopK(best, k, axis=-1, largest=1, sorted=1)
    tokens = op.GatherND(features, op.Unsqueeze(indices, op.Constant(value_ints=[-1])), batch_dims=1)
    out, readout = intervene(tokens, a, c, b, heads=heads, eps=eps)
    return out, indices, readout


def export_onnx(model: FoldedMCDRL, batch: int = 1) -> onnx.ModelProto:
    """Export the deployed form, weights in float32, for a fixed batch.

    Args:
        model: the folded model.
        batch: frames at a time.

    Returns:
        A checked ONNX model with the input ``frames`` and the outputs of ``mcdrl_rt.model.folded.OUTPUTS``.

    Raises:
        EngineError: the exporter refused the model.
    """
    frames = torch.zeros((batch, *model.spec.input_size, 3), dtype=torch.uint8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside the exporter, nothing a user can act on
            program = torch.export.export(model.eval(), (frames,), strict=False)
            exported: Any = torch.onnx.export(
                program.run_decompositions(_NODES),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise EngineError(f"cannot export {model.spec.name} to ONNX: {str(error).splitlines()[0]}") from error
    proto = exported.model_proto
    proto.functions.extend([intervene.to_function_proto(), select_intervene.to_function_proto()])
    proto.metadata_props.add(key=SPEC_KEY, value=model.spec.to_json())
    onnx.checker.check_model(proto)
    return proto


def _intervene_node(tokens: Tensor, a: Tensor, c: Tensor, b: Tensor, heads: int, eps: float) -> Sequence[Tensor]:
    readout = (tokens.shape[0], a.shape[0] // heads)
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
        shapes=((batch, count, dim), (batch, count), (batch, a.shape[0] // heads)),
        version=1,
    )


# The exporter's own function translation inlines local functions; as symbolic nodes they stay, and the bodies are
# attached to the finished file.
_NODES: dict[Any, Any] = torch.export.default_decompositions() | {
    torch.ops.mcdrl_rt.intervene.default: _intervene_node,
    torch.ops.mcdrl_rt.select_intervene.default: _select_intervene_node,
}


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model without local functions, for runtimes that do not take them."""
    return onnx.inliner.inline_local_functions(proto)
