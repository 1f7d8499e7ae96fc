"""All procedures of a job, one after the other, in an output folder that no other job works in meanwhile."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mcdrl_rt.errors import McdrlError, SinkError, SourceError, fault
from mcdrl_rt.offline.fingerprint import Fingerprint, difference, is_fingerprint
from mcdrl_rt.offline.hands import Hands, Here
from mcdrl_rt.offline.manifest import read_json
from mcdrl_rt.offline.plan import Job, make_folder
from mcdrl_rt.offline.procedure import Crew, OnStart, carry_out
from mcdrl_rt.offline.products import products
from mcdrl_rt.offline.remote import Store
from mcdrl_rt.offline.settings import Settings
from mcdrl_rt.segmenter import AnySegmenter
from mcdrl_rt.stream.telemetry import Summary
from mcdrl_rt.video.found import MANIFEST, MASKS, PARTS, SUMMARY
from mcdrl_rt.video.names import legible
from mcdrl_rt.video.output import reason

_log = logging.getLogger("mcdrl_rt.journal")
LOCK = ".mcdrl-rt.lock"
"""Lies in every output folder."""


@dataclass(frozen=True)
class Outcome:
    """How one procedure ended: a summary, or the reason there is none.

    Args:
        before: it was done before this job.
        gone: names of its results that were there then.
    """

    job: Job
    summary: Summary | None = None
    before: bool = False
    gone: tuple[str, ...] = ()
    error: str | None = None


def process(
    jobs: Sequence[Job],
    output: Path,
    segmenter: AnySegmenter,
    settings: Settings | None = None,
    *,
    hands: Hands | None = None,
    store: Store | None = None,
    engine: Mapping[str, str] | None = None,
    on_start: OnStart | None = None,
) -> Iterator[Outcome]:
    """Do what is left to do of every job and yield how it ended, as it ends; one that fails is passed over.

    Args:
        jobs: from ``plan``.
        output: the folder they were planned for.
        segmenter: their model.
        hands: that work on their segments; by default this process, with that segmenter, one after the other.
        settings: what is to be made of them.
        store: where results are sent, if not to stay in ``output``, which is its folder then.
        engine: what the segmenter is, from ``engine_facts``; by default its name and its model's.
        on_start: called with each job that is worked on and its number of frames, None where that is not known; may
            return a function to be called with the number of frames done so far, before an interruption or now.

    Raises:
        SinkError: another job is at work in the folder, or one of another engine or other settings was; or something
            needs a package that is not installed.
    """
    settings = settings or Settings()
    make_folder(output)
    about = {"name": segmenter.engine.name, "model": segmenter.spec.name} if engine is None else engine
    hands = hands or Here(segmenter)
    crew = Crew(hands, segmenter.spec, about, settings, products(settings))
    with _locked(output):
        _refuse_mixture(output, crew.fingerprint)
        if store is not None:
            _refuse_other(store.address(store.maker), store.summary_of(store.maker), crew.fingerprint)
        if hands.count == 1:
            yield from (_outcome(job, crew, store, on_start) for job in jobs)
            return
        # several procedures at once: the last segment of one keeps nobody waiting
        with ThreadPoolExecutor(hands.count) as threads:
            futures = [threads.submit(_outcome, job, crew, store, on_start) for job in jobs]
            try:
                yield from (future.result() for future in as_completed(futures))
            except BaseException:
                for future in futures:
                    future.cancel()
                hands.close()
                raise


def _outcome(job: Job, crew: Crew, store: Store | None, on_start: OnStart | None) -> Outcome:
    try:
        make_folder(job.place.parent)
        if store is None:
            summary, before = carry_out(job, crew, on_start)
            gone = tuple(legible(path.name) for path in job.results(crew.settings) if not path.exists())
            return Outcome(job, summary, before, gone)
        if job.summary.exists():  # done, and not sent
            summary, before = carry_out(job, crew, on_start)
        else:
            with store.recalled(job.summary, job.results(crew.settings)):
                summary, before = carry_out(job, crew, on_start, store.address)
            if before:
                return Outcome(job, summary, before)
        store.note_maker(crew.fingerprint)
        store.send(job.results(crew.settings))
        return Outcome(job, summary, before)
    except McdrlError as error:
        why = str(error)
    except OSError as error:  # a name that is too long, say
        why = reason(error)
    except Exception as error:  # it must not cost the others their turn
        _log.exception("%s: the fault", job.title)
        why = fault(error)
    why = legible(why)
    name = legible(job.source.name)
    return Outcome(job, error=why if name and name in why else f"{job.title}: {why}")


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep other jobs out, those in folders around this one too; a process that dies lets go of the lock."""
    lock = FileLock(output / LOCK)
    try:
        (output / LOCK).open("ab").close()  # a lock that cannot be made looks to FileLock as if others held it
        lock.acquire(timeout=0)
    except Timeout:
        raise _busy(output) from None
    except (OSError, NotImplementedError) as error:
        raise SinkError(f"cannot work in the folder {output}: {reason(error)}") from None
    try:  # those around it after it: of two jobs that begin at once, one sees the other
        for folder in output.resolve().parents:
            if (folder / LOCK).exists() and not _is_free(folder):
                raise _busy(folder)
        yield
    finally:
        lock.release()


def _busy(folder: Path | str) -> SinkError:
    return SinkError(f"another job is at work in {folder}: wait for it, or choose another output folder")


def _is_free(folder: Path) -> bool:
    """Whether no job is at work in a folder, as far as can be told."""
    try:
        with FileLock(folder / LOCK, timeout=0):
            return True
    except Timeout:
        return False
    except (OSError, NotImplementedError):
        return True


def _refuse_mixture(output: Path, fingerprint: Fingerprint) -> None:
    """Make sure that what lies in a folder was made by the same engine, with the same settings, and by nobody now."""
    for folder, folders, files in os.walk(output):
        folders[:] = [name for name in folders if not name.endswith(MASKS["png"])]  # there may be millions in these
        if LOCK in files and Path(folder) != output and not _is_free(Path(folder)):
            raise _busy(folder)
        begun = MANIFEST in files and folder.endswith(PARTS)
        for name in [MANIFEST] if begun else [name for name in files if name.endswith(SUMMARY)]:
            path = Path(folder, name)
            with contextlib.suppress(SourceError):  # it will be told of when it is its turn
                content = read_json(path)
                if content.get("done", True):  # of not one segment: no matter
                    _refuse_other(str(path), content, fingerprint)


def _refuse_other(path: str, content: Any, fingerprint: Fingerprint) -> None:
    """Make sure that what was read at some path was made by the same engine, with the same settings."""
    there = content.get("fingerprint") if isinstance(content, dict) else None
    if not (there and is_fingerprint(there)):
        return
    if differs := difference({part: there.get(part, {}) for part in fingerprint}, fingerprint):
        raise SinkError(f"{path} is of another job ({differs}); choose another output folder, or delete what is there")
