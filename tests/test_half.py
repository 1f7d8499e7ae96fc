"""FP16: the converted model keeps its contract, and its answers are those of float32 but for rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.parity import compare
from mcdrl_rt.engine.torch import TorchEngine
from mcdrl_rt.model.checkpoint import load_checkpoint
from mcdrl_rt.model.folded import OUTPUTS, FoldedMCDRL
from mcdrl_rt.model.half import to_half
from mcdrl_rt.model.mcdrl import MCDRL
from mcdrl_rt.model.norms import without_batch_norms
from mcdrl_rt.types import ModelSpec, UInt8Array
from mcdrl_rt.video.phantom import SITES, Phantom

MakeModel = Callable[[ModelSpec], MCDRL]


@torch.no_grad()
def outputs(model: FoldedMCDRL, frames: UInt8Array) -> dict[str, Tensor]:
    return dict(zip(OUTPUTS, model(torch.from_numpy(frames)), strict=True))


@pytest.fixture(scope="module")
def shipped() -> FoldedMCDRL:
    return FoldedMCDRL(load_checkpoint(DEFAULT_CHECKPOINT))


class HalfEngine:
    """The converted model behind the protocol of engines."""

    max_batch = 8

    def __init__(self, model: FoldedMCDRL) -> None:
        self.spec, self.name, self._model = model.spec, "half", to_half(model)

    def infer(self, frames: UInt8Array) -> RawOutput:
        answer = outputs(self._model, frames)
        return RawOutput(*(answer[name].numpy() for name in RawOutput._fields))


def assert_near(model: FoldedMCDRL, frames: UInt8Array) -> None:
    """Of a model that selects every cell: where it selects some, rounding decides about the last, and cells differ."""
    exact, near = outputs(model, frames), outputs(to_half(model), frames)
    assert {k: (v.shape, v.dtype) for k, v in near.items()} == {k: (v.shape, v.dtype) for k, v in exact.items()}
    assert (near["logits"] - exact["logits"]).norm() <= 5e-3 * exact["logits"].norm()
    assert torch.allclose(near["confounders"], exact["confounders"], atol=2e-2)
    assert (near["score"].int() - exact["score"].int()).abs().float().mean() <= 1
    assert (near["label"] != exact["label"]).float().mean() <= 5e-3
    assert not torch.equal(near["logits"], exact["logits"])


def test_half_answers_as_float32_does(pictures: UInt8Array) -> None:
    """With the weights that are shipped: a MobileNet of random ones makes 20 % of one grey level in 2 % of pixels."""
    model = load_checkpoint(DEFAULT_CHECKPOINT)
    model.spec = dataclasses.replace(model.spec, alpha=1.0)
    size = model.spec.input_size
    assert_near(FoldedMCDRL(model), np.stack([Phantom(size, seed=seed).render(5 * seed).pixels for seed in range(2)]))


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["RN50", "ViT-B-16", "ViT-L-14"])
def test_half_answers_as_float32_does_for_every_paper_encoder(
    make_model: MakeModel, small_spec: ModelSpec, pictures: UInt8Array, encoder: str
) -> None:
    spec = dataclasses.replace(small_spec, encoder=encoder, grid_stride=0, alpha=1.0, depth=3)
    assert_near(FoldedMCDRL(make_model(spec)), pictures[:2])


def test_what_is_shipped_labels_phantoms_alike_in_half(shipped: FoldedMCDRL) -> None:
    size = shipped.spec.input_size
    frames = (Phantom(size, site=site, seed=i).render(10 * i).pixels for i, site in enumerate(SITES))
    parity = compare(HalfEngine(shipped), TorchEngine(shipped), frames)
    assert parity.frames == len(SITES)
    assert parity.label_flips <= 0.005  # lesions are few here: a dozen pixels are a hundredth of their intersection


def test_what_is_shipped_passes_the_gate_in_half_on_real_frames(shipped: FoldedMCDRL, data_root: Path) -> None:
    parity = compare(HalfEngine(shipped), TorchEngine(shipped), real_frames(data_root, shipped.spec.input_size))
    assert parity.frames == 8
    assert parity.label_flips <= 0.005 and parity.mask_iou >= 0.99


def real_frames(root: Path, size: tuple[int, int], count: int = 8) -> Iterator[UInt8Array]:
    images = sorted((root / "Kvasir-SEG" / "images").iterdir())
    for path in images[:: len(images) // count][:count]:
        pixels = cv2.imread(str(path))
        assert pixels is not None
        yield np.asarray(cv2.resize(pixels[..., ::-1], size[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)


def test_batch_norms_are_folded_and_change_nothing(small_model: MCDRL, pictures: UInt8Array) -> None:
    model = FoldedMCDRL(small_model)
    expected = outputs(model, pictures[:2])
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    folded = without_batch_norms(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    got = outputs(folded, pictures[:2])
    assert (got["logits"] - expected["logits"]).abs().max() <= 1e-4 * expected["logits"].abs().max()
    assert torch.equal(got["selected"], expected["selected"])


def test_conversion_leaves_the_model_alone(small_model: MCDRL, pictures: UInt8Array) -> None:
    model = FoldedMCDRL(small_model)
    before = outputs(model, pictures[:1])
    half = to_half(model)
    weights = [*half.encoder.parameters(), *half.head.parameters(), *half.network.buffers()]
    assert {w.dtype for w in weights if w.is_floating_point()} == {torch.float16}
    assert half.spec == model.spec
    after = outputs(model, pictures[:1])
    assert all(torch.equal(before[name], after[name]) for name in OUTPUTS)


@pytest.mark.parametrize("function", [lambda x: nn.functional.layer_norm(x, x.shape[-1:]), lambda x: x.softmax(dim=-1)])
def test_torch_computes_norms_and_softmax_of_float16_in_float32(function: Callable[[Tensor], Tensor]) -> None:
    """What ``to_half`` rests on: the squares and exponentials of these numbers are beyond float16."""
    x = torch.linspace(-300, 300, 1024)[None].half()
    assert torch.allclose(function(x).double(), function(x.double()), atol=2e-3)
