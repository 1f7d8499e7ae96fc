"""One encoder under causal networks of several depths, random weights: what of it is timed, on each engine.

Models are built once and every depth is taken from the deepest. A family names its forms for a depth and a batch, and
gives for each what makes it ready; calling what that gives runs it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forms import at_depth, labels, literal, spec_of, unfolded, unfused
from torch import Tensor, nn

from mcdrl_rt.engine.tensors import Capture
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.fused import fuse
from mcdrl_rt.model.half import to_half
from mcdrl_rt.model.mcdrl import build_model

Forms = dict[str, Callable[[], Callable[[], Any]]]
OUTPUTS = ("score", "label", "confounders", "selected")  # logits are for referees: see OpenVinoEngine


class Family:
    """In eager torch, float32: the paper's equations, and the deployed form.

    Args:
        encoder: an open_clip configuration or ``mcdrl-small``.
        side: of the square input, in pixels.
        grid_stride: pixels to a grid cell; 0, the encoder's own.
        depths: numbers of causal blocks.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(
        self, encoder: str, side: int, grid_stride: int, depths: Sequence[int], device: str | torch.device = "cpu"
    ) -> None:
        self.side, self.depths, self.device = side, tuple(depths), torch.device(device)
        torch.manual_seed(0)
        self.literal = build_model(spec_of(encoder, side, max(depths), grid_stride)).eval()
        self.folded = FoldedMCDRL(self.literal)
        self.literal.to(self.device)

    def forms(self, depth: int, batch: int) -> Forms:
        """What makes each form ready."""
        frames = self.frames(batch)
        folded = at_depth(self.folded, depth)

        @torch.inference_mode()
        def deployed() -> Tensor:
            return labels(folded(frames))[0]

        return {
            "torch fp32, literal": lambda: literal(at_depth(self.literal, depth), frames),
            "torch fp32, folded": lambda: deployed,
        }

    def frames(self, batch: int) -> Tensor:
        """Random frames (B, H, W, 3) uint8 on the device."""
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, self.side, self.side, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(self.device)

    def parameters(self, depth: int) -> int:
        """As Table 5 counts them: the encoder is not among them."""
        return at_depth(self.literal, depth).parameter_count()

    def wait(self) -> None:
        """Until the device has done all it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class GraphFamily(Family):
    """On a GPU: the paper's equations as PyTorch runs them by default; the deployed form in float16, eager and in a
    CUDA graph (what ``GraphEngine`` runs), and that with the fused operators in torch operations."""

    def __init__(
        self, encoder: str, side: int, grid_stride: int, depths: Sequence[int], device: str | torch.device = "cuda"
    ) -> None:
        super().__init__(encoder, side, grid_stride, depths, device)
        halves = (to_half(form).to(self.device) for form in (fuse(self.folded), self.folded))
        self.half, plain = (half.to(memory_format=torch.channels_last) for half in halves)
        self.unfused = unfused(plain)

    def forms(self, depth: int, batch: int) -> Forms:
        """What makes each form ready."""
        frames = self.frames(batch)
        printed = literal(at_depth(self.literal, depth), frames)
        half, apart = at_depth(self.half, depth), at_depth(self.unfused, depth)

        @torch.no_grad()
        def eager_half() -> Tensor:
            return labels(half(frames))[0]

        def captured(model: FoldedMCDRL) -> Callable[[], Any]:
            return Capture(lambda x: labels(model(x)), frames).replay

        return {
            "eager fp32": lambda: lambda: printed().argmax(dim=1).to(torch.uint8),
            "eager fp16": lambda: eager_half,
            "graph unfused": lambda: captured(apart),
            "graph fused": lambda: captured(half),
        }


class OpenVinoFamily(Family):
    """On a CPU: the paper's equations in eager torch, and both they and the deployed form compiled by OpenVINO.

    Args:
        encoder, side, grid_stride, depths: as in ``Family``.
        batches: frames at a time that will be asked for.
        precision: one of ``mcdrl_rt.engine.openvino.PRECISIONS``.
    """

    def __init__(
        self, encoder: str, side: int, grid_stride: int, depths: Sequence[int], batches: Sequence[int], precision: str
    ) -> None:
        from mcdrl_rt.engine.onnx import export_onnx, inlined
        from mcdrl_rt.engine.openvino import convert

        super().__init__(encoder, side, grid_stride, depths)
        self.precision = precision
        tapped = _Tapped({"literal": unfolded(self.literal), "folded": self.folded})
        self._results = tapped.results
        # a file for any batch takes half as long again to export
        proto = inlined(export_onnx(tapped, batch=1 if max(batches) == 1 else None))
        with tempfile.TemporaryDirectory() as folder:
            self._model: Any = convert(proto.SerializeToString(), Path(folder) / "tapped.onnx")
        for node in self._model.get_ops():
            if node.get_type_name() == "TopK":  # as OpenVinoEngine has it
                node.set_attribute("stable", True)

    def forms(self, depth: int, batch: int) -> Forms:
        """What makes each form ready."""
        printed = super().forms(depth, batch)["torch fp32, literal"]
        compiled = {
            f"openvino {self.precision}, {name}": lambda name=name: self._compile(name, depth, batch)
            for name in self._results
        }
        return {"torch fp32, literal": printed, **compiled}

    def _compile(self, name: str, depth: int, batch: int) -> Callable[[], Any]:
        """A form as ``OpenVinoEngine`` compiles it, and what its ``infer`` does."""

        from mcdrl_rt.engine.openvino import PRECISIONS, core

        frames = self.frames(batch).numpy()
        model = self._cut(name, depth)
        if model.is_dynamic():
            model.reshape(list(frames.shape))
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision]}
        request = core().compile_model(model, "CPU", options).create_infer_request()

        def run() -> list[Any]:
            answers = request.infer({0: frames}, share_inputs=True)
            return [np.array(answers[i]) for i in range(len(OUTPUTS))]

        return run

    def _cut(self, name: str, depth: int) -> Any:
        """The model of one form and depth: what the blocks beyond it gave is replaced by what its last one gives."""
        import openvino as ov

        model = self._model.clone()
        sources = [result.input_value(0) for result in model.get_results()]
        outputs, blocks = self._results[name]
        for block in blocks[depth:]:
            for late, last in zip(block, blocks[depth - 1], strict=True):
                for reader in sources[late].get_target_inputs():
                    reader.replace_source_output(sources[last])
        return ov.Model([sources[i] for i in outputs], model.get_parameters(), name)


class _Tapped(nn.Module):
    """Deployed forms over one encoder, which give what each of their blocks gives as well.

    One export in place of one for each form and depth, of which each takes many seconds.

    Attributes:
        results: by form, the places of its outputs, and for each of its blocks the places of its tokens and readout.
    """

    def __init__(self, models: dict[str, FoldedMCDRL]) -> None:
        super().__init__()
        first = next(iter(models.values()))
        self.spec, self.models = first.spec, nn.ModuleList(models.values())
        self.encoder = _Once(first.encoder)
        self.results: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}
        start = 0
        for name, model in models.items():
            model.encoder = self.encoder
            model.network.blocks = nn.ModuleList(_Tap(block) for block in model.network.blocks)
            end = start + len(OUTPUTS)
            blocks = [(end + 2 * i, end + 2 * i + 1) for i in range(len(model.network.blocks))]
            self.results[name] = (list(range(start, end)), blocks)
            start = end + 2 * len(blocks)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        self.encoder.features = None
        outputs: list[Tensor] = []
        for model in self.models:
            outputs += model(frames)[: len(OUTPUTS)]
            for tap in model.network.blocks:
                outputs += tap.given
                tap.given = ()
        self.encoder.features = None
        return tuple(outputs)


class _Tap(nn.Module):
    """A causal block that remembers what it gave last."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block
        self.given: tuple[Tensor, ...] = ()

    def select_intervene(self, features: Tensor, texts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        f, indices, readout = self.block.select_intervene(features, texts, count)
        self.given = (f, readout)
        return f, indices, readout

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        self.given = self.block(f)
        return self.given


class _Once(nn.Module):
    """An encoder that looks once, and says the same until ``features`` is cleared."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.stride, self.grid = encoder, encoder.stride, encoder.grid
        self.features: Any = None

    def forward(self, images: Tensor) -> Any:
        if self.features is None:
            self.features = self.encoder(images)
        return self.features
