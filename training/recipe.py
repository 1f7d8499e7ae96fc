"""A training run's every choice, as one frozen dataclass read from ``training/recipes/*.toml``."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcdrl_rt.errors import SpecError

RECIPES = Path(__file__).with_name("recipes")
_TAKEN = ("method", "clip", "start")  # by what a run leaves beside its checkpoint
METHODS = ("mcdrl", "baseline", "wo-mtrs", "wo-cdrl", "stylip", "biomedcoop", "unet")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, on what, and how.

    Losses are those of Eq. 9; ``dice``, ``edge``, ``dense`` and ``readout`` are ours, not the paper's, and 0 turns each
    off.

    Args:
        name: of the run and of the model.
        method: what is trained (``training.methods``).
        encoder, input_size, grid_stride, classes, confounders, alpha, depth, head: see ``ModelSpec``.
        pretrained: open_clip's name of the CLIP weights to start from (``openai``); empty for none.
        encoder_weights: a safetensors file for the image trunk, relative to the data folder; empty for none.
        start: a checkpoint of ``mcdrl-rt`` to train further, in place of those weights and of pretraining: a file, or
            ``mcdrl-small``, the shipped one; empty for none.
        start_share: of the start's weights in those kept, the rest being the trained ones' (WiSE-FT, arXiv 2109.01903):
            what was known is forgotten less, and what is new learned less.
        branches: trainings from that start, each with a seed of its own (the recipe's + 1, + 2, …), whose mean is kept
            (DiWA, arXiv 2205.09739): what is theirs alone averages out; 0 for one training, with the recipe's seed.
        mean, std: what those weights expect.
        train_sites: folders of the training sites under the data folder.
        validation_share: of every training site, whole groups, held out for the selection rule and for reporting.
        bad_images: ``stop`` at a file that cannot be read, or ``skip`` it and say so.
        deployed_alpha: α of the checkpoint, where it shall differ from training's: 0 for the same.
        condition_rate: share of images that get an imaging condition of the dictionary drawn on them.
        augmentation: random views of an image: ``none``, ``plain`` (flips, scale, colour) or ``endoscopy`` (also free
            rotation, processor colours and blur).
        style_rate: share of the images that take on colours of another one (``training.style``).
        part_rate: share of the images shown by a part of them; half of these parts have no lesion.
        blank_rate: share of the images in whose place nothing is seen: one colour, and noise.
        phantom_count: synthetic frames rendered once and mixed into every epoch.
        epochs, causal_from_epoch: length, and the first epoch with the intervention network on (0-based).
        batch_size: images in an optimiser step, over all processes.
        accumulate: parts such a batch is worked through in, one after the other.
        lr, encoder_lr, weight_decay, warmup_epochs, schedule, ema: the optimiser's; ``schedule`` is ``cosine`` or
            ``constant``.
        precision: ``auto``, ``32-true``, ``bf16-mixed``, ``16-mixed``, or ``64-true`` to tell a bug from rounding.
        patience: epochs without a better Dice on the held-out part (of images without lesion, 1 if nothing is marked,
            else 0) after which training ends, and the best epoch's weights are kept; 0 trains to the end and keeps the
            last.
        causal, contrast, temperature: λ1, λ2, τ of Eq. 9 and 12.
        dice, dense, dense_scale: weights of the soft Dice and dense alignment terms; logit scale of the latter.
        edge: extra weight of pixels near a lesion's edge, in the segmentation and Dice terms.
        readout: weight of the term that holds the confounder readout to the conditions drawn.
        pretrain_epochs: contrastive epochs of image and text tower before all else (``training.pretrain``).
        pretrain_lr: their learning rate.
        seed: of everything random.
    """

    name: str
    method: str = "mcdrl"
    encoder: str = "mcdrl-small"
    pretrained: str = ""
    encoder_weights: str = ""
    start: str = ""
    start_share: float = 0.0
    branches: int = 0
    input_size: tuple[int, int] = (224, 224)
    grid_stride: int = 0
    classes: tuple[str, ...] = ("polyp",)
    confounders: int = 12
    alpha: float = 0.5
    deployed_alpha: float = 0.0
    depth: int = 3
    head: str = "detail"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    train_sites: tuple[str, ...] = ("Kvasir-SEG",)
    validation_share: float = 0.1
    bad_images: str = "stop"
    condition_rate: float = 0.0
    augmentation: str = "endoscopy"
    style_rate: float = 0.0
    part_rate: float = 0.0
    blank_rate: float = 0.0
    phantom_count: int = 0
    epochs: int = 30
    causal_from_epoch: int = 6
    batch_size: int = 16
    accumulate: int = 1
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    schedule: str = "cosine"
    ema: float = 0.998
    precision: str = "auto"
    patience: int = 0
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

    @property
    def pretrains(self) -> bool:
        """Whether contrastive pretraining comes first; the U-Net has no text to be aligned with."""
        return self.pretrain_epochs > 0 and self.method != "unet" and not self.start

    @property
    def skips_bad(self) -> bool:
        """Whether images that cannot be used are left out, instead of stopping the run."""
        return self.bad_images == "skip"

    @property
    def intervenes(self) -> bool:
        """Whether the method has a causal network."""
        return self.method in ("mcdrl", "wo-mtrs") and self.depth > 0

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(type(self)).items():
            if not _is(getattr(self, name), kind):
                raise SpecError(f"recipe {self.name!r} has an unusable {name}: {getattr(self, name)!r}")
        choices = {
            "method": METHODS,
            "bad_images": ("stop", "skip"),
            "augmentation": ("none", "plain", "endoscopy"),
            "schedule": ("cosine", "constant"),
            "precision": ("auto", "32-true", "64-true", "bf16-mixed", "16-mixed"),
        }
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise SpecError(f"recipe {self.name!r}: {name} is one of {', '.join(known)}, not {value!r}")
        amounts = ("weight_decay", "warmup_epochs", "causal", "contrast", "dice", "dense", "edge", "readout")
        counts = ("patience", "phantom_count", "pretrain_epochs", "causal_from_epoch", "grid_stride", "branches")
        negative = [name for name in (*amounts, *counts) if getattr(self, name) < 0]
        odd_sites = [repr(name) for name in self.train_sites if not _is_name(name)]
        problems = {
            "a name that no file can have": not _is_name(self.name) or self.name in _TAKEN,
            "no train_sites": not self.train_sites,
            f"train_sites that are no names of folders below the data folder ({', '.join(odd_sites)})": odd_sites,
            "a site twice in train_sites": len(set(self.train_sites)) < len(self.train_sites),
            f"a {', '.join(negative)} below 0": negative,
            "a temperature, or a dense_scale, that is not above 0": min(self.temperature, self.dense_scale) <= 0,
            f"a start, which is for method mcdrl, not {self.method}": self.start and self.method != "mcdrl",
            "a start_share outside [0, 1)": not 0 <= self.start_share < 1,
            "a start_share, but no start": self.start_share and not self.start,
            "branches, but no start that they branch off": self.branches and not self.start,
            "a validation_share outside [0, 1)": not 0 <= self.validation_share < 1,
            "patience, but no validation_share to go by": self.patience and not self.validation_share,
            "no epochs": self.epochs < 1,
            "a learning rate that is not above 0": min(self.lr, self.encoder_lr, self.pretrain_lr) <= 0,
            "a rate outside [0, 1]": not all(
                0 <= rate <= 1 for rate in (self.condition_rate, self.style_rate, self.part_rate, self.blank_rate)
            ),
            "a deployed_alpha outside [0, 1]": not 0 <= self.deployed_alpha <= 1,
            "a class called none, which is what an image without lesion has": "none" in self.classes,
            "a seed outside [0, 2³²)": not 0 <= self.seed < 1 << 32,
            "an ema outside [0, 1)": not 0 <= self.ema < 1,
            "a batch_size that accumulate does not divide": self.batch_size < 1
            or self.accumulate < 1
            or self.batch_size % self.accumulate,
        }
        for what, wrong in problems.items():
            if wrong:
                raise SpecError(f"recipe {self.name!r} has {what}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply overrides, each a line of TOML: ``epochs=3``, ``encoder='RN50'``.

    A recipe may name another, beside it, that it builds on: ``base = "tuned.toml"``.

    Raises:
        SpecError: the file is missing or no TOML, or has a setting that does not exist or cannot be.
    """
    try:
        values = _read(path)
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot read recipe {path}: {error}") from error
    own: dict[str, Any] = {}
    for line in overrides:
        own |= _setting(line)
    values = override(values, own)
    try:
        return recipe_from(values)
    except SpecError as error:
        raise SpecError(f"recipe {path}: {error}") from error


def recipe_from(values: dict[str, Any]) -> Recipe:
    """A recipe from what TOML or JSON holds: lists for tuples.

    Raises:
        SpecError: there is a setting that no recipe has, or one that cannot be.
    """
    known = {field.name for field in dataclasses.fields(Recipe)}
    if unknown := sorted(set(values) - known):
        raise SpecError(f"unknown settings {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if "name" not in values:
        raise SpecError("has no name")
    return Recipe(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def lineage(provenance: Mapping[str, str]) -> list[Recipe]:
    """The recipes that a model was trained by, as its checkpoint carries them: the last first, then its start's.

    Raises:
        SpecError: one of them is of another version of this package.
    """
    recipes = []
    while "recipe" in provenance:
        recipes.append(recipe_from(json.loads(provenance["recipe"])))
        provenance = json.loads(provenance.get("start", "{}"))
    return recipes


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    values = tomllib.loads(path.read_text())
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"base is the name of a recipe's file, not {base!r}")
    if path in above:
        raise SpecError(f"recipe {path} builds on itself")
    return override(_read(path.parent / base, (*above, path)), values)


def override(values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Settings with others in their places: a deployed α belongs to the α that it was set with."""
    kept = {name: value for name, value in values.items() if name != "deployed_alpha" or "alpha" not in own}
    return kept | own


def _setting(line: str) -> dict[str, Any]:
    """What an override sets.

    Raises:
        SpecError: it is no TOML; said is how it is, of text without quotes above all, which shells take away.
    """
    try:
        return tomllib.loads(line)
    except ValueError:  # no TOML, or a number of thousands of digits
        name, _, text = (part.strip() for part in line.partition("="))
    if not name or not text:
        raise SpecError(f"--set {line}: a setting is NAME=VALUE, epochs=3")
    kind = typing.get_type_hints(Recipe).get(name)
    if kind is None:
        return {name: text}  # refused with the names there are
    many = typing.get_origin(kind) is tuple
    if str not in (kind, *typing.get_args(kind)):
        wanted = "numbers in brackets, [96, 96]" if many else "a number, 3 or 0.5"
        raise SpecError(f"--set {line}: {name} is {wanted}")
    words = [word.strip(" '\"[]") for word in (text.split(",") if many else [text])]
    quoted = shlex.quote(f"{name}={json.dumps(words if many else words[0], ensure_ascii=False)}")
    raise SpecError(f"--set {line}: text needs quotes, --set {quoted}")


def _is(value: object, kind: object) -> bool:
    """Whether a value is of an annotated type; a whole number is a float too."""
    if isinstance(kind, types.GenericAlias):
        inner = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            return False
        return all(_is(item, inner[0]) for item in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is kind


def _is_name(text: str) -> bool:
    """Whether a file or folder may be called so."""
    return bool(text) and text == Path(text).name and text not in (".", "..") and "\0" not in text
