"""What a table of frames says on the whole: findings, exact, and a timeline made for the eye.

The timeline has columns of equal time. For each it holds the largest area that lesions of a class have on any frame in
it, and the mean of each confounder over the frames that begin in it. The table is read a few thousand rows at a time,
however long the procedure was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mcdrl_rt.errors import SourceError
from mcdrl_rt.offline.findings import Finder, Finding
from mcdrl_rt.offline.table import read_batches, read_facts

COLUMNS = 2000
"""Columns of the timeline at most, more than a screen shows."""
_ROUNDING = 1e-6  # of a column: floating point must not move a frame into the one before
_STILL_S = 1.0  # what a single picture lasts: a finding on it is no flash
_PAIRS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.float32())]))  # a map, for who flattens it

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Overview:
    """What is seen of a whole procedure.

    Args:
        start_s, end_s: when the first frame begins and the last one ends.
        frames: how many there are.
        unanswered: how many of them the model did not look at.
        classes: the model's, in its order.
        findings: in order of time.
        areas: in each column the largest share of the frame, for each class that is seen at all.
        confounders: in each column the mean share of each condition.
    """

    start_s: float
    end_s: float
    frames: int
    unanswered: int
    classes: tuple[str, ...]
    findings: list[Finding]
    areas: dict[str, Floats]
    confounders: dict[str, Floats]

    @property
    def duration_s(self) -> float:
        """From the first frame's beginning to the last one's end."""
        return self.end_s - self.start_s


def look(table: Path, bridged_gap_s: float, shortest_s: float) -> Overview:
    """Read a table of frames, once for its times and once for the rest.

    Args:
        table: with ``classes`` among its facts.
        bridged_gap_s, shortest_s: see ``Finder``.

    Raises:
        SourceError: the table cannot be read, or holds no frame.
    """
    classes = tuple(read_facts(table)["classes"])
    start_s, end_s, frames = _extent(table)
    timeline = _Timeline(start_s, end_s, min(COLUMNS, frames))
    finders = {name: Finder(name, bridged_gap_s, shortest_s) for name in classes}
    for batch, ends_s in _timed(table, end_s):
        starts_s = batch["time_s"].to_numpy()
        timeline.add(batch, starts_s, ends_s)
        rows, lesions = _flat(batch["lesions"])
        columns = (lesions.field(name).to_pylist() for name in ("label", "pixels", "share"))
        times = (starts_s[rows].tolist(), ends_s[rows].tolist())
        for begin_s, finish_s, label, pixels, share in zip(*times, *columns, strict=True):
            finders[label].see(begin_s, finish_s, pixels, share)
    findings = [finding for finder in finders.values() for finding in finder.findings()]
    return Overview(
        start_s=start_s,
        end_s=end_s,
        frames=frames,
        unanswered=frames - timeline.answered,
        classes=classes,
        findings=sorted(findings, key=lambda finding: (finding.start_s, classes.index(finding.label))),
        areas={name: timeline.areas[name] for name in classes if name in timeline.areas},
        confounders=timeline.confounders(),
    )


class _Timeline:
    """Fills the columns."""

    def __init__(self, start_s: float, end_s: float, columns: int) -> None:
        self._start_s, self._scale, self._columns = start_s, columns / (end_s - start_s), columns
        self._begun, self._answered = np.zeros(columns, np.int64), np.zeros(columns, np.int64)  # frames, by column
        self._sums: dict[str, Floats] = {}
        self.areas: dict[str, Floats] = {}

    def add(self, batch: pa.RecordBatch, starts_s: Floats, ends_s: Floats) -> None:
        """Add some rows of the table."""
        first = self._place(np.floor((starts_s - self._start_s) * self._scale + _ROUNDING))
        last = self._place(np.ceil((ends_s - self._start_s) * self._scale - _ROUNDING) - 1)
        np.add.at(self._begun, first, 1)
        np.add.at(self._answered, first, batch["lesions"].is_valid().to_numpy(zero_copy_only=False))
        rows, lesions = _flat(batch["lesions"])
        for name, its, shares in _by_name(lesions.field("label"), lesions.field("share")):
            area = self.areas.setdefault(name, np.zeros(self._columns))
            _raise(area, first[rows[its]], last[rows[its]], shares)
        rows, weights = _flat(batch["confounders"].cast(_PAIRS))
        for name, its, shares in _by_name(weights.field("key"), weights.field("value")):
            np.add.at(self._sums.setdefault(name, np.zeros(self._columns)), first[rows[its]], shares)

    def confounders(self) -> dict[str, Floats]:
        """Their means; a column that no frame begins in shows what the one before it does."""
        latest = np.maximum.accumulate(np.where(self._begun > 0, np.arange(self._columns), 0))
        return {name: (sums / np.maximum(self._answered, 1))[latest] for name, sums in self._sums.items()}

    @property
    def answered(self) -> int:
        """Frames that the model looked at."""
        return int(self._answered.sum())

    def _place(self, columns: Floats) -> Integers:
        return columns.astype(np.int64).clip(0, self._columns - 1)


def _raise(area: Floats, first: Integers, last: Integers, shares: Floats) -> None:
    """Let every column from a frame's first to its last be no less than the frame's share."""
    np.maximum.at(area, first, shares)
    np.maximum.at(area, last, shares)
    for i in np.flatnonzero(last - first > 1):  # few: of a table with pauses
        area[first[i] : last[i]] = np.maximum(area[first[i] : last[i]], shares[i])


def _extent(table: Path) -> tuple[float, float, int]:
    """When the first frame begins, when the last one ends, and how many there are."""
    first_s, last_s, frames = 0.0, 0.0, 0
    for batch in read_batches(table, ["time_s"]):
        if not frames:
            first_s = batch["time_s"][0].as_py()
        frames += batch.num_rows
        last_s = batch["time_s"][-1].as_py()
    if not frames:
        raise SourceError(f"cannot report on {table}: it holds no frame")
    mean_s = (last_s - first_s) / (frames - 1) if frames > 1 else _STILL_S
    return first_s, last_s + mean_s, frames


def _timed(table: Path, end_s: float) -> Iterator[tuple[pa.RecordBatch, Floats]]:
    """The table's rows, and when each of the frames ends: as the next one begins."""
    previous = None
    for batch in read_batches(table, ["time_s", "lesions", "confounders"]):
        if previous is not None:
            yield previous, _ends(previous, batch["time_s"][0].as_py())
        previous = batch
    if previous is not None:
        yield previous, _ends(previous, end_s)


def _ends(batch: pa.RecordBatch, end_s: float) -> Floats:
    return np.append(batch["time_s"].to_numpy()[1:], end_s)


def _flat(lists: pa.ListArray) -> tuple[Integers, pa.StructArray]:
    """The members of all lists in a row, and of each the number of the list it is from."""
    return np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy())), lists.flatten()


def _by_name(names: pa.StringArray, values: pa.FloatArray) -> Iterator[tuple[str, NDArray[np.bool_], Floats]]:
    """For each name where it is, and the values there."""
    coded, numbers = names.dictionary_encode(), values.to_numpy()
    for code, name in enumerate(coded.dictionary.to_pylist()):
        its = coded.indices.to_numpy() == code
        yield name, its, numbers[its]
