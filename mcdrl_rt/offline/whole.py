"""A file that is whole or not there: written beside its place, put safely on the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mcdrl_rt.errors import SinkError
from mcdrl_rt.unfinished import ended
from mcdrl_rt.video.output import partial_path, reason


class WholeFile:
    """One such file, open for writing.

    Attributes:
        file: to write to, inside ``guarded``.

    Raises:
        SinkError: it cannot be made.
    """

    def __init__(self, target: Path) -> None:
        self._target, self._partial = target, partial_path(target)
        self.file: BinaryIO
        try:
            self.file = self._partial.open("wb")
        except OSError as error:
            raise SinkError(f"cannot write {target}: {reason(error)}") from None

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """What the disk refuses inside is told as a ``SinkError``, and nothing is left behind."""
        try:
            yield
        except OSError as error:
            self.abort()
            raise SinkError(f"cannot write {self._target}: {reason(error)}") from None

    def close(self) -> None:
        """Let it appear under its name; nothing after ``close`` or ``abort``."""
        if self.file.closed:
            return
        with self.guarded():
            self.file.flush()
            os.fsync(self.file.fileno())  # a power cut must not leave a named ruin
            self.file.close()
            self._partial.replace(self._target)
        ended(self._partial)

    def abort(self) -> None:
        """Discard it; what had its name before is untouched."""
        with contextlib.suppress(OSError):  # a full disk takes no last bytes, and they are thrown away
            self.file.close()
        self._partial.unlink(missing_ok=True)
        ended(self._partial)
