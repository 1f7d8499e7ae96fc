"""What a source or an output is called in messages: an address may hold a password, and logs are read by many."""

from __future__ import annotations

MASKS = "masks:"  # begins the name of an output that is a folder of masks


def scheme(uri: str) -> str:
    """``rtsp`` of ``rtsp://…``, in lower case; empty for what is no address."""
    return uri.partition("://")[0].lower() if "://" in uri else ""


def redacted(uri: str) -> str:
    """An address without user, password, query and stream key; anything else, such as a path, as it is.

    >>> redacted("rtsp://admin:secret@10.0.0.5/live?token=1")
    'rtsp://…@10.0.0.5/live?…'
    """
    kind = scheme(uri)
    if not kind:
        return uri
    place, question, query = uri.partition("://")[2].partition("?")
    if "@" in query:  # a password may hold a question mark: then nothing is safe to show
        return f"{kind}://…"
    _, user, place = place.rpartition("@")
    if kind in ("rtmp", "rtmps") and place.count("/") > 1:  # the last part is the key to publish with
        place = place.rpartition("/")[0] + "/…"
    return f"{kind}://{'…@' if user else ''}{place}{'?…' if question else ''}"
