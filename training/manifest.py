"""The manifest of a site, its own or a built-in one, read and checked; ``training/sites.py`` shows what it may say."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from mcdrl_rt.errors import SourceError, SpecError

MANIFESTS = Path(__file__).with_name("manifests")
TEXTS = ("name", "class", "group", "letter", "cite")
KEYS = (*TEXTS, "group_starts", "folders", "all_layouts", "classes", "layout")
NEEDED = "needs [[layout]] with image, and either mask or polygons and labels, as paths from its folder"
LAYOUT_KEYS = ("image", "mask", "polygons", "labels")


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder: its own ``site.toml``, the built-in one of that name, or the plain one.

    Raises:
        SpecError: ``site.toml`` is no TOML, lacks a layout, or says what no manifest does.
        SourceError: the folder cannot be looked into.
    """
    own = folder / "site.toml"
    try:
        if not own.is_file():
            return _known(folder)
        facts = own.stat()
        return _own(own, facts.st_mtime_ns, facts.st_size)
    except OSError as error:
        raise SourceError(f"cannot look into {folder}: {error.strerror}") from error


@lru_cache(maxsize=64)
def _own(own: Path, changed_ns: int, size: int) -> dict[str, Any]:
    """A folder's own manifest, for as long as it stays as it is: it is asked for with every image."""
    known = _known(own.parent)
    try:  # a published site is that site however it is described
        described = {"name": known["name"], "folders": known["folders"], "class": "polyp"}
        described |= tomllib.loads(own.read_text("utf-8-sig"))  # Notepad writes a BOM
    except (OSError, ValueError) as error:  # it may be no UTF-8 either
        raise SpecError(f"cannot read {own}: {error}") from error
    if problem := _problem(described):
        raise SpecError(f"{own} {problem}; training/sites.py shows how")
    return described


def _known(folder: Path) -> dict[str, Any]:
    """The built-in manifest of a folder."""
    return _built_in().get(folder.name) or _built_in()[""]


@cache
def _built_in() -> dict[str, dict[str, Any]]:
    """The built-in manifests by the folders they are of; the plain one, which is of none, by an empty name."""
    manifests = [tomllib.loads(path.read_text()) for path in MANIFESTS.glob("*.toml")]
    return {name: one for one in manifests for name in one["folders"] or [""]}


def patterns(layout: Mapping[str, Any]) -> list[str]:
    """Where a layout's masks may be, the likeliest first."""
    masks = layout.get("mask", [])
    return [masks] if isinstance(masks, str) else list(masks)


def expected(described: Mapping[str, Any]) -> str:
    """Where a manifest's images would be, and their masks or outlines, in words."""
    return "; or ".join(
        f"{layout['image']} with {layout.get('polygons') or patterns(layout)[0]}" for layout in described["layout"]
    )


def _problem(described: Mapping[str, Any]) -> str | None:
    """What is wrong with a manifest."""
    layouts, classes = described.get("layout"), described.get("classes", {})
    if not layouts or not isinstance(layouts, list) or not all(isinstance(one, dict) for one in layouts):
        return NEEDED
    if unknown := [key for key in described if key not in KEYS]:
        return f"has {unknown[0]}, which is none of {', '.join(KEYS)}"
    if not isinstance(classes, dict) or not all(isinstance(name, str) for name in classes.values()):
        return 'has [classes] that are no names ("published label" = "name here")'
    for part in (classes, *layouts):  # to TOML, all that follows a part's heading is of that part
        if misplaced := [key for key in part if key in KEYS]:
            return f"has {misplaced[0]} below a [heading]: it belongs above them all"
    if unknown := [key for layout in layouts for key in layout if key not in LAYOUT_KEYS]:
        return f"has a [[layout]] with {unknown[0]}, which is none of {', '.join(LAYOUT_KEYS)}"
    if not all(_is_layout(one) for one in layouts):
        return NEEDED
    if wrong := [name for name in TEXTS if not isinstance(described.get(name, ""), str)]:
        return f"has a {wrong[0]} that is no text"
    if not isinstance(described.get("all_layouts", False), bool):
        return "has all_layouts that is neither true nor false"
    starts = described.get("group_starts", [])
    if not isinstance(starts, list) or not all(isinstance(start, int) for start in starts):
        return "has group_starts that is no list of numbers"
    if not isinstance(folders := described["folders"], list) or not all(isinstance(name, str) for name in folders):
        return "has folders that are no list of names"
    try:
        re.compile(described.get("group", ""))
        for pattern in (described["class"], *(pattern for layout in layouts for pattern in patterns(layout))):
            pattern.format(stem="", name="", folder="")
        for layout in layouts:
            next(Path(os.devnull).glob(layout["image"]), None)  # it tells what is no pattern, and looks into nothing
    except re.error as error:
        return f"has a group that is no regular expression ({error})"
    except (KeyError, IndexError) as error:
        return f"has a placeholder {error} that is none of {{stem}}, {{name}}, {{folder}}"
    except (NotImplementedError, ValueError, TypeError, AttributeError) as error:
        return f"has a pattern that is none ({error}): they are relative to its folder"
    return None


def _is_layout(described: Mapping[str, Any]) -> bool:
    """Whether a layout has all that it needs, and paths where they belong."""
    mask = described.get("mask")
    masks = mask if isinstance(mask, list) else [mask]
    if "polygons" in described:
        paths = [described.get("image"), described["polygons"], described.get("labels")]
    else:
        paths = [described.get("image"), *masks]
    is_one = ("mask" in described) != ("polygons" in described) and len(paths) > 1
    return is_one and all(isinstance(path, str) and Path(path).parts for path in paths)
