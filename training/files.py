"""Files that appear at once, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from mcdrl_rt.errors import SpecError, first_line


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write a file that is to appear at once, or not at all.

    Raises:
        SpecError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch calls a full disk a RuntimeError
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise SpecError(f"cannot write {path}: {first_line(error)}") from error
