"""ONNX: one file, the fused operator a function in it, and every runtime computes what torch does."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.checker import check_model
from test_model import DEPTHS, normalised, with_depth

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.onnx import (
    BATCH,
    OPSET,
    SPEC_KEY,
    export_onnx,
    for_plugin,
    inlined,
    local_functions,
    operator_nodes,
)
from mcdrl_rt.engine.openvino import OpenVinoEngine, core
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import OUTPUTS, FoldedMCDRL
from mcdrl_rt.model.half import to_half
from mcdrl_rt.model.mcdrl import MCDRL
from mcdrl_rt.types import ModelSpec, UInt8Array
from mcdrl_rt.video.phantom import Phantom


class Exported(NamedTuple):
    """A model, its export, and what torch says of some frames."""

    model: FoldedMCDRL
    proto: onnx.ModelProto
    frames: UInt8Array  # (batch, H, W, 3)
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=[(1, 2), (3, 1)], ids=lambda p: f"depth{p[0]}-batch{p[1]}")
def exported(request: pytest.FixtureRequest, small_model: MCDRL, pictures: UInt8Array) -> Exported:
    depth, batch = request.param
    model, frames = FoldedMCDRL(with_depth(small_model, depth)), pictures[:batch]
    with torch.no_grad():
        outputs = model(torch.from_numpy(frames))
    expected = {name: value.numpy() for name, value in zip(OUTPUTS, outputs, strict=True)}
    return Exported(model, export_onnx(model, batch), frames, expected)


def assert_agrees(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float = 1e-4) -> None:
    """Logits within ``tolerance`` of their scale, the same cells, and labels but for pixels on the fence."""
    scale = np.abs(expected["logits"]).max()
    assert np.abs(actual["logits"] - expected["logits"]).max() <= tolerance * scale
    np.testing.assert_allclose(actual["confounders"], expected["confounders"], atol=tolerance)
    np.testing.assert_array_equal(actual["selected"], expected["selected"])
    assert np.abs(actual["score"].astype(int) - expected["score"]).max() <= 1 + 256 * tolerance * scale
    assert (actual["label"] != expected["label"]).mean() <= 10 * tolerance
    assert {name: (a.shape, a.dtype) for name, a in actual.items()} == {
        name: (e.shape, e.dtype) for name, e in expected.items()
    }


def run_onnxruntime(proto: onnx.ModelProto, frames: UInt8Array) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"frames": frames}), strict=True))


def run_openvino(proto: onnx.ModelProto, frames: UInt8Array, folder: Path) -> dict[str, np.ndarray]:
    onnx.save(proto, folder / "model.onnx")
    compiled = core().compile_model(folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(frames)
    return {name: np.array(results[name]) for name in OUTPUTS}


def test_file_passes_the_checker_and_every_shape_is_static(exported: Exported) -> None:
    check_model(exported.proto, full_check=True)
    graph = exported.proto.graph
    assert [o.name for o in graph.output] == list(OUTPUTS)
    for value in (*graph.input, *graph.output):
        assert all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim), value.name


def test_export_says_nothing_of_a_label_map_that_is_constant(
    make_model: Callable[[ModelSpec], MCDRL], small_spec: ModelSpec, caplog: pytest.LogCaptureFixture
) -> None:
    spec = dataclasses.replace(small_spec, classes=("polyp",), colors=(), input_size=(32, 32), depth=1)
    export_onnx(FoldedMCDRL(make_model(spec)))
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_fused_operator_is_one_node_with_a_body_in_the_file(exported: Exported) -> None:
    functions = {(f.domain, f.name) for f in exported.proto.functions}
    assert functions == {("mcdrl_rt", "intervene"), ("mcdrl_rt", "select_intervene")}
    nodes = [node for node in exported.proto.graph.node if node.domain == "mcdrl_rt"]
    depth = exported.model.spec.depth
    assert Counter(node.op_type for node in nodes) == Counter({"select_intervene": 1, "intervene": depth - 1})
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in nodes[0].attribute}
    assert (attributes["count"], attributes["heads"]) == (exported.model.spec.selected, 8)
    assert attributes["eps"] == pytest.approx(1e-5)


def test_onnxruntime_runs_the_file_as_it_is(exported: Exported) -> None:
    assert_agrees(run_onnxruntime(exported.proto, exported.frames), exported.expected)


def test_openvino_runs_the_inlined_file(exported: Exported, tmp_path: Path) -> None:
    flat = inlined(exported.proto)
    assert not flat.functions
    assert all(node.domain != "mcdrl_rt" for node in flat.graph.node)
    assert_agrees(run_openvino(flat, exported.frames, tmp_path), exported.expected)


def test_specification_is_in_the_metadata(exported: Exported) -> None:
    for proto in (exported.proto, inlined(exported.proto)):
        (carried,) = (entry.value for entry in proto.metadata_props if entry.key == SPEC_KEY)
        assert ModelSpec.from_json(carried) == exported.model.spec


# --- what TensorRT asks of a file; it is held against TensorRT's own parser where that is, tests/test_tensorrt.py


@pytest.fixture(scope="module")
def halved(small_model: MCDRL) -> onnx.ModelProto:
    return export_onnx(FoldedMCDRL(with_depth(small_model, 2)), None, half=True)


def element_types(proto: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value of the main graph."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_half_file_keeps_norms_and_softmax_in_float32(halved: onnx.ModelProto) -> None:
    types, (half, full) = element_types(halved), (onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT)
    operators = {(node.op_type, types[node.input[0]]) for node in halved.graph.node}
    assert {("Conv", half), ("MatMul", half), ("select_intervene", half), ("intervene", half)} <= operators
    assert ("LayerNormalization", full) in operators
    assert not {("LayerNormalization", half), ("Softmax", half), ("BatchNormalization", half)} & operators


@pytest.mark.slow
def test_half_file_keeps_the_softmax_of_a_transformer_in_float32(
    make_model: Callable[[ModelSpec], MCDRL], small_spec: ModelSpec, pictures: UInt8Array
) -> None:
    spec = dataclasses.replace(small_spec, encoder="ViT-B-16", grid_stride=0, alpha=1.0)
    model = FoldedMCDRL(make_model(spec))
    proto = export_onnx(model, None, half=True)
    types = element_types(proto)
    # two norms in each of 12 blocks but one in the last, one before and one after them, one in each causal block
    for name, count in (("LayerNormalization", 27), ("Softmax", 12)):
        kinds = [types[node.input[0]] for node in proto.graph.node if node.op_type == name]
        assert (len(kinds), set(kinds)) == (count, {onnx.TensorProto.FLOAT})
    assert_half_agrees(model, proto, pictures[:2])


@pytest.mark.slow
def test_half_file_of_a_resnet_is_the_half_model(
    make_model: Callable[[ModelSpec], MCDRL], small_spec: ModelSpec, pictures: UInt8Array
) -> None:
    model = FoldedMCDRL(make_model(dataclasses.replace(small_spec, encoder="RN50", grid_stride=0, alpha=1.0)))
    assert_half_agrees(model, export_onnx(model, None, half=True), pictures[:2])


def assert_half_agrees(model: FoldedMCDRL, proto: onnx.ModelProto, frames: UInt8Array) -> None:
    """ONNX Runtime on a CPU computes in float32 between roundings, which torch does not do everywhere."""
    with torch.no_grad():
        outputs = to_half(model)(torch.from_numpy(frames))
    expected = {name: value.numpy() for name, value in zip(OUTPUTS, outputs, strict=True)}
    actual = run_onnxruntime(proto, frames)
    assert {k: (v.shape, v.dtype) for k, v in actual.items()} == {k: (v.shape, v.dtype) for k, v in expected.items()}
    error = np.linalg.norm(actual["logits"] - expected["logits"])
    assert error <= 5e-3 * np.linalg.norm(expected["logits"])


@pytest.mark.slow
def test_half_file_is_the_half_model_for_any_batch() -> None:
    model = load_checkpoint(DEFAULT_CHECKPOINT)
    model.spec = dataclasses.replace(model.spec, alpha=1.0)
    folded = FoldedMCDRL(model)
    proto = export_onnx(folded, None, half=True)
    dimensions = [value.type.tensor_type.shape.dim[0].dim_param for value in (*proto.graph.input, *proto.graph.output)]
    assert dimensions == [BATCH] * (1 + len(OUTPUTS))
    pictures = np.stack([Phantom(model.spec.input_size, seed=seed).render(5).pixels for seed in range(3)])
    for batch in (1, 3):
        assert_half_agrees(folded, proto, pictures[:batch])


@pytest.mark.slow
def test_file_for_any_batch_is_the_one_for_each(small_model: MCDRL, pictures: UInt8Array) -> None:
    model = FoldedMCDRL(with_depth(small_model, 1))
    proto = export_onnx(model, None)
    for batch in (1, 2):
        with torch.no_grad():
            outputs = model(torch.from_numpy(pictures[:batch]))
        expected = {name: value.numpy() for name, value in zip(OUTPUTS, outputs, strict=True)}
        assert_agrees(run_onnxruntime(proto, pictures[:batch]), expected)


def test_bytes_are_only_made_into_floats_and_out_of_them(halved: onnx.ModelProto) -> None:
    """TensorRT knows uint8 at a network's inputs and outputs alone, and converts it from and to floats alone."""
    types, byte = element_types(halved), onnx.TensorProto.UINT8
    readers = [node.op_type for node in halved.graph.node if "frames" in node.input]
    assert set(readers) <= {"Cast", "Shape"}
    makers = [node for node in halved.graph.node if byte in map(types.get, node.output)]
    assert [node.op_type for node in makers] == ["Cast"] * 3  # score, label, selected
    assert {types[node.input[0]] for node in makers} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def test_no_function_calls_another(halved: onnx.ModelProto) -> None:
    """TensorRT's parser takes the attributes of a function called by a function for 0."""
    for function in halved.functions:
        assert {node.domain for node in function.node} == {""}
        made = [name for node in function.node for name in node.output]
        assert len(set(made)) == len(made)


def test_file_for_the_plugin_has_neither_bodies_nor_a_domain(halved: onnx.ModelProto) -> None:
    stripped = for_plugin(halved)
    assert not stripped.functions and not operator_nodes(stripped)
    names = Counter(node.op_type for node in stripped.graph.node)
    assert (names["select_intervene"], names["intervene"]) == (1, 1)
    assert len(operator_nodes(halved)) == len(halved.functions) == 2  # and the file itself is as it was


@pytest.mark.parametrize(("tokens", "count"), [(9, 4), (80, 40), (300, 100)])
def test_every_runtime_gives_ties_to_the_lower_index(
    small_spec: ModelSpec, tokens: int, count: int, tmp_path: Path
) -> None:
    rng = np.random.default_rng(tokens)
    features = rng.standard_normal((3, 8)).astype(np.float32)[rng.integers(0, 3, (2, tokens))]  # of three kinds
    constants = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"texts": (2, 8), "a": (10, 8), "c": (10,), "b": (8, 10)}.items()
    }
    arrays = [torch.from_numpy(value) for value in (features, *constants.values())]
    out, indices, readout = torch.ops.mcdrl_rt.select_intervene(*arrays, count, 2, 1e-5)

    proto = operator_alone(features, constants, count)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    onnx.save(inlined(proto), tmp_path / "operator.onnx")
    engine = OpenVinoEngine(tmp_path / "operator.onnx", small_spec, "fp32")
    for answer in (session.run(None, {"features": features}), engine.infer(features)):  # type: ignore[arg-type]
        np.testing.assert_array_equal(answer[1], indices)
        np.testing.assert_allclose(answer[0], out, atol=1e-5)
        np.testing.assert_allclose(answer[2], readout, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("encoder", ["mcdrl-small", "RN50", "ViT-B-16", "ViT-L-14"])
def test_four_runtimes_agree_on_every_encoder_at_every_depth(
    paper_model: Callable[[str], MCDRL], real_pictures: UInt8Array, encoder: str, depth: int, tmp_path: Path
) -> None:
    """The paper's equations and the fused form in torch, ONNX Runtime and OpenVINO, on a random and a real frame."""
    model = with_depth(paper_model(encoder), depth)
    folded = FoldedMCDRL(model)
    noise = np.random.default_rng(depth).integers(0, 256, real_pictures.shape, dtype=np.uint8)
    proto = export_onnx(folded)
    for frames in (noise, real_pictures):
        with torch.no_grad():
            literal = model(normalised(frames, model.spec)).logits
            outputs = folded(torch.from_numpy(frames))
        expected = {name: value.numpy() for name, value in zip(OUTPUTS, outputs, strict=True)}
        assert np.abs(expected["logits"] - literal.numpy()).max() <= 1e-4 * literal.abs().max()
        assert_agrees(run_onnxruntime(proto, frames), expected)
        assert_agrees(run_openvino(inlined(proto), frames, tmp_path), expected)


@pytest.fixture(scope="module")
def real_pictures(data_root: Path) -> UInt8Array:
    """One real frame, (1, 224, 224, 3) uint8."""
    picture = cv2.imread(str(data_root / "CVC-ClinicDB" / "PNG" / "Original" / "1.png"))[..., ::-1]
    return np.asarray(cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA), np.uint8)[None]


@pytest.fixture(scope="module")
def paper_model(make_model: Callable[[ModelSpec], MCDRL], small_spec: ModelSpec) -> Callable[[str], MCDRL]:
    """A model with that encoder and random weights, one kept at a time: the largest take gigabytes."""

    @functools.lru_cache(maxsize=1)
    def make(encoder: str) -> MCDRL:
        stride = 16 if encoder == "mcdrl-small" else 0
        return make_model(dataclasses.replace(small_spec, encoder=encoder, input_size=(224, 224), grid_stride=stride))

    return make


def operator_alone(features: np.ndarray, constants: dict[str, np.ndarray], count: int) -> onnx.ModelProto:
    """A model of the one node ``select_intervene``, two heads, its outputs under the names an engine looks for."""
    make, float32, int64 = onnx.helper, onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    inputs, outputs = ["features", *constants], ["score", "label", "confounders"]
    node = make.make_node("select_intervene", inputs, outputs, domain="mcdrl_rt", count=count, heads=2, eps=1e-5)
    graph = make.make_graph(
        [node, make.make_node("Identity", ["label"], ["selected"])],
        "operator",
        [make.make_tensor_value_info("features", float32, features.shape)],
        [
            make.make_tensor_value_info("score", float32, [2, count, 8]),
            make.make_tensor_value_info("label", int64, [2, count]),
            make.make_tensor_value_info("confounders", float32, [2, 5]),
            make.make_tensor_value_info("selected", int64, [2, count]),
        ],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return make.make_model(
        graph,
        opset_imports=[make.make_opsetid("", OPSET), make.make_opsetid("mcdrl_rt", 1)],
        functions=local_functions(),
        ir_version=10,
    )
