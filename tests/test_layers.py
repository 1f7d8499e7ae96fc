"""What the roofline counts, against PyTorch's own count and against figures worked out by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.onnx import export_onnx, inlined
from mcdrl_rt.engine.openvino import OpenVinoEngine
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import FoldedMCDRL


@pytest.fixture(scope="module")
def counting() -> ModuleType:
    """``benchmarks/layers.py``, which is in no package."""
    spec = importlib.util.spec_from_file_location("layers", ROOT / "benchmarks" / "layers.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["layers"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_operations_and_bytes_of_every_part(counting: ModuleType, tmp_path: Path) -> None:
    folded = FoldedMCDRL(load_checkpoint(DEFAULT_CHECKPOINT))
    proto = inlined(export_onnx(folded))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    engine = OpenVinoEngine(tmp_path / "model.onnx", folded.spec, "fp32")
    executed = engine._request.get_compiled_model().get_runtime_model()
    layers = counting.layers_of(executed, counting.parts_of(proto))
    parts = list(dict.fromkeys(layer.part for layer in layers))
    assert sorted(parts) == ["block 1", "block 2", "block 3", "encoder", "head", "input", "output", "selection"]
    operations = {part: sum(layer.operations for layer in layers if layer.part == part) for part in parts}

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        folded(torch.zeros((1, *folded.spec.input_size, 3), dtype=torch.uint8))
    torchs = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    assert operations["encoder"] == torchs["FoldedMCDRL.encoder"]
    assert operations["head"] == torchs["FoldedMCDRL.head"]

    # a causal block: two thin products with 8 heads of 12 conditions, and an FFN of 856, for 194 tokens of 256
    assert operations["block 1"] == operations["block 3"] == 2 * 194 * (2 * 8 * 12 * 256 + 2 * 856 * 256)
    assert operations["selection"] == 2 * 324 * 256  # all tokens with one class text
    first = next(layer for layer in layers if layer.kind == "convolution 3×3")  # 3 to 32 channels, to half the size
    assert first.operations == 2 * 144 * 144 * 32 * 27
    assert first.activations == 4 * (3 * 288 * 288 + 32 * 144 * 144)
    assert first.weights == 4 * (32 * 27 + 32)
