"""CLIP as a dense encoder: one feature in the joint text-image space for every grid cell (method §1).

Three families behind one interface, ``DenseEncoder``: open_clip's vision transformers, CLIP ResNets, and timm
trunks (our own small CLIP is one). A raw ViT patch token lies far from the text space, so the last block is read
differently: ``clearclip`` (arXiv 2407.12442: softmax(q·qᵀ), no residual, no FFN), ``maskclip`` (arXiv 2112.01071:
the value path) or ``plain``. CLIP ResNets and timm trunks have one readout, ``native``: their projection, applied
per location.

    >>> clip = load_clip("ViT-B-16")                               # doctest: +SKIP
    >>> encoder = dense_encoder(clip, (224, 224), "clearclip")     # doctest: +SKIP
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mcdrl_rt.errors import SpecError, first_line

SMALL = "mcdrl-small"
VIT_READOUTS = ("clearclip", "maskclip", "plain")
open_clip.add_model_config(Path(__file__).with_name(f"{SMALL}.json"))


class DenseFeatures(NamedTuple):
    """What an encoder says of a batch of images."""

    tokens: Tensor  # C, (B, T, d), row-major over the grid
    details: list[Tensor]  # shallow features (B, c_i, h_i, w_i), coarse to fine
    summary: Tensor | None  # F_vis, (B, d), CLIP's own image feature; only when asked for


class DenseEncoder(nn.Module):
    """An image encoder that keeps its grid.

    Attributes:
        dim: d, width of the joint space.
        stride: pixels to a grid cell; input sides are multiples of it.
        grid: (h, w).
        detail_channels: channels of the shallow features, coarse to fine.
    """

    dim: int
    stride: int
    grid: tuple[int, int]
    detail_channels: tuple[int, ...]

    def forward(self, images: Tensor, summary: bool = False) -> DenseFeatures:
        """Normalised images (B, 3, H, W) float → features; ``summary`` asks for F_vis too (training only)."""
        raise NotImplementedError


def load_clip(name: str, pretrained: str | Path | None = None) -> nn.Module:
    """Build an open_clip model, with the weights ``pretrained`` names, those of a safetensors file, or random ones.

    OpenAI's weights were trained with QuickGELU, so they are loaded into the ``-quickgelu`` configuration.

    Raises:
        SpecError: no such configuration, or its weights cannot be had (offline, say) or do not fit.
    """
    file, tag = (pretrained, None) if isinstance(pretrained, Path) else (None, pretrained)
    if ":" in name:  # open_clip's way of naming folders and addresses: a checkpoint must not lead to either
        raise SpecError(_load_problem(name, tag, ValueError(name)))
    config = clip_config(name, tag)
    try:
        with _hushed():
            clip = open_clip.create_model(config, pretrained=tag, pretrained_text=False)
    except Exception as error:
        raise SpecError(_load_problem(name, tag, error)) from error
    if name == SMALL:  # its ImageNet weights were trained with TensorFlow's padding, which open_clip cannot ask for
        clip.visual.trunk = timm.create_model("mobilenetv2_100", pad_type="same", num_classes=0)
    if file is not None:
        try:
            clip.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise SpecError(f"{file} does not hold the weights of {name}: {first_line(error)}") from error
    return clip


def clip_config(name: str, pretrained: str | None) -> str:
    """The open_clip configuration that fits ``name`` with these weights."""
    quick = f"{name}-quickgelu"
    return quick if pretrained == "openai" and quick in open_clip.list_models() else name


def _load_problem(name: str, pretrained: str | None, error: Exception) -> str:
    if name not in open_clip.list_models():
        return f"no encoder {name!r}; try RN50, ViT-B-16, ViT-L-14, {SMALL} or another open_clip configuration"
    return f"cannot load {name} with pretrained={pretrained!r} ({first_line(error)}); is this machine online?"


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep open_clip's remarks ("no pretrained weights": as asked) off stderr; what matters is in the exception.

    It logs to the root logger itself, which would also give that logger a handler for good, had it none.
    """
    root, sink = logging.getLogger(), logging.NullHandler()

    def drop(record: logging.LogRecord) -> bool:
        return False

    root.addHandler(sink)
    root.addFilter(drop)  # of the root logger itself: records of named loggers do not pass here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(sink)


@torch.no_grad()
def encode_texts(clip: Any, name: str, prompts: Sequence[str]) -> Tensor:
    """Text features of ``prompts``, (n, d) float32, of unit length."""
    return F.normalize(clip.encode_text(tokenizer(name)(list(prompts))).float(), dim=-1)


@cache
def tokenizer(name: str) -> Any:
    """The tokenizer of a configuration; one in a process, for it takes longer to make than prompts to encode."""
    return open_clip.get_tokenizer(name)


def dense_encoder(
    clip: Any, input_size: tuple[int, int], readout: str | None = None, grid_stride: int = 0
) -> DenseEncoder:
    """Wrap the image tower of an open_clip model.

    Args:
        clip: from ``load_clip``.
        input_size: (height, width) in pixels the encoder will see.
        readout: see the module's text; None takes the family's default.
        grid_stride: pixels to a grid cell, for a timm trunk that shall have a finer grid than its last stage;
            0 keeps the encoder's own.

    Raises:
        SpecError: the tower is of no known family, or lacks this readout or stride.
    """
    tower = clip.visual
    family = next((f for kind, f in _FAMILIES.items() if isinstance(tower, kind)), None)
    if family is None:
        raise SpecError(f"an image tower of type {type(tower).__name__} has no dense readout here")
    if (obstacle := _obstacle(tower)) is not None:
        raise SpecError(f"this encoder has no dense readout: {obstacle}")
    readouts = VIT_READOUTS if family is ClipViT else ("native",)
    readout = readout or readouts[0]
    if readout not in readouts:
        raise SpecError(f"readout {readout!r} does not fit this encoder; choose {' or '.join(readouts)}")
    if family is TimmTrunk:
        return TimmTrunk(tower, input_size, grid_stride)
    encoder = ClipViT(tower, input_size, readout) if family is ClipViT else ClipResNet(tower, input_size)
    if grid_stride not in (0, encoder.stride):
        raise SpecError(f"this encoder's grid stride is {encoder.stride}; only a timm trunk takes another")
    return encoder


class ClipViT(DenseEncoder):
    """A CLIP vision transformer, its last block read densely."""

    def __init__(self, tower: VisionTransformer, input_size: tuple[int, int], readout: str) -> None:
        super().__init__()
        self.tower, self.readout = tower, readout
        self.stride = tower.patch_size[0]
        self.grid = _grid(input_size, self.stride)
        self.dim = tower.output_dim
        depth, width = len(tower.transformer.resblocks), tower.conv1.out_channels
        self.detail_blocks = (depth // 3 - 1, depth // 6 - 1)  # coarse to fine: the earlier, the sharper
        self.detail_channels = (width, width)
        table = tower.positional_embedding.data
        tower.positional_embedding = nn.Parameter(resize_positions(table, tower.grid_size, self.grid))

    def forward(self, images: Tensor, summary: bool = False) -> DenseFeatures:
        *blocks, last = self.tower.transformer.resblocks
        x = self.tower._embeds(images)  # (B, 1 + T, width)
        shallow = {}
        for i, block in enumerate(blocks):
            x = block(x)
            if i in self.detail_blocks:
                shallow[i] = x[:, 1:].mT.unflatten(2, self.grid)
        tokens = self._project(self._read(last, x)[:, 1:])
        image = self._project(last(x)[:, 0]) if summary else None
        return DenseFeatures(tokens, [shallow[i] for i in self.detail_blocks], image)

    def _project(self, x: Tensor) -> Tensor:
        return self.tower.ln_post(x) @ self.tower.proj

    def _read(self, block: Any, x: Tensor) -> Tensor:
        if self.readout == "plain":
            return block(x)
        attention = block.attn
        q, _, v = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        if self.readout == "clearclip":
            q, v = (t.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for t in (q, v))
            v = F.scaled_dot_product_attention(q, q, v).transpose(1, 2).flatten(2)
        return attention.out_proj(v)


class ClipResNet(DenseEncoder):
    """A CLIP ResNet: value and output projection of its attention pool as 1×1 convolutions."""

    def __init__(self, tower: ModifiedResNet, input_size: tuple[int, int]) -> None:
        super().__init__()
        self.tower, self.stride, self.grid = tower, 32, _grid(input_size, 32)
        pool = tower.attnpool
        self.dim = pool.c_proj.out_features
        width = pool.v_proj.in_features  # of layer 4; each shallower layer has half
        self.detail_channels = (width // 2, width // 4, width // 8)
        side = round((pool.positional_embedding.shape[0] - 1) ** 0.5)
        pool.positional_embedding = nn.Parameter(
            resize_positions(pool.positional_embedding.data, (side, side), self.grid)
        )

    def forward(self, images: Tensor, summary: bool = False) -> DenseFeatures:
        tower = self.tower
        quarter = tower.layer1(tower.stem(images))
        eighth = tower.layer2(quarter)
        sixteenth = tower.layer3(eighth)
        x = tower.layer4(sixteenth)
        pool = tower.attnpool
        tokens = pool.c_proj(pool.v_proj(_rows(x)))  # (B, T, d)
        return DenseFeatures(tokens, [sixteenth, eighth, quarter], pool(x) if summary else None)


class TimmTrunk(DenseEncoder):
    """A timm trunk under open_clip's projection, per location; optionally on a finer grid.

    With ``grid_stride`` below the trunk's own, the projected last stage is upsampled and a 1×1 projection of the
    stage at that stride is added, so that small lesions get cells of their own.
    """

    def __init__(self, tower: TimmModel, input_size: tuple[int, int], grid_stride: int = 0) -> None:
        super().__init__()
        self.trunk, self.head = tower.trunk, tower.head
        stages = list(self.trunk.feature_info)
        strides = [stage["reduction"] for stage in stages]
        self.coarse_stride = strides[-1]
        self.stride = grid_stride or self.coarse_stride
        if self.stride not in strides:
            raise SpecError(f"this trunk has no stage of stride {grid_stride}; choose one of {strides}")
        self.grid, self.dim = _grid(input_size, self.stride), self.head.proj.out_features
        self.detail_stages = [i for i, stride in enumerate(strides) if 4 <= stride < self.stride][::-1]
        self.detail_channels = tuple(stages[i]["num_chs"] for i in self.detail_stages)
        self.fine_stage = strides.index(self.stride) if self.stride != self.coarse_stride else None
        if self.fine_stage is not None:
            self.fine = nn.Conv2d(stages[self.fine_stage]["num_chs"], self.dim, 1)
            nn.init.zeros_(self.fine.weight)  # at first, tokens are where the trunk's projection puts them
            nn.init.zeros_(cast(Tensor, self.fine.bias))

    def forward(self, images: Tensor, summary: bool = False) -> DenseFeatures:
        x, stages = self.trunk.forward_intermediates(images)
        features = self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, d, H/32, W/32)
        image = features.mean(dim=(2, 3)) if summary else None
        tokens = _rows(features)
        if self.fine_stage is not None:
            coarse = F.interpolate(features, size=self.grid, mode="bilinear", align_corners=False)
            tokens = _rows(coarse) + _rows(self.fine(stages[self.fine_stage]))
        return DenseFeatures(tokens, [stages[i] for i in self.detail_stages], image)


_FAMILIES: dict[type, type[DenseEncoder]] = {
    VisionTransformer: ClipViT,
    ModifiedResNet: ClipResNet,
    TimmModel: TimmTrunk,
}


def _obstacle(tower: Any) -> str | None:
    """Why a tower of a known family cannot be read per location after all; None where it can."""
    if isinstance(tower, VisionTransformer):
        attention = tower.transformer.resblocks[-1].attn
        plain = type(attention) is nn.MultiheadAttention and attention.in_proj_weight is not None
        pooled = tower.attn_pool is not None or tower.proj is None or tower.final_ln_after_pool
        return "its image feature is not a projected class token" if pooled or not plain else None
    if isinstance(tower, TimmModel):
        strides = [stage["reduction"] for stage in getattr(tower.trunk, "feature_info", ())]
        if not isinstance(getattr(tower.head, "proj", None), nn.Linear):
            return "its trunk is pooled before the projection"
        if len(strides) < 2 or sorted(set(strides)) != strides or getattr(tower.trunk, "output_fmt", "NCHW") != "NCHW":
            return "its trunk is not a convolutional pyramid"
    return None


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resample a table of position embeddings (1 + h·w, width), class token first, to another grid."""
    if tuple(old) == tuple(new):
        return table
    first, rest = table[:1], table[1:]
    picture = rest.mT.unflatten(1, old).unsqueeze(0)
    picture = F.interpolate(picture, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([first, picture.squeeze(0).flatten(1).mT])


def _rows(x: Tensor) -> Tensor:
    """(B, d, h, w) → (B, T, d), as a runtime that keeps channels last has it anyway: nothing has to be moved."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _grid(input_size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-input_size[0] // stride), -(-input_size[1] // stride)
