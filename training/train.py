"""Train a model from a recipe: ``python -m training.train training/recipes/small.toml --run runs/small``.

Every epoch leaves ``last.pt`` in the run's folder, and starting again goes on from it, with the same order of data.
The weights kept are the moving average at the last epoch: nothing is selected on any validation or test image.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mcdrl_rt.engine.openvino import resolve_precision
from mcdrl_rt.errors import McdrlError
from mcdrl_rt.model.checkpoint import save_checkpoint
from mcdrl_rt.model.mcdrl import MCDRL, build_model
from mcdrl_rt.model.prompts import confounder_names
from mcdrl_rt.types import ModelSpec
from training import losses
from training.dataset import Item, LesionDataset
from training.pretrain import load_trunk, pretrain
from training.recipe import Recipe, load_recipe
from training.sites import data_root, hold_out, load_site


def main() -> int:
    """Command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a TOML file of training/recipes")
    parser.add_argument("--run", type=Path, required=True, help="folder for the run's state, log and checkpoint")
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the sites (default: MCDRL_DATA)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings in place of the recipe's")
    arguments = parser.parse_args()
    try:
        train(load_recipe(arguments.recipe, arguments.set), arguments.data, arguments.run)
    except McdrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def train(recipe: Recipe, data: Path, run: Path) -> Path:
    """Run (or resume) a recipe; returns the checkpoint's path."""
    run.mkdir(parents=True, exist_ok=True)
    clip = pretrain(recipe, data, run) if recipe.pretrain_epochs else None
    torch.manual_seed(recipe.seed)
    model = initial_model(recipe, data, clip)
    samples, _ = hold_out(load_site(data / recipe.train_site), recipe.validation_count, recipe.seed)
    dataset = LesionDataset(
        samples,
        recipe.input_size,
        augment=True,
        phantom_count=recipe.phantom_count,
        seed=recipe.seed,
        conditions=model.spec.confounders,
        condition_rate=recipe.condition_rate,
    )
    steps = len(dataset) // recipe.batch_size
    trainer = Trainer(recipe, model, steps)
    first = trainer.load(run / "last.pt")
    print(f"{len(samples)} images and {recipe.phantom_count} phantom frames, epochs {first + 1} to {recipe.epochs}")
    for epoch in range(first, recipe.epochs):
        started = time.monotonic()
        figures = trainer.epoch(epoch, batches(dataset, recipe, epoch))
        figures |= {"epoch": epoch + 1, "seconds": round(time.monotonic() - started, 1)}
        trainer.save(run / "last.pt", epoch + 1)
        with (run / "log.jsonl").open("a") as log:
            log.write(json.dumps(figures) + "\n")
        print(json.dumps(figures), flush=True)
        save_checkpoint(trainer.averaged, run / f"{recipe.name}.safetensors")
    return run / f"{recipe.name}.safetensors"


def initial_model(recipe: Recipe, data: Path, clip: Path | None = None) -> MCDRL:
    """The recipe's model before the first step, with its encoder's starting weights, or those of ``training.pretrain``.

    Raises:
        SpecError: the recipe asks for what cannot be built, or its weights are missing or do not fit.
    """
    spec = ModelSpec(
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
    model = build_model(spec, clip)
    if recipe.encoder_weights and clip is None:
        load_trunk(model.encoder.get_submodule("trunk"), data / recipe.encoder_weights)
    return model


def batches(dataset: LesionDataset, recipe: Recipe, epoch: int) -> DataLoader[Item]:
    """The epoch's batches, in an order that depends on the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(recipe.seed * 10_000 + epoch)
    return DataLoader(dataset, recipe.batch_size, shuffle=True, drop_last=True, num_workers=1, generator=generator)


class Trainer:
    """Model, moving average, optimiser and schedule: the state of a run.

    Args:
        recipe: the run's choices.
        model: to be trained, in place.
        steps_per_epoch: optimiser steps in an epoch.
    """

    def __init__(self, recipe: Recipe, model: MCDRL, steps_per_epoch: int) -> None:
        self.recipe, self.steps = recipe, steps_per_epoch
        self.model = model.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(model).eval()
        encoder, new = [], []
        for name, parameter in model.named_parameters():
            pretrained = bool(recipe.encoder_weights) and name.startswith("encoder.trunk")
            (encoder if pretrained else new).append(parameter)
        groups = [{"params": encoder, "lr": recipe.encoder_lr}, {"params": new, "lr": recipe.lr}]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=recipe.weight_decay)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.bf16 = resolve_precision("auto") == "bf16"  # in software it would be ten times slower than float32
        self.mean = torch.tensor(recipe.mean).view(3, 1, 1) * 255
        self.std = torch.tensor(recipe.std).view(3, 1, 1) * 255

    def epoch(self, epoch: int, batches: Iterable[Item]) -> dict[str, float]:
        """One pass over ``batches``; returns the mean of every loss."""
        self.model.train()
        sums: dict[str, float] = {}
        for batch in batches:
            for name, value in self.step(Item(*batch), epoch >= self.recipe.causal_from_epoch).items():
                sums[name] = sums.get(name, 0.0) + value
        return {name: round(value / self.steps, 4) for name, value in sums.items()}

    def step(self, batch: Item, intervene: bool) -> dict[str, float]:
        """One optimiser step."""
        images = ((batch.pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        terms = self._losses(images, batch, intervene)
        total = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self._average()
        return {name: float(value.detach()) for name, value in terms.items()}

    def _losses(self, images: Tensor, batch: Item, intervene: bool) -> dict[str, Tensor]:
        recipe, model, labels = self.recipe, self.model, batch.labels
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            out = model(images, summary=True, intervene=intervene)
        logits, classes = out.logits.float(), labels.amax(dim=(1, 2))
        weight = losses.edge_weight(labels, recipe.edge) if recipe.edge else None
        terms = {"segmentation": losses.segmentation_loss(logits, labels, weight)}
        if recipe.dice:
            terms["dice"] = recipe.dice * losses.soft_dice_loss(logits, labels, weight=weight)
        if recipe.dense:
            dense = losses.dense_alignment_loss(out.similarities, labels, model.spec.grid_stride, recipe.dense_scale)
            terms["dense"] = recipe.dense * dense
        if intervene:
            target = losses.causal_loss(out.intervened.float(), model.text_targets, classes)
            terms["causal"] = recipe.causal * target
            if recipe.readout:
                terms["readout"] = recipe.readout * losses.readout_loss(out.confounders.float(), batch.shown)
        contrast = losses.contrast_loss(out.summary.float(), model.text_classes, classes, recipe.temperature)
        terms["contrast"] = recipe.contrast * contrast
        return terms

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.schedule.last_epoch) / (10 + self.schedule.last_epoch))
        for mean, value in zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def _lr_factor(self, step: int) -> float:
        warm = max(1, round(self.recipe.warmup_epochs * self.steps))
        if step < warm:
            return (step + 1) / warm
        progress = (step - warm) / max(1, self.recipe.epochs * self.steps - warm)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def save(self, path: Path, epochs_done: int) -> None:
        """Write the whole state, atomically."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "averaged", "optimizer", "schedule")}
        partial = path.with_suffix(".partial")
        torch.save(parts | {"epochs": epochs_done, "random": torch.get_rng_state()}, partial)
        partial.replace(path)

    def load(self, path: Path) -> int:
        """Take up a saved state, if there is one; returns the number of epochs done."""
        if not path.is_file():
            return 0
        state = torch.load(path, weights_only=True)
        for name in ("model", "averaged", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        return int(state["epochs"])


if __name__ == "__main__":
    raise SystemExit(main())
