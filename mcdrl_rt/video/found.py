"""What lies in folders of recordings: files, and among them what ``process`` made, which are no recordings."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

MASKS = {"ffv1": ".labels.mkv", "png": ".masks", "coco": ".masks.json"}
"""The forms masks are written in, and how the names of each end; none is a choice, too."""
ANNOTATED, TABLE, REPORT = ".annotated.mp4", ".frames.parquet", ".report.html"
SUMMARY, PARTS = ".summary.json", ".parts"
RESULTS = (ANNOTATED, *MASKS.values(), TABLE, REPORT, SUMMARY, PARTS)
"""How the names of a procedure's results end."""

MANIFEST = "manifest.json"
"""What tells, in the folder of the parts, how far the work has come."""


def is_result(name: str, has: Callable[[str], bool]) -> bool:
    """Whether something of that name was made by ``process``: its procedure's summary, or what is begun, is beside it.

    Args:
        name: of a file or folder.
        has: whether a file of some name, or way, lies beside it.
    """
    stems = (name.removesuffix(end) for end in RESULTS if name.endswith(end))
    return any(has(stem + SUMMARY) or has(f"{stem}{PARTS}/{MANIFEST}") for stem in stems)


def folders_in(folder: Path) -> tuple[list[Path], list[Path]]:
    """A folder and all in it, and then those that links in them lead to, each once, whatever leads to it; and those
    that nobody may look into, or that a link leads to and that are gone."""
    seen, found, lost = set[tuple[int, int]](), list[Path](), list[Path]()
    waiting, linked = [folder], list[Path]()
    while waiting or linked:
        one = waiting.pop() if waiting else linked.pop(0)
        try:
            facts = one.stat()
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            inner = sorted(path for path in one.iterdir() if not path.name.startswith(".") and not was_made(path))
            folders = [path for path in inner if path.is_dir()]
        except OSError:
            lost.append(one)
            continue
        seen.add((facts.st_dev, facts.st_ino))
        found.append(one)
        waiting += [path for path in folders if not path.is_symlink()]
        linked += [path for path in folders if path.is_symlink()]
        lost += [path for path in inner if path.is_symlink() and not path.suffix and not path.exists()]
    return found, lost


def was_made(path: Path) -> bool:
    """Whether a file or folder was made by ``process``."""
    return is_result(path.name, lambda beside: os.path.exists(path.parent / beside))


def files_in(folders: Iterable[Path], suffixes: frozenset[str]) -> list[Path]:
    """Files without the hidden ones: a Mac puts a ``._NAME.mp4`` beside each on a disk."""
    return sorted(
        path
        for path in itertools.chain.from_iterable(folder.iterdir() for folder in folders)
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and not path.is_dir()
        and not was_made(path)
    )
