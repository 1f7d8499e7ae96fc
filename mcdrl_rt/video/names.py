"""What a source or an output is called in messages: an address may hold a password, and logs are read by many."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

_PARTS = re.compile(r"([^?#;]*)([?#;]?)(.*)", re.DOTALL)  # of an address: a query, a fragment, ;jsessionid=… at its end
_ONE_SLASH = re.compile(r"(rtsps?|rtmps?|rtp|srt|udp|tcp|https?|file|s3|gs|sftp):/?(?!/)", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
MASKS = "masks:"  # begins the name of an output that is a folder of masks


def scheme(uri: str) -> str:
    """``rtsp`` of ``rtsp://…``, in lower case; empty for what is no address."""
    return uri.partition("://")[0].lower() if "://" in uri else ""


def legible(name: str) -> str:
    """A file's name as text of one line, whatever bytes it is made of."""
    text = name.encode(errors="surrogateescape").decode(errors="replace")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def slash_missing(uri: str) -> str:
    """What to say of an address that would be taken for a file, and shown with its password; empty for any other."""
    found = _ONE_SLASH.match(uri)
    return f"an address has two slashes: {found[1]}://…" if found and not Path(uri).exists() else ""


def plain(uri: str) -> str:
    """The path of a ``file://`` address, as it is written or percent-encoded; anything else as it is.

    >>> plain("file:///case/a.mp4")
    '/case/a.mp4'
    """
    if scheme(uri) != "file":
        return uri
    path = uri[len("file://") :].removeprefix("localhost")
    return path if Path(path).exists() else unquote(path)


def redacted(uri: str) -> str:
    """An address without user, password, parameters and stream key; anything else, such as a path, as it is.

    >>> redacted("rtsp://admin:secret@10.0.0.5/live?token=1")
    'rtsp://…@10.0.0.5/live?…'
    """
    kind = scheme(uri)
    if not kind:
        return uri
    parts = _PARTS.fullmatch(uri.partition("://")[2])
    assert parts is not None, "it takes any text"
    place, mark, parameters = parts.groups()
    publishes = kind.startswith("rtmp")  # with a key: the path after the application
    user, at, place = place.rpartition("@")
    # a password may hold such a mark, and a key an @: then nothing is safe to show
    if "@" in parameters or (publishes and "/" in user):
        return f"{kind}://…"
    host, _, path = place.partition("/")
    app, _, key = path.partition("/")
    if publishes and key:
        place = f"{host}/{app}/…"
    return f"{kind}://{'…@' if at else ''}{place}{mark}{'…' if parameters else ''}"
