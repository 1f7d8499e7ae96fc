"""Where a run happens: one process or many, on what device, in what precision; and what many must agree on."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mcdrl_rt.engine.openvino import resolve_precision
from mcdrl_rt.errors import SpecError
from training.files import whole
from training.recipe import Recipe, recipe_from
from training.sites import data_root
from training.split import Split

WEIGHTS = "method.safetensors"  # those of a method that are kept, in the end
LOCK = ".lock"
_PATIENCE_S = 10.0  # workers of a process that was killed hold on to its lock for a while
_locks: dict[Path, BaseFileLock] = {}  # a lock that nobody holds on to is let go
TRAINED = ("last.pt", WEIGHTS, "clip.safetensors", "pretraining")  # what a run leaves, once it has begun
BRANCH = "branch-"  # and a seed: the folder of a branch, in that of its run
IMAGES = "images.json"  # which images a run is shown, and which it holds out
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells what we say ourselves
logging.getLogger("lightning.fabric").setLevel(logging.WARNING)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command takes that runs a recipe."""
    parser.add_argument("recipe", type=Path, help="a TOML file of training/recipes")
    parser.add_argument("--output", type=Path, required=True, help="folder for the run's state, logs and checkpoint")
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the sites (default: MCDRL_DATA)")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="settings in place of the recipe's",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--workers", type=count, default=1, help="processes that load data, for each that trains")


def count(text: str) -> int:
    """A number of things on the command line."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes")
    return int(text)


def make_fabric(precision: str = "auto", device: str = "auto") -> Fabric:
    """One process, or this one's part of those that ``torchrun`` or SLURM started.

    Args:
        precision: of ``Recipe``; ``auto`` is bf16 where the device computes in it.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        SpecError: the device is not there, or cannot compute in that precision.
    """
    accelerator = found_device(device)
    if precision == "16-mixed" and accelerator == "cpu":
        raise SpecError("precision '16-mixed' needs a GPU; take 'bf16-mixed' or '32-true' on a CPU")
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported(False) if accelerator == "cuda" else resolve_precision("auto") == "bf16"
        precision = "bf16-mixed" if fast else "32-true"  # in software bf16 would be ten times slower than float32
    nodes, local = _processes()
    strategy: Any = "auto"
    if nodes * local > 1:
        strategy = DDPStrategy(find_unused_parameters=True)  # the causal path is off at first
    fabric = Fabric(accelerator=accelerator, strategy=strategy, devices=local, num_nodes=nodes, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    return fabric


def found_device(wish: str) -> str:
    """``cpu`` or ``cuda``: what is wished for, or with ``auto`` the best that is here.

    Raises:
        SpecError: it is not here.
    """
    cuda = torch.cuda.is_available()
    if wish == "cuda" and not cuda:
        raise SpecError("--device cuda, but torch sees no GPU here")
    return "cuda" if cuda and wish != "cpu" else "cpu"


def _processes() -> tuple[int, int]:
    """Machines, and processes on each, as the launcher says."""
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        return int(environment["WORLD_SIZE"]) // local, local
    if "SLURM_NTASKS" in environment and "SLURM_PROCID" in environment:
        nodes = int(environment.get("SLURM_NNODES", 1))
        return nodes, int(environment["SLURM_NTASKS"]) // nodes
    return 1, 1


def claim(fabric: Fabric, recipe: Recipe, run: Path) -> None:
    """Make the run's folder this process's until it ends, and write ``recipe.json`` into it.

    Raises:
        SpecError: the folder holds what another recipe has trained, or cannot be written, or another process trains in
            it.
    """
    if has_begun(run):
        refuse_other(recipe, run)
    fabric.barrier()
    if fabric.is_global_zero:
        try:
            run.mkdir(parents=True, exist_ok=True)
            lock = FileLock(run / LOCK, timeout=_PATIENCE_S, is_singleton=True)  # of runs in one process the first's
            lock.acquire()
            _locks[run] = lock
            if has_begun(run):  # it may have, while the lock was another's
                refuse_other(recipe, run)
        except Timeout as error:
            raise SpecError(f"another training is at work in {run}; wait for it, or name another --output") from error
        except (OSError, NotImplementedError) as error:
            raise SpecError(f"cannot write to {run}: {error}") from error
        with whole(run / "recipe.json") as partial:
            partial.write_text(json.dumps(dataclasses.asdict(recipe), indent=1, sort_keys=True) + "\n")
    fabric.barrier()


def claim_images(fabric: Fabric, split: Split, run: Path) -> None:
    """Write down which images a run is shown, in ``images.json``.

    Raises:
        SpecError: it has begun with others.
    """
    path = run / IMAGES
    if path.is_file() and has_begun(run) and (began := read_images(path)) != split:
        came = len((split.kept | split.held) - (began.kept | began.held))
        gone = len((began.kept | began.held) - (split.kept | split.held))
        raise SpecError(
            f"{run} was begun with other images ({came} have come since, {gone} are gone); name another --output"
        )
    fabric.barrier()
    if fabric.is_global_zero:
        with whole(path) as partial:
            partial.write_text(split.to_json() + "\n")
    fabric.barrier()


def read_images(path: Path) -> Split:
    """What ``claim_images`` wrote.

    Raises:
        SpecError: it cannot be read.
    """
    try:
        return Split.from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot read {path}: {error}") from error


def has_begun(run: Path) -> bool:
    """Whether something was trained in a run's folder, or in one of its branches."""
    left = [path for path in (run / name for name in TRAINED) if path.exists()]
    return any(path.is_file() or any(path.iterdir()) for path in left) or any(map(has_begun, run.glob(f"{BRANCH}*")))


def refuse_other(recipe: Recipe, run: Path) -> None:
    """Make sure that a folder is of this recipe's run, or says nothing of whose it is.

    Raises:
        SpecError: it is another's.
    """
    path = run / "recipe.json"
    if not path.is_file():
        return
    try:
        was = dataclasses.asdict(recipe_from(json.loads(path.read_text())))
    except (OSError, ValueError, SpecError) as error:
        raise SpecError(f"cannot go on from {path} ({error}); name another --output") from error
    if other := [name for name, value in dataclasses.asdict(recipe).items() if was[name] != value]:
        raise SpecError(f"{run} holds a run with other settings ({', '.join(other)}); name another --output")


def progress_bar(fabric: Fabric) -> Progress:
    """A progress bar, on a terminal and in the first process only."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, transient=True)
    bar.disable = not (fabric.is_global_zero and bar.console.is_terminal)
    return bar
