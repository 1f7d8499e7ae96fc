"""Inputs and outputs on object stores and other machines, through fsspec: ``s3://``, ``gs://``, ``sftp://`` …

An input is fetched when it is its turn, and not kept. Results are made here, in a folder of the user's cache, and sent
when a procedure is done, its summary last: where that is, it need not be done again. What is begun is kept here only:
two machines must not work for one output at the same time, and nothing would tell them. fsspec comes with torch; what
it needs for a store (``s3fs``, ``gcsfs`` …) it names itself.

    >>> store = Store("s3://bucket/results")                                # doctest: +SKIP
    >>> store.prepare()                                                     # doctest: +SKIP
    >>> jobs = plan(["s3://bucket/archive"], store.folder)                  # doctest: +SKIP
    >>> outcomes = process(jobs, store.folder, segmenter, store=store)      # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mcdrl_rt.errors import SinkError, SourceError, first_line
from mcdrl_rt.folders import cache_folder
from mcdrl_rt.offline.fingerprint import Fingerprint
from mcdrl_rt.unfinished import ended
from mcdrl_rt.video.found import is_result
from mcdrl_rt.video.names import redacted, scheme
from mcdrl_rt.video.output import partial_path, reason
from mcdrl_rt.video.playlist import PICTURES, VIDEOS

MAKER = ".mcdrl-rt.json"
"""Lies in every output folder elsewhere."""


def is_remote(name: str) -> bool:
    """Whether a name is an address that fsspec is for."""
    return scheme(name) not in ("", "file")


@dataclass(frozen=True)
class Origin:
    """A video or a picture elsewhere, or a folder of pictures.

    Args:
        files: where it is: fsspec's file system.
        path: its name there.
        size: bytes.
        version: of its content, as the store has it: an ETag, a checksum, or when it was last changed.
        pictures: of a folder, the names of those in it.
        output: of the job it is for: no two jobs share a copy, one would take it from the other.
        lost: why it cannot be had; then all that is known of it is ``path``, its address as it was given.
    """

    files: Any
    path: str
    size: int = 0
    version: str = ""
    pictures: tuple[str, ...] = ()
    output: str = field(default="", compare=False)
    lost: str = ""

    @property
    def url(self) -> str:
        """Its address."""
        return self.path if self.lost else str(self.files.unstrip_protocol(self.path))

    @property
    def copy(self) -> Path:
        """Where it lies here when it is its turn."""
        its = _hash(self.output + self.url + self.version)
        return cache_folder() / "inputs" / its / PurePosixPath(_bare(self.path)).name

    def facts(self) -> dict[str, Any]:
        """What it is, without fetching it; as ``fingerprint.input_facts``.

        Raises:
            SourceError: it cannot be had.
        """
        if self.lost:
            raise SourceError(self.lost)
        return {"bytes": self.size, "content": _hash(self.version)}

    @contextlib.contextmanager
    def fetched(self) -> Iterator[None]:
        """Have a copy here, for as long as it takes.

        Raises:
            SourceError: it cannot be fetched, or is another one by now.
        """
        folder = self.copy.parent
        partial = folder.with_name(f"{folder.name}.partial")
        try:
            with _told(SourceError, f"cannot fetch {redacted(self.url)}"):
                if not self.copy.exists():
                    self._fetch(partial)
            yield
        finally:  # kept where the process was broken off
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(partial, ignore_errors=True)

    def _fetch(self, partial: Path) -> None:
        shutil.rmtree(partial, ignore_errors=True)
        target = partial / self.copy.name
        wanted = {f"{self.path}/{name}": target / name for name in self.pictures} or {self.path: target}
        for there, here in wanted.items():
            here.parent.mkdir(parents=True, exist_ok=True)
            self.files.get_file(there, str(here))
            with here.open("r+b") as file:  # a copy that is there is trusted, after a power failure too
                os.fsync(file.fileno())
        self.files.invalidate_cache()
        now = _album(self.files, self.path, self.pictures) if self.pictures else _origin(self.files, self.path)
        if now != self:
            raise SourceError(f"{redacted(self.url)} changed since it was found; process it again")
        shutil.rmtree(self.copy.parent, ignore_errors=True)
        os.replace(partial, self.copy.parent)


def find(given: str) -> list[tuple[Origin, PurePosixPath]]:
    """What an address stands for, a file's, a folder's or a glob's, and where the results of each belong.

    A folder's videos, or where there is none every folder of pictures in it. What is hidden, and results of
    ``process``, are passed over.

    Raises:
        SourceError: there is none, or the store cannot be read.
    """
    with _told(SourceError, f"cannot read {redacted(given)}"):
        files, path = _files(given)
        if "*" in path or "?" in _bare(path):
            matches = sorted(files.glob(path, detail=True).items())
            named = {p: about["type"] == "directory" for p, about in matches if _is_meant(p, files.exists)}
        else:
            named = {path: files.isdir(path)} if files.exists(path) else {}
            if not named:
                _refuse_server(files, path, given)
        alone = [p for p, is_folder in named.items() if not is_folder]
        names = [_bare(p).split("/") for p in alone]
        common = len(os.path.commonprefix([folders for *folders, _ in names]))  # noqa: RUF071 (of lists)
        found = [(_origin(files, p), PurePosixPath(*name[common:])) for p, name in zip(alone, names, strict=True)]
        for folder in (p for p, is_folder in named.items() if is_folder):
            found += _within(files, folder.rstrip("/"))
        if not found:
            raise SourceError(f"no video and no pictures at {redacted(given)}")
        return found


def find_or_lose(given: str, output: Path) -> tuple[list[tuple[Origin, PurePosixPath]], SourceError | None]:
    """As ``find``, for a job of that output; where nothing is, what will say so when it is its turn, and the reason."""
    try:
        return [(replace(origin, output=os.path.realpath(output)), place) for origin, place in find(given)], None
    except SourceError as error:
        name = PurePosixPath(_bare(given)).name or "input"
        return [(Origin(None, given, lost=str(error)), PurePosixPath(name))], error


class Store:
    """An output folder elsewhere.

    Args:
        url: its address.

    Attributes:
        folder: where results are made before they are sent.

    Raises:
        SinkError: nothing here knows such a store.
    """

    def __init__(self, url: str) -> None:
        self._url, self.folder = url, cache_folder() / "archives" / _hash(url.rstrip("/"))
        with _told(SinkError, f"cannot write to {redacted(url)}"):
            self._files, self._root = _files(url)

    def prepare(self) -> None:
        """Make the folder, here and there.

        Raises:
            SinkError: it cannot be made.
        """
        with _told(SinkError, f"cannot write to {redacted(self._url)}"):
            self._files.makedirs(self._root, exist_ok=True)
            self.folder.mkdir(parents=True, exist_ok=True)

    def refuse_inside(self, given: str) -> None:
        """Make sure that it does not lie in a folder that is an input.

        Raises:
            SinkError: it does.
        """
        with contextlib.suppress(SourceError), _told(SourceError, f"cannot read {redacted(given)}"):  # ``find`` says it
            files, path = _files(given)
            inside = PurePosixPath(self._root).is_relative_to(PurePosixPath(path))
            if files == self._files and inside and files.isdir(path):
                folders = (redacted(self._url), redacted(given))
                raise SinkError("the output folder {} lies in the input {}; choose one outside of it".format(*folders))

    def address(self, path: Path) -> str:
        """Where a result will be."""
        return str(self._files.unstrip_protocol(self._there(path)))

    def summary_of(self, summary: Path) -> Any:
        """What a procedure's summary says there, if it is there and can be read; else None.

        Raises:
            SinkError: the store cannot be read.
        """
        with _told(SinkError, f"cannot read {redacted(self._url)}"):
            if not self._files.exists(self._there(summary)):
                return None
            with contextlib.suppress(ValueError):
                return json.loads(self._files.cat_file(self._there(summary)))
        return None

    @property
    def maker(self) -> Path:
        """Where it is noted what made the results that are there; there may be too many of them to look at each."""
        return self.folder / MAKER

    def note_maker(self, fingerprint: Fingerprint) -> None:
        """Note it, if nothing is noted.

        Raises:
            SinkError: it cannot be written.
        """
        with _told(SinkError, f"cannot write to {redacted(self._url)}"):
            if not self._files.exists(self._there(self.maker)):
                self._files.pipe_file(self._there(self.maker), json.dumps({"fingerprint": fingerprint}).encode())

    @contextlib.contextmanager
    def recalled(self, summary: Path, results: Sequence[Path] = ()) -> Iterator[None]:
        """Have the summary of a procedure that was done before, if it was, for as long as it takes: kept, it would say
        that the procedure is done when the store no longer has it.

        Args:
            summary: where it belongs here.
            results: what lies there without it under one of these names is somebody's.

        Raises:
            SinkError: the store cannot be read, or holds what is somebody's.
        """
        with _told(SinkError, f"cannot read {redacted(self._url)}"):
            there = self._files.exists(self._there(summary))
            if there:
                _get(self._files, self._there(summary), summary)
            elif foreign := next((path for path in results if self._files.exists(self._there(path))), None):
                where = redacted(self.address(foreign))
                raise SinkError(f"{where} is there already, of no job; move it, or choose another output folder")
        try:
            yield
        finally:
            if there:
                summary.unlink(missing_ok=True)

    def send(self, results: Sequence[Path]) -> None:
        """Send results, in this order; those that were sent before are replaced.

        Raises:
            SinkError: they cannot be sent; they are still here.
        """
        with _told(SinkError, f"cannot write to {redacted(self._url)}"):
            for path in (path for path in results if path.exists()):
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    self._files.makedirs(str(PurePosixPath(self._there(file)).parent), exist_ok=True)
                    self._files.put_file(str(file), self._there(file))
            for path in results:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def _there(self, path: Path) -> str:
        return "/".join([self._root.rstrip("/"), *path.relative_to(self.folder).parts])


def _get(files: Any, there: str, here: Path) -> None:
    """Fetch a file, whole or not at all."""
    here.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(here)
    files.get_file(there, str(partial))
    os.replace(partial, here)
    ended(partial)


def _files(url: str) -> tuple[Any, str]:
    import fsspec

    files, path = fsspec.core.url_to_fs(url)
    return files, path


def _refuse_server(files: Any, path: str, given: str) -> None:
    """Say why a web server does not give what it is asked for; to fsspec, whatever it says is that nothing is there."""
    if scheme(given) not in ("http", "https"):
        return
    try:
        files.info(path)
    except OSError as error:
        if (cause := error.__cause__) is not None:
            status = getattr(cause, "status", None)
            why = f"the server answers {status} {getattr(cause, 'message', '')}" if status else first_line(cause)
            raise SourceError(f"cannot read {redacted(given)}: {why}") from None


def _bare(path: str) -> str:
    """A web address without its parameters, which may be a key; any other path."""
    return path.partition("?")[0] if scheme(path) in ("http", "https") else path


def _within(files: Any, root: str) -> list[tuple[Origin, PurePosixPath]]:
    """The videos in a folder and its folders, or where there is none those of pictures, and their places in it."""
    places = {path: PurePosixPath(path.removeprefix(root).lstrip("/")) for path in sorted(files.find(root))}
    there = set(map(str, places.values()))
    meant = {
        path: place
        for path, place in places.items()
        if _is_meant(str(place), there.__contains__) and not any(one.name.startswith(".") for one in place.parents)
    }
    if videos := [path for path, place in meant.items() if place.suffix.lower() in VIDEOS]:
        return [(_origin(files, path), places[path]) for path in videos]
    albums: dict[str, list[str]] = {}
    for path, place in meant.items():
        if place.suffix.lower() in PICTURES:
            albums.setdefault(path.rpartition("/")[0], []).append(place.name)
    name = PurePosixPath(root.rpartition("/")[2] or "pictures")
    return [
        (_album(files, folder, pictures), meant[f"{folder}/{pictures[0]}"].parent if folder != root else name)
        for folder, pictures in albums.items()
    ]


def _is_meant(path: str, exists: Callable[[str], bool]) -> bool:
    """Whether something is not hidden, and neither a result nor in one."""
    *folders, last = path.split("/")

    def lies_in_result(depth: int) -> bool:
        return is_result([*folders, last][depth], lambda beside: exists("/".join([*folders[:depth], beside])))

    return not last.startswith(".") and not any(map(lies_in_result, range(len(folders) + 1)))


def _album(files: Any, folder: str, pictures: Sequence[str]) -> Origin:
    """A folder of pictures; another of any of them makes it another."""
    each = [_origin(files, f"{folder}/{name}") for name in pictures]
    versions = (f"{name} {one.size} {one.version}" for name, one in zip(pictures, each, strict=True))
    return Origin(files, folder, sum(one.size for one in each), _hash("\n".join(versions)), tuple(pictures))


def _origin(files: Any, path: str) -> Origin:
    about = files.info(path)
    names = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "last_modified", "updated", "created")
    version = next((str(about[name]) for name in names if about.get(name)), "")
    return Origin(files, path, int(about.get("size") or 0), version)


@contextlib.contextmanager
def _told(kind: type[SourceError | SinkError], what: str) -> Iterator[None]:
    """Whatever a store says, in one line."""
    try:
        yield
    except (SourceError, SinkError):
        raise
    except OSError as error:
        raise kind(f"{what}: {reason(error)}") from None
    except Exception as error:  # every store has errors of its own
        raise kind(f"{what}: {first_line(error)}") from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
