"""BatchNorm in the deployed form: an affine map, and so a part of the convolution before it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mcdrl_rt.model.folded import FoldedMCDRL

Pairs = list[tuple[nn.Conv2d, nn.BatchNorm2d]]


@torch.no_grad()
def without_batch_norms(model: FoldedMCDRL) -> FoldedMCDRL:
    """A copy with every BatchNorm that reads a convolution folded into it, in float64; ``model`` is left as it is.

    float16 needs it, whose numbers running variances are not; to fuse layers and to export them, there is less to do.
    """
    model = copy.deepcopy(model).eval()
    for conv, norm in _pairs(model):
        weight, bias = _wide(conv.weight), None if conv.bias is None else _wide(conv.bias)
        mean, var = _wide(norm.running_mean), _wide(norm.running_var)
        folded = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, _wide(norm.weight), _wide(norm.bias))
        conv.weight, conv.bias = (nn.Parameter(p.to(conv.weight.dtype), requires_grad=False) for p in folded)
        # timm's BatchNormAct2d carries its activation along
        model.set_submodule(_name(model, norm), nn.Sequential(*norm.children()))
    return model


def _pairs(model: FoldedMCDRL) -> Pairs:
    """Every BatchNorm with the convolution whose very output it reads, as a black frame shows."""
    made: list[tuple[Tensor, nn.Conv2d]] = []  # by the last convolution; the tensor is kept, so its identity is its own
    pairs: Pairs = []

    def after(conv: Any, _: Any, output: Tensor) -> None:
        made[:] = [(output, conv)]

    def before(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        pairs.extend((conv, norm) for output, conv in made if output is inputs[0])

    norms = [m.register_forward_pre_hook(before) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        return []
    convs = [m.register_forward_hook(after) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        model(torch.zeros((1, *model.spec.input_size, 3), dtype=torch.uint8, device=next(model.buffers()).device))
    finally:
        for handle in (*convs, *norms):
            handle.remove()
    return pairs


def _wide(x: Tensor | None) -> Tensor:
    assert x is not None  # an affine norm with statistics, as all of CLIP's and ours are
    return x.double()


def _name(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)
