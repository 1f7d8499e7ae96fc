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


class McdrlError(Exception):
    """Base of every error a user can cause; its message is one line meant for that user."""


def fault(error: BaseException) -> str:
    """What to say of an error that is none of these, and so a fault of ours."""
    return f"a fault of mcdrl-rt itself, please report it: {type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    """What a library's error says first, many go on for pages; its kind, where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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
