"""The shipped model's latency beside that of a U-Net on the same encoder at the same size, batch 1, in one run.

    python benchmarks/rival.py [--runs 100] [--save NAME]

Both are engines in OpenVINO, uint8 frame to label map, in every precision this processor has without calibration. The
U-Net is segmentation-models-pytorch's (``pip install 'mcdrl-rt[train]'``), the one ``training/recipes/unet.toml``
trains; its weights are random here, which latency does not depend on. One JSON line at the end.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe
from outputs import Parser, check_outputs, count, finish, run_main
from timing import interleaved
from torch import Tensor, nn

from mcdrl_rt.engine.cache import cached_engine
from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.openvino import PRECISIONS, OpenVinoEngine, core, resolve_precision
from mcdrl_rt.errors import McdrlError
from mcdrl_rt.model.checkpoint import read_spec


class UNet(nn.Module):
    """The rival with what every engine does around its network: normalise before, a lesion score after."""

    def __init__(self) -> None:
        import segmentation_models_pytorch as smp

        super().__init__()
        self.network = smp.Unet("tu-mobilenetv2_100", encoder_weights=None, classes=2, pad_type="same")

    def forward(self, frames: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 → (B, H, W) uint8, lesion from 128 on."""
        logits = self.network((frames.permute(0, 3, 1, 2).float() - 127.5) / 127.5)
        return (torch.sigmoid(logits[:, 1] - logits[:, 0]) * 256).clamp(max=255).to(torch.uint8)


def main() -> None:
    """Measure, print a table, and end with one JSON line."""
    parser = Parser(__doc__)
    parser.add_argument("--runs", type=count, default=100)
    arguments = parser.parse_args()
    check_outputs(arguments)
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        raise McdrlError("the U-Net is segmentation-models-pytorch's: pip install 'mcdrl-rt[train]'")
    logging.getLogger().setLevel(logging.ERROR)
    spec = read_spec(DEFAULT_CHECKPOINT)
    frame = np.random.default_rng(0).integers(0, 256, (1, *spec.input_size, 3), dtype=np.uint8)
    rows = {}
    for precision in dict.fromkeys(("fp32", resolve_precision("auto"))):
        ours = OpenVinoEngine(cached_engine(DEFAULT_CHECKPOINT)[0], spec, precision)
        theirs = compile_unet(spec.input_size, precision)
        forms = {
            "mcdrl": lambda ours=ours: ours.infer(frame),
            "unet": lambda theirs=theirs: theirs.infer({0: frame}, share_inputs=True)[0].copy(),
        }
        row = interleaved(forms, arguments.runs)
        row["ratio"] = round(row["p50_ms"]["mcdrl"] / row["p50_ms"]["unet"], 3)
        rows[precision] = row
        one, other = (row["p50_ms"][name] for name in forms)
        print(f"{precision}: {spec.name} {one:.2f} ms, U-Net {other:.2f} ms: {row['ratio']:.2f} of it", flush=True)
    result = {"benchmark": "rival", "runs": arguments.runs, "input_size": spec.input_size, "precisions": rows}
    result |= {"machine": describe()}
    finish(result, arguments)


def compile_unet(size: tuple[int, int], precision: str) -> Any:
    """An OpenVINO request of a U-Net for frames of ``size``."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unet.onnx"
        frames = torch.zeros((1, *size, 3), dtype=torch.uint8)
        torch.onnx.export(UNet().eval(), (frames,), path, dynamo=True, verbose=False)
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
        return core().compile_model(path, "CPU", options).create_infer_request()


if __name__ == "__main__":
    run_main(main)
