"""The model card: written by the evaluation from what it measured, and from what the checkpoint carries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mcdrl_rt.types import ModelSpec

_ROWS = (
    ("images", "images"),
    ("dice", "mean Dice"),
    ("iou", "mean IoU"),
    ("accuracy", "pixel accuracy"),
    ("s_measure", "S-measure"),
    ("hd95", "HD95 in pixels (an image missed counts its diagonal)"),
    ("selection_recall", "selection recall (share of lesion pixels under selected cells)"),
    ("dice_small", "Dice, lesions < 2 % of the image"),
    ("dice_medium", "Dice, lesions 2–10 %"),
    ("dice_large", "Dice, lesions ≥ 10 %"),
    ("recall_small", "selection recall, lesions < 2 %"),
)

_TEXT = """# Model card: {name}

**Research use only. Not a medical device.** The model marks polyps in colonoscopy images. It was never tested in
patients, and no decision about a patient may rest on it.

| | |
|---|---|
| method | MCDRL (arXiv 2508.05008), our implementation |
| encoder | {encoder}, {height}×{width} pixels, grid {grid}, d = {dim} |
| classes | {classes} |
| selection | α = {alpha}: {selected} of {tokens} cells{trained_alpha} |
| causal network | depth {depth}, {confounders} confounders |
| text tower | trained with the image tower on pairs of a picture and a prompt ({pretrain_epochs} epochs, `training/pretrain.py`), then frozen: it knows the prompts of this model and no other language. With one class the contrastive loss (Eq. 12) is zero |

## Training data
- Kvasir-SEG (Jha et al. 2020), as published in HyperKvasir under CC BY 4.0 (Borgli et al. 2020): all but
  {share}, which were drawn at random (seed {seed}) and held out.
- {phantom} frames of this package's procedural phantom.
- Encoder start: MobileNetV2 ImageNet weights (Apache-2.0, google-coral/test_data, dequantised).
- Never trained on: CVC-ClinicDB (Bernal et al. 2015). The weights are the moving average at the last epoch; no image
  chose them. Three earlier models were measured on it: a trial (224×224, 10 epochs) before input size and scale
  augmentation were settled, and the two that were shipped before. The head and the restyling of this one were settled
  the other way round, on models trained on CVC-ClinicDB and measured on Kvasir-SEG.

## Measured
At each image's own size, labels without a threshold, per image and then averaged. Engine: {engine}.

{table}

## Confounder readout
Share of pictures in which the weight of a condition rises when that condition is drawn on them: held-out
pictures, and scenes of the phantom rendered in white light and at a site. Where it is near one half the readout says
nothing of that condition.

{readout}

Known limits: one lesion class; one training data set; a lesion that covers more than the selected share of the cells
cannot be segmented whole; folds, text, instruments and bubbles can be marked.

## Recipe
`python -m training.train training/recipes/small.toml --output runs/small`, then
`python -m training.evaluate runs/small/{name}.safetensors --card`. Seed {seed}. The settings the checkpoint carries:

```json
{recipe}
```
"""  # noqa: E501 (a table row is one line)


def write_card(checkpoint: Path, spec: ModelSpec, measured: dict[str, Any]) -> None:
    """Write ``CHECKPOINT.json`` (the figures) and ``CHECKPOINT.md`` (the card made from them)."""
    checkpoint.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n")
    checkpoint.with_suffix(".md").write_text(render_card(spec, measured))


def render_card(spec: ModelSpec, measured: dict[str, Any]) -> str:
    """The card's text for a specification and the content of its figures file."""
    recipe = json.loads(spec.provenance.get("recipe", "{}"))
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
        trained_alpha="" if recipe.get("alpha") == spec.alpha else f"; trained with α = {recipe.get('alpha')}",
        tokens=spec.tokens,
        depth=spec.depth,
        confounders=len(spec.confounders),
        share=f"{recipe.get('validation_share', 0):.0%}",
        pretrain_epochs=recipe.get("pretrain_epochs"),
        readout=_readout(measured.get("readout", {})),
        phantom=recipe.get("phantom_count"),
        seed=recipe.get("seed"),
        engine=measured["engine"],
        table=_table(measured["sites"]),
        recipe=json.dumps(recipe, indent=1, sort_keys=True),
    )


def _table(sites: dict[str, dict[str, float]]) -> str:
    lines = ["| | " + " | ".join(sites) + " |", "|---|" + "---|" * len(sites)]
    for key, title in _ROWS:
        digits = {"images": 0, "hd95": 1}.get(key, 3)
        cells = [f"{site[key]:.{digits}f}" for site in sites.values() if key in site]
        if len(cells) == len(sites):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _readout(measured: dict[str, dict[str, float]]) -> str:
    lines = ["| condition drawn | rises in |", "|---|---|"]
    for where, title in (("real", "{}"), ("phantom", "phantom site {}")):
        lines += [f"| {title.format(name)} | {share:.0%} |" for name, share in measured.get(where, {}).items()]
    return "\n".join(lines)
