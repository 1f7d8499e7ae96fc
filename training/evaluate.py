"""Measure a checkpoint as users run it: ``python -m training.evaluate runs/small/mcdrl-small.safetensors``.

Every image goes through ``Segmenter`` at its own size, and labels are compared at that size, without a threshold.
``--card`` writes the model card beside the checkpoint from the figures just measured, and from nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mcdrl_rt.errors import McdrlError
from mcdrl_rt.segmenter import Segmenter
from training.card import write_card
from training.metrics import score_image, selected_pixels, summarise
from training.sites import Sample, data_root, hold_out, load_site, read_sample


def main() -> int:
    """Command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the sites (default: MCDRL_DATA)")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--card", action="store_true", help="write CHECKPOINT.md and CHECKPOINT.json beside it")
    arguments = parser.parse_args()
    try:
        segmenter = Segmenter.load(arguments.checkpoint, engine=arguments.engine, precision=arguments.precision)
        figures = evaluate(segmenter, arguments.data)
        if arguments.card:
            write_card(arguments.checkpoint, segmenter.spec, segmenter.engine.name, figures)
    except McdrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"engine": segmenter.engine.name, "sites": figures}, indent=1))
    return 0


def evaluate(segmenter: Segmenter, data: Path) -> dict[str, dict[str, float]]:
    """Figures on the training site's held-out part and on every other site at hand, all of it unseen."""
    recipe = json.loads(segmenter.spec.provenance.get("recipe", "{}"))
    trained = recipe.get("train_site", "Kvasir-SEG")
    _, held = hold_out(load_site(data / trained), recipe.get("validation_count", 100), recipe.get("seed", 0))
    figures = {f"{trained} (held out)": evaluate_samples(segmenter, held)}
    for site in ("Kvasir-SEG", "CVC-ClinicDB"):
        if site != trained and (data / site).is_dir():
            figures[f"{site} (unseen)"] = evaluate_samples(segmenter, load_site(data / site))
    return figures


def evaluate_samples(segmenter: Segmenter, samples: list[Sample]) -> dict[str, float]:
    """Means over ``samples`` (``training.metrics.summarise``)."""
    scores = []
    for sample in samples:
        pixels, truth = read_sample(sample)
        out = segmenter(pixels)
        seen = selected_pixels(out.selected, segmenter.spec, out.region, truth.shape)
        scores.append(score_image(out.labels, truth, seen))
    return summarise(scores)


if __name__ == "__main__":
    raise SystemExit(main())
