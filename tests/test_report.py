"""The report: findings are those of the frames, a browser shows it as meant, and nothing in it is taken for code."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from browser import Browser
from clips import picture, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.offline import overview, report
from mcdrl_rt.offline.findings import Finder
from mcdrl_rt.offline.report import clock, percent, write_report
from mcdrl_rt.offline.table import Table
from mcdrl_rt.types import Frame, Region, Segmentation, Shown, UInt8Array
from mcdrl_rt.video.output import partial_path

TICK = Fraction(1, 25)
CONDITIONS = ("blood", "blur")
HOSTILE = """<script>hacked=1</script>"'><img src=x onerror=hacked=1>&amp;{{ 7*7 }}""" + 60 * "x"
FACTS = {"name": "Case 12", "model": "mcdrl-small", "engine": "3fa2", "date": "4 March 2025"}


def frames_of(areas: np.ndarray, pts: list[int] | None = None, classes: tuple[str, ...] = ("polyp", "tumor")) -> Any:
    """A frame for each row of ``areas``: pixels of each class in a picture of 20×50."""
    for index, row in enumerate(areas):
        labels = np.repeat(np.arange(len(row) + 1), [1000 - sum(row), *row]).astype(np.uint8).reshape(20, 50)
        weights = np.array([index % 4 / 4, 1 - index % 4 / 4], np.float32)
        region = Region(0, 0, 20, 50)
        found = Segmentation(labels, classes, weights, CONDITIONS, np.ones((1, 1), bool), region, 1.0)
        time = index if pts is None else pts[index]
        yield Shown(Frame(np.zeros((20, 50, 3), np.uint8), time, TICK, index), segmentation=found)


def write_table(path: Path, frames: Any, classes: tuple[str, ...] = ("polyp", "tumor")) -> Path:
    with Table(path, {"classes": classes}) as sink:
        for frame in frames:
            sink.write(frame)
    return path


class Page(HTMLParser):
    """What a browser would see: elements, their attributes, and the text of each kind."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.elements[-1][0] if self.elements else ""
        self.texts[tag] = self.texts.get(tag, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def reported(tmp_path: Path, frames: Any, *rest: Any, **options: Any) -> tuple[Page, dict[str, Any]]:
    table = write_table(tmp_path / "frames.parquet", frames)
    write_report(tmp_path / "report.html", table, FACTS, *rest, **options)
    text = (tmp_path / "report.html").read_text()
    return Page(text), json.loads(text.split('id="data">')[1].split("</script>")[0])


def expected_findings(seen: np.ndarray, bridged_ms: int, shortest_ms: int) -> list[tuple[int, int, int]]:
    """Start, end and time seen, from what is seen in each millisecond."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], seen, [0]])))
    runs = [[int(start), int(end)] for start, end in edges.reshape(-1, 2)]
    joined: list[list[int]] = []
    for run in runs:
        if joined and run[0] - joined[-1][1] < bridged_ms:
            joined[-1][1] = run[1]
        else:
            joined.append(run)
    found = [(start, end, int(seen[start:end].sum())) for start, end in joined]
    return [one for one in found if one[2] >= shortest_ms]


@settings(max_examples=200, deadline=None)
@given(
    frames=st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 5, 9]), st.sampled_from([33, 34, 40, 200])), max_size=60),
    begin_ms=st.integers(0, 10**7),
    bridged_ms=st.sampled_from([1, 40, 80, 1000]),
    shortest_ms=st.sampled_from([0, 40, 80, 200]),
)
def test_findings_are_those_of_every_millisecond(
    frames: list[tuple[int, int]], begin_ms: int, bridged_ms: int, shortest_ms: int
) -> None:
    finder = Finder("polyp", bridged_ms / 1e3, shortest_ms / 1e3)
    pixels_at: dict[int, int] = {}
    at = 0
    for pixels, lasts in frames:
        if pixels:
            finder.see((begin_ms + at) / 1e3, (begin_ms + at + lasts) / 1e3, pixels, pixels / 100)
        pixels_at |= dict.fromkeys(range(at, at + lasts), pixels)
        at += lasts
    areas = np.array([pixels_at[i] for i in range(at)], int)
    found = finder.findings()
    told = [tuple(round(s * 1e3) for s in (one.start_s, one.end_s, one.seen_s)) for one in found]
    expected = expected_findings((areas > 0).astype(int), bridged_ms, shortest_ms)
    assert told == [(start + begin_ms, end + begin_ms, seen) for start, end, seen in expected]
    for one, (start, end, _) in zip(found, expected, strict=True):
        peak = start + int(areas[start:end].argmax())
        assert round(one.peak_s * 1e3) - begin_ms == peak
        assert (one.peak_pixels, one.peak_share) == (areas[peak], areas[peak] / 100)


def test_times_that_floating_point_cannot_hold_decide_nothing() -> None:
    for start in range(5000):
        finder = Finder("polyp", 0.2, 0.04)
        for frame in (start, start + 6):  # five frames between them
            finder.see(frame * 0.04, (frame + 1) * 0.04, 9, 0.09)
        assert len(finder.findings()) == 2


@pytest.mark.parametrize("columns", [2000, 13])
def test_the_timeline_has_the_largest_area_and_the_mean_of_confounders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr(overview, "COLUMNS", columns)
    areas = np.random.default_rng(0).integers(0, 40, (104, 2)) * np.array([[1, 0]])
    areas[0] = 0
    _, data = reported(tmp_path, frames_of(areas))
    per = max(1, 104 // columns)
    largest = areas[:, 0].reshape(-1, per).max(axis=1)
    (label,) = data["areas"]["bands"]  # a class that is never seen has no place
    band = np.frombuffer(base64.b64decode(data["areas"]["bands"][label]), np.uint8)
    assert (label, data["areas"]["most"]) == ("polyp", np.float32(largest.max() / 1000))
    assert np.abs(band / 255 * largest.max() - largest).max() <= largest.max() / 255
    assert np.array_equal(band > 0, largest > 0)
    mean = (np.arange(104) % 4 / 4).reshape(-1, per).mean(axis=1)
    band = np.frombuffer(base64.b64decode(data["confounders"]["bands"]["blood"]), np.uint8)
    assert np.abs(band / 255 * data["confounders"]["most"] - mean).max() <= 1 / 255


def test_frames_of_uneven_length_fill_the_time_they_last(tmp_path: Path) -> None:
    pts = [0, 1, 2, 3, 40, 41, 42, 43]  # the fourth lasts for 37 units
    areas = np.array([[0, 0], [0, 0], [0, 0], [9, 0], [0, 0], [0, 0], [0, 0], [0, 0]])
    page, data = reported(tmp_path, frames_of(areas, pts))
    assert len(base64.b64decode(data["areas"]["bands"]["polyp"])) == 8
    assert base64.b64decode(data["areas"]["bands"]["polyp"]) == b"\xff" * 7 + b"\0"
    blood = base64.b64decode(data["confounders"]["bands"]["blood"])
    assert set(blood[:6]) == {blood[0]} and blood[0] > 0
    (finding,) = [button for button in page.all("button")]
    assert (finding["data-start"], finding["data-end"]) == ("0.12", "1.6")


def test_a_single_pixel_is_seen_beside_a_large_lesion(tmp_path: Path) -> None:
    _, data = reported(tmp_path, frames_of(np.array([[0, 0], [1, 0], [900, 0]])))
    assert base64.b64decode(data["areas"]["bands"]["polyp"]) == b"\0\x01\xff"


def test_unanswered_frames_and_still_images(tmp_path: Path) -> None:
    looked, missed = frames_of(np.array([[9, 0], [9, 0]]))
    missed = Shown(missed.frame, note="too old")
    reported(tmp_path, [looked, missed])
    assert "<dd>2 (1 not looked at by the model)</dd>" in (tmp_path / "report.html").read_text()
    page, _ = reported(tmp_path, [looked])
    (finding,) = page.all("button")
    assert (finding["data-start"], finding["data-end"]) == ("0.0", "1.0")
    page, data = reported(tmp_path, [missed])
    assert (page.all("button"), data["areas"]["bands"], data["confounders"]["bands"]) == ([], {}, {})


def test_pictures_are_of_the_largest_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PICTURES", 3)
    areas = np.zeros((300, 2), int)
    for start, size in [(0, 20), (100, 80), (200, 50)]:
        areas[start : start + 10, 0] = size
        areas[start + 5, 0] += 1
    areas[199:260, 1] = 60  # begins before the third, and is largest after it
    areas[255, 1] = 90
    asked = []

    def thumbnail(time_s: float) -> UInt8Array | None:
        asked.append(round(time_s, 3))
        return None if time_s > 8 else np.full((480, 640, 3), (200, 80, 60), np.uint8)

    page, _ = reported(tmp_path, frames_of(areas), thumbnail)
    assert asked == [4.2, 8.2, 10.2]
    (image,) = page.all("img")
    assert len(page.all("button")) == 4
    assert "Pictures are of the 1 with the largest area" in (tmp_path / "report.html").read_text()
    import cv2

    jpeg = base64.b64decode((image["src"] or "").removeprefix("data:image/jpeg;base64,"))
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels.shape == (240, 320, 3)
    assert np.abs(pixels.mean(axis=(0, 1)) - (200, 80, 60)).max() < 3


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = write_hostile(tmp_path)
    page = Page(hostile.read_text())
    assert len(page.all("script")) == 2
    assert not page.all("img")
    assert page.texts["title"].strip() == HOSTILE
    known = {attribute for _, attributes in page.elements for attribute in attributes}
    assert not {name for name in known if name.startswith("on")}
    (video,) = page.all("video")
    assert video["src"] == "a%20%22%3E%3Cb%3E%23%3F%25.mp4"
    assert {button["data-label"] for button in page.all("button")} == {HOSTILE}


def write_hostile(folder: Path) -> Path:
    areas = np.zeros((60, 1), int)
    areas[10:40] = 9
    classes = (HOSTILE,)
    table = write_table(folder / "frames.parquet", frames_of(areas, classes=classes), classes)
    facts = {"name": HOSTILE, HOSTILE: HOSTILE}
    write_report(folder / "report.html", table, facts, None, folder / 'a "><b>#?%.mp4')
    return folder / "report.html"


def test_ten_hours_stay_a_small_page(tmp_path: Path) -> None:
    from mcdrl_rt.offline import table

    path, count = tmp_path / "frames.parquet", 30 * 3600 * 10
    rows = [
        table.row(frame) for frame in frames_of(np.repeat(np.random.default_rng(0).integers(0, 2, (64, 2)) * 9, 64, 0))
    ]
    batch = pa.RecordBatch.from_pylist(rows, table.SCHEMA)
    groups = table._Groups(path, {"classes": ["polyp", "tumor"]})
    for first in range(0, count, len(batch)):
        index = pa.array(np.arange(first, first + len(batch)))
        times = pa.array(np.arange(first, first + len(batch)) / 30)
        groups.write(batch.set_column(0, "index", index).set_column(2, "time_s", times))
    groups.close()

    def thumbnail(time_s: float) -> UInt8Array:
        return np.random.default_rng(0).integers(0, 256, (540, 960, 3)).astype(np.uint8)  # the worst there is

    write_report(tmp_path / "report.html", path, FACTS, thumbnail)
    page = Page((tmp_path / "report.html").read_text())
    assert len(page.all("img")) == report.PICTURES
    assert len(page.all("button")) > 1000
    assert (tmp_path / "report.html").stat().st_size < 8_000_000


def test_times_and_shares_are_written_for_people() -> None:
    assert [clock(s) for s in (0, 9.96, 62.25, 3599.97, 36000)] == [
        "0:00.0",
        "0:10.0",
        "1:02.2",
        "1:00:00.0",
        "10:00:00.0",
    ]
    assert [clock(s, 0) for s in (59.6, 3600)] == ["1:00", "1:00:00"]
    assert [clock(s) for s in (-62.25, -0.01)] == ["\u22121:02.2", "0:00.0"]
    shares = {0.5: "50.0 %", 0.0421: "4.2 %", 0.0005: "0.05 %", 0.00001: "under 0.01 %"}
    assert [percent(share) for share in shares] == list(shares.values())


def test_reports_that_cannot_be_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = write_table(tmp_path / "empty.parquet", [])
    with pytest.raises(SourceError, match=r"cannot report on .*empty\.parquet: it holds no frame"):
        write_report(tmp_path / "report.html", empty, FACTS)
    with pytest.raises(SourceError, match=r"cannot read .*absent\.parquet: no such file or directory"):
        write_report(tmp_path / "report.html", tmp_path / "absent.parquet", FACTS)
    table = write_table(tmp_path / "frames.parquet", frames_of(np.ones((3, 2), int)))
    with pytest.raises(SinkError, match=r"cannot write .*no/report\.html: no such file or directory"):
        write_report(tmp_path / "no" / "report.html", table, FACTS)
    if Path("/dev/full").exists():
        partial_path(tmp_path / "report.html").symlink_to("/dev/full")
        with pytest.raises(SinkError, match=r"cannot write .*report\.html: the disk is full"):
            write_report(tmp_path / "report.html", table, FACTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.parquet", "frames.parquet"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    opened = Browser(chromium, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of ten seconds with two findings, and its video in a folder beside."""
    folder = tmp_path_factory.mktemp("filmed case")
    areas = np.zeros((250, 2), int)
    areas[50:100, 0], areas[150:200, 1] = 30, 60
    (folder / "video").mkdir()
    video = write_clip(folder / "video" / "case #1.mp4", pts=range(250), size=(96, 128))
    table = write_table(folder / "frames.parquet", frames_of(areas))
    write_report(folder / "report.html", table, FACTS, lambda time_s: picture(round(time_s * 25)), video)
    return folder / "report.html"


PLACE = "(([x, y, w, h]) => [x, y, w, h])(((r) => [r.x, r.y, r.width, r.height])({}.getBoundingClientRect()))"
STATE = "[video.currentTime, video.paused, track.ariaValueNow]"
WIDTHS = "[innerWidth, document.documentElement.scrollWidth - document.body.clientWidth]"
SEEKED = "new Promise((done) => video.seeking ? video.addEventListener('seeked', done, {once: true}) : done())"
READY = "new Promise((done) => video.readyState > 1 ? done() : video.addEventListener('loadeddata', done))"


def middle(browser: Browser, element: str, share: float = 0.5) -> tuple[float, float]:
    browser.ask(f"{element}.scrollIntoView({{block: 'center'}})")
    x, y, width, height = browser.ask(PLACE.format(element))
    return x + width * share, y + height / 2


def test_a_click_on_the_timeline_plays_that_moment(browser: Browser, filmed: Path) -> None:
    browser.open(filmed)
    browser.ask(READY)
    assert browser.ask("[video.duration, video.videoWidth]") == [10, 128]
    browser.ask("video.muted = true")
    browser.click(*middle(browser, "document.querySelector('canvas[data-confounder=blur]')", 0.7))
    assert browser.ask("video.paused") is False
    browser.ask(SEEKED)
    assert 6.9 < browser.ask("video.currentTime") <= 10
    assert browser.ask("describe(7)").split("  ·  ")[1] == "tumor 6.0 %"
    browser.click(*middle(browser, "findings[0]"))
    assert browser.ask("video.paused") is False
    assert browser.ask("findings.map((button) => button.ariaCurrent)") == ["true", None]
    browser.ask(SEEKED)
    assert 2 <= browser.ask("video.currentTime") < 7
    assert browser.complaints == []


def test_the_keyboard_does_what_the_mouse_does(browser: Browser, filmed: Path) -> None:
    browser.open(filmed)
    browser.ask(READY)
    browser.ask("video.muted = true; scrollTo(0, 99); track.focus()")
    place = browser.ask("scrollY")
    for key, time in [
        ("PageDown", 2),
        ("PageDown", 6),
        ("PageUp", 2),
        ("ArrowRight", 7),
        ("ArrowLeft", 2),
        ("Home", 0),
    ]:
        browser.press(key)
        assert browser.ask(STATE) == [time, True, f"{time:.1f}"], key
    for key in (" ", "Enter"):
        before = browser.ask("video.paused")
        browser.press(key)
        assert browser.ask("video.paused") != before, key
    assert browser.ask("scrollY") == place
    browser.ask("findings[1].focus()")
    browser.press("Enter")
    browser.ask(SEEKED)
    assert 6 <= browser.ask("video.currentTime") <= 10
    assert browser.complaints == []


def test_a_click_finds_its_moment_in_a_video_that_begins_before_zero(browser: Browser, tmp_path: Path) -> None:
    areas = np.zeros((100, 2), int)
    areas[50:75, 0] = 30
    video = write_clip(tmp_path / "case.mp4", pts=range(100), size=(96, 128))
    table = write_table(tmp_path / "frames.parquet", frames_of(areas, list(range(-55, 45))))
    write_report(tmp_path / "report.html", table, FACTS, None, video, -2.2)
    browser.open(tmp_path / "report.html")
    browser.ask(READY)
    browser.ask("video.muted = true; track.focus()")
    browser.press("PageDown")
    browser.ask(SEEKED)
    assert browser.ask("[video.currentTime.toFixed(3), track.ariaValueNow]") == ["2.000", "-0.2"]
    browser.ask("video.dispatchEvent(new Event('timeupdate'))")
    assert browser.ask("[clock(now, 1), findings[0].ariaCurrent]") == ["\u22120:00.2", "true"]
    assert "\u22120:00.2 – 0:00.8" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_fits_and_is_drawn(browser: Browser, filmed: Path, width: int, dark: bool) -> None:
    browser.requests.clear()
    browser.open(filmed, width, dark=dark)
    assert browser.ask(WIDTHS) == [width, 0]
    drawn = """[...document.querySelectorAll("canvas")].map((canvas) => {
        const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return pixels.some((value) => value > 0) && canvas.width === canvas.clientWidth;
    })"""
    assert browser.ask(drawn) == [True] * 6  # area and findings of two classes, two confounders
    light = browser.ask("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert max(light) < 50 if dark else min(light) > 200
    assert {url.partition(":")[0] for url in browser.requests} == {"file", "data"}
    assert browser.complaints == []


def test_a_browser_takes_no_hostile_name_for_code(browser: Browser, tmp_path: Path) -> None:
    browser.open(write_hostile(tmp_path), width=390)
    assert browser.ask(WIDTHS) == [390, 0]
    assert browser.ask("document.title") == HOSTILE
    assert browser.ask("typeof hacked") == "undefined"
    assert browser.ask("areas[findings[0].dataset.label].length") == 60
    told = "new Promise((done) => video.error ? done() : video.addEventListener('error', done))"
    browser.ask(f"{told}.then(() => new Promise((done) => setTimeout(done)))")
    assert browser.ask("document.querySelector('#missing').hidden") is False
    browser.complaints = [text for text in browser.complaints if "ERR_FILE_NOT_FOUND" not in text]
    assert browser.complaints == []
