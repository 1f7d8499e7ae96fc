"""One procedure, from its first segment to its summary; taken up where it was left."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline.fingerprint import Fingerprint, difference, input_facts, is_fingerprint, stamp
from mcdrl_rt.offline.hands import Hands
from mcdrl_rt.offline.join import finish
from mcdrl_rt.offline.manifest import Manifest, discard, extent_of, read_json, refuse_foreign, write_json
from mcdrl_rt.offline.plan import Job, make_folder
from mcdrl_rt.offline.products import About, Product
from mcdrl_rt.offline.recording import Recording, open_recording
from mcdrl_rt.offline.settings import Settings
from mcdrl_rt.offline.work import Task
from mcdrl_rt.stream.telemetry import Summary
from mcdrl_rt.types import ModelSpec

_LOOKS = 50  # times as long is worked as it takes to look whether the input is still the same
OnStart = Callable[[Job, int | None], Callable[[int], None] | None]


@dataclass(frozen=True)
class Crew:
    """What all procedures of a job have in common.

    Args:
        hands: that work on their segments.
        spec: of their model.
        engine: what it is, see ``fingerprint.engine_facts``.
        settings: what is to be made.
        kinds: the results that are joined of parts.
    """

    hands: Hands
    spec: ModelSpec
    engine: Mapping[str, str]
    settings: Settings
    kinds: Sequence[Product]

    @property
    def fingerprint(self) -> dict[str, Mapping[str, Any]]:
        """What all of their results depend on."""
        return {"engine": self.engine, "settings": self.settings.facts()}


def done_before(job: Job, fingerprint: Fingerprint, address: Callable[[Path], str] = str) -> Summary | None:
    """The summary of a procedure that is done; None if it is not. ``address``: see ``carry_out``.

    Raises:
        SinkError: it was done by another engine, with other settings, or with another input in its place.
        SourceError: it is no summary of a procedure.
    """
    if not job.summary.exists():
        return None
    content = read_json(job.summary, of="it and the results beside it")
    try:
        if not is_fingerprint(there := content["fingerprint"]):
            raise TypeError(there)
        _refuse(address(job.summary), there, fingerprint)
        summary = Summary(**content["summary"])
    except (KeyError, TypeError):
        raise SourceError(f"{job.summary} is no summary of a procedure; move it away, or delete it") from None
    discard(job.parts)  # it may have been stopped in clearing up
    return summary


def carry_out(
    job: Job, crew: Crew, on_start: OnStart | None = None, address: Callable[[Path], str] = str
) -> tuple[Summary, bool]:
    """Do what is left to do of a procedure.

    Args:
        job: from ``plan``.
        crew: that does it.
        on_start: see ``process``.
        address: where a result will be in the end.

    Returns:
        The summary, and whether it was there before.

    Raises:
        McdrlError: the procedure cannot be read, segmented or written, or what is there of it is another job's.
            Segments that are done stay done. Or its input changed meanwhile, and nothing of it is kept.
    """
    stamped = None if job.origin else stamp(job.source)
    facts = job.origin.facts() if job.origin else _known(job.summary, stamped) or input_facts(job.source)
    fingerprint = crew.fingerprint | {"input": facts}
    if summary := done_before(job, fingerprint, address):
        if stamped is not None and (known := read_json(job.summary)).get("stamp") != stamped:  # not to be read again
            write_json(job.summary, known | {"stamp": stamped})
        return summary, True
    with job.origin.fetched() if job.origin else contextlib.nullcontext():
        recording = open_recording(job.source.absolute(), crew.settings.private)
        manifest = _manifest(job, crew, recording, fingerprint, stamped)
        try:
            about = _about(manifest.name, crew, recording)
            _work(job, crew, recording, manifest, about, on_start)
            _check(job, crew, manifest)
            summary = finish(job, manifest, recording, crew.kinds, about, crew.settings, address)
            _check(job, crew, manifest)  # its sound was read last
            return summary, False
        except Exception:
            _check(job, crew, manifest)  # it may be why
            raise
        finally:
            if not (manifest.done or manifest.placed):
                discard(manifest.folder)


def _known(summary: Path, stamped: str | None) -> Mapping[str, Any] | None:
    """What an input is, where the summary of its procedure says it, and nothing was written to it since."""
    content = read_json(summary) if summary.exists() else {}
    there = content.get("fingerprint")
    return there.get("input") if is_fingerprint(there) and content.get("stamp") == stamped else None


def _work(
    job: Job, crew: Crew, recording: Recording, manifest: Manifest, about: About, on_start: OnStart | None
) -> None:
    """Do the segments that are left."""
    on_frame = on_start(job, recording.frames) if on_start else None
    counted = _Count(on_frame, sum(part.frames for part in manifest.parts))
    left = [segment for segment in manifest.segments if segment.number not in manifest.done]
    folder = manifest.folder.absolute()  # it may be for others, who stand elsewhere
    tasks = [Task(recording, segment, crew.settings, about, folder) for segment in left]
    looked_s, takes_s = time.monotonic(), 0.0
    for number, part in crew.hands.do(tasks, counted):
        counted.before += part.frames
        counted(0)
        if (now_s := time.monotonic()) - looked_s >= _LOOKS * takes_s:  # and in the end
            _check(job, crew, manifest)
            looked_s = time.monotonic()
            takes_s = looked_s - now_s
        manifest.done[number] = part
        manifest.save()


def _check(job: Job, crew: Crew, manifest: Manifest) -> None:
    """Make sure that the input is the one that was begun with: segments of two are of no use.

    Raises:
        SourceError: it is another one now, or gone.
    """
    if manifest.stamp is None or (now := stamp(job.source)) == manifest.stamp:
        return
    if input_facts(job.source) != manifest.fingerprint["input"]:
        manifest.done.clear()
        for path in map(job.result, manifest.placed):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        manifest.placed.clear()
        raise SourceError(f"{job.title} changed while it was processed; process it again")
    manifest.stamp = now  # no more than its permissions changed, say


class _Count:
    """Counts a procedure's frames on from those that are done; it is called with the number in the segment at work."""

    def __init__(self, on_frame: Callable[[int], None] | None, before: int) -> None:
        self._on_frame, self.before, self._told = on_frame, before, 0
        self(0)

    def __call__(self, frames: int) -> None:
        count = self.before + frames
        if self._on_frame is not None and count != self._told:
            self._told = count
            self._on_frame(count)


def _manifest(job: Job, crew: Crew, recording: Recording, fingerprint: Fingerprint, stamped: str | None) -> Manifest:
    """The manifest of what was begun, or a new one; a segment whose parts were deleted or cut off is not done."""
    manifest = Manifest.read(job.parts)
    if manifest is not None and (manifest.done or manifest.placed):
        _refuse(str(job.parts), manifest.fingerprint, fingerprint)
        manifest.stamp = stamped
        for left in job.parts.glob(".*"):  # what a killed process left
            left.unlink(missing_ok=True)
        for number, part in list(manifest.done.items()):
            sizes = {kind.end: extent_of(kind.part(job.parts, number)) for kind in crew.kinds}
            if part.frames and sizes != part.sizes:
                del manifest.done[number]
        refuse_foreign(job.result(end) for end in crew.settings.ends if end not in manifest.placed)
        return manifest
    refuse_foreign(job.results(crew.settings))
    if manifest is None and job.parts.is_dir() and any(not path.name.startswith(".") for path in job.parts.iterdir()):
        refuse_foreign([job.parts])
    discard(job.parts)  # not one segment was done
    make_folder(job.parts)
    segments = recording.segments(crew.settings.segment_s)
    manifest = Manifest(job.parts, fingerprint, segments, stamp=stamped, name=job.name(crew.settings))
    manifest.save()  # whose folder it is
    return manifest


def _about(name: str, crew: Crew, recording: Recording) -> About:
    spec = crew.spec
    facts = {"source": name, "time_base": str(recording.format.time_base), "classes": list(spec.classes)}
    return About(recording.format, spec.classes, facts | {"engine": dict(crew.engine)}, recording.sound)


def _refuse(path: str, there: Fingerprint, now: Fingerprint) -> None:
    """Nothing of one job is mixed with another's."""
    if differs := difference(there, now):
        what_to_do = "choose another output folder, or delete it and the results beside it"
        raise SinkError(f"{path} is of another job ({differs}); {what_to_do}")
