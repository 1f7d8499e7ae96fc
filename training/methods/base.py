"""What every method is: a network with the losses that train it, and what all of them share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.checkpoint import load_checkpoint, save_tensors
from mcdrl_rt.model.clip import clip_config, resize_positions
from mcdrl_rt.model.mcdrl import MCDRL, build_empty, build_model
from mcdrl_rt.model.prompts import confounder_names
from mcdrl_rt.ops import at_least_float32
from mcdrl_rt.types import ModelSpec
from training import losses
from training.dataset import Item
from training.files import whole
from training.recipe import Recipe


class Prediction(NamedTuple):
    """What a method says of a batch of images."""

    logits: Tensor  # (B, K+1, H, W)
    selected: Tensor  # (B, h, w), 1 where a cell was selected; all of them where a method selects none
    confounders: Tensor  # (B, M), the readout; uniform where a method has none


class Method(nn.Module):
    """A network and its losses.

    Args:
        recipe: weights of the losses, and what the pixels are normalised with.
        spec: of the model, complete.
    """

    def __init__(self, recipe: Recipe, spec: ModelSpec) -> None:
        super().__init__()
        self.recipe, self.spec = recipe, spec
        for name in ("mean", "std"):
            value = torch.tensor(getattr(recipe, name)).view(3, 1, 1) * 255
            self.register_buffer(name, value, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, batch: Item, intervene: bool = True) -> dict[str, Tensor]:
        """Every loss term of a batch, weighted; their sum is what is minimised."""
        raise NotImplementedError

    def predict(self, images: Tensor) -> Prediction:
        """Segment normalised images (B, 3, H, W)."""
        raise NotImplementedError

    def pretrained_parameters(self) -> Iterable[nn.Parameter]:
        """Those that start from pretrained weights, and learn at ``encoder_lr``."""
        return ()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) uint8 as the network takes them."""
        return ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def everywhere(self, logits: Tensor) -> Prediction:
        """The prediction of a method that selects nothing and reads no condition."""
        batch, conditions = len(logits), len(self.spec.confounders)
        cells = logits.new_ones((batch, *self.spec.grid))
        return Prediction(logits, cells, logits.new_full((batch, conditions), 1 / conditions))

    def pixel_terms(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The losses on the mask, the same for every method: Eq. 10, and soft Dice of our own."""
        weight = losses.edge_weight(labels, self.recipe.edge) if self.recipe.edge else None
        terms = {"segmentation": losses.segmentation_loss(logits, labels, weight)}
        if self.recipe.dice:
            terms["dice"] = self.recipe.dice * losses.soft_dice_loss(logits, labels, weight=weight)
        return terms

    def dense_term(self, similarities: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cell–text alignment, for the methods that compare the two."""
        if not self.recipe.dense:
            return {}
        value = losses.dense_alignment_loss(
            at_least_float32(similarities), labels, self.spec.grid_stride, self.recipe.dense_scale
        )
        return {"dense": self.recipe.dense * value}


def pretrained_part(encoder: nn.Module, recipe: Recipe) -> Iterable[nn.Parameter]:
    """The parameters of a dense encoder that the recipe has weights for."""
    if recipe.pretrained:
        return [p for name, p in encoder.named_parameters() if not name.startswith("fine.")]
    return encoder.get_submodule("trunk").parameters() if recipe.encoder_weights else ()


def start_model(recipe: Recipe, data: Path, clip: Path | None = None) -> MCDRL:
    """The recipe's MCDRL model as its training begins.

    Args:
        recipe: with ``start``, that checkpoint is trained further.
        data: where ``encoder_weights`` lies.
        clip: weights of ``training.pretrain``, in place of ``encoder_weights``; or a copy of ``start``.
    """
    if recipe.start:
        return _trained_model(recipe, clip or start_path(recipe))
    model = build_model(model_spec(recipe), clip or recipe.pretrained or None)
    if recipe.encoder_weights and clip is None:
        load_trunk(model.encoder.get_submodule("trunk"), data / recipe.encoder_weights)
    return model


def start_path(recipe: Recipe) -> Path:
    """The checkpoint that a recipe's ``start`` names."""
    return DEFAULT_CHECKPOINT if recipe.start == DEFAULT_CHECKPOINT.stem else Path(recipe.start)


def _trained_model(recipe: Recipe, path: Path) -> MCDRL:
    """The model of the checkpoint ``start``, at the recipe's input size and α.

    Raises:
        CheckpointError: there is no such checkpoint, or it is damaged.
        SpecError: the recipe describes another model.
    """
    trained = load_checkpoint(path)
    spec, wanted = trained.spec, model_spec(recipe)
    wanted = dataclasses.replace(
        wanted,
        encoder=clip_config(recipe.encoder, recipe.pretrained or None),
        grid_stride=recipe.grid_stride or spec.grid_stride,
        provenance={**wanted.provenance, "start": json.dumps(dict(spec.provenance), sort_keys=True)},
    )
    same = ("encoder", "grid_stride", "classes", "confounders", "mean", "std", "depth", "head")
    if other := [name for name in same if getattr(spec, name) != getattr(wanted, name)]:
        raise SpecError(f"{recipe.start} has another {', '.join(other)}; give the recipe the same")
    new = {name: getattr(wanted, name) for name in ("name", "input_size", "alpha", "provenance")}
    model = build_empty(dataclasses.replace(spec, **new))
    weights, places = trained.state_dict(), model.state_dict()
    for name, value in weights.items():
        if name.endswith("positional_embedding") and value.shape != places[name].shape:
            weights[name] = resize_positions(value, spec.grid, model.spec.grid)
    model.load_state_dict(weights)
    return model


def model_spec(recipe: Recipe) -> ModelSpec:
    """The specification a recipe asks for; building the model completes it."""
    return ModelSpec(
        name=recipe.name,
        encoder=recipe.encoder,
        input_size=recipe.input_size,
        grid_stride=recipe.grid_stride,
        classes=recipe.classes,
        confounders=confounder_names(recipe.confounders),
        mean=recipe.mean,
        std=recipe.std,
        alpha=recipe.alpha,
        depth=recipe.depth,
        head=recipe.head,
        provenance={"recipe": json.dumps(dataclasses.asdict(recipe), sort_keys=True)},
    )


def load_trunk(trunk: nn.Module, path: Path, without: tuple[str, ...] = ("classifier",)) -> None:
    """Load ImageNet weights into an image trunk.

    Args:
        trunk: of the architecture the weights are of.
        path: a safetensors file.
        without: how the names of those weights begin that have no place in this trunk.

    Raises:
        SpecError: the file is missing or does not fit.
    """
    if not path.is_file():
        raise SpecError(f"no encoder weights at {path}; set encoder_weights or --data")
    try:
        weights = {name: value.float() for name, value in load_file(path).items() if not name.startswith(without)}
    except (OSError, SafetensorError) as error:
        raise SpecError(f"{path} is not a safetensors file or is cut off ({error}); get it again") from error
    missing, unexpected = trunk.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise SpecError(f"{path} does not fit the image trunk: {len(missing)} tensors missing, {len(unexpected)} left")


def save_weights(module: nn.Module, path: Path) -> None:
    """Write a module's weights as safetensors, whole or not at all.

    Raises:
        SpecError: they cannot be written.
    """
    with whole(path) as partial:
        save_tensors({name: value.contiguous().cpu() for name, value in module.state_dict().items()}, partial)


def upsample_cells(cells: Tensor, stride: int, size: Sequence[int]) -> Tensor:
    """Grid cells (B, h, w) as the pixels (B, H, W) bool they cover."""
    pixels = cells.bool().repeat_interleave(stride, 1).repeat_interleave(stride, 2)
    return pixels[:, : size[0], : size[1]]
