"""Measure a model as users run it: ``python -m training.evaluate runs/small/mcdrl-small.safetensors``.

Every image goes through ``Segmenter`` at its own size, and labels are compared at that size, without a threshold. A
checkpoint runs in the engine users get; a run's folder (``runs/small``) in torch, whatever its method, and leaves
``evaluation.json`` there for ``training.report``. Measured are the held-out part of every training site and every
other site under the data folder, none of which the model has seen.

``--card`` writes the model card beside the checkpoint from the figures just measured, and from nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcdrl_rt.console import run_program
from mcdrl_rt.engine.base import Engine, RawOutput
from mcdrl_rt.engine.sidecar import file_hash
from mcdrl_rt.errors import McdrlError, SourceError, SpecError
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import UInt8Array
from training.card import write_card
from training.files import whole
from training.launch import found_device
from training.methods import Method
from training.metrics import ImageScore, score_image, selected_pixels, summarise
from training.readout import (
    dice_under_conditions,
    marked_on_empty,
    measure_parts,
    readout_on_phantom,
    readout_on_real,
)
from training.recipe import lineage
from training.sites import MENDED, Sample, class_ids, data_root, find_sites, load_site, read_sample, site_names
from training.split import Split, in_order, split_of
from training.train import load_method

DRAWN_ON = 100  # images of a site that conditions are drawn on
_FIELDS = [field.name for field in dataclasses.fields(ImageScore)]


@dataclass(frozen=True)
class SiteScores:
    """One site's images and how a model did on each.

    Args:
        unseen: no image of the site was trained on.
        samples, scores: side by side.
    """

    unseen: bool
    samples: list[Sample]
    scores: list[ImageScore]

    def figures(self) -> dict[str, float]:
        """Means over the images, and Dice for every class."""
        figures = summarise(self.scores)
        classes = sorted({sample.lesion for sample in self.samples})
        if len(classes) > 1:
            for name in classes:
                dice = [t.dice for s, t in zip(self.samples, self.scores, strict=True) if s.lesion == name]
                figures[f"dice[{name}]"] = round(sum(dice) / len(dice), 4)
        return figures


def main() -> int:
    """Command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a checkpoint, or the folder of a finished run")
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the sites (default: MCDRL_DATA)")
    parser.add_argument("--engine", default="auto", help="for a checkpoint")
    parser.add_argument("--precision", default="auto", help="for a checkpoint")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for a run")
    parser.add_argument("--sites", nargs="+", default=[], metavar="NAME", help="measure on these (default: on all)")
    parser.add_argument("--bad-images", choices=("stop", "skip"), help="default: what the model's recipe says")
    parser.add_argument("--card", action="store_true", help="write CHECKPOINT.md and CHECKPOINT.json beside it")
    arguments = parser.parse_args()
    try:
        if arguments.card and arguments.model.is_dir():
            raise SpecError(f"a card is a checkpoint's: name the one in {arguments.model}, which ends in .safetensors")
        if arguments.card and arguments.sites:
            raise SpecError("a card tells of all sites there are: leave --sites out")
        if arguments.model.is_dir():
            engine: Engine = MethodEngine(load_method(arguments.model, arguments.data), arguments.device)
            segmenter = Segmenter(engine)
        else:
            segmenter = Segmenter.load(arguments.model, engine=arguments.engine, precision=arguments.precision)
        skip_bad = None if arguments.bad_images is None else arguments.bad_images == "skip"
        sites = evaluate(segmenter, arguments.data, only=arguments.sites, skip_bad=skip_bad)
        if arguments.model.is_dir():
            path = arguments.model / "evaluation.json"
            write_evaluation(path, segmenter, sites, arguments.data, **_place_in_study(path))
        measured = {
            "model": segmenter.spec.name,
            "weights": "" if arguments.model.is_dir() else file_hash(arguments.model),
            "engine": segmenter.engine.name,
            **({"options": f" --bad-images {arguments.bad_images}"} if arguments.bad_images else {}),
            "sites": {_title(name, scores): scores.figures() for name, scores in sites.items()},
            "readout": measure_readout(segmenter, sites),
            "conditions": {
                _title(name, scores): dice_under_conditions(
                    segmenter, [read_sample(sample) for sample in evenly(scores.samples, DRAWN_ON)]
                )
                for name, scores in sites.items()
            },
            "parts": {
                _title(name, scores): measure_parts(segmenter, map(read_sample, scores.samples))
                for name, scores in sites.items()
            },
            "empty": marked_on_empty(segmenter),
        }
        print(json.dumps(measured, indent=1))
        if arguments.card:
            write_card(arguments.model, segmenter.spec, measured)
    except McdrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def evaluate(
    segmenter: Segmenter,
    data: Path,
    most: int | None = None,
    *,
    only: Collection[str] = (),
    skip_bad: bool | None = None,
) -> dict[str, SiteScores]:
    """Scores on the training sites' held-out parts and on every other site at hand, by name.

    Training sites are those of the model's own recipe, and of those that it started from.

    A site with a class that the model does not know is left out, and that is said on standard error.

    Args:
        segmenter: what is measured.
        data: the folder of the sites.
        most: images of each site, spread evenly over it; all, by default.
        only: names of the sites to measure; all, by default.
        skip_bad: leave out images that cannot be used, and say so, instead of raising; by default as the recipe has it.

    Raises:
        SourceError: an image cannot be used, one of ``only`` is no site there, or there is nothing to measure on.
    """
    recipes = lineage(segmenter.spec.provenance)
    if skip_bad is None:
        skip_bad = bool(recipes) and recipes[0].skips_bad
    folders = {folder.name: folder for folder in find_sites(data)}
    here = {name: folder.name for folder in folders.values() for name in site_names(folder)}
    here |= {name: name for name in folders}
    trained = [here.get(name, name) for recipe in reversed(recipes) for name in recipe.train_sites]
    wanted = {here.get(name, name) for name in only or folders}
    if strange := sorted(wanted - set(folders)):
        raise SourceError(f"{', '.join(strange)} is no site in {data}, which has {', '.join(folders) or 'none'}")
    split = split_of(segmenter.spec.provenance, data, here)
    scores = {}
    for name in dict.fromkeys([*trained, *folders]):
        if name not in folders and not only:
            print(f"{name}, which it was trained on, is not in {data}: not measured", file=sys.stderr)
        if name not in wanted:
            continue
        samples = load_site(folders[name], skip_bad)
        # a folder that was renamed since is told by what its manifest calls the site, which ids begin with
        seen = name in trained or any(split.side(sample, data) is not None for sample in samples)
        if seen:
            samples = _held_out(samples, split, data)
        if strange := sorted({sample.lesion for sample in samples} - class_ids(segmenter.spec.classes).keys()):
            print(f"{name} is left out: the model knows no {', '.join(strange)}", file=sys.stderr)
        elif samples:
            readable, its = evaluate_samples(segmenter, evenly(samples, most or len(samples)), skip_bad)
            if its:
                scores[name] = SiteScores(not seen, readable, its)
    if not scores:
        raise SourceError(f"nothing in {data} could be measured on; name images of its classes it was not trained on")
    return scores


def _held_out(samples: Sequence[Sample], split: Split, data: Path) -> list[Sample]:
    """Those that a model's trainings held out; how many there are that they knew nothing of is said."""
    sides = [split.side(sample, data) for sample in samples]
    if new := sides.count(None):
        where = samples[0].image.relative_to(data).parts[0]
        print(f"{new} images have come to {where} since it was trained on: not measured", file=sys.stderr)
    return in_order([sample for sample, kept in zip(samples, sides, strict=True) if kept is False])


def evenly(samples: Sequence[Sample], most: int) -> list[Sample]:
    """``most`` samples or all there are, spread evenly."""
    places = np.linspace(0, len(samples) - 1, min(most, len(samples))).round().astype(int)
    return [samples[i] for i in places]


def measure_readout(segmenter: Segmenter, sites: Mapping[str, SiteScores]) -> dict[str, dict[str, float]]:
    """How often a condition's weight rises when it is drawn (``training.readout``), on held-out pictures and phantoms.

    Empty for what has no readout.
    """
    held = [sample for site in sites.values() if not site.unseen for sample in site.samples]
    if not segmenter.spec.depth or not held:
        return {}
    pictures = [read_sample(sample)[0] for sample in evenly(held, DRAWN_ON)]
    return {"real": readout_on_real(segmenter, pictures), "phantom": readout_on_phantom(segmenter)}


def evaluate_samples(
    segmenter: Segmenter, samples: Sequence[Sample], skip_bad: bool = False
) -> tuple[list[Sample], list[ImageScore]]:
    """Score each image.

    Args:
        segmenter: what is measured.
        samples: of classes that it knows.
        skip_bad: leave out images that cannot be read, and say so on standard error, instead of raising.

    Returns:
        The images that could be read, and their scores.

    Raises:
        SourceError: an image cannot be read.
    """
    ids = class_ids(segmenter.spec.classes)
    readable, scores = [], []
    for sample in samples:
        try:
            pixels, truth = read_sample(sample, ids[sample.lesion])
        except SourceError as error:
            if not skip_bad:
                raise SourceError(f"{error}; {MENDED}") from error
            print(f"left out: {error}", file=sys.stderr)
            continue
        readable.append(sample)
        out = segmenter(pixels)
        seen = selected_pixels(out.selected, segmenter.spec, out.region, truth.shape)
        scores.append(score_image(out.labels, truth, seen))
    return readable, scores


def write_evaluation(
    path: Path, segmenter: Segmenter, sites: Mapping[str, SiteScores], data: Path, **about: str
) -> None:
    """Every image's figures, and their means, for ``training.report``; ``about`` is written as it is."""
    content: dict[str, Any] = {
        **about,
        "engine": segmenter.engine.name,
        "recipe": json.loads(segmenter.spec.provenance["recipe"]),
        "sites": {
            name: {
                "unseen": site.unseen,
                "figures": site.figures(),
                "images": {
                    "image": [sample.image.name for sample in site.samples],
                    "place": [sample.image.relative_to(data / name).as_posix() for sample in site.samples],
                    "group": [sample.group for sample in site.samples],
                    **{name: [_rounded(getattr(score, name)) for score in site.scores] for name in _FIELDS},
                },
            }
            for name, site in sites.items()
        },
    }
    with whole(path) as partial:
        partial.write_text(json.dumps(content) + "\n")


def _place_in_study(path: Path) -> dict[str, str]:
    """What ``training.study`` noted of a run in its evaluation, if it is one of a study."""
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {name: known[name] for name in ("variant", "left_out") if name in known}


class Deployed(nn.Module):
    """Any method with what the deployed form does around its network: the contract of ``FoldedMCDRL.forward``."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method, self.spec = method.eval(), method.spec

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        out = self.method.predict(self.method.normalise(frames.permute(0, 3, 1, 2)))
        best, label = (out.logits[:, 1:] - out.logits[:, :1]).max(dim=1)
        score = (torch.sigmoid(best) * 256).clamp(max=255).to(torch.uint8)
        readout, selected = out.confounders.float(), out.selected.to(torch.uint8)
        return score, (label + 1).to(torch.uint8), readout, selected, out.logits


class MethodEngine:
    """Any method as an engine, in torch: to measure what has no deployed form.

    Args:
        method: trained.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        SpecError: the device is not there.
    """

    max_batch = 1

    def __init__(self, method: Method, device: str = "auto") -> None:
        found = found_device(device)
        self._deployed = Deployed(method).to(found)
        self.spec, self.name = method.spec, f"torch fp32 {found}, as trained"

    @torch.inference_mode()
    def infer(self, frames: UInt8Array) -> RawOutput:
        """See ``Engine.infer``.

        Raises:
            SpecError: the method's weights make no numbers.
        """
        *values, logits = self._deployed(torch.from_numpy(frames).to(self._deployed.method.mean.device))
        if not torch.isfinite(logits).all():
            raise SpecError(f"{self.spec.name}: its answers are not numbers; its weights are broken")
        return RawOutput(*(value.cpu().numpy() for value in values))


def _rounded(value: float) -> float | None:
    """To four digits; None for what is not defined."""
    return None if math.isnan(value) else round(value, 4)


def _title(name: str, site: SiteScores) -> str:
    return f"{name} ({'unseen' if site.unseen else 'held out'})"


if __name__ == "__main__":
    run_program(main)
