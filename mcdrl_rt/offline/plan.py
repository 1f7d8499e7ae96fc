"""Which inputs become what: every procedure found in what the user named, and the names of its results."""

from __future__ import annotations

import codecs
import contextlib
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline.fingerprint import stamp
from mcdrl_rt.offline.manifest import read_json
from mcdrl_rt.offline.remote import Origin, Store, find_or_lose, is_remote
from mcdrl_rt.offline.settings import Settings
from mcdrl_rt.video.found import MANIFEST, MASKS, PARTS, RESULTS, SUMMARY, files_in, folders_in, was_made
from mcdrl_rt.video.names import legible, plain, redacted
from mcdrl_rt.video.output import reason
from mcdrl_rt.video.playlist import PICTURES, VIDEOS


@dataclass(frozen=True)
class Job:
    """One procedure.

    Args:
        source: a video, a picture, or a folder of pictures.
        place: what the names of all of its results begin with.
        origin: where it is fetched from when it is its turn, if it is elsewhere.
    """

    source: Path
    place: Path
    origin: Origin | None = None

    def result(self, end: str) -> Path:
        """Where one of its results lies; ``end`` is of ``RESULTS``."""
        return self.place.with_name(self.place.name + end)

    @property
    def size(self) -> int:
        """Bytes of what it is read from."""
        if self.origin is not None:
            return self.origin.size
        try:
            files = self.source.iterdir() if self.source.is_dir() else [self.source]
            return sum(file.stat().st_size for file in files if file.is_file())
        except OSError:  # it will be told of when it is its turn
            return 0

    @property
    def parts(self) -> Path:
        """The folder it is worked on in."""
        return self.result(PARTS)

    @property
    def summary(self) -> Path:
        """What is written last: where it is, the procedure is done."""
        return self.result(SUMMARY)

    @property
    def state(self) -> str:
        """How far it is, in a word."""
        with contextlib.suppress(OSError):  # a name that is too long
            return "done" if self.summary.exists() else "begun" if self.parts.exists() else "new"
        return "new"

    @property
    def problem(self) -> str | None:
        """Why it cannot be done, as far as can be told without reading what it is read from."""
        try:
            if self.origin is None:
                stamp(self.source)
            else:
                self.origin.facts()
        except SourceError as error:
            return legible(str(error))
        return None

    def name(self, settings: Settings) -> str:
        """What it is called in its results."""
        return legible(self.place.name if settings.private else self.source.name or self.place.name)

    @property
    def title(self) -> str:
        """What it is called in messages: its path, or its address without a password."""
        return legible(redacted(self.origin.url) if self.origin else str(self.source))

    def results(self, settings: Settings) -> list[Path]:
        """Everything that it is to become."""
        return [self.result(end) for end in settings.ends]


def plan(
    inputs: Iterable[str | Path],
    output: Path,
    rename: Callable[[Path], Path] | None = None,
    store: Store | None = None,
) -> list[Job]:
    """Find the procedures in ``inputs`` and name their results.

    Args:
        inputs: files; folders, looked through with those that links lead to for videos, or where there is none for
            folders of pictures; globs; ``@FILE``, a list with one of these on each line; addresses of files, folders
            and globs elsewhere. What is hidden, or was made by ``process``, is passed over.
        output: folder of the results, which lie in it as the inputs lie in theirs.
        rename: what results are called instead, given their place in that folder.
        store: where results are sent, if not to stay in that folder.

    A file is one procedure, however often it is named and whatever links lead to it. One that is gone, a folder that
    holds nothing or cannot be looked into, and a glob that matches nothing are procedures, too, while there are others:
    they will fail, and the rest of an archive goes on.

    Raises:
        SourceError: no input exists, one holds nothing to see, or two would get the same name.
        SinkError: the output folder is an input or lies in one, or a result would replace an input or another's.
    """
    _refuse_no_folder(output)
    given = _listed(inputs)
    paths = _named(name for name in given if not is_remote(name))
    files: list[tuple[Path, Path]] = []  # a source, and its place below the output folder
    lost: list[SourceError] = []
    alone = _places([path for path in paths if not os.path.isdir(path)])
    for path in paths:
        try:
            if path in alone:
                files.append((path, alone[path]))
                _look_at(path)
            else:
                files += _within(path, output)
        except SourceError as error:
            lost.append(error)
            if path not in alone:
                files.append((path, Path(_real(path).name)))
    origins: dict[Path, Origin] = {}
    for name in (name for name in given if is_remote(name)):
        if store is not None:
            store.refuse_inside(name)
        found, problem = find_or_lose(name, output)
        lost += [problem] if problem else []
        origins |= {origin.copy: origin for origin, _ in found}
        files += [(one.copy, Path(at) if one.pictures else Path(at).with_name(_stem(Path(at)))) for one, at in found]
    if lost and len(lost) == len(files):
        raise lost[0]
    files = _each_once(files)

    def job_of(file: Path, place: Path) -> Job:
        return Job(file, output / (rename(place) if rename else place), origins.get(file))

    counts, jobs = Counter(place for _, place in files), []
    for file, place in files:
        names = [place, place.with_name(file.name or place.name)]
        names = names if counts[place] == 1 else names[::-1]
        if file in alone:  # it may have been named alone, or with others, before
            names += [Path(_stem(file)), Path(file.name)]
        choices = [job_of(file, name) for name in dict.fromkeys(names)]
        is_unclear = store is None or counts[place] > 1 or file in alone  # a store takes its time to answer
        jobs.append(next((job for job in choices if is_unclear and _has_results(job, store)), choices[0]))
    _refuse_clashes(jobs)
    return jobs


def _refuse_no_folder(output: Path) -> None:
    """Make sure that there is, or can be, a folder of that name, without making it.

    Raises:
        SinkError: what is there is a file, or lies where its folders would.
    """
    there = next((folder for folder in (output, *output.absolute().parents) if os.path.lexists(folder)), None)
    if there is None or not os.path.isdir(there):
        raise SinkError(f"cannot make the output folder {output}: {there or output.anchor} is not a folder")


def _refuse_clashes(jobs: Sequence[Job]) -> None:
    """Make sure that every result has a place of its own.

    Raises:
        SourceError: two procedures would have the same.
        SinkError: one would lie in another's, or in an input's.
    """
    places = Counter(job.place for job in jobs)
    twice = sorted({legible(_stem(job.source)) for job in jobs if places[job.place] > 1})
    if twice:
        raise SourceError(f"several inputs are named {', '.join(twice)}; process them into different folders")
    owned = {job.result(end): job for job in jobs for end in (MASKS["png"], PARTS)}
    for job in jobs:
        if (folder := next((parent for parent in job.place.parents if parent in owned), None)) is not None:
            raise SinkError(
                f"the results of {job.title} would lie in {folder}, which is for those of {owned[folder].title}; "
                "process them into different folders"
            )
    replaced = {_real(job.result(end)) for job in jobs for end in RESULTS} & {_real(job.source) for job in jobs}
    if replaced:
        raise SinkError(f"the input {min(replaced).name} would be replaced by a result; choose another output folder")


def _has_results(job: Job, store: Store | None) -> bool:
    """Whether what lies under a job's names is of its very input: others of that name came and went."""
    known = [_json(job.summary), _json(job.parts / MANIFEST), store and store.summary_of(job.summary)]
    there = [content for content in known if isinstance(content, dict)]
    with contextlib.suppress(SourceError, KeyError, TypeError):
        if job.origin is not None:
            facts = job.origin.facts()
            return any(content["fingerprint"]["input"] == facts for content in there)
        now = stamp(job.source)
        return any(content.get("stamp") == now for content in there)
    return False


def _json(path: Path) -> dict[str, Any] | None:
    """What is in a file of JSON, if it is there and can be read."""
    with contextlib.suppress(SourceError):
        return read_json(path)
    return None


def _each_once(files: Iterable[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """Every file once, whatever leads to it; by its own name, if it is named, and not by a link's."""
    first: dict[Path, tuple[Path, Path]] = {}
    for file, place in files:
        real = _real(file)
        if real not in first or (first[real][0].is_symlink() and not file.is_symlink()):
            first[real] = (file, place)
    return list(first.values())


def _real(path: Path) -> Path:
    """Where a path leads; a link that leads in a circle, to itself."""
    return Path(os.path.realpath(path))


def make_folder(folder: Path) -> None:
    """Make a folder where there is none.

    Raises:
        SinkError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkError(f"cannot make the output folder {folder}: {reason(error)}") from None


def _listed(inputs: Iterable[str | Path]) -> list[str]:
    """The inputs, with the lines of lists in the place of these."""
    named: list[str] = []
    for given in map(str, inputs):
        if not given:
            raise SourceError("an input is an empty name")
        is_list = given.startswith("@") and not os.path.exists(given)
        named += map(plain, _lines(Path(given[1:])) if is_list else [given])
    return named


def _named(inputs: Iterable[str]) -> list[Path]:
    """What the inputs stand for; a file may be called anything, and is never taken for a glob, nor a result by one."""
    paths: list[Path] = []
    for given in inputs:
        if os.path.exists(given):
            paths.append(Path(given))
        elif glob.has_magic(given):
            found = map(Path, sorted(glob.glob(given, recursive=True)))
            paths += [path for path in found if not any(map(was_made, (path, *path.parents)))] or [Path(given)]
        else:
            paths.append(Path(given))
    return paths


def _lines(listed: Path) -> Sequence[str]:
    """The lines of a list that say something; what begins with # is for people."""
    try:
        content = os.fsdecode(listed.read_bytes().removeprefix(codecs.BOM_UTF8))  # names are bytes, of any kind
    except OSError as error:
        raise SourceError(f"cannot read the list {listed}: {reason(error)}") from None
    if "\0" in content:
        raise SourceError(f"the list {listed} has zero bytes in it; write one name a line (find -print, not -print0)")
    lines = [line.strip() for line in content.splitlines()]
    named = [line for line in lines if line and not line.startswith("#")]
    if any(line.startswith("@") for line in named):
        raise SourceError(f"the list {listed} names another list; name both")
    if not named:
        raise SourceError(f"the list {listed} names no input")
    return named


def _places(named: Sequence[Path]) -> dict[Path, Path]:
    """Where named files' results go: under their names, or, where others have it too, where it is among them all."""
    stems, whole = Counter(map(_stem, named)), [Path(os.path.abspath(path)) for path in named]
    common = os.path.commonpath([path.parent for path in whole]) if len(stems) < len(named) else ""
    return {
        path: Path(_stem(path)) if stems[_stem(path)] == 1 else full.relative_to(common).with_name(_stem(path))
        for path, full in zip(named, whole, strict=True)
    }


def _look_at(path: Path) -> None:
    """Make sure that a file may be there.

    Raises:
        SourceError: it is not, or nobody may know.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        what = "file matches" if glob.has_magic(str(path)) else "such file or folder:"
        raise SourceError(f"no {what} {legible(str(path))}") from None
    except OSError as error:
        raise SourceError(f"cannot read {legible(str(path))}: {reason(error)}") from None


def _stem(path: Path) -> str:
    """A file's name without its extension; a dot before anything else (``case.2023``) is part of the name."""
    return path.stem if path.suffix.lower() in VIDEOS | PICTURES else path.name


def _within(folder: Path, output: Path) -> list[tuple[Path, Path]]:
    """The procedures in a folder and its folders: its videos; where there is none, every folder of pictures."""
    all_of_it, lost = folders_in(folder)
    for linked in (one for one in all_of_it if one == folder or one.is_symlink()):
        if _real(output).is_relative_to(_real(linked)):
            raise SinkError(f"the output folder {output} lies in the input {linked}; choose one outside of it")
    name = Path(_real(folder).name)
    unseen = [(one, name if one == folder else one.relative_to(folder)) for one in lost]
    videos = files_in(all_of_it, VIDEOS)
    if videos:
        return [(file, file.relative_to(folder).with_name(_stem(file))) for file in videos] + unseen
    folders = sorted({picture.parent for picture in files_in(all_of_it, PICTURES)})
    if not folders and not unseen:
        looked_for = " ".join(sorted(VIDEOS | PICTURES))
        raise SourceError(f"no video in {folder}, and no pictures; looked for {looked_for}")
    return [(stills, name if stills == folder else stills.relative_to(folder)) for stills in folders] + unseen
