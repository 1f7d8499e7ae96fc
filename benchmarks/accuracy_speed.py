"""What accuracy costs in time: Dice on real images beside latency, for the shipped model in many forms.

    MCDRL_DATA=… python benchmarks/accuracy_speed.py [--frames 60] [--checkpoints PATH …] [--plot FILE] [--save NAME]

The shipped weights at other input sizes in every precision (int8: everything quantised), with another α, with the last
blocks dropped; and checkpoints, or folders of finished runs, whose training set was the same. Dice is that of
``training.evaluate``, on a subsample: the held-out part of the site trained on, and the sites never seen. What a form
loses against the shipped one is paired image by image, on unseen sites, with its 95 % interval. Latencies are the
engines' alone, batch 1, interleaved over all forms: median of the rounds, least and most. One JSON line at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from forms import at_depth
from machine import describe
from outputs import Parser, check_outputs, count, finish, run_main
from rich.console import Console
from rich.table import Table
from timing import interleaved, span

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.onnx import export_onnx, inlined
from mcdrl_rt.engine.openvino import OpenVinoEngine, convert, resolve_precision, save
from mcdrl_rt.engine.quantize import quantize
from mcdrl_rt.engine.sidecar import file_hash
from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.checkpoint import load_checkpoint, read_spec
from mcdrl_rt.model.folded import INPUT, OUTPUTS, FoldedMCDRL
from mcdrl_rt.model.mcdrl import MCDRL, build_empty
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import ModelSpec, UInt8Array
from mcdrl_rt.video.region import crop_and_resize, find_region
from training.evaluate import Deployed, SiteScores, evaluate, evenly
from training.metrics import paired_bootstrap
from training.recipe import recipe_from
from training.sites import data_root, load_site, read_pixels
from training.split import image_id, in_order, split_of
from training.train import load_method

SIZES, ALPHAS = (192, 224, 256, 288, 320, 352), (0.2, 0.4, 0.6, 0.8, 1.0)
CALIBRATION = 60  # images trained on, for int8
ROUNDS, RUNS = 5, 12


@dataclass
class Form:
    """One way to run a model.

    Args:
        group: what it is compared by: ``size``, ``alpha``, ``depth`` or ``checkpoint``.
        title: to people.
        engine: ready to run.
        shipped: whether users get just this.
    """

    group: str
    title: str
    engine: OpenVinoEngine
    precision: str
    shipped: bool = False
    sites: dict[str, SiteScores] = dataclasses.field(default_factory=dict)
    ms: list[float] = dataclasses.field(default_factory=list)


def main() -> None:
    """Measure, print a table, and end with one JSON line."""
    parser = Parser(__doc__, draws=True)
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the sites (default: MCDRL_DATA)")
    parser.add_argument("--frames", type=count, default=60, help="images of each site, spread evenly")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--alphas", type=float, nargs="*", default=ALPHAS)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="others, or folders of runs")
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    check_outputs(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    show(result)
    finish(result, arguments, draw)


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw it: only that needs Matplotlib."""
    import accuracy_speed_plot

    accuracy_speed_plot.draw(result, path)


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every form's Dice, then the time of all of them in turn."""
    forms = []
    with Console(stderr=True).status("building") as status:
        for form in make_forms(arguments, folder):
            status.update(f"measuring {form.title}")
            form.sites = evaluate(Segmenter(form.engine), arguments.data, arguments.frames)
            if not {True, False} <= {site.unseen for site in form.sites.values()}:
                raise SpecError(f"{arguments.data} needs the site {form.title} was trained on, and another")
            forms.append(form)
        frames = [np.zeros((1, *form.engine.spec.input_size, 3), np.uint8) for form in forms]
        runs = {i: lambda e=f.engine, x=x: e.infer(x) for i, (f, x) in enumerate(zip(forms, frames, strict=True))}
        for round_ in range(ROUNDS):
            status.update(f"timing, round {round_ + 1} of {ROUNDS}")
            times = interleaved({str(i): run for i, run in runs.items()}, RUNS, warm_up=2)["p50_ms"]
            for i, form in enumerate(forms):
                form.ms.append(times[str(i)])
    shipped = next(form for form in forms if form.shipped)
    rows = [_row(form, shipped) for form in forms]
    for row in rows:
        row["pareto"] = not any(_better(other, row) for other in rows)
    images = {name: len(site.samples) for name, site in shipped.sites.items()}
    weights = file_hash(DEFAULT_CHECKPOINT)  # of the shipped model; there were others before
    return {"benchmark": "accuracy_speed", "weights": weights, "images": images, "forms": rows, "machine": describe()}


def make_forms(arguments: argparse.Namespace, folder: Path) -> Iterator[Form]:
    """The shipped form first, then the others, each built as it is asked for."""
    spec, fast = read_spec(DEFAULT_CHECKPOINT), resolve_precision("auto")
    precisions, native = tuple(dict.fromkeys((fast, "fp32", "int8"))), spec.input_size[0]
    sizes = [(size, size) for size in sorted({native, *arguments.sizes}, key=lambda one: (one != native, one))]
    alphas = [alpha for alpha in arguments.alphas if alpha != spec.alpha]
    for changes in [{"input_size": size} for size in sizes] + [{"alpha": alpha} for alpha in alphas]:
        dataclasses.replace(spec, **changes)  # refuses what cannot be, before anything is built
    others = [_other(path, arguments.data, spec) for path in arguments.checkpoints]
    images = calibration(arguments.data, spec)

    def build(model: MCDRL, name: str, wanted: Sequence[str]) -> Iterator[OpenVinoEngine]:
        proto = inlined(export_onnx(FoldedMCDRL(model)))
        return _engines(proto.SerializeToString(), model.spec, folder / name, wanted, images)

    for size in sizes:
        engines = build(varied(input_size=size), f"size-{size[0]}", precisions)
        for precision, engine in zip(precisions, engines, strict=True):
            yield Form("size", f"{size[0]}", engine, precision, (size, precision) == (spec.input_size, fast))
    for alpha in alphas:
        yield Form("alpha", f"α {alpha:g}", next(build(varied(alpha=alpha), f"alpha-{alpha}", (fast,))), fast)
    for depth in range(1, spec.depth):
        yield Form("depth", f"depth {depth}", next(build(varied(depth=depth), f"depth-{depth}", (fast,))), fast)
    for number, (path, model) in enumerate(zip(arguments.checkpoints, others, strict=True)):
        name, whole = f"checkpoint-{number}", path.absolute()
        title = whole.name if whole.is_dir() else f"{whole.parent.name}/{whole.stem}"
        if isinstance(model, MCDRL):
            engine = next(build(model, name, (fast,)))
        else:
            engine = next(_engines(exported(model), model.spec, folder / name, (fast,), images))
        yield Form("checkpoint", title, engine, fast)


def varied(**changes: Any) -> MCDRL:
    """The shipped weights under a changed specification."""
    trained = load_checkpoint(DEFAULT_CHECKPOINT)
    weights = trained.state_dict()
    depth = changes.pop("depth", 0)  # dropped from what was trained, so loaded whole
    model = build_empty(dataclasses.replace(trained.spec, **changes))
    model.load_state_dict(weights)
    if depth:
        model = at_depth(model, depth)
        model.spec = dataclasses.replace(model.spec, depth=depth)
    return model.eval()


def exported(method: Deployed) -> bytes:
    """A method in ONNX, with the contract of our engines."""
    frames = torch.zeros((1, *method.spec.input_size, 3), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        names = {"input_names": [INPUT], "output_names": list(OUTPUTS)}
        program: Any = torch.onnx.export(method, (frames,), dynamo=True, verbose=False, **names)
    return inlined(program.model_proto).SerializeToString()


def calibration(data: Path, spec: ModelSpec) -> list[UInt8Array]:
    """Images the model was trained on, at their own size."""
    sites = recipe_from(_training(spec)).train_sites
    seen = split_of(spec.provenance, data, sites)
    kept = [one for name in sites for one in in_order(load_site(data / name)) if image_id(one, data) in seen.kept]
    return [read_pixels(sample.image) for sample in evenly(kept, CALIBRATION)]


def _engines(
    onnx: bytes, spec: ModelSpec, path: Path, precisions: Sequence[str], images: Sequence[UInt8Array]
) -> Iterator[OpenVinoEngine]:
    plain, small = path.with_suffix(".xml"), path.with_name(f"{path.name}-int8.xml")
    converted = convert(onnx, path.with_suffix(".onnx"))
    save(converted, plain)
    for precision in precisions:
        if precision == "int8":
            pictures = [crop_and_resize(image, find_region(image), spec.input_size) for image in images]
            save(quantize(converted, pictures, None), small)
        yield OpenVinoEngine(small if precision == "int8" else plain, spec, precision)


def _training(spec: ModelSpec) -> dict[str, Any]:
    return dict(json.loads(spec.provenance.get("recipe", "{}")))


def _other(path: Path, data: Path, ours: ModelSpec) -> MCDRL | Deployed:
    """A checkpoint, or the method of a run's folder; held out and unseen must be the same images for all."""
    model = Deployed(load_method(path, data)) if path.is_dir() else load_checkpoint(path)
    theirs, sites = _training(model.spec).get("train_sites", []), _training(ours)["train_sites"]
    if list(theirs) != sites:
        was = " and ".join(theirs) or "sites it does not name"
        raise SpecError(f"{path} was trained on {was}, not on {' and '.join(sites)} like the shipped model")
    return model


def _row(form: Form, shipped: Form) -> dict[str, Any]:
    unseen, held = ([s for s in form.sites.values() if s.unseen is flag] for flag in (True, False))
    reference = [site for site in shipped.sites.values() if site.unseen]
    pairs = [[score.dice for site in sites for score in site.scores] for sites in (unseen, reference)]
    groups = [f"{name} {s.group}" for name, site in form.sites.items() if site.unseen for s in site.samples]
    spec = form.engine.spec
    return {
        "group": form.group,
        "title": form.title,
        "input_size": spec.input_size,
        "alpha": spec.alpha,
        "depth": spec.depth,
        "precision": form.precision,
        "shipped": form.shipped,
        "ms": span(form.ms),
        "dice_held_out": _dice(held),
        "dice_unseen": _dice(unseen),
        "unseen_against_shipped": [round(value, 4) for value in paired_bootstrap(*pairs, groups)],
    }


def _dice(sites: Sequence[SiteScores]) -> float:
    """Mean over all images of some sites."""
    return round(float(np.mean([score.dice for site in sites for score in site.scores])), 4)


def _better(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether it is nowhere worse, on unseen sites and in time, and somewhere better."""
    gains = (one["dice_unseen"] - other["dice_unseen"], other["ms"][0] - one["ms"][0])
    return min(gains) >= 0 and max(gains) > 0


def show(result: dict[str, Any]) -> None:
    """The table."""
    console = Console(width=max(112, Console().width))
    images = ", ".join(f"{count} of {name}" for name, count in result["images"].items())
    table = Table(title=f"Dice on {images}; * nothing is faster and better on unseen sites", title_justify="left")
    for heading in ("form", "precision", "engine, ms", "held out", "unseen", "unseen, against shipped (95 %)"):
        table.add_column(heading, justify="left" if heading in ("form", "precision") else "right")
    group = None
    for row in result["forms"]:
        if group not in (None, row["group"]):
            table.add_section()
        group = row["group"]
        middle, low, high = row["ms"]
        mean, least, most = row["unseen_against_shipped"]
        table.add_row(
            f"{row['title']}{' (shipped)' if row['shipped'] else ''}{' *' if row['pareto'] else ''}",
            row["precision"],
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{row['dice_held_out']:.3f}",
            f"{row['dice_unseen']:.3f}",
            "" if row["shipped"] else f"{mean:+.3f} ({least:+.3f} to {most:+.3f})",
        )
    console.print(table)


if __name__ == "__main__":
    run_main(main)
