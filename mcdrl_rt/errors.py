"""Everything this package raises on purpose, as one tree.

::

    McdrlError                 one clear line: what is wrong and what to do
    ├── SpecError              a model specification or checkpoint that does not add up
    │   └── CheckpointError    a checkpoint file that is foreign, corrupt or missing
    ├── EngineError            an engine that cannot be built, loaded or run here
    ├── SourceError            a video source that cannot be opened or read
    └── SinkError              an output that cannot be created or written

The command line prints the message of a ``McdrlError`` and exits with status 1; anything else is a bug.
"""

from __future__ import annotations

import stat
from pathlib import Path


class McdrlError(Exception):
    """Base of every error a user can cause; its message is one line meant for that user."""


def fault(error: BaseException) -> str:
    """What to say of an error that is none of these, and so a fault of ours."""
    return f"a fault of mcdrl-rt itself, please report it: {type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    """What a library's error says first, many go on for pages; its kind, where it says nothing.

    The system's own errors are told without their numbers.
    """
    if isinstance(error, OSError) and error.strerror and str(error).startswith("[Errno"):
        return f"{error.strerror.lower()}: {error.filename}" if error.filename else error.strerror.lower()
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def unreadable(path: Path) -> str:
    """Why there is no file at a path that this user can read, in a few words; empty where there is one."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "that is no file"
        path.open("rb").close()
    except OSError as error:
        return str(error.strerror or error).lower()
    except ValueError as error:  # of a name that no file can have
        return first_line(error)
    return ""


class SpecError(McdrlError):
    """A model specification whose parts contradict each other."""


class CheckpointError(SpecError):
    """A checkpoint file that is missing, truncated, or not one of ours."""


class EngineError(McdrlError):
    """An engine that cannot be built, loaded or run on this machine."""


class SourceError(McdrlError):
    """A video source that does not exist, is not a video, or cannot be read."""


class SinkError(McdrlError):
    """An output whose place or format does not allow writing."""
