"""What is known of every frame as a Parquet table: one row a frame, read by pandas, DuckDB, R and the rest.

Areas, boxes and components are in the frame's own pixels. ``lesions`` holds a class only where it is seen, so an empty
list is a frame that nothing was found on; null, like every other finding, is a frame that nobody looked at. A class's
``components`` are its patches that do not touch, not even at a corner, the largest first. No times of computing are in
it and no dates: the same frames give the same bytes, whatever was interrupted and taken up again in between.

    >>> with Table(Path("frames.parquet"), {"model": "mcdrl-small", "classes": ["polyp"]}) as table:
    ...     table.write(shown)

Import this where it is needed only: pyarrow takes its time.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline.whole import WholeFile
from mcdrl_rt.types import Region, Segmentation, Shown, UInt8Array
from mcdrl_rt.video.output import Sink, reason

ROWS_PER_GROUP = 4096
"""Rows that are held in memory and compressed together: two minutes at 30 fps."""
_ROWS_UNPACKED = 256  # Python's objects are eight times as large as Arrow's columns

_BOX = pa.struct([(name, pa.int32()) for name in ("x", "y", "width", "height")])
_COMPONENT = pa.struct([("pixels", pa.int64()), ("box", _BOX)])
_LESION = pa.struct(
    [
        ("label", pa.string()),
        ("pixels", pa.int64()),
        ("share", pa.float32()),  # of the frame
        ("box", _BOX),
        ("components", pa.list_(_COMPONENT)),
    ]
)
SCHEMA = pa.schema(
    [
        ("index", pa.int64()),
        ("pts", pa.int64()),  # in the source's unit of time
        ("time_s", pa.float64()),
        ("file", pa.string()),  # of a picture
        ("selected_share", pa.float32()),  # of the grid's cells, selected by the prompts
        ("lesions", pa.list_(_LESION)),
        ("confounders", pa.map_(pa.string(), pa.float32())),
        ("region", pa.struct([(name, pa.int32()) for name in ("y", "x", "height", "width")])),
    ]
)
"""The columns of every table."""
_FACTS = b"mcdrl_rt"
_CORNERS_TOUCH = 8


class Table(Sink):
    """Writes the table of one procedure, or of a part of it.

    Args:
        target: the file; it appears when it is whole.
        facts: what holds for all of the frames (model, engine, classes, source), kept in the file as JSON.

    Raises:
        SinkError: the file cannot be written.
    """

    def __init__(self, target: Path, facts: Mapping[str, Any]) -> None:
        self._groups = _Groups(target, facts)
        self._rows: list[dict[str, Any]] = []
        self._packed: list[pa.RecordBatch] = []

    def write(self, shown: Shown) -> None:
        """Append the row of one frame."""
        self._rows.append(row(shown))
        self.frames += 1
        group_is_full = self.frames % ROWS_PER_GROUP == 0
        if group_is_full or len(self._rows) == _ROWS_UNPACKED:
            self._pack()
        if group_is_full:
            self._write_group()

    def close(self) -> None:
        """Finish the file and let it appear under its name."""
        if self._rows:
            self._pack()
        if self._packed:
            self._write_group()
        self._groups.close()

    def abort(self) -> None:
        """Discard what was written."""
        self._rows.clear()
        self._packed.clear()
        self._groups.abort()

    def _pack(self) -> None:
        self._packed.append(pa.RecordBatch.from_pylist(self._rows, SCHEMA))
        self._rows.clear()

    def _write_group(self) -> None:
        group = pa.concat_batches(self._packed)
        self._packed.clear()
        self._groups.write(group)


def row(shown: Shown) -> dict[str, Any]:
    """The row of one frame, as ``SCHEMA`` says."""
    frame, found = shown.frame, shown.segmentation
    return {
        "index": frame.index,
        "pts": frame.pts,
        "time_s": frame.pts_s,
        "file": frame.file or None,
        "selected_share": None if found is None else float(found.selected.mean()),
        "lesions": None if found is None else _lesions(found),
        "confounders": None if found is None else _confounders(found),
        "region": None if found is None else _region(found.region),
    }


def concatenate(parts: Sequence[Path], target: Path) -> None:
    """Join the tables of a procedure's parts, in this order, into the one that writing them at once would have given.

    Raises:
        SourceError: a part is missing or damaged.
        SinkError: the parts are not of one job, or the target cannot be written.
    """
    facts = [read_facts(part) for part in parts]
    for part, its in zip(parts, facts, strict=True):
        if its != facts[0]:
            raise SinkError(f"cannot join {parts[0]} and {part}: they were made with different settings")
    groups = _Groups(target, facts[0])
    try:
        for group in _regroup(batch for part in parts for batch in read_batches(part)):
            groups.write(group)
        groups.close()
    finally:
        groups.abort()


def read_facts(table: Path) -> dict[str, Any]:
    """What holds for all frames of a table.

    Raises:
        SourceError: it is not there, or no table of ours.
    """
    with _opened(table) as file:
        schema = file.schema_arrow
    if not schema.equals(SCHEMA) or _FACTS not in (schema.metadata or {}):
        raise SourceError(f"cannot read {table}: it is no table of frames of this version of mcdrl-rt")
    return dict(json.loads(schema.metadata[_FACTS]))


def read_batches(table: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a table, some thousands at a time.

    Raises:
        SourceError: it is not there, or damaged.
    """
    with _opened(table) as file:
        yield from file.iter_batches(ROWS_PER_GROUP, columns=columns)


class _Groups:
    """A Parquet file that is written one group of rows at a time."""

    def __init__(self, target: Path, facts: Mapping[str, Any]) -> None:
        text = json.dumps(facts, sort_keys=True, ensure_ascii=False)
        self._whole = WholeFile(target)
        with self._whole.guarded():
            self._parquet = pq.ParquetWriter(
                self._whole.file, SCHEMA.with_metadata({_FACTS: text.encode()}), compression="zstd"
            )

    def write(self, group: pa.RecordBatch) -> None:
        with self._whole.guarded():
            self._parquet.write_batch(group)

    def close(self) -> None:
        with self._whole.guarded():
            self._parquet.close()
        self._whole.close()

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # it is being thrown away
            self._parquet.close()
        self._whole.abort()


def _regroup(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in full groups, and one of what is left."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        while batch.num_rows:
            missing = ROWS_PER_GROUP - sum(part.num_rows for part in waiting)
            waiting.append(batch.slice(0, missing))
            batch = batch.slice(missing)
            if waiting[-1].num_rows == missing:
                yield pa.concat_batches(waiting)
                waiting = []
    if waiting:
        yield pa.concat_batches(waiting)


@contextlib.contextmanager
def _opened(table: Path) -> Iterator[pq.ParquetFile]:
    try:
        with table.open("rb") as file:
            yield pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:  # pyarrow calls damage an OSError too, but one without a number
        why = reason(error) if getattr(error, "errno", None) else "it is damaged, or no Parquet file"
        raise SourceError(f"cannot read {table}: {why}") from None


def _lesions(found: Segmentation) -> list[dict[str, Any]]:
    """Area, box and components of each class there is."""
    lesions = []
    for label, box in found.boxes.items():
        components = _components(found.mask(label, box), box.left, box.top)
        pixels = sum(component["pixels"] for component in components)
        lesion = {"label": found.classes[label - 1], "pixels": pixels, "share": pixels / found.labels.size}
        lesions.append(lesion | {"box": _box(box.left, box.top, box.width, box.height), "components": components})
    return lesions


def _components(mask: UInt8Array, left: int, top: int) -> list[dict[str, Any]]:
    """The patches of a mask whose top left pixel is at (``left``, ``top``) of the frame, in an order of their own."""
    stats = cv2.connectedComponentsWithStats(mask, connectivity=_CORNERS_TOUCH)[2][1:]  # without the background
    rows = sorted(stats.tolist(), key=lambda row: (-row[cv2.CC_STAT_AREA], row[cv2.CC_STAT_TOP], *row))
    return [{"pixels": pixels, "box": _box(left + x, top + y, width, height)} for x, y, width, height, pixels in rows]


def _box(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "width": width, "height": height}


def _confounders(found: Segmentation) -> list[tuple[str, float]]:
    return [(name, float(weight)) for name, weight in zip(found.confounder_names, found.confounders, strict=True)]


def _region(region: Region) -> dict[str, int]:
    return {"y": region.top, "x": region.left, "height": region.height, "width": region.width}
