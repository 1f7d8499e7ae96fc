"""The layers OpenVINO executes for a model: what each computes and moves, its part of MCDRL, and its time.

Operations and bytes are counted in the graph as it is executed, after OpenVINO's own fusion, with its own types. Only
convolutions and matrix products have operations, two for each product of two numbers; everything else has bytes alone.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import openvino as ov

# what rearranges numbers: a perfect engine does none of it, so it takes time and has no bytes
CONVERSIONS = ("Reorder", "Transpose", "Concatenation", "Split", "Broadcast", "Reshape")
_PRODUCTS = ("FullyConnected", "MatMul")
_UNSEEN = ("Const", "Input", "Output")
_SIZES = {"f32": 4, "bf16": 2, "f16": 2, "i8": 1, "u8": 1}


@dataclass(frozen=True)
class Layer:
    """One layer of an executed graph.

    Args:
        name: OpenVINO's, the same in its profile.
        kind: what it is, to people: ``convolution 3×3``.
        part: of MCDRL.
        precision: the type it computes in.
        operations: floating-point, or integer ones.
        weights, activations: bytes of constants read, and of tensors read and written.
    """

    name: str
    kind: str
    part: str
    precision: str
    operations: int
    weights: int
    activations: int


def parts_of(proto: onnx.ModelProto) -> dict[str, str]:
    """Which part of MCDRL each node of an exported model is of, with its local functions inlined.

    The exporter notes the module a node comes from. Inlined nodes have no note, but the number of the call they are
    of: one call for each causal block, the first with the selection in front. What comes from no module is ``input``
    in front of the encoder, ``output`` behind the head, and between the two part of the selection.
    """
    parts: dict[str, str] = {}
    done: set[str] = set()
    for node in proto.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        part = _noted(ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))) or _inlined(node.name)
        if not part:
            part = "output" if "head" in done else "selection" if "encoder" in done else "input"
        done.add(part)
        parts[node.name] = part
    return parts


def _noted(scopes: list[str]) -> str:
    """The part by the modules around a node, outermost first."""
    for scope in reversed(scopes):
        if found := re.match(r"network\.blocks\.(\d+)\b", scope):
            return f"block {int(found.group(1)) + 1}"
    top = scopes[1] if len(scopes) > 2 else ""
    return {"encoder": "encoder", "head": "head", "network": "selection"}.get(top, "")


def _inlined(name: str) -> str:
    found = re.fullmatch(r"(intervene\.)?n\d+__(\d+)", name)
    if found is None:
        return ""
    return "selection" if found.group(2) == "1" and not found.group(1) else f"block {found.group(2)}"


def layers_of(executed: ov.Model, parts: Mapping[str, str]) -> list[Layer]:
    """The layers of a compiled model's ``get_runtime_model``, in order.

    A layer that OpenVINO made itself is of the part its first input comes from.
    """
    layers: list[Layer] = []
    constant: set[str] = set()
    places: dict[str, str] = {}
    for node in executed.get_ordered_ops():
        name, kind = node.get_friendly_name(), _about(node, "layerType")
        sources = [value.get_source_output() for value in node.inputs()]
        if kind == "Const" or (sources and all(_name(source) in constant for source in sources)):
            constant.add(name)
            continue
        tensors = [source for source in sources if _name(source) not in constant]
        known = (parts.get(origin.split("/")[0]) for origin in _about(node, "originalLayersNames").split(","))
        before = places[_name(tensors[0])] if tensors else "input"
        places[name] = next((part for part in known if part), before)
        if kind in _UNSEEN:
            continue
        fixed = [math.prod(source.get_shape()) for source in sources if _name(source) in constant]
        precision = _about(node, "runtimePrecision")
        moves = kind not in CONVERSIONS
        layers.append(
            Layer(
                name=name,
                kind=_kind(node, kind, sources),
                part=places[name],
                precision=precision,
                operations=_operations(node, kind, sources),
                weights=sum(fixed) * _SIZES.get(precision, 4) * moves,
                activations=(sum(map(_bytes, tensors)) + sum(map(_bytes, node.outputs()))) * moves,
            )
        )
    return layers


def _about(node: ov.Node, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _name(output: Any) -> str:
    return str(output.get_node().get_friendly_name())


def _bytes(output: Any) -> int:
    return int(math.prod(output.get_shape()) * output.get_element_type().size)


def _operations(node: ov.Node, kind: str, sources: list[Any]) -> int:
    elements = math.prod(node.output(0).get_shape())
    if kind == "Convolution":  # weights (O, I, h, w), or (groups, O, I, h, w)
        weights = math.prod(sources[1].get_shape())
        return 2 * elements * weights // int(node.output(0).get_shape()[1])
    return 2 * elements * int(sources[0].get_shape()[-1]) if kind in _PRODUCTS else 0


def _kind(node: ov.Node, kind: str, sources: list[Any]) -> str:
    if kind == "Convolution":
        shape = [int(side) for side in sources[1].get_shape()]
        return "depthwise convolution" if len(shape) == 5 else f"convolution {shape[-2]}×{shape[-1]}"
    return "matrix product" if kind in _PRODUCTS else kind


class Profile:
    """Mean time of each layer over some runs, out of a request's own counters.

    OpenVINO gives means over all runs of a request, the first included, in whole microseconds: what lies between two
    readings is had from both. Those of a compiled model go on for as long as it lives.
    """

    def __init__(self, request: Any) -> None:
        self._request, self._runs, self._sums = request, 0, dict[str, float]()

    def read(self, runs: int) -> dict[str, float]:
        """Milliseconds a run by layer, over the last ``runs``, which are all since the last reading."""
        total = self._runs + runs
        info = self._request.get_profiling_info()
        sums = {entry.node_name: entry.real_time.total_seconds() * 1e3 * total for entry in info}
        times = {name: (value - self._sums.get(name, 0.0)) / runs for name, value in sums.items()}
        self._runs, self._sums = total, sums
        return times
