"""What a study found: ``python -m training.report runs/ablation --output report`` (Markdown, CSV and plots).

Runs that ``training.evaluate`` measured one by one can be named, too: each is a variant, called as its folder is.

Figures are of sites that were left out of training, per image at its own size, then averaged, then over seeds (mean ±
standard deviation). The paper's figures stand in columns of their own. Differences from the first variant named
``--against`` are of Dice, image by image, with a 95 % interval of a bootstrap over groups (patients, sequences), the
seeds averaged first (those that both have). Where the runs still hold their weights and the data is at hand, panels and
t-SNE are drawn.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mcdrl_rt.console import run_program
from mcdrl_rt.errors import McdrlError, SpecError
from training import plots
from training.files import whole
from training.metrics import paired_bootstrap
from training.published import published, published_by_lesion
from training.recipe import Recipe, recipe_from
from training.sites import data_root, manifest

RULE = (
    "Weights: the moving average at the last epoch{patience}{mean}; no image of a site that was left out chose them. "
    "Figures: each image at its own size, labels without a threshold, averaged over images, then over seeds."
)
BASES = ("Baseline", "default", "U-Net")  # the first of these that there is, others are compared with
COLUMNS = {
    "dice": "Dice",
    "iou": "IoU",
    "accuracy": "accuracy",
    "hd95": "HD95 px",
    "s_measure": "S-measure",
    "selection_recall": "selection recall",
    "dice_small": "Dice < 2 %",
    "dice_medium": "Dice 2–10 %",
    "dice_large": "Dice ≥ 10 %",
}
HELD = ("dice", "selection_recall")  # of COLUMNS, told of what is held out, too
Columns = dict[str, list[Any]]
"""One value an image, by the figure's name."""


@dataclass(frozen=True)
class Result:
    """One run's measurement on the site it left out.

    Args:
        variant, left_out: as in the study.
        recipe: of the run.
        figures: means.
        images: columns, one value an image.
        held: the same of the held-out parts of the training sites.
        held_figures: means of theirs over these sites.
        folder: of the run.
        seed: of a study's run; 0 of one that was measured by itself.
    """

    variant: str
    left_out: str
    recipe: Recipe
    figures: dict[str, float]
    images: Columns
    held: Columns
    held_figures: dict[str, float]
    folder: Path
    seed: int


def main() -> int:
    """Command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of studies, or of runs that were measured")
    parser.add_argument("--output", type=Path, required=True, help="folder for the report")
    parser.add_argument("--data", type=Path, default=data_root(), help="folder of the sites (default: MCDRL_DATA)")
    parser.add_argument("--against", help=f"the variant that differences are from (default: {', '.join(BASES)})")
    arguments = parser.parse_args()
    try:
        results = load_results(arguments.runs)
        write_report(results, arguments.output, arguments.data, arguments.against or _base(results))
    except McdrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(arguments.output / "report.md")
    return 0


def load_results(folders: Iterable[Path]) -> list[Result]:
    """Every finished run of some studies, in the studies' order of variants as far as it can be told, and every run
    that was measured by itself, on each of the sites it was not trained on.

    Raises:
        SpecError: there is none, a file is no evaluation, or two runs have one name.
    """
    results: list[Result] = []
    there: dict[tuple[str, str, int], Result] = {}
    for path in sorted(path for folder in folders for path in folder.rglob("evaluation.json")):
        for result in _read_results(path):
            place = (result.variant, result.left_out, result.seed)
            if (other := there.setdefault(place, result)) is result:
                results.append(result)
            elif other.images != result.images or other.recipe != result.recipe:  # else two studies share a run
                raise SpecError(f"{other.folder} and {result.folder} have one name and differ; report on them apart")
    if not results:
        where = ", ".join(map(str, folders))
        raise SpecError(f"{where}: no figures of an unseen site; training.study makes them, and training.evaluate RUN")
    return results


def _read_results(path: Path) -> list[Result]:
    """What an ``evaluation.json`` says of the site that was left out, or, outside a study, of each unseen one."""
    try:
        content = json.loads(path.read_text())
        sites = content["sites"]
        held = {name: site for name, site in sites.items() if not site["unseen"]}
        unseen = [name for name, site in sites.items() if site["unseen"]]
        names = [content["left_out"]] if "left_out" in content else unseen
        if missing := [name for name in names if name not in sites]:
            print(f"{path}: {missing[0]} was left out, and not measured: not in the report", file=sys.stderr)
            return []
        return [
            Result(
                content.get("variant", path.parent.resolve().name),
                name,
                recipe_from(content["recipe"]),
                sites[name]["figures"],
                sites[name]["images"],
                _columns_of(held),
                _figures_of(held),
                path.parent,
                content["recipe"].get("seed", 0) if "variant" in content else 0,
            )
            for name in names
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpecError(f"{path} is no evaluation ({type(error).__name__}: {error})") from error


def _figures_of(sites: dict[str, Any]) -> dict[str, float]:
    """The figures of several sites' images together, as ``metrics.summarise`` has them of one site's."""
    images = [site["figures"]["images"] for site in sites.values()]
    area = [sum(site["images"]["lesion"]) for site in sites.values()]
    return {
        name: float(np.average([site["figures"][name] for site in sites.values()], weights=weights))
        for name, weights in zip(HELD, (images, area), strict=True)
        if sites and sum(weights) and all(name in site["figures"] for site in sites.values())
    }


def _columns_of(sites: dict[str, Any]) -> Columns:
    """The images of several sites, one after another; images and groups of two sites may have one name."""
    columns: Columns = {"image": [], "group": [], "dice": []}
    for name, site in sites.items():
        columns["dice"] += site["images"]["dice"]
        for key in ("image", "group"):
            columns[key] += [f"{name}/{value}" for value in site["images"][key]]
    return columns


def write_report(results: Sequence[Result], output: Path, data: Path, against: str) -> None:
    """Write ``report.md``, ``figures.csv``, ``differences.csv`` and the plots.

    Raises:
        SpecError: no run is of the variant ``against``, runs measured different images, or nothing can be written.
    """
    known = sorted({result.variant for result in results})
    if against not in known:
        raise SpecError(f"no run is of the variant {against!r}; --against one of {', '.join(known)}")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpecError(f"cannot write to {output}: {error.strerror}; name another --output") from error
    sites, variants = _order(results, against)
    figures, differences = figure_rows(results, sites, variants), difference_rows(results, sites, variants, against)
    _write_csv(output / "figures.csv", figures)
    _write_csv(output / "differences.csv", differences)
    patience = max(result.recipe.patience for result in results)
    branches = any(result.recipe.branches for result in results)
    rule = RULE.format(
        patience=f", or the best held-out epoch (patience {patience})" if patience else "",
        mean=", and where a recipe has branches, their mean" if branches else "",
    )
    lines = ["# Report", "", rule, ""]
    for site in sites:
        lines += _site_section(site, [row for row in figures if row["site"] == site], data)
        lines += _difference_section([row for row in differences if row["site"] == site], against)
    lines += _lesion_section(results, variants)
    recipes = ["## Recipes", "", *_recipe_lines(results, variants)]
    _write_lines(output / "report.md", [*lines, *recipes])  # the tables are there, whatever comes of the pictures
    pictures = plots.draw_all(results, sites, variants, output, data)
    lines += [line for title, path in pictures for line in (f"## {title}", "", f"![{title}]({path.name})", "")]
    _write_lines(output / "report.md", [*lines, *recipes])


def figure_rows(results: Sequence[Result], sites: Sequence[str], variants: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each site and variant: mean and standard deviation over seeds of every figure."""
    rows = []
    for site in sites:
        for variant in variants:
            some = [r for r in results if (r.left_out, r.variant) == (site, variant)]
            if not some:
                continue
            row: dict[str, Any] = {"site": site, "variant": variant, "seeds": len(some)}
            names = [*COLUMNS, *(name for name in some[0].figures if name.startswith("dice["))]
            for name in names:
                values = [r.figures[name] for r in some if name in r.figures]
                if values:
                    row |= {name: float(np.mean(values)), f"{name}_std": float(np.std(values, ddof=len(values) > 1))}
            for name in some[0].held_figures:
                values = [r.held_figures[name] for r in some if name in r.held_figures]
                row[f"held_{name}"] = float(np.mean(values))
            rows.append(row)
    return rows


def difference_rows(
    results: Sequence[Result], sites: Sequence[str], variants: Sequence[str], against: str
) -> list[dict[str, Any]]:
    """One row for each site and other variant: Dice minus that of ``against`` with its interval, over the seeds that
    both have; on the site, and on what is held out of the others."""
    rows = []
    for site in sites:
        base = _by_seed(results, site, against)
        for variant in variants:
            own = _by_seed(results, site, variant)
            seeds = sorted(own.keys() & base.keys())  # an unfinished study has more of one than of the other
            if variant == against or not seeds:
                continue
            row: dict[str, Any] = {"site": site, "variant": variant, "seeds": len(seeds)}
            pairs = [(own[seed], base[seed]) for seed in seeds]
            found = _difference([(one.images, other.images) for one, other in pairs])
            if found is None:
                raise SpecError(f"runs of {variant} and {against} measured different images of {site}")
            row |= found
            if all(one.held["dice"] and other.held["dice"] for one, other in pairs):
                # another seed holds out other images: each pair's are its own
                held = _difference([(_together(pairs, 0), _together(pairs, 1))]) or {}
                row |= {f"held_{name}": value for name, value in held.items()}
            rows.append(row)
    return rows


def _difference(pairs: Sequence[tuple[Columns, Columns]]) -> dict[str, float] | None:
    """Dice of the first minus that of the second of each pair, with its interval; None where images differ."""
    first = pairs[0][0]
    if any(run["image"] != first["image"] for pair in pairs for run in pair):
        return None
    one, other = (np.mean([pair[side]["dice"] for pair in pairs], axis=0) for side in (0, 1))
    mean, low, high = paired_bootstrap(one, other, first["group"])
    return {"difference": mean, "low": low, "high": high}


def _together(pairs: Sequence[tuple[Result, Result]], side: int) -> Columns:
    """The held-out images of several seeds, one after another."""
    return {name: [v for pair in pairs for v in pair[side].held[name]] for name in pairs[0][side].held}


def _by_seed(results: Sequence[Result], site: str, variant: str) -> dict[int, Result]:
    return {r.seed: r for r in results if (r.left_out, r.variant) == (site, variant)}


def _base(results: Sequence[Result]) -> str:
    """The variant that others are compared with, where nobody says which."""
    known = {result.variant for result in results}
    return next((name for name in BASES if name in known), min(known))


def _order(results: Sequence[Result], against: str) -> tuple[list[str], list[str]]:
    """Sites by name; variants with the baseline first and the full method last."""
    place = {against: 0, "default": 0, "MCDRL": 2}
    variants = sorted({r.variant for r in results}, key=lambda name: (place.get(name, 1), name))
    return sorted({r.left_out for r in results}), variants


def _site_section(site: str, rows: Sequence[dict[str, Any]], data: Path) -> list[str]:
    letter = str(manifest(data / site).get("letter", ""))
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    names += sorted({name for row in rows for name in row if name.startswith("dice[") and not name.endswith("_std")})
    theirs = {row["variant"]: published(row["variant"], letter) for row in rows}
    tables = list(dict.fromkeys(figure.table for some in theirs.values() for figure in some))
    held = [name for name in HELD if any(f"held_{name}" in row for row in rows)]
    titles = [COLUMNS.get(name, name) for name in names] + [f"held-out {COLUMNS[name]}" for name in held]
    titles += [f"paper: {table}, Dice" for table in tables]
    lines = [f"## {site} left out", "", "| variant | seeds | " + " | ".join(titles) + " |"]
    lines.append("|---" * (len(titles) + 2) + "|")
    for row in rows:
        cells = [_cell(row, name) for name in names]
        cells += [f"{row[f'held_{name}']:.3f}" if f"held_{name}" in row else "" for name in held]
        printed = {figure.table: f"{figure.dice:.1f} %" for figure in theirs[row["variant"]]}
        cells += [printed.get(table, "") for table in tables]
        lines.append(f"| {row['variant']} | {row['seeds']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    digits = 1 if name == "hd95" else 3
    spread = f" ± {row[f'{name}_std']:.{digits}f}" if row["seeds"] > 1 else ""
    return f"{row[name]:.{digits}f}{spread}"


def _difference_section(rows: Sequence[dict[str, Any]], against: str) -> list[str]:
    if not rows:
        return []
    lines = [f"Dice minus {against}, in points, with its 95 % interval; here, and on what the others hold out:", ""]
    lines += ["| variant | seeds | difference | interval | held out | interval |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [cell for start in ("", "held_") for cell in _interval(row, start)]
        lines.append(f"| {row['variant']} | {row['seeds']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _interval(row: dict[str, Any], start: str) -> list[str]:
    if f"{start}difference" not in row:
        return ["", ""]
    mean, low, high = (100 * row[f"{start}{name}"] for name in ("difference", "low", "high"))
    return [f"{mean:+.1f}", f"{low:+.1f} to {high:+.1f}"]


def _lesion_section(results: Sequence[Result], variants: Sequence[str]) -> list[str]:
    """Dice for each lesion class, a mean over the sites left out and the seeds, beside the paper's Table 2."""
    classes = list(dict.fromkeys(name for result in results for name in result.recipe.classes))
    titles = [title for name in classes for title in (name, f"paper: Table 2, {name}")]
    lines = ["## By lesion class", "", "Dice on the sites left out.", "", "| variant | " + " | ".join(titles) + " |"]
    lines.append("|---" * (len(titles) + 1) + "|")
    for variant in variants:
        runs = [result for result in results if result.variant == variant]
        theirs = published_by_lesion(variant)
        cells = []
        for name in classes:
            values = [run.figures[key] for run in runs if (key := _dice_of(run, name)) in run.figures]
            cells.append(f"{np.mean(values):.3f}" if values else "")
            cells.append(f"{theirs[name]:.1f} %" if name in theirs else "")
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _recipe_lines(results: Sequence[Result], variants: Sequence[str]) -> list[str]:
    """The settings all runs share, then what each variant changes."""
    trained = {(r.left_out, r.recipe.train_sites) for r in results}
    alike = len(trained) == len({site for site, _ in trained})  # as in a study: all others than the one left out
    ignored = {"seed", "train_sites"} if alike else {"seed"}
    settings = {v: vars(next(r.recipe for r in results if r.variant == v)) for v in variants}
    names = [name for name in settings[variants[0]] if name not in ignored]
    shared = [n for n in names if len({repr(s[n]) for s in settings.values()}) == 1]
    lines = ["Shared: " + ", ".join(f"{n}={settings[variants[0]][n]!r}" for n in shared) + ".", ""]
    for variant in variants:
        own = ", ".join(f"{n}={settings[variant][n]!r}" for n in names if n not in shared)
        lines.append(f"- {variant}: {own or 'nothing else'}")
    return lines


def _dice_of(run: Result, lesion: str) -> str:
    """The figure that is Dice of a lesion class: of a run that knows no other, its Dice."""
    key = f"dice[{lesion}]"
    return "dice" if run.recipe.classes == (lesion,) and key not in run.figures else key


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n")


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with whole(path) as partial, partial.open("w", newline="") as file:
        table = csv.DictWriter(file, names)
        table.writeheader()
        for row in rows:
            table.writerow({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()})


if __name__ == "__main__":
    run_program(main)
