"""What would say who a procedure is of, taken out before anything else sees it: the surround, the room, the name.

Pictures are blanked where ``video.field`` finds no picture or writing, and as a whole where ``video.out_of_body`` sees
no body; what is derived from them (overlay, report, thumbnails) shows no more than that. Sound is left out, because
people speak; files written here carry no metadata of the input's. Names become pseudonyms under a key of this user's:
who has the key, and the names, can tell which is whose (``--dry-run`` lists them). Messages that are kept call a
picture by its number.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hmac
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mcdrl_rt.engine.key import user_key
from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Frame, UInt8Array
from mcdrl_rt.video.field import blanked, field_of
from mcdrl_rt.video.names import legible
from mcdrl_rt.video.out_of_body import OutOfBody
from mcdrl_rt.video.playlist import pictures_of
from mcdrl_rt.video.source import Source

_LETTERS = 16


class Deidentified(Source):
    """Another source's frames, blanked.

    Args:
        source: opened; closed with this one.
        field: (H, W) uint8 of the whole procedure, from ``field_of``; None to look at each frame by itself, as for
            pictures, which need not belong together.
        outside: has seen the frames before the source's first, by ``is_outside``; by default there are none.
    """

    def __init__(self, source: Source, field: UInt8Array | None, outside: OutOfBody | None = None) -> None:
        self._take_facts(source)
        self.frame_count, self.live = source.frame_count, source.live
        self.source, self._field = source, field
        self._outside = outside or OutOfBody()

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.source:
            yield dataclasses.replace(frame, picture=self._private(frame), file="")
        self.problem = self.source.problem

    def close(self) -> None:
        """Close the source."""
        self.source.close()

    def _private(self, frame: Frame) -> UInt8Array:
        field = self._field
        if field is None:  # pictures, none of which says where the next was taken
            field, self._outside = field_of([frame.pixels]), OutOfBody()
        if field is None or is_outside(self._outside, frame, field):
            return np.zeros_like(frame.pixels)
        return blanked(frame.pixels, field)


def is_outside(outside: OutOfBody, frame: Frame, field: UInt8Array) -> bool:
    """Whether the next frame is from outside the body; ``field`` is of the procedure, and fits most of its frames."""
    return outside(frame, field if field.shape == frame.size else None)


def pseudonym(place: Path) -> Path:
    """A name without a meaning for each part of a relative path; the same for the same, under this user's key.

    Raises:
        EngineError: there is no key and none can be made.
    """
    key = user_key("names", "pseudonyms are made with")
    assert key is not None
    return Path(*(_hashed(part, key) for part in place.parts))


def nameless(message: str, recording: Path) -> str:
    """A message about a recording without its name and place: a picture of a folder is called by its number there.

    >>> nameless("/DOE/a.mp4 is empty", Path("/DOE/a.mp4"))
    'the recording is empty'
    """
    instead = {str(recording): "the recording", recording.name: "the recording"}
    with contextlib.suppress(SourceError):  # it may be gone by now
        for number, file in enumerate(pictures_of(recording) if recording.is_dir() else (), 1):
            instead |= {str(file): f"picture {number}", file.name: f"picture {number}"}
    instead |= {legible(name): what for name, what in instead.items()}
    names = "|".join(re.escape(name) for name in sorted(instead, key=len, reverse=True))
    return re.sub(rf"(?<!\w)({names})(?!\w)", lambda found: instead[found[0]], message)


def _hashed(name: str, key: bytes) -> str:
    digest = hmac.digest(key, name.encode(errors="surrogateescape"), "sha256")
    return base64.b32encode(digest).decode()[:_LETTERS].lower()
