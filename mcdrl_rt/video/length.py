"""Whether a video file is as long as its container says: what is cut off its end is seen to the byte; so of pictures.

MP4 and QuickTime are boxes, AVI is RIFF chunks, Matroska and WebM are one EBML segment: each says its own size first.
Other containers, and what was never finished, say nothing. Of videos only headers are read, whatever the size.

    >>> bytes_missing(Path("procedure.mp4"))                               # doctest: +SKIP
    0
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_BOXES = b"ftyp styp moov moof mdat mfra free skip wide sidx ssix uuid pdin udta meta emsg prft pnot PICT".split()
_NOT_YET = 0x7FFFF000  # a RIFF chunk of this size or more says only that it is still being written
_MOST = 1 << 48  # bytes that anything may be large: beyond, a size is made up
_SLACK = 8  # bytes: some writers of AVI count a chunk's own header in
_EBML, _VOID, _CHECKSUM, _SEGMENT = 0x1A45DFA3, 0xEC, 0xBF, 0x18538067


def bytes_missing(path: Path) -> int | None:
    """By how many bytes a file is shorter than its container says, at least; None where it does not say.

    Args:
        path: a plain file: another cannot be read twice.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            head = _read(file, 0, 4)
            if head == b"RIFF":
                ends, slack = list(_riff_ends(file)), _SLACK
            else:
                is_ebml = int.from_bytes(head, "big") == _EBML
                ends, slack = list(_segment_ends(file) if is_ebml else _box_ends(file)), 0
    except OSError:  # a disk that fails is told of by who reads all of it
        return None
    if not ends:
        return None
    missing = max(ends) - size
    return missing if missing > slack else 0


def is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG file lacks its end; decoders make up what is missing."""
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data
    if not data.startswith(b"\xff\xd8"):
        return False
    place = 2  # over tables, and over a preview that has an end of its own
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":
        filled = data[place + 1 : place + 2] == b"\xff"
        place += 1 if filled else 2 + int.from_bytes(data[place + 2 : place + 4])
    return b"\xff\xd9" not in data[place:]


def _read(file: BinaryIO, place: int, count: int) -> bytes:
    if place > sys.maxsize:  # a size made up by damage
        return b""
    file.seek(place)
    return file.read(count)


def _box_ends(file: BinaryIO) -> Iterator[int]:
    """Where each box ends, up to what is no box or says no size."""
    place = 0
    while len(head := _read(file, place, 16)) >= 8 and head[4:8] in _BOXES:
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        if size < 8 or size > _MOST:  # 0: it goes on to the end of the file
            return
        place += size
        yield place


def _riff_ends(file: BinaryIO) -> Iterator[int]:
    """Where each chunk ends that a file is made of: AVI begins another one every gigabyte."""
    place = 0
    while (head := _read(file, place, 12))[:4] == b"RIFF" and head[8:] in (b"AVI ", b"AVIX"):
        size = int.from_bytes(head[4:8], "little")
        if size >= _NOT_YET:
            return
        place += 8 + size + size % 2
        yield place


def _segment_ends(file: BinaryIO) -> Iterator[int]:
    """Where the segment ends, if it says so; little comes before it."""
    place, kind = 0, _EBML
    while kind != _SEGMENT and len(head := _read(file, place, 12)) == 12:
        width = _width(head[0])
        kind, length = int.from_bytes(head[:width], "big"), _width(head[width])
        unknown = (1 << 7 * length) - 1  # live, or cut off while it was written
        size = int.from_bytes(head[width : width + length], "big") & unknown
        if kind not in (_EBML, _VOID, _CHECKSUM, _SEGMENT) or size == unknown or size > _MOST:
            return
        place += width + length + size
        if kind == _SEGMENT:
            yield place


def _width(first: int) -> int:
    """How many bytes a number of EBML has, by its first."""
    return 9 - first.bit_length()
