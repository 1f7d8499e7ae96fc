"""Endoscopy sites as published, and any user's folder: which images, which masks, which class, what belongs together.

A site is a folder described by a manifest, a small TOML file. Those of the paper's five sites lie in
``training/manifests``; a folder of your own needs none if it has ``images/`` and ``masks/``, or carries its own as
``site.toml``:

    name = "Ours"                         # what it goes by in splits and checkpoints, wherever it is moved
    class = "polyp"                       # of every mask; or "{folder}", the name of the image's folder
    group = "patient[0-9]+"               # what must stay on one side of a split: a regular expression on the stem,
                                          # or, where that has none of it, on the way to the image from here; with
                                          # parentheses what they take in: "^(.+)_[0-9]+$" drops a frame's number
    all_layouts = true                    # every layout below counts, not only the first whose images exist
    [[layout]]
    image = "frames/*.tif"
    mask = ["truth/{stem}.png", "truth/{stem}_mask.png"]   # the first that exists counts

A layout may have ``polygons`` and ``labels`` (annotation JSON) in place of ``mask``; ``[classes]`` renames published
labels. What is of the site stands above the first heading: to TOML, what follows one is of that part.
"""

from __future__ import annotations

import bisect
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import UInt8Array
from training.manifest import expected, manifest, patterns
from training.pictures import read_mask, read_pixels

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
NO_LESION = "none"  # class of an image that was looked at and has none
UNTAKEN = "images of other layouts than the first, left out: say all_layouts = true to take them, or = false"
UNMATCHED = "images that the manifest's group does not match, each a group of its own"
ONE_NAME = "keep one of them, or give one another name in a site.toml"
MENDED = "mend it, or set bad_images='skip' (for an evaluation, --bad-images skip)"
FAR = 1 << 20  # pixels that no outline lies beyond
Polygon = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated image.

    Args:
        image: the picture.
        mask: its mask, 128 or more where there is lesion; None where the lesions are ``polygons``.
        group: what must stay on one side of any split.
        lesion: class of its lesions.
        polygons: outlines (x, y) in pixels of the image.
    """

    image: Path
    mask: Path | None
    group: str
    lesion: str = "polyp"
    polygons: tuple[Polygon, ...] = ()


@dataclass(frozen=True)
class Site:
    """A site as found on disk.

    Args:
        name: short, for tables.
        samples: sorted by name.
        without_mask: images whose mask is missing.
        unnamed: published labels of outlines that the manifest gives no class, and how many there are: left out.
        notes: what else of the annotation was not taken as it is, and how often.
    """

    name: str
    samples: list[Sample]
    without_mask: list[Path] = field(default_factory=list)
    unnamed: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, int] = field(default_factory=dict)


def data_root() -> Path:
    """Where the sites lie: ``MCDRL_DATA``, or ``../shared/data``."""
    return Path(os.environ.get("MCDRL_DATA", "../shared/data"))


def find_sites(data: Path) -> list[Path]:
    """Folders under ``data`` that hold a site, sorted; those that cannot be looked into are passed over aloud.

    Raises:
        SourceError: there is no such folder, or two in it are one site by name: a model of one would know the other.
    """
    if not data.is_dir():
        raise SourceError(f"no folder {data}; name the folder of the sites with --data or MCDRL_DATA")
    by_name: dict[str, Path] = {}
    for folder in _folders_in(data):
        try:
            if not is_site(folder):
                continue
        except SourceError as error:  # lost+found, say
            print(f"passed over: {error}", file=sys.stderr)
            continue
        name = site_names(folder)[0]
        if (other := by_name.setdefault(name, folder)) != folder:
            raise SourceError(f"{other} and {folder} are both the site {name}; {ONE_NAME}")
    return list(by_name.values())


def is_site(folder: Path) -> bool:
    """Whether a folder has images where its manifest says.

    Raises:
        SourceError, SpecError: as ``manifest`` does.
    """
    return bool(_layouts(folder, manifest(folder)))


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise SourceError(f"cannot look into {folder}: {error.strerror}") from error


def site_names(folder: Path) -> list[str]:
    """What the folder of a site may be called, and first what the site goes by: its manifest's name, if it has one."""
    described = manifest(folder)
    return list(dict.fromkeys([described["name"] or folder.name, *described["folders"], folder.name]))


def site_folder(data: Path, name: str) -> Path:
    """The folder under ``data`` of the site of any of its names; ``data / name`` if there is none."""
    if (data / name).is_dir():
        return data / name
    return next((folder for folder in find_sites(data) if name in site_names(folder)), data / name)


def load_site(folder: Path, skip_bad: bool = False) -> list[Sample]:
    """The samples of a site, sorted by name.

    Args:
        folder: of the site.
        skip_bad: leave out images that lack their mask, and say so on standard error, instead of raising.

    What else of the annotation was not taken as it is, is said there, too.

    Raises:
        SourceError: the folder is missing, is no site, or an image lacks its mask.
    """
    site = scan_site(folder)
    total = len(site.samples) + len(site.without_mask)
    if site.without_mask:
        some = ", ".join(path.name for path in site.without_mask[:3])
        problem = f"{folder}: {len(site.without_mask)} of {total} images have no mask: {some}"
        if not skip_bad:
            raise SourceError(f"{problem}; {MENDED}")
        print(f"left out: {problem}", file=sys.stderr)
    if site.unnamed:
        labels = ", ".join(f"{label} ({count})" for label, count in sorted(site.unnamed.items()))
        print(f"{folder}: outlines of what its manifest gives no class are left out: {labels}", file=sys.stderr)
    for note, count in site.notes.items():
        print(f"{folder}: {count} {note}", file=sys.stderr)
    return site.samples


def scan_site(folder: Path) -> Site:
    """Everything that is found of a site, what is missing included.

    Raises:
        SourceError: the folder is missing, none of its manifest's layouts is there, two have an image in common, or
            masks cannot be looked for.
        SpecError: its ``site.toml`` is unusable.
    """
    if not folder.is_dir():
        raise SourceError(f"no site at {folder}")
    described = manifest(folder)
    layouts = _layouts(folder, described)
    if not layouts:
        wanted = f"expected {expected(described)} (describe another layout in {folder / 'site.toml'})"
        raise SourceError(f"{folder} is no site: {wanted}")
    samples: list[Sample] = []
    without: list[Path] = []
    unnamed: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    taken: set[Path] = set()
    for layout in layouts if described.get("all_layouts") else layouts[:1]:
        for sample in _samples(folder, layout, described, unnamed, notes):
            if sample.image in taken:
                raise SourceError(f"{sample.image} is of two layouts of {folder / 'site.toml'}: keep it out of one")
            taken.add(sample.image)
            if sample.mask is None and not sample.polygons and "polygons" not in layout:
                without.append(sample.image)
            else:
                samples.append(sample)
    others = {image for layout in layouts for image in _images(folder, layout)} - taken
    if others and "all_layouts" not in described:
        notes[UNTAKEN] = len(others)
    alone = len(samples) == len({sample.group for sample in samples}) > max(1, notes[UNMATCHED])
    if "group" in described and alone:
        notes["images, no two of which the manifest's group puts together"] = len(samples)
    name = described["name"] or folder.name
    return Site(name, sorted(samples, key=lambda s: str(s.image)), without, unnamed, notes)


def class_ids(classes: Sequence[str]) -> dict[str, int]:
    """The label of every class, from 1, and 0 for an image without lesion."""
    return {NO_LESION: 0} | {name: i for i, name in enumerate(classes, 1)}


def read_sample(sample: Sample, label: int = 1) -> tuple[UInt8Array, UInt8Array]:
    """Pixels (H, W, 3) uint8 RGB and labels (H, W) uint8: ``label`` where there is lesion.

    Raises:
        SourceError: a file cannot be read, a mask is none in black and white, image and mask differ in size, or an
            outline lies outside of its image.
    """
    pixels = read_pixels(sample.image)
    if sample.mask is None:
        labels = np.zeros(pixels.shape[:2], np.uint8)
        for polygon in sample.polygons:  # one by one: where two overlap, both together would leave a hole
            points = np.array(polygon)  # (n, 2)
            if not _are_pixels(points, pixels.shape[1], pixels.shape[0]):
                raise SourceError(f"{sample.image} has an outline outside of it: outlines are in pixels, not 0 to 1")
            cv2.fillPoly(labels, [np.round(points).astype(np.int32)], label)
        return pixels, labels
    mask = read_mask(sample.mask)
    if mask.shape != pixels.shape[:2]:
        sizes = " and ".join(f"{w}×{h}" for h, w in (pixels.shape[:2], mask.shape))
        raise SourceError(f"{sample.image} and its mask differ in size: {sizes}")
    return pixels, np.where(mask >= 128, label, 0).astype(np.uint8)  # some masks are JPEG: not quite black and white


def _are_pixels(points: NDArray[np.float64], width: int, height: int) -> bool:
    """Whether an outline is in an image in part, and not all in its first pixel, as one from 0 to 1 is."""
    low, high = points.min(axis=0), points.max(axis=0)  # NaN where one is none, which compares as false
    is_inside = (high >= 0).all() and (low < (width, height)).all() and (high > 1).any()
    return bool(is_inside and np.abs(points).max() < FAR)


def unused_pictures(folder: Path, site: Site) -> list[Path]:
    """The pictures in a site's folder that are neither image nor mask of it, sorted; without other layouts' folders."""
    described = manifest(folder)
    used = _layouts(folder, described)[: None if described.get("all_layouts") else 1]
    of_others = _folders(described["layout"]) - _folders(used)
    taken = {path for sample in site.samples for path in (sample.image, sample.mask)} | set(site.without_mask)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path not in taken
        and not path.name.startswith(".")
        and path.relative_to(folder).parts[0] not in of_others
    )


def _layouts(folder: Path, described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layouts of a manifest that a folder has images for."""
    return [layout for layout in described["layout"] if next(_images(folder, layout), None) is not None]


def _images(folder: Path, layout: Mapping[str, Any]) -> Iterator[Path]:
    masks = {Path(pattern).parts[0] for pattern in patterns(layout)}
    for path in folder.glob(layout["image"]):
        own = path.relative_to(folder).parts[0] not in masks or layout["image"].startswith(tuple(masks))
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and own:
            yield path


def _folders(layouts: Sequence[Mapping[str, Any]]) -> set[str]:
    """The folders right below a site's that its layouts' images and masks lie in."""
    return {Path(pattern).parts[0] for layout in layouts for pattern in (layout["image"], *patterns(layout))}


def _samples(
    folder: Path, layout: Mapping[str, Any], described: Mapping[str, Any], unnamed: Counter[str], notes: Counter[str]
) -> Iterator[Sample]:
    """Every image of a layout; ``mask`` None where none of the patterns' files exists."""
    outlines = _polygons(folder, layout) if "polygons" in layout else {}
    renamed: Mapping[str, str] = described.get("classes", {})
    images = sorted(_images(folder, layout))
    known = {image.stem for image in images}
    if unknown := sum(bool(some) and name not in known for name, some in outlines.items()):
        notes["object ids with outlines that are no image's name here, without its suffix: left out"] += unknown
    for image in images:
        group = _group(image.relative_to(folder).with_suffix(""), described)
        if group is None:
            group = str(image.relative_to(folder))
            notes[UNMATCHED] += 1
        if "polygons" in layout:
            by_class: dict[str, list[Polygon]] = {}
            if image.stem not in outlines:
                notes["images that the annotation does not name, taken as without lesion"] += 1
            for label, polygon in outlines.get(image.stem, ()):
                if len(polygon) < 3:
                    notes["outlines of one or two points, left out"] += 1
                elif label in renamed:
                    by_class.setdefault(renamed[label], []).append(polygon)
                else:
                    unnamed[label] += 1
            # one lesion type an image, as the paper has it: the one with the most outlines
            lesion = max(by_class, key=lambda name: len(by_class[name])) if by_class else NO_LESION
            if others := sum(len(some) for name, some in by_class.items() if name != lesion):
                notes["outlines of a second class in an image, left out"] += others
            yield Sample(image, None, group, lesion, tuple(by_class.get(lesion, ())))
            continue
        values = {"stem": image.stem, "name": image.name, "folder": image.parent.name}
        masks = (folder / pattern.format(**values) for pattern in patterns(layout))
        published = str(described.get("class", "polyp")).format(**values)
        try:
            mask = next((m for m in masks if m.is_file()), None)
        except OSError as error:  # the folder of the masks is closed to this user
            raise SourceError(f"cannot look for the mask of {image}: {error.strerror}") from error
        yield Sample(image, mask, group, renamed.get(published, published))


def _polygons(folder: Path, layout: Mapping[str, Any]) -> dict[str, list[tuple[str, Polygon]]]:
    """Outlines of each object id, with their published labels."""
    found: dict[str, list[tuple[str, Polygon]]] = {}
    place = folder / layout["labels"]
    try:
        labels = {entry["id"]: entry["name"] for entry in json.loads(place.read_bytes())}
        place = folder / layout["polygons"]
        for entry in json.loads(place.read_bytes()):
            polygon = tuple((float(point["x"]), float(point["y"])) for point in entry["data"] or ())
            for label in entry["label_ids"]:
                found.setdefault(entry["object_id"], []).append((labels.get(label, label), polygon))
    except OSError as error:
        raise SourceError(f"cannot read {place}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{place} is not annotation JSON as expected ({type(error).__name__}: {error})") from error
    return {name: [(label, polygon) for label, polygon in some if polygon] for name, some in found.items()}


def _group(image: Path, described: Mapping[str, Any]) -> str | None:
    """What an image belongs to; None where the manifest says how to tell, and it cannot be told."""
    starts = described.get("group_starts")
    if starts and image.stem.isdigit():
        return f"sequence-{bisect.bisect_right(starts, int(image.stem)):02d}"
    if "group" not in described:
        return image.as_posix()  # two folders may have images of one name
    found = re.search(described["group"], image.stem) or re.search(described["group"], image.as_posix())
    return ("/".join(filter(None, found.groups())) or found.group()) if found else None
