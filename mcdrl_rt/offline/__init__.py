"""Recorded procedures: each input becomes an annotated video and a lossless label video in the output folder.

``NAME.annotated.mp4`` is for people. ``NAME.labels.mkv`` (FFV1, lossless) holds the class id of every pixel, 0 for
background, in all three channels. Results lie under the output folder as a folder's videos lie in it. H.264 takes
even sizes only, so an annotated video of odd size has one more row or column than its labels. One input that cannot
be read does not stop the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcdrl_rt.errors import McdrlError, SinkError, SourceError
from mcdrl_rt.segmenter import AnySegmenter
from mcdrl_rt.stream.pipeline import Stream
from mcdrl_rt.stream.policy import Policy
from mcdrl_rt.stream.supervisor import Supervisor
from mcdrl_rt.stream.telemetry import Summary
from mcdrl_rt.types import Shown
from mcdrl_rt.video.playlist import VIDEOS
from mcdrl_rt.video.sink import Sink, open_sink
from mcdrl_rt.video.source import Source, open_source

_RESULTS = (".annotated.mp4", ".labels.mkv")


@dataclass(frozen=True)
class Job:
    """One input and what it becomes."""

    source: Path
    annotated: Path
    labels: Path


@dataclass(frozen=True)
class Outcome:
    """How one job ended: a summary, or the reason there is none."""

    job: Job
    summary: Summary | None = None
    error: str | None = None


def plan(inputs: list[Path], output: Path) -> list[Job]:
    """Find the videos in ``inputs`` (files, or folders looked through) and name their outputs.

    Raises:
        SourceError: an input does not exist, holds no video, or two would get the same name.
        SinkError: the output folder is an input, lies in one, or cannot be made, or a result would replace an input.
    """
    files: list[tuple[Path, Path]] = []  # a video, and its place below the output folder
    named = [path for path in inputs if not path.is_dir()]
    for path in inputs:
        if not path.exists():
            raise SourceError(f"no such file or folder: {path}")
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise SinkError(f"the output folder {output} lies in the input {path}; choose one outside of it")
        if path.is_dir():
            found = [(file, file.relative_to(path)) for file in _videos(path)]
        else:
            found = [(path, _place(path, named))]
        if not found:
            raise SourceError(f"no video in {path}; looked for {' '.join(sorted(VIDEOS))}")
        files += found
    jobs = [Job(file, *(output / place.with_name(_stem(place) + end) for end in _RESULTS)) for file, place in files]
    names = [job.annotated for job in jobs]
    twice = sorted({job.source.stem for job in jobs if names.count(job.annotated) > 1})
    if twice:
        raise SourceError(f"several inputs are named {', '.join(twice)}; process them into different folders")
    results = {path.resolve() for job in jobs for path in (job.annotated, job.labels)}
    replaced = results & {file.resolve() for file, _ in files}
    if replaced:
        raise SinkError(f"the input {min(replaced).name} would be replaced by a result; choose another output folder")
    _make_folder(output)
    return jobs


def process(
    jobs: list[Job],
    segmenter: AnySegmenter,
    *,
    opacity: float = 0.35,
    on_start: Callable[[Job, Source], Callable[[int], None] | None] | None = None,
) -> Iterator[Outcome]:
    """Run every job and yield how it ended, one after the other; one that fails leaves nothing behind.

    Args:
        jobs: from ``plan``.
        segmenter: used for all of them in turn.
        opacity: of the lesions' tint.
        on_start: called with each job and its opened source; may return a function to be called with the number of
            frames written so far.
    """
    with Supervisor(segmenter) as supervisor:
        for job in jobs:
            try:
                outcome = Outcome(job, _process_one(job, supervisor, opacity, on_start))
            except McdrlError as error:
                named = job.source.name in str(error)
                outcome = Outcome(job, error=str(error) if named else f"{job.source}: {error}")
            yield outcome


def _place(path: Path, named: list[Path]) -> Path:
    """Where a named file's results go: under its name, or, where others have it too, where it is among them all."""
    if sum(_stem(other) == _stem(path) for other in named) == 1:
        return Path(path.name)
    common = os.path.commonpath([Path(os.path.abspath(other)).parent for other in named])
    return Path(os.path.abspath(path)).relative_to(common)


def _stem(path: Path) -> str:
    """A video's name without its extension; a dot before anything else (``case.2023``) is part of the name."""
    return path.stem if path.suffix.lower() in VIDEOS else path.name


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"cannot make the output folder {folder}: {str(error.strerror).lower()}") from error


def _videos(folder: Path) -> list[Path]:
    """Videos in a folder and its folders, without hidden files: a Mac puts a ``._NAME.mp4`` beside each on a disk."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEOS and not path.name.startswith(".") and not path.is_dir()
    )


def _process_one(
    job: Job,
    supervisor: Supervisor,
    opacity: float,
    on_start: Callable[[Job, Source], Callable[[int], None] | None] | None,
) -> Summary:
    with open_source(str(job.source)) as source:
        _make_folder(job.annotated.parent)
        on_frame = on_start(job, source) if on_start else None

        def sink(path: Path, codec: str | None = None) -> Sink:
            return open_sink(str(path), source.format, codec=codec)

        with contextlib.ExitStack() as opened:
            sinks = {
                str(job.annotated): opened.enter_context(sink(job.annotated)),
                str(job.labels): _Labels(opened.enter_context(sink(job.labels, "ffv1"))),
            }
            policy = Policy(opacity=opacity)
            summary = Stream(source, supervisor.seat(), sinks, policy, on_frame=on_frame, strict=True).run()
            return dataclasses.replace(summary, output=str(job.annotated))


class _Labels(Sink):
    """Writes the class ids of every pixel into another sink, as a grey picture."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, shown: Shown) -> None:
        assert shown.segmentation is not None
        labels = shown.segmentation.labels
        self._sink.write(Shown(shown.frame.with_pixels(np.repeat(labels[:, :, None], 3, axis=2))))
        self.frames = self._sink.frames

    def close(self) -> None:
        self._sink.close()

    def abort(self) -> None:
        self._sink.abort()

    @property
    def problem(self) -> str | None:
        return self._sink.problem
