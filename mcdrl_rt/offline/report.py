"""One HTML page about one procedure, for people: when lesions were seen, under what conditions, what they look like.

The page is one file that asks nothing of a network: pictures, style and script are in it. The annotated video stays
where it is and is played from there; a click on the timeline or on a finding goes to that moment.

Import this where it is needed only: jinja2 and pyarrow take their time.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import jinja2
import numpy as np
from numpy.typing import NDArray

from mcdrl_rt.offline.overview import Overview, look
from mcdrl_rt.offline.whole import WholeFile
from mcdrl_rt.types import UInt8Array

PICTURES = 48
"""Findings with a picture at most: those with the largest areas."""
_PICTURE_WIDTH = 320
_JPEG_QUALITY = 80

Thumbnail = Callable[[float], UInt8Array | None]


def write_report(
    target: Path,
    table: Path,
    facts: Mapping[str, str],
    thumbnail: Thumbnail | None = None,
    video: Path | None = None,
    video_from_s: float = 0.0,
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
        video_from_s: the time of the table that is zero in the video.
        bridged_gap_s, shortest_s: see ``findings.Finder``.

    Raises:
        SourceError: the table cannot be read, or holds no frame.
        SinkError: the report cannot be written.
    """
    seen = look(table, bridged_gap_s, shortest_s)
    largest = sorted(seen.findings, key=lambda finding: -finding.peak_share)[:PICTURES]
    in_time = sorted(largest, key=lambda finding: finding.peak_s)
    pictures = {finding: _picture(thumbnail, finding.peak_s) for finding in in_time}
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
        data=_data(seen) | {"video_from": video_from_s},
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
    return quote(os.fsencode(Path(os.path.relpath(video, folder)).as_posix()))


def _data(seen: Overview) -> dict[str, Any]:
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
    units = round(abs(seconds) * 10**digits)
    sign = "\N{MINUS SIGN}" if seconds < 0 and units else ""
    whole, part = divmod(units, 10**digits)
    minutes, hours = whole // 60 % 60, whole // 3600
    text = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{sign}{text}:{whole % 60:02d}" + (f".{part:0{digits}d}" if digits else "")


def percent(share: float) -> str:
    """A share of the picture: ``4.2 %``, ``0.05 %``.

    >>> percent(0.0421), percent(0.0005), percent(0.00001)
    ('4.2 %', '0.05 %', 'under 0.01 %')
    """
    if share < 0.0001:
        return "under 0.01 %"
    return f"{share:.1%}".replace("%", " %") if share >= 0.001 else f"{share:.2%}".replace("%", " %")
