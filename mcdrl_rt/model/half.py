"""FP16: the deployed form as NVIDIA GPUs run it, one conversion for the torch and the TensorRT engines.

Weights and what flows between layers are float16. What must not be stays float32: the normalisation of the pixels, the
scores and softmax of the fused operator (``mcdrl_rt.ops``), and the logits and their resampling. LayerNorm, softmax and
GELU of PyTorch take float16 and compute in float32 inside, on CPUs and GPUs; an export to ONNX, where nothing promises
that, writes the float32 out (``mcdrl_rt.engine.onnx``). BatchNorm is folded into its convolution, in float64.

    >>> half = to_half(FoldedMCDRL(model))     # the same uint8 frames in, outputs of the same types   # doctest: +SKIP
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mcdrl_rt.model.folded import FoldedMCDRL

Pairs = list[tuple[nn.Conv2d, nn.BatchNorm2d]]


def to_half(model: FoldedMCDRL) -> FoldedMCDRL:
    """A float16 copy of the deployed form, on the same device; ``model`` is left as it is.

    Args:
        model: the deployed form in float32.

    Returns:
        A model with the contract of ``FoldedMCDRL.forward``: uint8 frames in, and outputs of the same shapes and types.
    """
    half = copy.deepcopy(model).eval()
    fold_batch_norms(half)
    for part in (half.encoder, half.network, half.head):  # mean and std stay float32
        part.half()
    return half


@torch.no_grad()
def fold_batch_norms(model: FoldedMCDRL) -> None:
    """Fold every BatchNorm that reads a convolution into it: running variances are no numbers for float16."""
    for conv, norm in _pairs(model):
        weight, bias = _wide(conv.weight), None if conv.bias is None else _wide(conv.bias)
        mean, var = _wide(norm.running_mean), _wide(norm.running_var)
        folded = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, _wide(norm.weight), _wide(norm.bias))
        conv.weight, conv.bias = (nn.Parameter(p.to(conv.weight.dtype), requires_grad=False) for p in folded)
        # timm's BatchNormAct2d carries its activation along
        model.set_submodule(_name(model, norm), nn.Sequential(*norm.children()))


def _pairs(model: FoldedMCDRL) -> Pairs:
    """Every BatchNorm with the convolution whose very output it reads, as a black frame shows."""
    made: list[tuple[Tensor, nn.Conv2d]] = []  # by the last convolution; the tensor is kept, so its identity is its own
    pairs: Pairs = []

    def after(conv: Any, _: Any, output: Tensor) -> None:
        made[:] = [(output, conv)]

    def before(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        pairs.extend((conv, norm) for output, conv in made if output is inputs[0])

    convs = [m.register_forward_hook(after) for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m.register_forward_pre_hook(before) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        model(torch.zeros((1, *model.spec.input_size, 3), dtype=torch.uint8, device=model.mean.device))
    finally:
        for handle in (*convs, *norms):
            handle.remove()
    return pairs


def _wide(x: Tensor | None) -> Tensor:
    assert x is not None  # an affine norm with statistics, as all of CLIP's and ours are
    return x.double()


def _name(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)
