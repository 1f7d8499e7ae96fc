"""The work on one segment: read it, segment its frames, write its parts. It depends on nothing but its arguments.

So segments may be worked on in any order, by any process. A stream of its own reads each, with a fresh state of the
segmenter: what is found on a frame does not depend on the segments before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mcdrl_rt.offline.manifest import Part, extent_of
from mcdrl_rt.offline.privacy import nameless
from mcdrl_rt.offline.products import About, Together, products
from mcdrl_rt.offline.recording import Recording, tally_of
from mcdrl_rt.offline.settings import Settings
from mcdrl_rt.segmenter import AnySegmenter
from mcdrl_rt.stream.pipeline import Stream
from mcdrl_rt.stream.policy import Policy
from mcdrl_rt.stream.supervisor import Supervisor
from mcdrl_rt.video.index import Segment

_TRIES = 2
_STALL_S = 60.0  # nobody watches: a machine that is busy with other things is given its time


@dataclass(frozen=True)
class Task:
    """One segment to be worked on, with all that its parts depend on but the engine; small, and may be sent anywhere.

    Args:
        recording: that it is a part of.
        segment: of the recording.
        settings: what is to be made of it.
        about: the procedure.
        folder: of the parts.
    """

    recording: Recording
    segment: Segment
    settings: Settings
    about: About
    folder: Path


def work(task: Task, segmenter: AnySegmenter, on_frame: Callable[[int], None] | None = None) -> Part:
    """Write the parts of one segment into its folder; each appears when it is whole.

    An engine that had to be started again has lost sight of the field of view: then the segment is worked on anew. So
    it is where something could not be read, once: a disk may fail for a moment.

    Raises:
        McdrlError: the segment cannot be read, segmented or written; it leaves nothing behind.
    """
    restarts = 0
    for _ in range(_TRIES):
        part = _work(task, segmenter, on_frame)
        restarts += part.engine_restarts
        if not (part.engine_restarts or part.tally.stopped):
            break
    return dataclasses.replace(part, engine_restarts=restarts)


def _work(task: Task, segmenter: AnySegmenter, on_frame: Callable[[int], None] | None) -> Part:
    kinds = products(task.settings)
    paths = [kind.part(task.folder, task.segment.number) for kind in kinds]
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)  # of pictures, those there are when work is broken off are left
    with contextlib.ExitStack() as opened:
        source = opened.enter_context(task.recording.open(task.segment))
        sinks = [opened.enter_context(kind.open(path, task.about)) for kind, path in zip(kinds, paths, strict=True)]
        together = Together(sinks)
        supervisor = opened.enter_context(Supervisor(segmenter, stall_s=_STALL_S))
        stream = Stream(
            source,
            supervisor.seat(),
            {str(task.folder): together},
            Policy(opacity=task.settings.opacity, hud=False),  # what it says is of no moment of the recording
            on_frame=on_frame,
            strict=True,
        )
        summary, tally = stream.run(), tally_of(source)
        if tally.stopped or source.problem:
            task.recording.read_through(task.segment)
        problem = summary.problem
        if problem and task.settings.private:
            problem = nameless(problem, task.recording.path)
        return Part(
            frames=summary.frames_out,
            frames_with_lesion=summary.frames_with_lesion,
            first=together.first,
            last=together.last,
            engine_restarts=summary.engine_restarts,
            seconds=summary.seconds,
            stages=summary.stages,
            tally=tally,
            problems=[problem] if problem else [],
            sizes={kind.end: extent_of(path) for kind, path in zip(kinds, paths, strict=True)},
        )
