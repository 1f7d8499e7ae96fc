"""Train a model from a recipe: ``python -m training.train training/recipes/small.toml --output runs/small``.

Every epoch leaves ``last.pt`` in the run's folder, and starting again goes on from it, with the same order of data.
Several GPUs: ``torchrun --nproc-per-node 4 -m training.train …``; several machines: ``torchrun`` or SLURM, as usual.
The recipe's ``batch_size`` is that of all processes together.

The selection rule: the weights kept are the moving average at the last epoch, or, with ``patience``, at the epoch of
the highest Dice on the held-out part of the training sites. No image of another site is ever looked at.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from safetensors import SafetensorError
from safetensors.torch import load_file

from mcdrl_rt.console import run_program
from mcdrl_rt.errors import McdrlError, SpecError
from mcdrl_rt.model.checkpoint import read_spec, save_checkpoint
from training.dataset import LesionDataset, training_set
from training.files import whole
from training.launch import (
    BRANCH,
    IMAGES,
    WEIGHTS,
    add_arguments,
    claim,
    claim_images,
    has_begun,
    make_fabric,
    read_images,
)
from training.loop import Trainer
from training.methods import Method, build_method
from training.methods.base import save_weights, start_model, start_path
from training.methods.causal import Causal
from training.pretrain import pretrain
from training.recipe import Recipe, lineage, load_recipe, recipe_from
from training.sites import Sample, site_folder, site_names
from training.split import Split, split_of, split_sites

START = "start.safetensors"  # the run's own copy of the checkpoint it started from


def main() -> int:
    """Command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args()
    try:
        recipe = load_recipe(arguments.recipe, arguments.set)
        fabric = make_fabric(recipe.precision, arguments.device)
        train(fabric, recipe, arguments.data, arguments.output, arguments.workers)
    except McdrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last whole epoch", file=sys.stderr)
        return 130
    return 0


def train(fabric: Fabric, recipe: Recipe, data: Path, run: Path, workers: int = 1) -> Method:
    """Run a recipe, or go on with it; returns the trained method.

    The run's folder gets ``recipe.json``, ``images.json`` (its split), ``method.safetensors`` (the weights kept) and,
    of a model that can be deployed, ``NAME.safetensors``, a checkpoint for ``mcdrl-rt``.

    Raises:
        SpecError: the recipe cannot be run, the folder holds a run of another one or of other images, the training goes
            astray, or something cannot be written.
        SourceError: a site is missing or unusable.
    """
    if recipe.intervenes and recipe.causal_from_epoch >= recipe.epochs:
        raise SpecError(
            f"recipe {recipe.name!r} would never train its causal network: of {recipe.epochs} epochs it begins after "
            f"{recipe.causal_from_epoch} (causal_from_epoch)"
        )
    claim(fabric, recipe, run)
    start = _start(fabric, recipe, run)
    kept, held = split_sites(data, recipe, _seen(recipe, data, start))
    if recipe.patience and not held:
        raise SpecError(f"recipe {recipe.name!r} has patience, and a validation_share that holds no image out")
    split = Split.of(kept, held, data)
    claim_images(fabric, split, run)
    fit = partial(_fit, fabric, data=data, start=start, kept=kept, held=held, workers=workers)
    if recipe.branches:
        weights = [_branch(fabric, branch, run / f"{BRANCH}{branch.seed}", split, fit) for branch in _branches(recipe)]
        result = build_method(recipe, data, start).eval()
        _set_mean(result, weights)
    else:
        result = fit(recipe, run)
    result = _with_images(result, split)
    if recipe.start_share and isinstance(result, Causal):
        _towards_start(result, recipe, data, run)
    if fabric.is_global_zero:
        save_weights(result, run / WEIGHTS)
        if isinstance(result, Causal) and result.spec.depth:
            deployed = copy.copy(result.network)  # the same weights
            own_alpha = recipe.deployed_alpha if recipe.method == "mcdrl" else 0.0  # the others select nothing by it
            deployed.spec = dataclasses.replace(result.spec, alpha=own_alpha or result.spec.alpha)
            save_checkpoint(deployed, run / f"{recipe.name}.safetensors")
    fabric.barrier()
    return result


def _fit(
    fabric: Fabric,
    recipe: Recipe,
    run: Path,
    *,
    data: Path,
    start: Path | None,
    kept: list[Sample],
    held: list[Sample],
    workers: int,
) -> Method:
    """Train from the start, or from where ``run`` was left."""
    dataset = cache(partial(training_set, fabric, recipe, kept))  # read once, and not before it is needed
    clip = pretrain(fabric, recipe, data, dataset, run, workers) if recipe.pretrains else start
    method = build_method(recipe, data, clip)
    held_set = held_out_set(recipe, held) if held else None
    trainer = Trainer(fabric, recipe, method, run, dataset(), held_set, workers)
    fabric.print(
        f"{recipe.method} on {len(dataset())} images ({recipe.phantom_count} of them synthetic), {len(held)} held out, "
        f"{fabric.world_size} × {fabric.device.type} {fabric.strategy.precision.precision}"
    )
    return trainer.train()


def _branches(recipe: Recipe) -> list[Recipe]:
    """The trainings whose mean is kept."""
    seeds = range(recipe.seed + 1, recipe.seed + recipe.branches + 1)
    return [dataclasses.replace(recipe, seed=seed, branches=0, start_share=0.0) for seed in seeds]


def _branch(
    fabric: Fabric, recipe: Recipe, folder: Path, split: Split, fit: Callable[[Recipe, Path], Method]
) -> Path:
    """Train a branch in a folder of its own, if that is not done; returns the file of its weights."""
    claim(fabric, recipe, folder)
    claim_images(fabric, split, folder)
    weights = folder / WEIGHTS
    if not fabric.broadcast(weights.is_file()):
        fabric.print(folder, flush=True)
        result = fit(recipe, folder)
        if fabric.is_global_zero:
            save_weights(result, weights)
        fabric.barrier()
    return weights


@torch.no_grad()
def _set_mean(method: Method, files: Sequence[Path]) -> None:
    """Give a method the mean of the weights in some files.

    Raises:
        SpecError: one is damaged.
    """
    states = []
    for file in files:
        try:
            states.append(load_file(file))
        except (OSError, SafetensorError) as error:
            raise SpecError(f"cannot read {file} ({error}); delete it, and it is made again") from error
    for name, value in method.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.stack([state[name].double() for state in states]).mean(dim=0))


def _start(fabric: Fabric, recipe: Recipe, run: Path) -> Path | None:
    """The run's own copy of the checkpoint it starts from; None where the recipe has none.

    Raises:
        SpecError: it is not there.
    """
    if not recipe.start:
        return None
    path, source = run / START, start_path(recipe)
    if not (path.is_file() and has_begun(run)):  # one of an attempt that came to nothing may be another
        if not source.is_file():
            raise SpecError(f"recipe {recipe.name!r} starts from {source}, which is not there; train that first")
        read_spec(source)
        if fabric.is_global_zero:
            with whole(path) as unfinished:
                shutil.copyfile(source, unfinished)
    fabric.barrier()
    return path


def _seen(recipe: Recipe, data: Path, start: Path | None) -> Split | None:
    """What a start was trained on, and what it was not; None without a start.

    Raises:
        SpecError: it does not say, and the recipe would draw another split than its own did.
    """
    if start is None:
        return None
    provenance = read_spec(start).provenance
    names = {name for site in recipe.train_sites for name in site_names(site_folder(data, site))}
    for earlier in [] if "images" in provenance else lineage(provenance):
        both = ", ".join(sorted({*earlier.train_sites} & names))
        split = (earlier.validation_share, earlier.seed)
        if both and split != (recipe.validation_share, recipe.seed):
            raise SpecError(
                f"{recipe.start} was trained on {both} with validation_share={split[0]} and seed={split[1]}; "
                "give the recipe the same, or images it has seen are held out"
            )
    return split_of(provenance, data, names)


def _with_images(method: Method, split: Split) -> Method:
    """The method, whose specification says which images it was shown."""
    provenance = {**method.spec.provenance, "images": split.to_json()}
    method.spec = dataclasses.replace(method.spec, provenance=provenance)
    return method


@torch.no_grad()
def _towards_start(method: Causal, recipe: Recipe, data: Path, run: Path) -> None:
    """Give the weights of the run's start their share, in place."""
    start = start_model(recipe, data, run / START).state_dict()
    for name, value in method.network.state_dict().items():
        if value.is_floating_point():
            value.lerp_(start[name].to(value.device), recipe.start_share)


def held_out_set(recipe: Recipe, samples: list[Sample]) -> LesionDataset:
    """The held-out part, as it is; what had to be left out is said."""
    dataset = LesionDataset(
        samples, recipe.input_size, recipe.classes, skip_bad=recipe.skips_bad, seed=recipe.seed
    )
    for reason in dataset.skipped:
        print(f"left out of what is held out: {reason}", file=sys.stderr)
    return dataset


def load_method(run: Path, data: Path) -> Method:
    """The trained method of a finished run, in evaluation mode.

    Raises:
        SpecError: the folder holds no finished run.
    """
    try:
        recipe = recipe_from(json.loads((run / "recipe.json").read_text()))
        weights = load_file(run / WEIGHTS)
    except (OSError, ValueError, SafetensorError, SpecError) as error:
        raise SpecError(f"{run} holds no finished run: {error}") from error
    # a branch's start is its run's
    starts = [run / START, run.parent / START] if recipe.start else [run / "clip.safetensors"]
    clip = next((path for path in starts if path.is_file()), None)
    method = build_method(recipe, data, clip)
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise SpecError(f"{run} was trained by another version: its weights are not of this model's form") from error
    images = run / IMAGES
    return (_with_images(method, read_images(images)) if images.is_file() else method).eval()


if __name__ == "__main__":
    run_program(main)
