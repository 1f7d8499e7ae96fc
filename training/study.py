"""Many runs for one question: ``python -m training.study training/studies/ablation.toml --output runs/ablation``.

A study is a recipe, variants of it, seeds, and sites to leave out: every variant is trained once for every seed and
every site that is left out, on all other sites, and measured on all. What is finished is not done again, so a study
can be stopped, gone on with, and shared between machines (``--part 1/4`` … ``4/4``). ``training.report`` reads it.

    recipe = "../recipes/small.toml"
    seeds = [0, 1, 2]
    leave_out = ["CVC-ClinicDB", "Kvasir-SEG"]     # by default every site under the data folder
    [set]                                           # for all variants
    epochs = 12
    [variants.MCDRL]
    [variants."w/o MTRS"]
    method = "wo-mtrs"
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning_fabric import Fabric

from mcdrl_rt.console import run_program
from mcdrl_rt.errors import McdrlError, SpecError
from mcdrl_rt.segmenter import Segmenter
from training.dataset import training_set
from training.evaluate import MethodEngine, evaluate, write_evaluation
from training.launch import count, make_fabric, refuse_other
from training.pretrain import pretrain
from training.recipe import Recipe, load_recipe, override, recipe_from
from training.sites import data_root, find_sites, site_folder
from training.split import Split, split_sites
from training.train import train

# what a pretrained CLIP depends on: runs that share these share it
PRETRAINING = (
    "encoder",
    "pretrained",
    "encoder_weights",
    "input_size",
    "classes",
    "confounders",
    "mean",
    "std",
    "train_sites",
    "validation_share",
    "bad_images",
    "augmentation",
    "style_rate",
    "blank_rate",
    "phantom_count",
    "batch_size",
    "accumulate",
    "precision",
    "pretrain_epochs",
    "pretrain_lr",
    "seed",
)


_ASKS_S = 5.0  # how long a lock is waited for at a time


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Args:
        variant: its name.
        left_out: the site that is not trained on.
        recipe: complete.
        folder: below the study's.
    """

    variant: str
    left_out: str
    recipe: Recipe
    folder: Path


def main() -> int:
    """Command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a TOML file of training/studies")
    parser.add_argument("--output", type=Path, required=True, help="folder for all runs")
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the sites (default: MCDRL_DATA)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--workers", type=count, default=1, help="processes that load data")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="do every Nth run, from the Ith")
    arguments = parser.parse_args()
    try:
        first, _, parts = arguments.part.partition("/")
        if not (first.isdigit() and parts.isdigit() and 1 <= int(first) <= int(parts)):
            raise SpecError(f"--part is I/N with I from 1 to N, not {arguments.part!r}")
        runs = list(plan(arguments.study, arguments.data, arguments.output))[int(first) - 1 :: int(parts)]
        left = [(i, run) for i, run in enumerate(runs, 1) if not is_done(run)]
        fabric = make_fabric(runs[0].recipe.precision, arguments.device) if left else None
        for i, run in left:
            assert fabric is not None
            fabric.print(f"[{i} of {len(runs)}] {run.folder}", flush=True)
            execute(fabric, run, arguments.data, arguments.output, arguments.workers)
    except McdrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0


def plan(study: Path, data: Path, output: Path) -> Iterator[Run]:
    """Every run of a study file, seed by seed, so that an unfinished study is one of fewer seeds.

    Raises:
        SpecError: the file is no study, or a setting in it is wrong.
        SourceError: there is no data folder.
    """
    try:
        described = tomllib.loads(study.read_text())
        base = load_recipe(study.parent / described.pop("recipe"))
        common, variants = described.pop("set", {}), described.pop("variants")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"cannot read study {study}: {type(error).__name__}: {error}") from error
    names = [folder.name for folder in find_sites(data)]
    seeds, left_out = described.pop("seeds", [0]), described.pop("leave_out", names)
    _check(study, seeds, left_out, common, variants)
    precisions = {str((common | own).get("precision", base.precision)) for own in variants.values()}
    if len(precisions) > 1:  # one launch is for all runs
        raise SpecError(f"study {study} mixes precisions ({', '.join(sorted(precisions))}); make a study of each")
    if described:
        raise SpecError(f"study {study} has unknown settings {', '.join(described)}")
    if len(names) < 2:
        raise SpecError(f"leaving a site out needs two at least; {data} has {', '.join(names) or 'none'}")
    left_out = [site_folder(data, name).name for name in left_out]
    if missing := sorted(set(left_out) - set(names)):
        raise SpecError(f"study {study} leaves out {', '.join(missing)}, and {data} has {', '.join(names)}")
    for seed in seeds:
        for site in left_out:
            for variant, own in variants.items():
                folder = output / site / _folder_of(variant) / f"seed-{seed}"
                others = tuple(name for name in names if name != site)
                recipe = _changed(base, common | own, seed, others)
                if recipe.start:
                    raise SpecError(f"study {study}: what starts from a checkpoint may have seen what is left out")
                yield Run(variant, site, recipe, folder)


def _check(study: Path, seeds: Any, left_out: Any, common: Any, variants: Any) -> None:
    """Refuse what is of another kind than it must be."""
    settings = [common, *variants.values()] if isinstance(variants, dict) else []
    problems = {
        "seeds is a list of numbers": not (isinstance(seeds, list) and all(type(seed) is int for seed in seeds)),
        "leave_out is a list of sites": not (isinstance(left_out, list) and all(type(s) is str for s in left_out)),
        "variants and set are tables of settings": not settings or not all(type(one) is dict for one in settings),
    }
    for what, wrong in problems.items():
        if wrong:
            raise SpecError(f"study {study}: {what}")
    if own := sorted({"seed", "train_sites"} & {name for one in settings for name in one}):
        raise SpecError(f"study {study} sets {', '.join(own)}, which seeds and leave_out are for")
    folders = Counter(map(_folder_of, variants))
    if twice := [variant for variant in variants if folders[_folder_of(variant)] > 1]:
        raise SpecError(f"study {study}: {' and '.join(twice)} would share a folder; name one of them otherwise")


def _folder_of(variant: str) -> str:
    return variant.replace("/", "-").replace(" ", "-")


def is_done(run: Run) -> bool:
    """Whether a run has been measured.

    Raises:
        SpecError: one with other settings has, in its folder.
    """
    if not (run.folder / "evaluation.json").is_file():
        return False
    refuse_other(run.recipe, run.folder)
    return True


def execute(fabric: Fabric, run: Run, data: Path, output: Path, workers: int) -> None:
    """Train and measure one run, and leave ``evaluation.json`` in its folder."""
    recipe = run.recipe
    if recipe.pretrains:
        kept, held = split_sites(data, recipe)
        shared = {name: value for name, value in asdict(recipe).items() if name in PRETRAINING}
        known = json.dumps(shared, sort_keys=True) + Split.of(kept, held, data).to_json()
        key = sha256(known.encode()).hexdigest()[:12]
        dataset = partial(training_set, fabric, recipe, kept)
        with _alone(fabric, output / "pretrained" / key):
            weights = pretrain(fabric, recipe, data, dataset, output / "pretrained" / key, workers)
        run.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(weights, run.folder / "clip.safetensors")
    method = train(fabric, recipe, data, run.folder, workers)
    if fabric.is_global_zero:
        segmenter = Segmenter(MethodEngine(method, fabric.device.type))
        scores = evaluate(segmenter, data)
        about = {"variant": run.variant, "left_out": run.left_out}
        write_evaluation(run.folder / "evaluation.json", segmenter, scores, data, **about)
        for name in ("last.pt", "clip.safetensors"):  # a study is many runs: what only resuming needs can go
            (run.folder / name).unlink(missing_ok=True)
    fabric.barrier()


@contextmanager
def _alone(fabric: Fabric, folder: Path) -> Iterator[None]:
    """Keep other machines, and other parts of the study, out of what runs share; they wait."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=_ASKS_S)
    try:
        while not fabric.broadcast(fabric.is_global_zero and _taken(lock)):
            pass  # asked again and again: no process may wait at a barrier for hours
        yield
    finally:
        lock.release()


def _taken(lock: FileLock) -> bool:
    """Take a lock if it is free within a moment.

    Raises:
        SpecError: there can be none.
    """
    try:
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:
        raise SpecError(f"cannot lock {lock.lock_file}: {error}") from error
    return True


def _changed(base: Recipe, settings: dict[str, Any], seed: int, sites: tuple[str, ...]) -> Recipe:
    values = override(asdict(base), settings) | {"seed": seed, "train_sites": sites}
    if unknown := sorted(set(values) - set(asdict(base))):
        raise SpecError(f"a study sets {', '.join(unknown)}, which no recipe has")
    return recipe_from(values)


if __name__ == "__main__":
    run_program(main)
