"""Log for programs: every line is JSON, nothing secret is in any, and a log that fails stops nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.log import JsonLines, log_file, logging_to, redact
from mcdrl_rt.video.names import redacted


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[logging.Logger]:
    """A logger that writes to ``log.jsonl`` in the test's folder, and nowhere else."""
    logger = logging.Logger("mcdrl_rt.stream")
    handler = log_file(tmp_path / "log.jsonl")
    logger.addHandler(handler)
    yield logger
    handler.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def test_a_record_is_a_line_of_json(logger: logging.Logger, tmp_path: Path) -> None:
    logger.warning("lost %s after %d s", "the source", 3, extra={"stream": "Saal »1«", "frames": 12, "age_ms": 40.5})
    logger.info("two\nlines")
    first, second = lines(tmp_path)
    assert abs(datetime.now(UTC) - datetime.fromisoformat(first.pop("time"))) < timedelta(minutes=1)
    assert first == {
        "level": "warning",
        "logger": "mcdrl_rt.stream",
        "message": "lost the source after 3 s",
        "stream": "Saal »1«",
        "frames": 12,
        "age_ms": 40.5,
    }
    assert (second["level"], second["message"]) == ("info", "two\nlines")


def test_the_error_it_ends_with_is_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SourceError), logging_to(tmp_path / "log.jsonl"):
        raise SourceError("cannot open rtsp://user:secret@cam/x: connection refused")
    (line,) = lines(tmp_path)
    assert (line["level"], line["logger"]) == ("error", "mcdrl_rt")
    assert line["message"].startswith("cannot open rtsp://") and "secret" not in line["message"]
    assert not caplog.records  # the command tells it on the terminal, once


def test_what_json_cannot_say_is_text(logger: logging.Logger, tmp_path: Path) -> None:
    given = {"path": Path("a/b"), "age_ms": float("nan"), "sizes": (1, None, True), "share": np.float32(0.5)}
    logger.info("x", extra={"given": given})
    assert lines(tmp_path)[0]["given"] == {"path": "a/b", "age_ms": "nan", "sizes": [1, None, True], "share": "0.5"}


def test_no_secret_reaches_the_file(logger: logging.Logger, tmp_path: Path) -> None:
    url = "rtsp://surgeon:s3cret@camera:554/live?token=s3cret"
    logger.error("cannot open %s", url, extra={"source": url, "all": [{"at": url}, (url, Path(url))]})
    try:
        raise ValueError(f"no answer from {url}")
    except ValueError:
        logger.exception("failed")
    text = (tmp_path / "log.jsonl").read_text("utf-8")
    assert "s3cret" not in text and "surgeon" not in text
    assert lines(tmp_path)[0]["source"] == "rtsp://…@camera:554/live?…"
    assert lines(tmp_path)[1]["exception"].endswith("ValueError: no answer from rtsp://…@camera:554/live?…")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing to hide: 5 % of a@b?", "nothing to hide: 5 % of a@b?"),
        ("http://host/a.mp4, then", "http://host/a.mp4, then"),
        ("rtsp://host/live?a=b: timed out", "rtsp://host/live?…: timed out"),
        ("'srt://host:9?passphrase=x'.", "'srt://host:9?…'."),
        ("rtsp://u:p@ss@host/x", "rtsp://…@host/x"),
        ("rtsp://u:a/b'c\"d@host/x", "rtsp://…@host/x"),
        ("rtsp://u:a?b@host/x: refused", "rtsp://…: refused"),
        ("srt://host:9?passphrase=x@1", "srt://…"),
        ("sent to rtmp://host/app/key.", "sent to rtmp://host/app/…."),
        ("http://host/a.m3u8;jsessionid=1, http://host/b#t=2", "http://host/a.m3u8;…, http://host/b#…"),
        ("rtsp://u:p@[::1]:8554/x and http://v:q@h/?k=1&l=2", "rtsp://…@[::1]:8554/x and http://…@h/?…"),
        ("http://host/?", "http://host/?"),
        ("rtsp:/u:p@host/live?k=1", "rtsp:/…@host/live?…"),
    ],
)
def test_urls_in_a_text(text: str, expected: str) -> None:
    assert redact(text) == expected


SECRET = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=8)


@given(SECRET, SECRET, st.sampled_from(["", "'", '"', ","]))
def test_no_password_and_no_query_survives(password: str, token: str, quote: str) -> None:
    secrets = [f"ß{password}ß", f"ß{token}ß"]  # so that neither can be a part of what stays
    text = redact(f"cannot open {quote}rtsp://u:{secrets[0]}@host/live?t={secrets[1]}{quote}: refused")
    assert not any(secret in text for secret in secrets)
    assert text.startswith("cannot open ") and text.endswith(": refused")


KINDS = st.sampled_from(["rtsp", "rtmp", "rtmps", "srt", "http", "https"])
ODD = st.text(st.sampled_from("xyz@:/?#;&=%'\",.)é"), max_size=6).map(lambda text: f"SECRET{text}SECRET")
MARKS = st.sampled_from(["?token=", "#", ";jsessionid="])


@given(KINDS, st.none() | st.tuples(ODD, ODD), st.lists(st.tuples(MARKS, ODD), max_size=3), ODD)
def test_no_secret_of_an_address_survives(
    kind: str, login: tuple[str, str] | None, parameters: list[tuple[str, str]], key: str
) -> None:
    user = f"{login[0]}:{login[1]}@" if login else ""
    path = f"app/{key}" if kind.startswith("rtmp") else "live"
    url = f"{kind}://{user}host/{path}" + "".join(mark + secret for mark, secret in parameters)
    assert "SECRET" not in redacted(url)
    assert "SECRET" not in redact(f"cannot open '{url}': timed out")
    assert "SECRET" not in redact(f"cannot open {Path(url)}: timed out")


@given(st.dictionaries(st.text(), st.text() | st.floats() | st.integers() | st.binary() | st.none()))
def test_any_fields_make_one_line(fields: dict[str, Any]) -> None:
    record = logging.makeLogRecord({"msg": "m", "fields": fields})
    line = JsonLines().format(record)
    assert "\n" not in line and "\r" not in line
    assert set(json.loads(line)) == {"time", "level", "logger", "message", "fields"}


def test_lone_surrogates_of_file_names_are_written(logger: logging.Logger, tmp_path: Path) -> None:
    logger.info("opened %s", os.fsdecode(b"caf\xe9.mp4"))
    assert lines(tmp_path)[0]["message"].startswith("opened caf")


def test_a_log_goes_on_where_it_ended_and_survives_rotation(logger: logging.Logger, tmp_path: Path) -> None:
    logger.info("one")
    again = log_file(tmp_path / "log.jsonl")
    again.handle(logging.makeLogRecord({"msg": "two"}))
    again.close()
    assert [line["message"] for line in lines(tmp_path)] == ["one", "two"]
    (tmp_path / "log.jsonl").rename(tmp_path / "log.jsonl.1")
    logger.info("three")
    assert [line["message"] for line in lines(tmp_path)] == ["three"]


def test_a_full_disk_is_said_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    handler = log_file(Path("/dev/full"))
    for _ in range(3):
        handler.handle(logging.makeLogRecord({"msg": "x" * 100}))
    error = capsys.readouterr().err
    assert error == "the log /dev/full misses lines: no space left on device\n"
    with contextlib.suppress(OSError):  # it tries to write once more
        handler.close()


def test_a_folder_that_is_gone_is_said_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "log.jsonl"
    path.parent.mkdir()
    handler = log_file(path)
    shutil.rmtree(path.parent)
    for _ in range(3):
        handler.handle(logging.makeLogRecord({"msg": "x"}))
    assert capsys.readouterr().err == f"the log {path} misses lines: no such file or directory\n"
    path.parent.mkdir()
    handler.handle(logging.makeLogRecord({"msg": "back"}))
    handler.close()
    assert json.loads(path.read_text())["message"] == "back"


@pytest.mark.parametrize(
    ("name", "reason"), [("", "is a directory"), ("missing/log.jsonl", "no such file or directory")]
)
def test_a_place_that_cannot_be_written(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(SinkError) as caught:
        log_file(tmp_path / name)
    assert str(caught.value) == f"cannot write the log {tmp_path / name}: {reason}"


def test_a_log_that_takes_nothing_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mcdrl_rt.log._END_S", 0.2)
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    began_s = time.monotonic()
    with logging_to(tmp_path / "log"):
        for _ in range(3000):
            logging.getLogger("mcdrl_rt").error("x" * 100)
    assert time.monotonic() - began_s < 20
    while any(thread.name == "log" for thread in threading.enumerate()):  # the rest, taken
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 1 << 20)
    os.close(reader)


def test_a_log_on_a_full_disk_ends_in_peace(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(Path("/dev/full")):
        logging.getLogger("mcdrl_rt").error("x")
    assert capsys.readouterr().err == "the log /dev/full misses lines: no space left on device\n"
