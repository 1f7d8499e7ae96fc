"""What a source or an output is called in messages: an address may hold a password, and logs are read by many."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

MASKS = "masks:"  # begins the name of an output that is a folder of masks


def scheme(uri: str) -> str:
    """``rtsp`` of ``rtsp://…``, in lower case; empty for what is no address."""
    return uri.partition("://")[0].lower() if "://" in uri else ""


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
    """An address without user, password, stream key, and all that follows the path; a path as it is.

    >>> redacted("rtsp://admin:secret@10.0.0.5/live?token=1")
    'rtsp://…@10.0.0.5/live?…'
    """
    kind = scheme(uri)
    if not kind:
        return uri
    parts = re.split("([?;#])", uri.partition("://")[2], maxsplit=1)
    if "@" in parts[-1] and len(parts) > 1:  # a password may hold a question mark: then nothing is safe to show
        return f"{kind}://…"
    _, user, place = parts[0].rpartition("@")
    if kind in ("rtmp", "rtmps") and place.count("/") > 1:  # the last part is the key to publish with
        place = place.rpartition("/")[0] + "/…"
    return f"{kind}://{'…@' if user else ''}{place}{parts[1] + '…' if len(parts) > 1 else ''}"
