"""MCDRL and its ablations: each leaves out one part of the full method (Table 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torch import Tensor, nn

from mcdrl_rt.model.mcdrl import MCDRL
from mcdrl_rt.model.selection import selected_cells
from mcdrl_rt.ops import at_least_float32
from training import losses
from training.dataset import Item
from training.methods.base import Method, Prediction, pretrained_part
from training.recipe import Recipe

# what each ablation of Table 3 leaves out of the full method
ABLATIONS: dict[str, dict[str, float | int]] = {
    "mcdrl": {},
    "baseline": {"alpha": 1.0, "depth": 0, "contrast": 0.0, "dense": 0.0, "causal": 0.0, "readout": 0.0},
    "wo-mtrs": {"alpha": 1.0, "contrast": 0.0, "dense": 0.0},
    "wo-cdrl": {"depth": 0, "causal": 0.0, "readout": 0.0},
}


class Causal(Method):
    """MCDRL and its ablations (Table 3)."""

    def __init__(self, recipe: Recipe, network: MCDRL) -> None:
        super().__init__(recipe, network.spec)
        self.network = network

    def forward(self, batch: Item, intervene: bool = True) -> dict[str, Tensor]:
        recipe, network, labels = self.recipe, self.network, batch.labels
        out = network(self.normalise(batch.pixels), summary=recipe.contrast > 0, intervene=intervene)
        classes = labels.amax(dim=(1, 2))
        terms = self.pixel_terms(at_least_float32(out.logits), labels) | self.dense_term(out.similarities, labels)
        if intervene and recipe.causal:
            target = losses.causal_loss(at_least_float32(out.intervened), network.text_targets, classes)
            terms["causal"] = recipe.causal * target
        if intervene and recipe.readout:
            terms["readout"] = recipe.readout * losses.readout_loss(at_least_float32(out.confounders), batch.shown)
        if recipe.contrast:
            value = losses.contrast_loss(
                at_least_float32(out.summary), network.text_classes, classes, recipe.temperature
            )
            terms["contrast"] = recipe.contrast * value
        return terms

    def predict(self, images: Tensor) -> Prediction:
        out = self.network(images)
        return Prediction(out.logits, selected_cells(out.indices, self.spec.grid), out.confounders)

    def pretrained_parameters(self) -> Iterable[nn.Parameter]:
        return pretrained_part(self.network.encoder, self.recipe)


def ablated(recipe: Recipe) -> Recipe:
    """The recipe without what its method leaves out."""
    return without_contrast(dataclasses.replace(recipe, **ABLATIONS[recipe.method]))  # type: ignore[arg-type]


def without_contrast(recipe: Recipe) -> Recipe:
    """The recipe without the contrastive loss where there is but one class: Eq. 12 is zero then."""
    return dataclasses.replace(recipe, contrast=0.0) if len(recipe.classes) == 1 else recipe
