"""Contrastive pretraining of the small CLIP, so that text and image live in one space before MTRS relies on it.

Pairs are made, not scraped: a picture with or without a lesion, with known imaging conditions drawn on it
(``training.conditions``), and the very prompts the model will use: e_k, z_m and t_k,m (``mcdrl_rt.model.prompts``).
Every prompt either fits a picture or not, and many fit many, so the loss is SigLIP's sigmoid over all pairs
(arXiv 2303.15343). ``python -m training.pretrain RECIPE --run RUN`` runs this part alone and prints how much of the
lesions MTRS selects before and after, on images held out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mcdrl_rt.errors import McdrlError, SpecError
from mcdrl_rt.model.clip import load_clip
from mcdrl_rt.model.mcdrl import build_model
from mcdrl_rt.model.prompts import class_confounder_prompt, class_prompt, confounder_names, confounder_prompt
from mcdrl_rt.model.selection import selected_cells
from mcdrl_rt.types import ModelSpec
from training.dataset import LesionDataset
from training.recipe import Recipe, load_recipe
from training.sites import Sample, data_root, hold_out, load_site

LESION_FREE = 0.35  # share of the pictures without lesion: without them every picture would fit every class prompt


def main() -> int:
    """Command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a TOML file of training/recipes")
    parser.add_argument("--run", type=Path, required=True, help="folder for the weights, clip.safetensors")
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the sites (default: MCDRL_DATA)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings in place of the recipe's")
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.recipe, arguments.set)
        weights = pretrain(recipe, arguments.data, arguments.run)
        _, held = hold_out(load_site(arguments.data / recipe.train_site), recipe.validation_count, recipe.seed)
        recall = {"before": selection_recall(recipe, arguments.data, None, held)}
        recall["after"] = selection_recall(recipe, arguments.data, weights, held)
    except McdrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"alpha": recipe.alpha, "images": len(held), "selection_recall": recall}))
    return 0


def pretrain(recipe: Recipe, data: Path, run: Path) -> Path:
    """Train image and text tower together, or take up where that stopped; returns the weights' path.

    Raises:
        SpecError: the recipe's encoder cannot be built or its weights are missing.
    """
    path = run / "clip.safetensors"
    if path.is_file():
        return path
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    clip = load_clip(recipe.encoder)
    if recipe.encoder_weights:
        load_trunk(clip.get_submodule("visual.trunk"), data / recipe.encoder_weights)
    names = confounder_names(recipe.confounders)
    samples, _ = hold_out(load_site(data / recipe.train_site), recipe.validation_count, recipe.seed)
    dataset = LesionDataset(
        samples,
        recipe.input_size,
        augment=True,
        phantom_count=recipe.phantom_count,
        seed=recipe.seed,
        conditions=names,
        condition_rate=0.8,
        lesion_free=LESION_FREE,
    )
    pairs = PromptPairs(clip, recipe, names)
    optimizer = torch.optim.AdamW(pairs.parameters(), recipe.pretrain_lr, weight_decay=0.05)
    steps = recipe.pretrain_epochs * (len(dataset) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.pretrain_lr, max(2, steps), pct_start=0.1)
    for epoch in range(recipe.pretrain_epochs):
        started, total = time.monotonic(), 0.0
        loader = DataLoader(dataset, recipe.batch_size, shuffle=True, drop_last=True, num_workers=1)
        for pixels, labels, shown in loader:
            loss = pairs(pixels, labels, shown)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / len(loader)
        seconds = round(time.monotonic() - started, 1)
        print(json.dumps({"pretrain_epoch": epoch + 1, "loss": round(total, 4), "seconds": seconds}), flush=True)
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, partial)
    partial.replace(path)
    return path


class PromptPairs(nn.Module):
    """Pictures against every prompt of a recipe: the sigmoid loss over all pairs."""

    def __init__(self, clip: nn.Module, recipe: Recipe, conditions: Sequence[str]) -> None:
        super().__init__()
        self.clip: Any = clip
        self.scale = nn.Parameter(torch.tensor(10.0).log())
        self.bias = nn.Parameter(torch.tensor(-2.0))
        prompts = [class_prompt(k) for k in recipe.classes]
        prompts += [confounder_prompt(m) for m in conditions]
        prompts += [class_confounder_prompt(k, m) for k in recipe.classes for m in conditions]
        self.register_buffer("tokens", open_clip.get_tokenizer(recipe.encoder)(prompts), persistent=False)
        self.tokens: Tensor
        self.classes = len(recipe.classes)
        self.register_buffer("mean", torch.tensor(recipe.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(recipe.std).view(3, 1, 1) * 255, persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, pixels: Tensor, labels: Tensor, shown: Tensor) -> Tensor:
        """The loss for pixels (B, 3, H, W) uint8, labels (B, H, W) and the conditions shown (B, M)."""
        images = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = F.normalize(self.clip.encode_image(images), dim=-1)
        texts = F.normalize(self.clip.encode_text(self.tokens), dim=-1)
        logits = features @ texts.T * self.scale.exp() + self.bias  # (B, K + M + K·M)
        has = F.one_hot(labels.amax(dim=(1, 2)), self.classes + 1)[:, 1:].float()  # (B, K)
        fits = torch.cat([has, shown, (has.unsqueeze(2) * shown.unsqueeze(1)).flatten(1)], dim=1)
        return F.binary_cross_entropy_with_logits(logits, fits)


def load_trunk(trunk: nn.Module, path: Path) -> None:
    """Load ImageNet weights into an image trunk; the classifier among them has no place here.

    Raises:
        SpecError: the file is missing or does not fit.
    """
    if not path.is_file():
        raise SpecError(f"no encoder weights at {path}; set encoder_weights or --data")
    weights = {name: value.float() for name, value in load_file(path).items() if not name.startswith("classifier")}
    missing, unexpected = trunk.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise SpecError(f"{path} does not fit the image trunk: {len(missing)} tensors missing, {len(unexpected)} left")


@torch.inference_mode()
def selection_recall(recipe: Recipe, data: Path, clip: Path | None, samples: Sequence[Sample]) -> float:
    """Share of the lesion pixels of ``samples`` that MTRS selects at the recipe's α, on the trunk's own grid.

    Without ``clip``, of the recipe's starting weights and a random text tower.
    """
    torch.manual_seed(recipe.seed)
    spec = ModelSpec(
        name=recipe.name,
        encoder=recipe.encoder,
        input_size=recipe.input_size,
        classes=recipe.classes,
        confounders=confounder_names(recipe.confounders),
        mean=recipe.mean,
        std=recipe.std,
        alpha=recipe.alpha,
    )
    model = build_model(spec, clip)
    if clip is None and recipe.encoder_weights:
        load_trunk(model.encoder.get_submodule("trunk"), data / recipe.encoder_weights)
    model.eval()
    dataset = LesionDataset(samples, recipe.input_size, augment=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (recipe.mean, recipe.std))
    seen = total = 0
    for i in range(len(dataset)):
        item = dataset[i]
        indices = model(((item.pixels - mean) / std).unsqueeze(0), intervene=False).indices
        cells = selected_cells(indices, model.spec.grid)[0].numpy().astype(bool)
        stride = model.spec.grid_stride
        covered = cells.repeat(stride, 0).repeat(stride, 1)[: recipe.input_size[0], : recipe.input_size[1]]
        lesion = item.labels.numpy() > 0
        seen, total = seen + int((covered & lesion).sum()), total + int(lesion.sum())
    return seen / max(1, total)


if __name__ == "__main__":
    raise SystemExit(main())
