"""The outside rival: a U-Net (segmentation-models-pytorch) on the same encoder with the same starting weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.clip import SMALL
from mcdrl_rt.ops import at_least_float32
from training.dataset import Item
from training.methods.base import Method, Prediction, load_trunk, model_spec
from training.recipe import Recipe

STRIDE = 32  # of its coarsest level


class UNet(Method):
    """U-Net with MobileNetV2, the trunk of ``mcdrl-small``; no text, no selection, no intervention.

    ``clip`` is not looked at: what the small CLIP was pretrained for is not the U-Net's.

    Raises:
        SpecError: another encoder is asked for, a size that it cannot take, or the library is missing.
    """

    def __init__(self, recipe: Recipe, data: Path, clip: Path | None = None) -> None:
        if recipe.encoder != SMALL:
            raise SpecError(f"the U-Net shares the encoder of {SMALL} alone; the recipe's is {recipe.encoder}")
        height, width = recipe.input_size
        if height % STRIDE or width % STRIDE:
            raise SpecError(f"the U-Net takes sides that {STRIDE} divides, not {height}×{width}; change input_size")
        try:
            from segmentation_models_pytorch import Unet
        except ImportError as error:
            raise SpecError("method 'unet' needs segmentation-models-pytorch: pip install 'mcdrl-rt[train]'") from error
        whole = {"grid": (1, 1), "grid_stride": max(recipe.input_size)}  # it selects nothing: one cell
        super().__init__(recipe, dataclasses.replace(model_spec(recipe), **whole))
        labels = len(recipe.classes) + 1
        self.network = Unet("tu-mobilenetv2_100", encoder_weights=None, classes=labels, pad_type="same")
        if recipe.encoder_weights:
            load_trunk(self.network.encoder.model, data / recipe.encoder_weights, ("classifier", "conv_head", "bn2."))

    def forward(self, batch: Item, intervene: bool = True) -> dict[str, Tensor]:
        return self.pixel_terms(at_least_float32(self.network(self.normalise(batch.pixels))), batch.labels)

    def predict(self, images: Tensor) -> Prediction:
        return self.everywhere(self.network(images))

    def pretrained_parameters(self) -> Iterable[nn.Parameter]:
        return self.network.encoder.parameters() if self.recipe.encoder_weights else ()
