"""What is being written and must not stay if the process is told to end at once, in the midst of whatever it is at."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

_paths = set[Path]()


def begun(path: Path) -> Path:
    """A file or folder that is there for a while: removed by ``remove_all`` if it is there then."""
    _paths.add(path)
    return path


def ended(path: Path) -> None:
    """It is gone, has another name by now, or stays after all."""
    _paths.discard(path)


def remove_all() -> None:
    """Remove what is left of everything begun."""
    for path in list(_paths):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
