"""A log for programs: one JSON object a line, with no password in it.

    >>> logging.getLogger().addHandler(log_file(Path("stream.jsonl")))               # doctest: +SKIP
    >>> logging.getLogger("mcdrl_rt").warning("lost", extra={"stream": "theatre 1"}) # doctest: +SKIP

writes ``{"time": "2026-03-01T09:30:00.125+00:00", "level": "warning", "logger": "mcdrl_rt", "message": "lost",
"stream": "theatre 1"}``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import queue
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from logging.handlers import QueueHandler, WatchedFileHandler
from pathlib import Path
from typing import Any

from mcdrl_rt.errors import McdrlError, SinkError
from mcdrl_rt.video.names import redacted

# an address in a text: to the end of the word, for a password may hold anything, and a log may rather lose a host than
# keep a secret (one slash: what a pathlib.Path leaves of two; at the end, what a sentence puts there)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/+)(\S+?)(?=[\"'):;,.\]}>]*(?:\s|$))")
_WAITING = 1000  # records that wait for a file which takes none
_END_S = 2.0  # that the last ones are waited for
# what every record has; anything else came with ``extra``
_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


def redact(text: str) -> str:
    """The text with every URL in it as ``names.redacted`` shows it.

    >>> redact("cannot open 'rtsp://surgeon:secret@camera/live?token=abc': timed out")
    "cannot open 'rtsp://…@camera/live?…': timed out"
    """
    return _ADDRESS.sub(_shown, text)


def _shown(address: re.Match[str]) -> str:
    kind, slashes, rest = address.groups()
    return redacted(f"{kind}://{rest}").replace("://", f":{slashes}", 1)


@contextlib.contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Append every record of the program to a file, and the error it ends with.

    It is written on a thread of its own: a file that takes nothing holds nobody up.

    Raises:
        SinkError: the file cannot be written.
    """
    file, records = log_file(path), queue.Queue[logging.LogRecord | None](_WAITING)

    def write() -> None:
        while (record := records.get()) is not None:
            file.handle(record)
        with contextlib.suppress(OSError):  # a full disk was told of
            file.close()

    writer, handler = threading.Thread(target=write, name="log", daemon=True), _Queued(records)
    writer.start()
    logging.getLogger().addHandler(handler)
    try:
        yield
    except McdrlError as error:  # whoever ends with it tells it on the terminal
        facts = {"name": "mcdrl_rt", "levelno": logging.ERROR, "levelname": "ERROR", "msg": "%s", "args": (str(error),)}
        handler.handle(logging.makeLogRecord(facts))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        if records.full():  # the file takes nothing: one line less
            with contextlib.suppress(queue.Empty):
                records.get_nowait()
        records.put_nowait(None)
        writer.join(_END_S)


def log_file(path: Path) -> logging.Handler:
    """A handler that appends to a file, and to a new one of the same name after ``logrotate`` has moved it.

    Raises:
        SinkError: the file cannot be written.
    """
    try:
        return _LogFile(path)
    except OSError as error:
        raise SinkError(f"cannot write the log {path}: {(error.strerror or str(error)).lower()}") from None


class JsonLines(logging.Formatter):
    """Makes a line of JSON of each record: time (UTC), level, logger, message, exception, and what ``extra`` gave."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        entry |= {name: value for name, value in vars(record).items() if name not in _USUAL}
        return json.dumps(_plain(entry), ensure_ascii=False)


class _LogFile(WatchedFileHandler):
    """The file; that it cannot be written any more is said once, and stops nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self.setFormatter(JsonLines())
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it was moved away, and no new one can be made
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            error = sys.exception()
            reason = str(getattr(error, "strerror", None) or error)
            print(f"the log {self.baseFilename} misses lines: {reason.lower()}", file=sys.stderr)


class _Queued(QueueHandler):
    """Leaves records for another thread; those that find no room are lost."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


def _plain(value: Any) -> Any:
    """What JSON can say, and every text of it redacted."""
    if isinstance(value, Mapping):
        return {redact(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return redact(str(value))
