"""The report's pictures: Dice by site and by lesion size, what is drawn on images (Figure 4), t-SNE (Figure 5)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from sklearn.manifold import TSNE

from mcdrl_rt.errors import McdrlError, SourceError
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import FloatArray, UInt8Array
from training.dataset import LesionDataset
from training.evaluate import MethodEngine
from training.launch import WEIGHTS
from training.methods import Method
from training.methods.causal import Causal
from training.overlays import draw_outlines
from training.sites import Sample, load_site, read_sample
from training.train import load_method

if TYPE_CHECKING:
    from training.report import Result

matplotlib.use("Agg")
QUANTILES = (0.1, 0.5, 0.9)  # the images of a panel: where the first variant does badly, as usual, and well
TICKS = (0.5, 1, 2, 5, 10, 20, 50)  # per cent of the image
STYLES = ("-", "--", ":")  # of lines, after every tenth variant
POINTS = 250  # images of each site in a t-SNE
PANEL = (216, 288)
Titled = tuple[str, Path]


def draw_all(
    results: Sequence[Result], sites: Sequence[str], variants: Sequence[str], output: Path, data: Path
) -> list[Titled]:
    """Every plot that the results at hand allow, with its title."""
    pictures = [
        dice_by_site(results, sites, variants, output / "dice.png"),
        dice_by_size(results, sites, variants, output / "sizes.png"),
    ]
    for site in sites:
        runs = _first_runs(results, site, variants)
        if len(runs) < len(variants) or not (data / site).is_dir():
            continue
        with _told(site):
            methods = {v: load_method(result.folder, data) for v, result in runs.items()}
            samples = load_site(data / site, skip_bad=True)
            with _told(site):
                pictures.append(panels(data / site, samples, methods, runs, output / f"panels-{site}.jpg"))
            causal = {v: m for v, m in methods.items() if isinstance(m, Causal)}
            if causal:
                trained = [n for n in next(iter(runs.values())).recipe.train_sites if (data / n).is_dir()]
                others = {name: load_site(data / name, skip_bad=True) for name in trained}
                pictures.append(tsne(site, {site: samples, **others}, causal, output / f"tsne-{site}.png"))
    return pictures


@contextmanager
def _told(site: str) -> Iterator[None]:
    """What cannot be drawn of a site is said, and costs the report nothing else."""
    try:
        yield
    except McdrlError as error:
        print(f"{site} is not drawn: {error}", file=sys.stderr)


def dice_by_site(results: Sequence[Result], sites: Sequence[str], variants: Sequence[str], path: Path) -> Titled:
    """Mean Dice of every variant, beside the first one's (dotted), and a dot for every seed."""
    figure = Figure(figsize=(2 + 3.5 * len(sites), 1.2 + 0.27 * len(variants)), layout="constrained")
    for axes, site in zip(figure.subplots(1, len(sites), sharey=True, squeeze=False)[0], sites, strict=True):
        for v, variant in enumerate(variants):
            values = [r.figures["dice"] for r in results if (r.left_out, r.variant) == (site, variant)]
            if values:
                axes.plot(values, [v] * len(values), "C0.", markersize=5)
                axes.plot(np.mean(values), v, "C0|", markersize=14, markeredgewidth=2)
                if v == 0:
                    axes.axvline(float(np.mean(values)), color="0.6", linestyle=":")
        axes.set(title=f"{site} left out", xlabel="mean Dice")
        axes.set_yticks(range(len(variants)), variants)
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    return "Dice on the site left out (dots: seeds)", path


def dice_by_size(results: Sequence[Result], sites: Sequence[str], variants: Sequence[str], path: Path) -> Titled:
    """Mean Dice over the share of the image that is lesion, in bins of as many images."""
    figure = Figure(figsize=(2 + 4.5 * len(sites), max(4, 0.6 + 0.21 * len(variants))), layout="constrained")
    lines: dict[str, Any] = {}
    for axes, site in zip(figure.subplots(1, len(sites), squeeze=False)[0], sites, strict=True):
        for v, variant in enumerate(variants):
            some = [r for r in results if (r.left_out, r.variant) == (site, variant)]
            if some:
                some = [r for r in some if r.images["image"] == some[0].images["image"]]  # some may have skipped others
                share = 100 * np.array(some[0].images["lesion"], float)
                dice = np.mean([r.images["dice"] for r in some], axis=0)
                bins = np.array_split(np.argsort(share), 8)
                style = {"color": f"C{v % 10}", "linestyle": STYLES[v // 10 % len(STYLES)], "marker": "."}
                x, y = ([values[b].mean() for b in bins] for values in (share, dice))
                lines[variant] = axes.plot(x, y, **style)[0]
        axes.set(title=f"{site} left out", xlabel="lesion, % of the image", ylabel="mean Dice", xscale="log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    figure.legend(lines.values(), lines.keys(), fontsize="small", loc="outside right upper")
    figure.savefig(path, dpi=110)
    return "Dice by lesion size", path


def panels(
    folder: Path, samples: Sequence[Sample], methods: dict[str, Method], runs: dict[str, Result], path: Path
) -> Titled:
    """Outlines of every variant (green) and of the truth (white) on three images chosen by the first variant's Dice.

    Raises:
        SourceError: the runs measured different images, or one of them cannot be told in the site's folder, or read.
    """
    first = next(iter(runs.values()))
    if any(run.images["image"] != first.images["image"] for run in runs.values()):
        raise SourceError("its runs measured different images")
    places = [sample.image.relative_to(folder).as_posix() for sample in samples]
    if "place" not in first.images:  # an evaluation of before has names alone
        places = [sample.image.name for sample in samples]
    order = np.argsort(first.images["dice"])
    rows = []
    for quantile in QUANTILES:
        i = int(order[round(quantile * (len(order) - 1))])
        name = first.images.get("place", first.images["image"])[i]
        if places.count(name) != 1:
            raise SourceError(f"{folder} has {places.count(name)} images {name}; evaluate the run again")
        pixels, truth = read_sample(samples[places.index(name)])
        views = [_titled(pixels, name)]
        for variant, method in methods.items():
            found = Segmenter(MethodEngine(method, "cpu"))(pixels).labels
            views.append(
                _titled(draw_outlines(pixels, truth, found), f"{variant}: {runs[variant].images['dice'][i]:.2f}")
            )
        rows.append(np.concatenate(views, axis=1))
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    chosen = f"images at the 10th, 50th and 90th percentile of {first.variant}'s Dice (truth white, found green)"
    return f"{folder.name}: {chosen}", path


def tsne(site: str, parts: dict[str, list[Sample]], methods: dict[str, Causal], path: Path) -> Titled:
    """t-SNE of the pooled features F_ca, by site (colour) and class (marker)."""
    figure = Figure(figsize=(4.5 * len(methods), 4.5), layout="constrained")
    chosen = {name: samples[:: max(1, len(samples) // POINTS)][:POINTS] for name, samples in parts.items()}
    for axes, (variant, method) in zip(
        figure.subplots(1, len(methods), squeeze=False)[0], methods.items(), strict=True
    ):
        sets = [_readable(method, samples) for samples in chosen.values()]
        features = [pooled_features(method, dataset) for dataset in sets]
        perplexity = min(30, sum(map(len, features)) / 4)
        points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(np.concatenate(features))
        start = 0
        for i, (name, dataset) in enumerate(zip(chosen, sets, strict=True)):
            for j, lesion in enumerate(sorted({s.lesion for s in dataset.samples})):
                places = [start + k for k, sample in enumerate(dataset.samples) if sample.lesion == lesion]
                axes.scatter(*points[places].T, s=9, color=f"C{i}", marker="o^sDv"[j % 5], label=f"{name}, {lesion}")
            start += len(dataset.samples)
        axes.set(title=variant, xticks=[], yticks=[])
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    return f"t-SNE of pooled features, {site} left out", path


def _readable(method: Method, samples: Sequence[Sample]) -> LesionDataset:
    return LesionDataset(samples, method.recipe.input_size, method.spec.classes, skip_bad=True)


@torch.inference_mode()
def pooled_features(method: Causal, dataset: LesionDataset) -> FloatArray:
    """F_ca of every picture, averaged over its selected tokens, (n, d)."""
    items = (dataset[0, i].pixels.unsqueeze(0) for i in range(len(dataset)))
    rows: list[Any] = [method.network(method.normalise(pixels)).intervened.mean(dim=1)[0] for pixels in items]
    return np.asarray(torch.stack(rows).float().numpy(), np.float32)


def _first_runs(results: Sequence[Result], site: str, variants: Sequence[str]) -> dict[str, Result]:
    """For each variant the run of the lowest seed that still holds its weights."""
    runs: dict[str, Result] = {}
    for variant in variants:
        some = [r for r in results if (r.left_out, r.variant) == (site, variant)]
        some = [r for r in some if (r.folder / WEIGHTS).is_file()]
        if some:
            runs[variant] = min(some, key=lambda r: r.seed)
    return runs


def _titled(pixels: UInt8Array, title: str) -> UInt8Array:
    """A picture at the panel's size under a line of text."""
    view = cv2.resize(pixels, PANEL[::-1], interpolation=cv2.INTER_AREA)
    view = cv2.copyMakeBorder(view, 20, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    cv2.putText(view, title[-36:], (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.asarray(view, np.uint8)
