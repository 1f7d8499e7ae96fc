"""One HTML page about one procedure, for people: when lesions were seen, under what conditions, what they look like.

The page is one file that asks nothing of a network: pictures, style and script are in it. The annotated video stays
where it is and is played from there; a click on the timeline or on a finding goes to that moment.

A finding is an interval in which lesions of one class are seen, gaps bridged and flashes left out; its times are
exact. The timeline is made for the eye: of all frames in one of its columns it shows the largest area and the mean of
each confounder. The table of frames is read a few thousand rows at a time, however long the procedure was.

Import this where it is needed only: it needs jinja2 and pyarrow, of the extra ``archive``.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline.findings import Finder, Finding
from mcdrl_rt.offline.table import read_batches, read_facts
from mcdrl_rt.offline.whole import WholeFile
from mcdrl_rt.types import UInt8Array

try:
    import jinja2
except ImportError:
    raise SinkError("a report needs jinja2: pip install 'mcdrl-rt[archive]'") from None

COLUMNS = 2000
"""Columns of the timeline at most, more than a screen shows."""
PICTURES = 48
"""Findings with a picture at most: those with the largest areas."""
_PICTURE_WIDTH = 320
_JPEG_QUALITY = 80
_STILL_S = 1.0  # what one picture lasts: a finding on it is no flash

_PAIRS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.float32())]))  # a map, for who flattens it

Thumbnail = Callable[[float], UInt8Array | None]


def write_report(
    target: Path,
    table: Path,
    facts: Mapping[str, str],
    thumbnail: Thumbnail | None = None,
    video: Path | None = None,
    *,
    bridged_gap_s: float = 1.0,
    shortest_s: float = 0.2,
) -> None:
    """Write the report.

    Args:
        target: the HTML file; it appears when it is whole.
        table: of the procedure's frames.
        facts: what the head says, in this order (model, engine, date …); ``name`` is the title.
        thumbnail: gives the frame at a time of the table in seconds, lesions drawn, (H, W, 3) uint8, RGB, or None where
            there is none; asked for in order of time.
        video: the annotated video; the page points to it by its path from the page's own folder.
        bridged_gap_s, shortest_s: see ``Finder``.

    Raises:
        SourceError: the table cannot be read, or holds no frame.
        SinkError: the report cannot be written.
    """
    seen = _look(table, bridged_gap_s, shortest_s)
    largest = sorted(seen.findings, key=lambda finding: -finding.peak_share)[:PICTURES]
    pictures = {finding: _picture(thumbnail, finding.peak_s) for finding in seen.findings if finding in set(largest)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "percent": percent}
    page = environment.get_template("report.html.j2").stream(
        name=facts["name"],
        facts={name: value for name, value in facts.items() if name != "name"},
        seen=seen,
        pictures=pictures,
        pictured=sum(picture is not None for picture in pictures.values()),
        video=None if video is None else _relative(video, target.parent),
        data=_data(seen),
        bridged_gap_s=bridged_gap_s,
        shortest_s=shortest_s,
    )
    whole = WholeFile(target)
    try:
        with whole.guarded():
            page.dump(whole.file, encoding="utf-8")
        whole.close()
    finally:
        whole.abort()


@dataclass(frozen=True)
class _Seen:
    """What the table says, as the page shows it."""

    start_s: float
    end_s: float
    frames: int
    unanswered: int  # frames that the model did not look at
    classes: tuple[str, ...]
    findings: list[Finding]
    areas: dict[str, NDArray[np.float64]]  # largest share of the frame in each column, by class that was seen
    confounders: dict[str, NDArray[np.float64]]  # mean in each column

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


class _Axis:
    """Columns of equal time; a frame belongs to the one it begins in."""

    def __init__(self, start_s: float, end_s: float, frames: int) -> None:
        self.columns = min(COLUMNS, frames)
        self.filled = np.zeros(self.columns, np.int64)  # frames in each
        self._start_s, self._scale = start_s, self.columns / (end_s - start_s)

    def place(self, times_s: NDArray[np.float64]) -> NDArray[np.int64]:
        """Columns of frames that begin at these times."""
        return ((times_s - self._start_s) * self._scale).astype(np.int64).clip(0, self.columns - 1)

    def spread(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same columns, those in which no frame begins showing the frame that still lasts."""
        latest = np.maximum.accumulate(np.where(self.filled > 0, np.arange(self.columns), 0))
        return values[latest]


def _look(table: Path, bridged_gap_s: float, shortest_s: float) -> _Seen:
    """Read the table once through."""
    start_s, end_s, frames = _extent(table)
    axis = _Axis(start_s, end_s, frames)
    classes = tuple(read_facts(table)["classes"])
    finders = {name: Finder(name, bridged_gap_s, shortest_s) for name in classes}
    areas: dict[str, NDArray[np.float64]] = {}
    sums: dict[str, NDArray[np.float64]] = {}
    answered = np.zeros(axis.columns)
    for batch, ends_s in _timed(table, end_s):
        times_s = batch["time_s"].to_numpy()
        places = axis.place(times_s)
        np.add.at(axis.filled, places, 1)
        np.add.at(answered, places, batch["lesions"].is_valid().to_numpy(zero_copy_only=False))
        rows, lesions = _flat(batch["lesions"])
        labels, pixels, shares = (lesions.field(name).to_pylist() for name in ("label", "pixels", "share"))
        for row, label, count, share in zip(rows.tolist(), labels, pixels, shares, strict=True):
            finders[label].see(times_s[row], ends_s[row], count, share)
            area = areas.setdefault(label, np.zeros(axis.columns))
            area[places[row]] = max(area[places[row]], share)
        rows, weights = _flat(batch["confounders"].cast(_PAIRS))
        names, values = weights.field(0).dictionary_encode(), weights.field(1).to_numpy()
        for number, name in enumerate(names.dictionary.to_pylist()):
            its = names.indices.to_numpy() == number
            np.add.at(sums.setdefault(name, np.zeros(axis.columns)), places[rows[its]], values[its])
    findings = [finding for finder in finders.values() for finding in finder.findings()]
    return _Seen(
        start_s=start_s,
        end_s=end_s,
        frames=frames,
        unanswered=frames - int(answered.sum()),
        classes=classes,
        findings=sorted(findings, key=lambda finding: (finding.start_s, classes.index(finding.label))),
        areas={name: axis.spread(areas[name]) for name in classes if name in areas},
        confounders={name: axis.spread(total / np.maximum(answered, 1)) for name, total in sums.items()},
    )


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
    mean_s = (last_s - first_s) / (frames - 1) if frames > 1 else 0.0
    return first_s, last_s + (mean_s or _STILL_S), frames


def _timed(table: Path, end_s: float) -> Iterator[tuple[pa.RecordBatch, NDArray[np.float64]]]:
    """The table's batches, and when each of their frames ends: as the next one begins."""
    previous = None
    for batch in read_batches(table, ["time_s", "lesions", "confounders"]):
        if previous is not None:
            yield previous, _ends(previous, batch["time_s"][0].as_py())
        previous = batch
    if previous is not None:
        yield previous, _ends(previous, end_s)


def _ends(batch: pa.RecordBatch, end_s: float) -> NDArray[np.float64]:
    return np.append(batch["time_s"].to_numpy()[1:], end_s)


def _flat(lists: pa.ListArray) -> tuple[NDArray[np.int64], pa.StructArray]:
    """The members of all lists in a row, each with the number of the list it is from."""
    return np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy())), lists.flatten()


def _picture(thumbnail: Thumbnail | None, time_s: float) -> str | None:
    """A frame as a JPEG within the page."""
    pixels = thumbnail(time_s) if thumbnail else None
    if pixels is None:
        return None
    height = max(1, round(pixels.shape[0] * _PICTURE_WIDTH / pixels.shape[1]))
    small = cv2.resize(pixels, (_PICTURE_WIDTH, height), interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.tobytes()).decode()}"


def _relative(video: Path, folder: Path) -> str:
    """A URL from the page to the video, whatever is in its name."""
    return quote(Path(os.path.relpath(video, folder)).as_posix())


def _data(seen: _Seen) -> dict[str, Any]:
    """What the page's script draws: a byte for each column, 255 for the largest value of all."""
    return {
        "start": round(seen.start_s, 3),
        "end": round(seen.end_s, 3),
        "areas": _bytes(seen.areas),
        "confounders": _bytes(seen.confounders),
    }


def _bytes(bands: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    most = max((float(band.max()) for band in bands.values()), default=0.0) or 1.0
    coded = {
        # rounded up: one pixel of lesion is not nothing
        name: base64.b64encode(np.ceil(band / most * 255).astype(np.uint8).tobytes()).decode()
        for name, band in bands.items()
    }
    return {"most": most, "bands": coded}


def clock(seconds: float, digits: int = 1) -> str:
    """``1:02:03.4``, hours only where there are some.

    >>> clock(62.25), clock(3600, 0)
    ('1:02.2', '1:00:00')
    """
    units = round(max(0.0, seconds) * 10**digits)
    whole, part = divmod(units, 10**digits)
    minutes, hours = whole // 60 % 60, whole // 3600
    text = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{text}:{whole % 60:02d}" + (f".{part:0{digits}d}" if digits else "")


def percent(share: float) -> str:
    """A share of the picture: ``4.2 %``, ``0.05 %``.

    >>> percent(0.0421), percent(0.0005), percent(0.00001)
    ('4.2 %', '0.05 %', 'under 0.01 %')
    """
    if share < 0.0001:
        return "under 0.01 %"
    return f"{share:.1%}".replace("%", " %") if share >= 0.001 else f"{share:.2%}".replace("%", " %")
