"""What is in a folder of sites, and what is wrong with it: ``python -m training.data check DIR``.

``python -m training.data phantom DIR`` writes five synthetic sites, for tests and for people without data.

Every image and mask is read. Exit status 1 if a site cannot be trained on as it is (missing masks, unreadable files,
sizes that differ); empty masks and near-duplicates are told, and are for you to judge.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mcdrl_rt.console import run_program
from mcdrl_rt.errors import McdrlError, SourceError
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom import SITES, random_sample
from training.manifest import expected, manifest
from training.pictures import bits_and_alpha
from training.sites import (
    IMAGE_SUFFIXES,
    Sample,
    data_root,
    find_sites,
    is_site,
    read_sample,
    scan_site,
    site_names,
    unused_pictures,
)

HASH_SIDE = 16  # a hash has 16·16 bits
PHANTOM_SIZE = (288, 384)
DARK = 64  # of 256 levels: what has none above, and more than 8 bits, was of 14 bits at most
NEAR = 12  # bits two views of the same picture may differ in (other size, other compression)


@dataclass
class Report:
    """What was found in one site.

    Args:
        site, folder: its name and place.
        images: that have a mask and can be read.
        classes: images with a lesion, by class.
        groups: things that stay on one side of a split (patients, sequences).
        sizes: (smallest, largest) height × width.
        lesion_share: 5th, 50th and 95th percentile of the share of an image that is lesion.
        without_mask, unreadable: files that stop training, or what keeps all of the site from being looked at.
        empty: masks without lesion.
        unused: pictures in its folder that are neither image nor mask of it.
        unnamed: published labels of outlines that the manifest gives no class.
        notes: what else was not taken as it is, or is no fault but looks like one, and how often.
    """

    site: str
    folder: str
    images: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    groups: int = 0
    sizes: tuple[str, str] = ("", "")
    lesion_share: tuple[float, float, float] = (0.0, 0.0, 0.0)
    without_mask: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unnamed: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether training would take the site as it is."""
        return self.images > 0 and not self.without_mask and not self.unreadable


def main() -> int:
    """Command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="read everything, say what was found and what looks wrong")
    check.add_argument("folder", type=Path, nargs="?", default=data_root(), help="a folder of sites, or one site")
    check.add_argument("--json", action="store_true", help="one JSON object in place of text")
    phantom = commands.add_parser("phantom", help="write a synthetic site for each of the phantom's imaging sites")
    phantom.add_argument("folder", type=Path, help="where the sites go")
    phantom.add_argument("--count", type=int, default=100, help="images of each")
    phantom.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        if arguments.command == "phantom":
            for site in write_phantom_sites(arguments.folder, arguments.count, arguments.seed):
                print(site)
            return 0
        reports, twins = check_folder(arguments.folder)
    except McdrlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps({"sites": [asdict(report) for report in reports], "near_duplicates": twins}))
    else:
        print("\n".join(line for report in reports for line in _lines(report)))
        print("".join(f"{line}\n" for line in _strange_lines(arguments.folder, reports)), end="")
        print("\n".join(_twin_lines(twins)))
    return 0 if all(report.usable for report in reports) else 1


def check_folder(folder: Path) -> tuple[list[Report], list[tuple[str, str]]]:
    """Check every site in ``folder``, or ``folder`` itself.

    Returns:
        A report for each site, and the pairs of images of different groups that look the same.

    Raises:
        SourceError: there is no site.
    """
    folders = find_sites(folder) or [folder]
    if folders == [folder] and not is_site(folder) and (strange := _strange_lines(folder, [])):
        raise SourceError(f"no site in {folder}, nor is it one: {'; '.join(strange[:3])}")
    reports, samples, hashes = [], [], []
    for place in folders:
        try:
            report, seen = _check_site(place)
        except SourceError as error:  # of one of several: the others are checked
            if place == folder:
                raise
            report, seen = Report(site_names(place)[0], str(place), unreadable=[str(error)]), []
        reports.append(report)
        samples += [sample for sample, _ in seen]
        hashes += [bits for _, bits in seen]
    return reports, near_duplicates(samples, hashes)


def write_phantom_sites(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Render ``count`` pictures with masks for every imaging site of the phantom; returns the sites' folders.

    Raises:
        SourceError: a folder is there already, or cannot be written.
    """
    sites = [folder / f"phantom-{name}" for name in SITES]
    if there := [site for site in sites if site.exists()]:
        raise SourceError(f"{there[0]} is there already; name another folder")
    if count < 1:
        raise SourceError(f"--count is at least 1, not {count}")
    for i, (site, name) in enumerate(zip(sites, SITES, strict=True)):
        rng = np.random.default_rng((seed, i))
        try:
            for part in ("images", "masks"):
                (site / part).mkdir(parents=True)
        except OSError as error:
            raise SourceError(f"cannot write {site}: {error.strerror}") from error
        for k in range(count):
            frame = random_sample(rng, PHANTOM_SIZE, site=name)
            cv2.imwrite(str(site / "images" / f"{k:04d}.png"), cv2.cvtColor(frame.pixels, cv2.COLOR_RGB2BGR))
            cv2.imwrite(str(site / "masks" / f"{k:04d}.png"), frame.mask * np.uint8(255))
    return sites


def perceptual_hash(pixels: UInt8Array) -> NDArray[np.uint64]:
    """dHash: whether each of 16 × 16 coarse cells is brighter than its right neighbour, packed in 4 words."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    grey = cv2.resize(grey, (HASH_SIDE + 1, HASH_SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(grey[:, :-1] > grey[:, 1:]).view(np.uint64)


def near_duplicates(samples: Sequence[Sample], hashes: Sequence[NDArray[np.uint64]]) -> list[tuple[str, str]]:
    """Pairs of images whose hashes differ in at most ``NEAR`` bits and that no split would keep together."""
    if not hashes:
        return []
    table = np.stack(hashes)  # (n, 4)
    pairs = []
    for i, sample in enumerate(samples):
        distances = np.bitwise_count(table[i + 1 :] ^ table[i]).sum(axis=1)
        for j in np.flatnonzero(distances <= NEAR):
            other = samples[i + 1 + int(j)]
            if (sample.image.parent, sample.group) != (other.image.parent, other.group):
                pairs.append((str(sample.image), str(other.image)))
    return pairs


def _check_site(folder: Path) -> tuple[Report, list[tuple[Sample, NDArray[np.uint64]]]]:
    site = scan_site(folder)
    report = Report(site.name, str(folder))
    report.unnamed, notes = dict(site.unnamed), Counter(site.notes)
    report.without_mask = [str(path.relative_to(folder)) for path in site.without_mask]
    report.unused = [str(path.relative_to(folder)) for path in unused_pictures(folder, site)]
    shares, sizes, seen = [], [], []
    classes: Counter[str] = Counter()
    for sample in site.samples:
        try:
            pixels, labels = read_sample(sample)
        except SourceError as error:
            report.unreadable.append(str(error))
            continue
        if pixels.max() < DARK and bits_and_alpha(sample.image)[0] > 8:
            notes["images of 16 bits that use few of them, and read nearly black: save them with 8"] += 1
        shares.append(float(labels.mean()))
        sizes.append(labels.shape)
        seen.append((sample, perceptual_hash(pixels)))
        if labels.any():
            classes[sample.lesion] += 1
        else:
            report.empty.append(str(sample.image.relative_to(folder)))
    report.images, report.classes, report.notes = len(seen), dict(classes), dict(notes)
    report.groups = len({sample.group for sample, _ in seen})
    if seen:
        ordered = sorted(sizes, key=lambda size: size[0] * size[1])
        report.sizes = tuple("×".join(map(str, size)) for size in (ordered[0], ordered[-1]))  # type: ignore[assignment]
        report.lesion_share = tuple(round(float(v), 4) for v in np.percentile(shares, (5, 50, 95)))  # type: ignore[assignment]
    return report, seen


def _lines(report: Report) -> list[str]:
    low, middle, high = (f"{100 * share:.1f}" for share in report.lesion_share)
    classes = ", ".join(f"{count} {name}" for name, count in sorted(report.classes.items())) or "none with a lesion"
    lines = [f"{report.site} ({report.folder}): {report.images} images in {report.groups} groups; {classes}"]
    if report.images:
        sizes = f"height × width {report.sizes[0]} to {report.sizes[1]}"
        lines.append(f"  {sizes}; lesions cover {low} to {high} % (median {middle} %)")
    wrong = (
        ("have no mask", report.without_mask),
        ("cannot be used", report.unreadable),
        ("have an empty mask", report.empty),
        ("are neither image nor mask", report.unused),
    )
    lines += [f"  {len(names)} {what}: {_some(names)}" for what, names in wrong if names]
    if report.unnamed:
        labels = _some([f"{name} ({count})" for name, count in sorted(report.unnamed.items())])
        lines.append(f"  labels without a class here, left out: {labels}")
    return lines + [f"  {count} {what}" for what, count in report.notes.items()]


def _strange_lines(folder: Path, reports: Sequence[Report]) -> list[str]:
    """The folders beside sites that hold pictures, and are none."""
    sites = {report.folder for report in reports}
    others = [] if str(folder) in sites else [one for one in sorted(folder.iterdir()) if one.is_dir()]
    lines = []
    for one in (one for one in others if str(one) not in sites):
        if _has_pictures(one):
            try:
                wanted = f"expected {expected(manifest(one))}, or a site.toml that says where they are"
            except SourceError:  # it cannot be looked into: find_sites has said so
                continue
            lines.append(f"{one} holds pictures, but no site: {wanted}")
        elif os.path.isdir(one / "images") or os.path.isfile(one / "site.toml"):  # False where it cannot be looked into
            lines.append(f"{one} is a site without an image")
    return lines


def _has_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*"))


def _twin_lines(twins: list[tuple[str, str]]) -> list[str]:
    if not twins:
        return ["no near-duplicates between groups or sites"]
    shown = [f"  {one} = {other}" for one, other in twins[:5]]
    return [f"{len(twins)} pairs look the same and could leak from training to test:", *shown]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


if __name__ == "__main__":
    run_program(main)
