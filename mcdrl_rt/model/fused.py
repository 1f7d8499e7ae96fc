"""Residual branches in few launches: what the deployed form becomes on a GPU, to the same results.

As PyTorch has it, a transformer's block launches ten kernels. Here they are seven: the norm brings along its row plus
the bias of the branch's last product (``mcdrl_rt::norm_shift``), onto which that product is added in place, and GELU
is part of the product before it. Patches are cut out and multiplied, which no convolution of 14 by 14 pixels equals.
The residual and ReLU of a CLIP ResNet's block are part of its last convolution, and a level of the decoder is one
launch (``mcdrl_rt::lift``). Exports keep the plain form, of which their compilers make what they can.

    >>> half = to_half(fuse(FoldedMCDRL(model)))   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from mcdrl_rt.model.clip import ClipResNet, ClipViT
from mcdrl_rt.model.folded import FoldedMCDRL
from mcdrl_rt.model.head import DetailHead
from mcdrl_rt.model.intervention import FeedForward, FoldedBlock
from mcdrl_rt.model.norms import without_batch_norms

QUICK = 1.702  # QuickGELU is silu(1.702·x) / 1.702, and both factors belong to the products around it


def fuse(model: FoldedMCDRL) -> FoldedMCDRL:
    """A copy in which every residual branch that can be is fused; before ``to_half``, which rounds the weights."""
    model = without_batch_norms(model)
    blocks = cast(Sequence[FoldedBlock], model.network.blocks)
    model.network.blocks = nn.ModuleList(FusedCausalBlock(block) for block in blocks)
    if isinstance(model.encoder, ClipViT):
        tower = model.encoder.tower
        *blocks, last = tower.transformer.resblocks  # of the last, the encoder reads the parts (its readout)
        tower.transformer.resblocks = nn.ModuleList([*map(_fused, blocks), last])
        tower.conv1 = Patches(tower.conv1)
    if isinstance(model.encoder, ClipResNet):
        tower = model.encoder.tower
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            setattr(tower, layer, nn.Sequential(*map(FusedBottleneck, getattr(tower, layer))))
    if isinstance(model.head, DetailHead):
        model.head.lift = _lift
    return model.requires_grad_(False)


def _fused(block: Any) -> nn.Module:
    plain = isinstance(block.ls_1, nn.Identity) and isinstance(block.ls_2, nn.Identity)
    known = isinstance(block.mlp[1], nn.GELU | QuickGELU) and block.attn.in_proj_weight is not None
    return FusedTransformerBlock(block) if plain and known else block


class FusedCausalBlock(nn.Module):
    """``FoldedBlock`` in four launches: two of the fused operator with the norm that follows it, two products.

    Args:
        block: its layers are taken over.
    """

    def __init__(self, block: FoldedBlock) -> None:
        super().__init__()
        plain = cast(FeedForward, block.feed_forward)
        self.a, self.c, self.b = (nn.Buffer(part) for part in (block.a, block.c, block.b))
        self.expand, self.contract = plain.expand, plain.contract
        self.heads, self.eps, self.norm_eps = block.heads, block.eps, plain.eps

    def select_intervene(self, features: Tensor, texts: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """See ``FoldedBlock``."""
        normed, shifted, indices, readout = torch.ops.mcdrl_rt.select_intervene_norm(
            features, texts, self.a, self.c, self.b, self.contract.bias, count, self.heads, self.eps, self.norm_eps
        )
        return _add_product(shifted, _gelu_product(normed, self.expand), self.contract), indices, readout

    def forward(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """See ``FoldedBlock``."""
        normed, shifted, readout = torch.ops.mcdrl_rt.intervene_norm(
            f, self.a, self.c, self.b, self.contract.bias, self.heads, self.eps, self.norm_eps
        )
        return _add_product(shifted, _gelu_product(normed, self.expand), self.contract), readout


class FusedTransformerBlock(nn.Module):
    """A residual block of open_clip's vision transformers in seven launches.

    Args:
        block: an open_clip ``ResidualAttentionBlock`` without layer scale; its layers are taken over.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.attn
        self.heads = attention.num_heads
        self.norm, self.out, self.norm_mlp = block.ln_1, attention.out_proj, block.ln_2
        self.expand, self.contract = block.mlp.c_fc, block.mlp.c_proj
        self.qkv = nn.Linear(attention.embed_dim, 3 * attention.embed_dim)
        self.qkv.weight, self.qkv.bias = attention.in_proj_weight, attention.in_proj_bias
        self.quick = isinstance(block.mlp[1], QuickGELU)
        if self.quick:
            for parameter, factor in (
                (self.expand.weight, QUICK), (self.expand.bias, QUICK), (self.contract.weight, 1 / QUICK)
            ):  # fmt: skip
                parameter.data = parameter.data * factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1 + T, width) → the same."""
        normed, shifted = _norm_shift(x, self.norm, self.out)
        q, k, v = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = _add_product(shifted, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), self.out)
        normed, shifted = _norm_shift(x, self.norm_mlp, self.contract)
        hidden = F.silu(self.expand(normed)) if self.quick else _gelu_product(normed, self.expand)
        return _add_product(shifted, hidden, self.contract)


class Patches(nn.Module):
    """A convolution whose kernel is its stride, as one product; channels of an input pixel are neighbours.

    Args:
        conv: without padding.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.side = conv.kernel_size[0]
        weight = conv.weight.detach().permute(0, 2, 3, 1).flatten(1)  # (width, side·side·3)
        self.inputs = weight.shape[1]
        self.weight = nn.Parameter(F.pad(weight, (0, -self.inputs % 8)))  # tensor cores load 8 numbers at a time
        self.bias = conv.bias

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, width, H / side, W / side)."""
        cut = images.permute(0, 2, 3, 1).unflatten(1, (-1, self.side)).unflatten(3, (-1, self.side)).transpose(2, 3)
        patches = images.new_zeros((*cut.shape[:3], self.weight.shape[1]))
        patches[..., : self.inputs].unflatten(-1, cut.shape[3:]).copy_(cut)
        return F.linear(patches, self.weight, self.bias).permute(0, 3, 1, 2)


class FusedBottleneck(nn.Module):
    """A residual block of CLIP's ResNets, its BatchNorms folded: the last convolution, its bias, the residual and ReLU
    are one launch of cuDNN's.

    Args:
        block: an open_clip ``Bottleneck``; its layers are taken over.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.first = nn.Sequential(block.conv1, block.act1, block.conv2, block.act2, block.avgpool)
        self.last, self.downsample = block.conv3, block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, H, W) → (B, c', H', W')."""
        residual = x if self.downsample is None else self.downsample(x)
        x, last = self.first(x), self.last
        if not x.is_cuda:
            return F.relu(last(x) + residual)
        return torch.cudnn_convolution_add_relu(x, last.weight, residual, 1.0, last.bias, [1, 1], [0, 0], [1, 1], 1)


def _lift(coarse: Tensor, gate: Tensor, sharp: Tensor, height: int, width: int) -> Tensor:
    return torch.ops.mcdrl_rt.lift(coarse, gate, sharp, height, width)


def _norm_shift(x: Tensor, norm: nn.LayerNorm, last: nn.Linear) -> tuple[Tensor, Tensor]:
    return torch.ops.mcdrl_rt.norm_shift(x, norm.weight, norm.bias, last.bias, norm.eps)


def _gelu_product(x: Tensor, linear: nn.Linear) -> Tensor:
    rows = x.flatten(0, -2)
    # on a GPU GELU's tanh form, inside the product: as far from the exact one as float16 from float32
    hidden = torch._addmm_activation(linear.bias, rows, linear.weight.T, use_gelu=True)
    return hidden.unflatten(0, x.shape[:-1])


def _add_product(onto: Tensor, x: Tensor, linear: nn.Linear) -> Tensor:
    """``onto + x·Wᵀ`` in the memory of ``onto``, which has the bias in it."""
    onto.view(-1, onto.shape[-1]).addmm_(x.flatten(0, -2), linear.weight.T)
    return onto
