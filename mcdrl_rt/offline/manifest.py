"""How far the work on one procedure has come: what its parts are, and which of them are done.

It is there before the first part, and replaced as a whole: whenever the process or the machine stops, either the old
one is there or the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline.fingerprint import Fingerprint, is_fingerprint
from mcdrl_rt.offline.whole import WholeFile
from mcdrl_rt.video.found import MANIFEST
from mcdrl_rt.video.index import Segment
from mcdrl_rt.video.output import reason
from mcdrl_rt.video.verdict import Tally


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of one segment; its files lie in the folder of the parts.

    Args:
        frames: that were segmented and written.
        frames_with_lesion: of these.
        first, last: their times, in units of the time base; None without frames.
        engine_restarts: how often the engine had to be started again.
        seconds: that it took.
        stages: percentiles of the milliseconds that a frame spent in each stage, as ``Summary`` has them.
        tally: what the source says of it.
        problems: what people should know of it.
        sizes: of what it is made of, by the ends of their names, as ``extent_of`` gives them.
    """

    frames: int
    frames_with_lesion: int
    first: int | None
    last: int | None
    engine_restarts: int
    seconds: float
    stages: dict[str, dict[str, float]]
    tally: Tally
    problems: list[str]
    sizes: dict[str, int | None]


@dataclass
class Manifest:
    """The state of one procedure's work.

    Args:
        folder: of the parts, where it is kept.
        fingerprint: what the parts depend on.
        segments: all there are.
        done: the finished ones, by their number.
        stamp: of the input as it was last known to be what the fingerprint says.
        name: what the parts call the procedure; its input may be called something else by now.
        placed: ends of the names of the results that lie in their places, or are about to; others there are not ours.
    """

    folder: Path
    fingerprint: Fingerprint
    segments: tuple[Segment, ...]
    done: dict[int, Part] = field(default_factory=dict)
    stamp: str | None = None
    name: str = ""
    placed: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest in a folder; None if there is none.

        Raises:
            SourceError: it cannot be read.
        """
        path = _path(folder)
        if not path.exists():
            return None
        content = read_json(path, folder)
        try:
            segments = tuple(Segment(number, *edges) for number, edges in enumerate(content["segments"]))
            done = {int(number): _part(part) for number, part in content["done"].items()}
            if is_fingerprint(fingerprint := content["fingerprint"]):
                more = {name: content[name] for name in ("stamp", "name", "placed") if name in content}
                return cls(folder, fingerprint, segments, done, **more)
            raise ValueError(fingerprint)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise SourceError(f"cannot read {path}: it is not of this version of mcdrl-rt; delete {folder}") from None

    def save(self) -> None:
        """Replace the file.

        Raises:
            SinkError: it cannot be written.
        """
        content = {
            "fingerprint": self.fingerprint,
            "segments": [[segment.start, segment.end] for segment in self.segments],
            "stamp": self.stamp,
            "name": self.name,
            "placed": self.placed,
            "done": {str(number): dataclasses.asdict(part) for number, part in sorted(self.done.items())},
        }
        write_json(_path(self.folder), content)

    @property
    def parts(self) -> list[Part]:
        """What is done, in the segments' order."""
        return [self.done[number] for number in sorted(self.done)]


def refuse_foreign(paths: Iterable[Path]) -> None:
    """Make sure that nothing lies where results will: it is somebody's.

    Raises:
        SinkError: something does.
    """
    if there := next((path for path in paths if path.exists()), None):
        raise SinkError(f"{there} is there already, of no job; move it, or choose another output folder")


def discard(folder: Path) -> None:
    """Delete what a procedure is worked on in, its manifest last: whose folder it is can be told until it is gone."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name != MANIFEST:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.rmtree(folder)


def extent_of(path: Path) -> int | None:
    """Bytes of a file, or the number of files in a folder; None where there is neither."""
    try:
        return len(os.listdir(path)) if path.is_dir() else path.stat().st_size
    except OSError:
        return None


def read_json(path: Path, of: Path | str = "it") -> dict[str, Any]:
    """What is in a file of JSON; ``of``: what is worth nothing without it, and is to be deleted.

    Raises:
        SourceError: it cannot be read, or holds something else.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SourceError(f"cannot read {path}: {reason(error)}") from None
    except (ValueError, TypeError):
        raise SourceError(f"cannot read {path}: it is damaged; delete {of}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replace a file of JSON, so that it is on the disk under its name when this returns.

    Raises:
        SinkError: it cannot be written.
    """
    whole = WholeFile(path)
    with whole.guarded():
        whole.file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())
    whole.close()
    keep_names(path.parent)


def keep_names(folder: Path) -> None:
    """Put the names in a folder safely on the disk.

    Raises:
        SinkError: that cannot be done.
    """
    try:
        with contextlib.suppress(PermissionError):  # Windows opens no folder, and keeps names by itself
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        raise SinkError(f"cannot write in the folder {folder}: {reason(error)}") from None


def _part(content: dict[str, Any]) -> Part:
    return Part(**content | {"tally": Tally(**content["tally"])})


def _path(folder: Path) -> Path:
    return folder / MANIFEST
