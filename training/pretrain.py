"""Contrastive pretraining of the small CLIP, so that text and image live in one space before MTRS relies on it.

Pairs are made, not scraped: a picture with or without a lesion, with known imaging conditions drawn on it
(``training.conditions``), and the very prompts the model will use: e_k, z_m and t_k,m (``mcdrl_rt.model.prompts``).
Every prompt either fits a picture or not, and many fit many, so the loss is SigLIP's sigmoid over all pairs
(arXiv 2303.15343). ``python -m training.pretrain RECIPE --output FOLDER`` runs this part alone and prints how much of
the lesions MTRS selects before and after, on images held out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from mcdrl_rt.console import run_program
from mcdrl_rt.errors import McdrlError, SpecError
from mcdrl_rt.model.clip import load_clip, tokenizer
from mcdrl_rt.model.prompts import class_confounder_prompt, class_prompt, confounder_prompt
from mcdrl_rt.ops import at_least_float32
from training.dataset import Item, LesionDataset, training_set
from training.launch import add_arguments, claim, claim_images, make_fabric
from training.loop import Trainer
from training.methods import build_method
from training.methods.base import Method, load_trunk, model_spec, save_weights, upsample_cells
from training.recipe import Recipe, load_recipe
from training.sites import Sample
from training.split import Split, split_sites

PART_RATE = 0.35  # half of the parts show no lesion: without such every picture would fit every class prompt
CONDITION_RATE = 0.8


def main() -> int:
    """Command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.recipe, arguments.set)
        if not recipe.pretrains:
            raise SpecError(f"recipe {recipe.name!r} has no pretraining (pretrain_epochs, start, method)")
        kept, held = split_sites(arguments.data, recipe)
        if not held:
            raise SpecError(f"recipe {recipe.name!r} holds no image out to measure on; raise its validation_share")
        fabric = make_fabric(recipe.precision, arguments.device)
        claim(fabric, recipe, arguments.output)
        claim_images(fabric, Split.of(kept, held, arguments.data), arguments.output)
        dataset = partial(training_set, fabric, recipe, kept)
        recall = {"before": selection_recall(recipe, arguments.data, None, held)}  # first: it may fail
        weights = pretrain(fabric, recipe, arguments.data, dataset, arguments.output, arguments.workers)
        recall["after"] = selection_recall(recipe, arguments.data, weights, held)
    except McdrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last whole epoch", file=sys.stderr)
        return 130
    print(json.dumps({"alpha": recipe.alpha, "images": len(held), "selection_recall": recall}))
    return 0


def pretrain(
    fabric: Fabric, recipe: Recipe, data: Path, dataset: Callable[[], LesionDataset], run: Path, workers: int = 1
) -> Path:
    """Train image and text tower together, or take up where that stopped; returns the weights' path.

    Args:
        fabric: launched.
        recipe: the run's choices.
        data: the folder of the sites, and of the encoder's weights.
        dataset: gives the recipe's training set; not asked where the weights are there already.
        run: folder of ``clip.safetensors`` and ``pretraining/``.
        workers: processes that load data.

    Raises:
        SpecError: the recipe's encoder cannot be built or its weights are missing.
    """
    path = run / "clip.safetensors"
    if path.is_file():
        return path
    folder = run / "pretraining"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    clip = load_clip(recipe.encoder, recipe.pretrained or None)
    if recipe.encoder_weights:
        load_trunk(clip.get_submodule("visual.trunk"), data / recipe.encoder_weights)
    pictures = dataset().with_rates(condition_rate=CONDITION_RATE, part_rate=PART_RATE)
    recipe = dataclasses.replace(
        recipe, epochs=recipe.pretrain_epochs, lr=recipe.pretrain_lr, weight_decay=0.05, warmup_epochs=0.3, ema=0.0
    )
    recipe = dataclasses.replace(recipe, patience=0, schedule="cosine")
    pairs = Trainer(fabric, recipe, PromptPairs(clip, recipe), folder, pictures, workers=workers).train()
    if fabric.is_global_zero:
        save_weights(pairs.get_submodule("clip"), path)
    fabric.barrier()
    return path


class PromptPairs(Method):
    """Pictures against every prompt of a recipe: the sigmoid loss over all pairs."""

    def __init__(self, clip: nn.Module, recipe: Recipe) -> None:
        super().__init__(recipe, model_spec(recipe))
        self.clip: Any = clip
        self.scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-2.0))
        conditions = self.spec.confounders
        prompts = [class_prompt(k) for k in recipe.classes]
        prompts += [confounder_prompt(m) for m in conditions]
        prompts += [class_confounder_prompt(k, m) for k in recipe.classes for m in conditions]
        self.register_buffer("tokens", tokenizer(recipe.encoder)(prompts), persistent=False)
        self.tokens: Tensor

    def forward(self, batch: Item, intervene: bool = True) -> dict[str, Tensor]:
        features = F.normalize(at_least_float32(self.clip.encode_image(self.normalise(batch.pixels))), dim=-1)
        texts = F.normalize(at_least_float32(self.clip.encode_text(self.tokens)), dim=-1)
        logits = features @ texts.T * self.scale.exp() + self.bias  # (B, K + M + K·M)
        has = F.one_hot(batch.labels.amax(dim=(1, 2)), len(self.spec.classes) + 1)[:, 1:].float()  # (B, K)
        both = has.unsqueeze(2) * batch.shown.unsqueeze(1)  # (B, K, M)
        fits = torch.cat([has, batch.shown, both.flatten(1)], dim=1)
        return {"pairs": F.binary_cross_entropy_with_logits(logits, fits)}

    def pretrained_parameters(self) -> Iterable[nn.Parameter]:
        return ()  # ImageNet's weights, too, are to move into the joint space


@torch.inference_mode()
def selection_recall(recipe: Recipe, data: Path, clip: Path | None, samples: Sequence[Sample]) -> float:
    """Share of the lesion pixels of ``samples`` that MTRS selects at the recipe's α, on the trunk's own grid.

    Without ``clip``, of the recipe's starting weights and a random text tower.
    """
    method = build_method(dataclasses.replace(recipe, method="mcdrl", grid_stride=0), data, clip).eval()
    dataset = LesionDataset(samples, recipe.input_size, recipe.classes, skip_bad=recipe.skips_bad)
    seen = total = 0
    for i in range(len(dataset)):
        item = dataset[0, i]
        out = method.predict(method.normalise(item.pixels.unsqueeze(0)))
        lesion = item.labels > 0
        covered = upsample_cells(out.selected, method.spec.grid_stride, lesion.shape)[0]
        seen, total = seen + int((covered & lesion).sum()), total + int(lesion.sum())
    return seen / max(1, total)


if __name__ == "__main__":
    run_program(main)
