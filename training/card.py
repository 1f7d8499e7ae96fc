"""The model card: written by the evaluation from what it measured, and from what the checkpoint carries."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcdrl_rt.engine.choice import PRECISIONS
from mcdrl_rt.types import ModelSpec
from training.dataset import PARTS
from training.files import whole
from training.methods.causal import without_contrast
from training.recipe import RECIPES, Recipe, lineage, load_recipe

_ROWS = (
    ("images", "images"),
    ("dice", "mean Dice"),
    ("iou", "mean IoU"),
    ("accuracy", "pixel accuracy"),
    ("s_measure", "S-measure"),
    ("hd95", "HD95 in pixels (an image missed counts its diagonal)"),
    ("selection_recall", "selection recall (share of lesion area under selected cells)"),
    ("dice_small", "Dice, lesions < 2 % of the image"),
    ("dice_medium", "Dice, lesions 2–10 %"),
    ("dice_large", "Dice, lesions ≥ 10 %"),
    ("recall_small", "selection recall, lesions < 2 %"),
)

_TEXT = """# Model card: {name}

**Research use only. Not a medical device.** The model marks lesions of the classes below in endoscopic
images. It was never tested in patients, and no decision about a patient may rest on it.

| | |
|---|---|
| method | MCDRL (arXiv 2508.05008), our implementation |
| encoder | {encoder}, {height}×{width} pixels, grid {grid}, d = {dim} |
| classes | {classes} |
| selection | α = {alpha}: {selected} of {tokens} cells{trained_alpha} |
| causal network | depth {depth}, {confounders} confounders |
| text tower | {text_tower} |
| weights | SHA-256 {weights} |

## Training data
{training_data}

## Measured
At each image's own size, labels without a threshold, per image and then averaged. Engine: {engine}.

{table}

{conditions}## Confounder readout
Share of pictures in which the weight of a condition rises when that condition is drawn on them: held-out
pictures, and scenes of the phantom rendered in white light and at a site. Where it is near one half the readout says
nothing of that condition. White light cannot be drawn, nor can a distant view: what is black around a
shrunk picture the runtime cuts away, and a mirrored one is no distant one.

{readout}

## Known limits
No other class; no other training data; a lesion that covers more than the selected share of the cells cannot be
segmented whole; folds, text, instruments and bubbles can be marked.{limits}
{notes}
## Recipe
{recipes}
"""

_KNOWN = {
    "Kvasir-SEG": "Kvasir-SEG (Jha et al. 2020), as published in HyperKvasir under CC BY 4.0 (Borgli et al. 2020)",
    "CVC-ClinicDB": "CVC-ClinicDB (Bernal et al. 2015)",
    "weights/mobilenetv2_100_imagenet.safetensors": (
        "MobileNetV2 ImageNet weights (Apache-2.0, google-coral/test_data, dequantised)"
    ),
}

def write_card(checkpoint: Path, spec: ModelSpec, measured: dict[str, Any]) -> None:
    """Write ``CHECKPOINT.json`` (the figures) and ``CHECKPOINT.md`` (the card made from them).

    Raises:
        SpecError: they cannot be written.
    """
    with whole(checkpoint.with_suffix(".json")) as figures:
        figures.write_text(json.dumps(measured, indent=1) + "\n")
    with whole(checkpoint.with_suffix(".md")) as card:
        card.write_text(render_card(spec, measured, notes_on(checkpoint)))


def notes_on(checkpoint: Path) -> str:
    """What people wrote of a checkpoint, in ``CHECKPOINT.notes.md`` beside it: what no measurement can tell."""
    path = checkpoint.with_suffix(".notes.md")
    return path.read_text().strip() if path.is_file() else ""


def render_card(spec: ModelSpec, measured: dict[str, Any], notes: str = "") -> str:
    """The card's text for a specification, the content of its figures file, and the notes on it."""
    recipes = lineage(spec.provenance)
    trained_alpha = f"; trained with α = {recipes[0].alpha}" if recipes and recipes[0].alpha != spec.alpha else ""
    return _TEXT.format(
        name=spec.name,
        encoder=spec.encoder,
        height=spec.input_size[0],
        width=spec.input_size[1],
        grid=f"{spec.grid[0]}×{spec.grid[1]}",
        dim=spec.embed_dim,
        classes=", ".join(spec.classes),
        alpha=spec.alpha,
        selected=spec.selected,
        trained_alpha=trained_alpha,
        tokens=spec.tokens,
        depth=spec.depth,
        confounders=len(spec.confounders),
        text_tower=_text_tower(recipes),
        weights=measured["weights"],
        training_data=_training_data(recipes, measured["sites"]),
        readout=_readout(measured.get("readout", {})),
        conditions=_conditions({site: dice for site, dice in measured.get("conditions", {}).items() if dice}),
        engine=measured["engine"],
        table=_table(measured["sites"]),
        limits=_limits(measured),
        notes=f"\n## Notes\n{notes}\n" if notes else "",
        recipes=_recipes(recipes, measured["engine"], measured.get("options", "")),
    )


def _text_tower(recipes: Sequence[Recipe]) -> str:
    """How the prompts were encoded."""
    epochs = next((recipe.pretrain_epochs for recipe in recipes if recipe.pretrains), 0)
    text = (
        f"trained with the image tower on pairs of a picture and a prompt ({epochs} epochs, `training/pretrain.py`), "
        "then frozen: it knows the prompts of this model and no other language"
        if epochs
        else "frozen"
    )
    one = len(recipes[0].classes) == 1 if recipes else False
    return text + (". With one class the contrastive loss (Eq. 12) is zero" if one else "")


def _training_data(recipes: Sequence[Recipe], sites: Mapping[str, object]) -> str:
    """What the model has seen, in every run it comes from, and what it was measured on unseen."""
    lines = []
    trained = {site: recipe for recipe in recipes for site in recipe.train_sites}
    for site, recipe in trained.items():
        held = f"all but {recipe.validation_share:.0%}, which were drawn at random (seed {recipe.seed}) and held out"
        shares = [run.validation_share for run in recipes if site in run.train_sites]
        lines.append(f"- {_KNOWN.get(site, site)}: {held if all(shares) else 'all of it'}.")
    if phantoms := _phantoms(recipes):
        lines.append(f"- {phantoms} frames of this package's procedural phantom.")
    if recipes and (start := recipes[-1].encoder_weights or recipes[-1].pretrained):
        lines.append(f"- Encoder start: {_KNOWN.get(start, start)}.")
    unseen = [title.removesuffix(" (unseen)") for title in sites if title.endswith(" (unseen)")]
    if unseen:
        lines.append(f"- Never trained on: {'; '.join(_KNOWN.get(site, site) for site in unseen)}.")
    if recipes:
        patience = any(recipe.patience for recipe in recipes)
        epoch = "at an epoch that the held-out images chose" if patience else "at the last epoch, which no image chose"
        mean = f"the mean of {recipes[0].branches} trainings' weights, of each " if recipes[0].branches else ""
        lines.append(f"- The weights are {mean}the moving average {epoch}.")
    return "\n".join(lines)


def _phantoms(recipes: Sequence[Recipe]) -> str:
    """How many synthetic frames it has seen: each branch others, and of runs of one seed the later ones no others."""
    first = max((recipe.phantom_count for recipe in recipes if not recipe.branches), default=0)
    of_branches = [f"{r.branches} × {r.phantom_count}" for r in reversed(recipes) if r.branches and r.phantom_count]
    return " + ".join([str(first)] * bool(first) + of_branches)


def _recipes(recipes: Sequence[Recipe], engine: str, options: str) -> str:
    """How to train each run, the first one first, with what settings, and how to measure the last in that engine."""
    known = {without_contrast(load_recipe(path)): f"training/recipes/{path.name}" for path in RECIPES.glob("*.toml")}
    lines: list[str] = []
    for recipe in reversed(recipes):
        file = known.get(recipe, "RECIPE")
        run = f"runs/{Path(file).stem}" if recipe in known else "RUN"
        lines += [f"`python -m training.train {file} --output {run}`, seed {recipe.seed}:", "", "```json"]
        lines += [json.dumps(dataclasses.asdict(recipe), indent=1, sort_keys=True), "```", ""]
    name = f"{run}/{recipe.name}" if recipes else "NAME"
    precision = "".join(f" --precision {word}" for word in engine.split() if word in PRECISIONS)
    command = f"python -m training.evaluate {name}.safetensors{precision}{options} --card"
    return "\n".join([*lines, f"Measured by `{command}`."])


def _table(sites: dict[str, dict[str, float]]) -> str:
    lines = ["| | " + " | ".join(sites) + " |", "|---|" + "---|" * len(sites)]
    for key, title in _ROWS:
        digits = {"images": 0, "hd95": 1}.get(key, 3)
        band = key.removeprefix("dice_") if key.startswith("dice_") else ""
        cells = []
        for site in sites.values():
            of = f" ({site[f'images_{band}']:.0f} images)" if f"images_{band}" in site else ""
            cells.append(f"{site[key]:.{digits}f}{of}" if key in site else "")
        if any(cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _conditions(measured: Mapping[str, Mapping[str, float]]) -> str:
    """How well it does under every condition that can be drawn."""
    if not measured:
        return ""
    lines = ["## Under imaging conditions", "Mean Dice on a hundred of these images at most, of each site, when a"]
    lines += ["condition of the dictionary is drawn on them (`training/conditions.py`).", ""]
    lines += ["| condition drawn | " + " | ".join(measured) + " |", "|---|" + "---|" * len(measured)]
    for name in dict.fromkeys(name for site in measured.values() for name in site):
        cells = [f"{site[name]:.3f}" if name in site else "" for site in measured.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", ""])


def _limits(measured: Mapping[str, Any]) -> str:
    """What it makes of pictures without lesion, and of none."""
    lines = [""]
    if parts := {site: found for site, found in measured.get("parts", {}).items() if found}:
        lines += ["", f"On parts of these images, {PARTS[0]} to {PARTS[1]} of their sides, enlarged:", ""]
        lines += ["| | parts | without lesion: more than 1 % marked | area marked | with some of one: Dice |"]
        lines += ["|---|---|---|---|---|"]
        for site, found in parts.items():
            marked, area, dice = f"{found['marked']:.0%}", f"{found['area']:.1%}", f"{found['dice']:.3f}"
            lines += [f"| {site} | {found['parts']} | {marked} | {area} | {dice} |"]
    if empty := measured.get("empty", {}):
        lines += ["", "Of a picture of one colour, which shows nothing (a white card, a fogged lens), it marks:"]
        lines += ["", "| picture | share marked |", "|---|---|"]
        lines += [f"| {title} | {share:.0%} |" for title, share in empty.items()]
    return "\n".join(lines)


def _readout(measured: dict[str, dict[str, float]]) -> str:
    lines = ["| condition drawn | rises in |", "|---|---|"]
    for where, title in (("real", "{}"), ("phantom", "phantom site {}")):
        lines += [f"| {title.format(name)} | {share:.0%} |" for name, share in measured.get(where, {}).items()]
    return "\n".join(lines)
