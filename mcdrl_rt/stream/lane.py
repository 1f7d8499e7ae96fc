"""The streams of one command: each input, its name, and the outputs it goes to.

What can be wrong with an input or an output shows here, before an engine is loaded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mcdrl_rt.errors import SourceError
from mcdrl_rt.video.container import is_file, may_be_away, short_name
from mcdrl_rt.video.file import FORMATS
from mcdrl_rt.video.names import legible, plain, scheme
from mcdrl_rt.video.output import numbered
from mcdrl_rt.video.routing import distinct
from mcdrl_rt.video.sink import Sink, open_sink
from mcdrl_rt.video.source import Source, open_source

WINDOW = "window"
_log = logging.getLogger("mcdrl_rt")


@dataclass(frozen=True)
class Lane:
    """One input and where it goes.

    Args:
        name: for people, unlike that of any other lane.
        source: opened.
        outputs: as the user named them, but that no recording replaces an earlier one.
        sinks: opened, by those names; a window is not among them: it needs the model's colours.
    """

    name: str
    source: Source
    outputs: list[str]
    sinks: dict[str, Sink]


def open_lanes(
    inputs: list[str],
    routes: list[list[str]],
    sources: contextlib.ExitStack,
    sinks: contextlib.ExitStack,
    *,
    live: bool = False,
    options: dict[str, str] | None = None,
    codec: str | None = None,
    on_missing: Callable[[str, SourceError], None] = lambda name, error: None,
) -> list[Lane]:
    """Open all inputs, then all outputs; of several inputs, those on a network or a device may be missing.

    Args:
        inputs: as ``open_source`` takes them.
        routes: the outputs of each, from ``route``.
        sources, sinks: what was opened is closed with them.
        live: play files at their own pace.
        options: FFmpeg's, for every input.
        codec: as ``open_sink`` takes it.
        on_missing: called for each input that cannot be opened, with its name for people.

    Raises:
        SourceError: an input cannot be opened, or not one of them all.
        SinkError: an output cannot be opened.
    """
    there = {}
    for place, uri in enumerate(inputs):
        try:
            there[place] = sources.enter_context(open_source(uri, live=live, **(options or {})))
        except SourceError as error:
            on_missing(short_name(plain(uri)), error)
            if len(inputs) == 1 or not may_be_away(uri):
                raise
            _log.error("%s", error)
    if not there:
        raise SourceError("none of the inputs can be opened")
    lanes = []
    taken = {output for outputs in routes for output in outputs}
    for name, (place, source) in zip(distinct([s.name for s in there.values()]), there.items(), strict=True):
        file = plain(inputs[place])
        sound = Path(file) if is_file(file) else None
        outputs = routes[place]
        if source.live:  # what it shows may not come again
            outputs = [_beside_earlier(output, taken) for output in outputs]
        opened = {
            output: sinks.enter_context(open_sink(output, source.format, codec=codec, audio=sound, stream=name))
            for output in outputs
            if output != WINDOW
        }
        if source.sound and sound is None and (silent := [output for output in outputs if _is_video_file(output)]):
            _log.warning(
                "%s: its sound is left out of %s: only that of a single file is kept; to have it, save it as one first",
                name,
                ", ".join(map(legible, silent)),
            )
        lanes.append(Lane(name, source, outputs, opened))
    return lanes


def _is_video_file(output: str) -> bool:
    return not scheme(output) and Path(output).suffix.lower() in FORMATS


def _beside_earlier(output: str, taken: set[str]) -> str:
    """The output, or where a recording of that name is there already, the next name that is free."""
    path = Path(output)
    if scheme(output) or path.suffix.lower() not in (*FORMATS, ".jsonl"):
        return output
    cut_off = re.compile(rf"\.{re.escape(path.stem)}(-\d+)?\.partial-[\d-]+{re.escape(path.suffix)}")
    for left in sorted(file for file in path.parent.glob(".*.partial-*") if cut_off.fullmatch(file.name)):
        _log.warning("%s holds what was recorded until something cut it off, or is being recorded", legible(str(left)))
    if not path.is_file():
        return output
    free = next(name for name in numbered(path) if not os.path.lexists(name) and str(name) not in taken)
    taken.add(str(free))
    _log.warning("%s is there already: this recording goes to %s", legible(output), legible(str(free)))
    return str(free)
