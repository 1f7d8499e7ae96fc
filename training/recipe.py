"""A training run's every choice, as one frozen dataclass read from ``training/recipes/*.toml``."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mcdrl_rt.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, on what, and how.

    Losses are those of Eq. 9; ``dice``, ``edge``, ``dense`` and ``readout`` are ours, not the paper's, and 0 turns each
    off.

    Args:
        name: of the run and of the model.
        encoder, input_size, grid_stride, classes, confounders, alpha, depth, head: see ``ModelSpec``.
        encoder_weights: a safetensors file for the image trunk, relative to the data folder; empty for none.
        mean, std: what those weights expect.
        train_site: folder of the training site under the data folder.
        validation_count: images of it held out at random, for reporting.
        condition_rate: share of images that get an imaging condition of the dictionary drawn on them.
        phantom_count: synthetic frames rendered once and mixed into every epoch.
        epochs, causal_from_epoch: length, and the first epoch with the intervention network on (0-based).
        lr, encoder_lr, weight_decay, warmup_epochs, batch_size, ema: the optimiser's.
        causal, contrast, temperature: λ1, λ2, τ of Eq. 9 and 12.
        dice, dense, dense_scale: weights of the soft Dice and dense alignment terms; logit scale of the latter.
        edge: extra weight of pixels near a lesion's edge, in the segmentation and Dice terms.
        readout: weight of the term that holds the confounder readout to the conditions drawn.
        pretrain_epochs: contrastive epochs of image and text tower before all else (``training.pretrain``).
        pretrain_lr: their learning rate.
        seed: of everything random.
    """

    name: str
    encoder: str = "mcdrl-small"
    encoder_weights: str = ""
    input_size: tuple[int, int] = (224, 224)
    grid_stride: int = 16
    classes: tuple[str, ...] = ("polyp",)
    confounders: int = 12
    alpha: float = 0.5
    depth: int = 3
    head: str = "detail"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    train_site: str = "Kvasir-SEG"
    validation_count: int = 100
    condition_rate: float = 0.0
    phantom_count: int = 0
    epochs: int = 30
    causal_from_epoch: int = 6
    batch_size: int = 16
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    ema: float = 0.998
    causal: float = 0.5
    contrast: float = 0.1
    temperature: float = 0.5
    dice: float = 1.0
    dense: float = 0.5
    dense_scale: float = 10.0
    edge: float = 0.0
    readout: float = 0.0
    pretrain_epochs: int = 0
    pretrain_lr: float = 3e-4
    seed: int = 0


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides, each a line of TOML: ``epochs=3``, ``encoder='RN50'``.

    Raises:
        SpecError: the file is missing or no TOML, or names a setting that does not exist.
    """
    try:
        values = tomllib.loads(path.read_text())
        for line in overrides:
            values |= tomllib.loads(line)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SpecError(f"cannot read recipe {path} with {list(overrides)}: {error}") from error
    known = {field.name for field in dataclasses.fields(Recipe)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise SpecError(f"recipe {path} has unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if "name" not in values:
        raise SpecError(f"recipe {path} has no name")
    return Recipe(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
