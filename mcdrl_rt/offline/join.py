"""The end of the work on a procedure: parts become results, and the summary says that all is done.

Parts stay until the summary is there. So whatever stops this, it is done again from them, with the same results.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline.manifest import Manifest, Part, discard, keep_names, refuse_foreign, write_json
from mcdrl_rt.offline.plan import Job
from mcdrl_rt.offline.privacy import nameless
from mcdrl_rt.offline.products import About, Product
from mcdrl_rt.offline.recording import Recording
from mcdrl_rt.offline.settings import Settings
from mcdrl_rt.stream.telemetry import Summary
from mcdrl_rt.version import __version__
from mcdrl_rt.video.chunks import Chunk
from mcdrl_rt.video.found import ANNOTATED, REPORT, SUMMARY, TABLE
from mcdrl_rt.video.names import legible
from mcdrl_rt.video.output import reason
from mcdrl_rt.video.pictures import Pictures

_TOLD = 3  # problems, at most
_COUNTED = ("frames ", "of the files ")  # what they count


def finish(
    job: Job,
    manifest: Manifest,
    recording: Recording,
    kinds: Sequence[Product],
    about: About,
    settings: Settings,
    address: Callable[[Path], str] = str,
) -> Summary:
    """Join the parts of all segments, put the results in their places, and clear up.

    ``address`` tells where a result will be in the end.

    Raises:
        SourceError: not one frame of the recording can be decoded.
        SinkError: a result cannot be written.
    """
    time_base = recording.format.time_base
    starts = {number: part.first * time_base for number, part in manifest.done.items() if part.first is not None}
    if not starts:
        raise SourceError(f"cannot decode {job.source.name}: no frame of it is a picture; the file is damaged")
    problems = [recording.verdict(part.tally for part in manifest.parts)]
    problems += [text for part in manifest.parts for text in part.problems]
    for kind in kinds:
        chunks = [
            Chunk(kind.part(manifest.folder, number), start_s, manifest.done[number].frames)
            for number, start_s in sorted(starts.items())
        ]
        whole = kind.whole(manifest.folder)
        problems += kind.join(chunks, whole, about)
        _place(manifest, whole, job, kind.end)
    told = _added_up(text for text in problems if text)
    if settings.private:
        told = nameless("\n".join(told), recording.path).splitlines()  # all at once: it lists the pictures' names
    summary = dataclasses.replace(
        _summary(job.name(settings) if settings.private else job.title, manifest, recording),
        output=legible(address(job.result(kinds[0].end))),
        problem="; ".join(told[:_TOLD]) + ("; …" if len(told) > _TOLD else "") or None,
    )
    if settings.report:
        origin_s = min(*starts.values(), Fraction(0))
        _report(job, manifest, job.name(settings), summary, origin_s if settings.annotated else None)
    done = manifest.folder / "summary.json"
    known = {"fingerprint": manifest.fingerprint, "stamp": manifest.stamp}
    kept = dataclasses.replace(summary, output=Path(summary.output).name) if settings.private else summary
    write_json(done, known | {"summary": dataclasses.asdict(kept), "problems": told})
    keep_names(job.summary.parent)  # the results' names before that which says they are there
    _place(manifest, done, job, SUMMARY)
    keep_names(job.summary.parent)
    discard(manifest.folder)
    return summary


def _summary(source: str, manifest: Manifest, recording: Recording) -> Summary:
    """All parts as one run."""
    parts = [part for part in manifest.parts if part.frames]
    frames, seconds = sum(part.frames for part in parts), sum(part.seconds for part in parts)
    first, last = min(part.first or 0 for part in parts), max(part.last or 0 for part in parts)
    video_s = float((last - first) * recording.format.time_base + 1 / recording.format.rate)
    engine = manifest.fingerprint["engine"]
    return Summary(
        source=source,
        output="",
        model=engine["model"],
        engine=engine["name"],
        frames_in=frames,
        frames_out=frames,
        frames_dropped=0,
        frames_with_lesion=sum(part.frames_with_lesion for part in parts),
        engine_restarts=sum(part.engine_restarts for part in parts),
        seconds=round(seconds, 3),
        fps=round(frames / seconds, 2) if seconds else 0.0,
        realtime=round(video_s / seconds, 2) if seconds else 0.0,
        first_frame_s=None,
        stages=_stages(parts),
    )


def _added_up(problems: Iterable[str]) -> list[str]:
    """Each problem once: of those that begin with a count, segments' are added up.

    >>> _added_up(["2 frames were scaled; no sound", "3 frames were scaled"])
    ['5 frames were scaled', 'no sound']
    >>> _added_up(["1 polyp.jpg: cut off", "2 polyp.jpg: cut off"])
    ['1 polyp.jpg: cut off', '2 polyp.jpg: cut off']
    """
    counts: dict[str, int] = {}
    for text in (text for problem in problems for text in problem.split("; ")):
        count, _, counted = text.partition(" ")
        is_count = count.isdecimal() and counted.startswith(_COUNTED)  # a file's name may begin with a number, too
        what, more = (counted, int(count)) if is_count else (text, 0)
        counts[what] = counts.get(what, 0) + more
    return [f"{count} {text}" if count else text for text, count in counts.items()]


def _stages(parts: Sequence[Part]) -> dict[str, dict[str, float]]:
    """The segments' percentiles, averaged over their frames; the maximum is the largest."""
    stages: dict[str, dict[str, float]] = {}
    for stage in dict.fromkeys(name for part in parts for name in part.stages):
        seen = [(part.frames, part.stages[stage]) for part in parts if stage in part.stages]
        frames = sum(count for count, _ in seen)
        figures = {name: sum(count * its[name] for count, its in seen) / frames for name in seen[0][1]}
        figures["max_ms"] = max(its["max_ms"] for _, its in seen)
        stages[stage] = {name: round(figure, 2) for name, figure in figures.items()}
    return stages


def _report(job: Job, manifest: Manifest, name: str, summary: Summary, origin_s: Fraction | None) -> None:
    """Write the report; with pictures, where there is an annotated video and it is known which time is zero in it."""
    from mcdrl_rt.offline.report import write_report

    about = {"name": name, "model": summary.model, "engine": summary.engine, "made by": __version__}
    if summary.problem:
        about["note"] = summary.problem
    folder, table = manifest.folder, job.result(TABLE)
    whole = folder / "whole.report.html"
    if origin_s is None:
        write_report(whole, table, about)
    else:
        video = job.result(ANNOTATED)
        with contextlib.closing(Pictures(video, origin_s)) as pictures:
            # the page names the video by the way from it, and they will lie beside each other
            write_report(whole, table, about, pictures, folder / video.name, float(origin_s))
    _place(manifest, whole, job, REPORT)


def _place(manifest: Manifest, whole: Path, job: Job, end: str) -> None:
    """Put a result in its place, which the same from before an interruption may have, but nobody else's."""
    target = job.result(end)
    if end not in manifest.placed:
        refuse_foreign([target])
        manifest.placed.append(end)
        manifest.save()
    try:
        if whole.is_dir() and target.is_dir():
            if strange := set(os.listdir(target)) - set(os.listdir(whole)):
                raise SinkError(f"{target} holds what is of no job ({min(strange)}); move it away")
            shutil.rmtree(target)
        os.replace(whole, target)
    except OSError as error:
        raise SinkError(f"cannot write {target}: {reason(error)}") from None
