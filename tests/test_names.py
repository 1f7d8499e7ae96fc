"""Names: no message shows what somebody could log in with."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdrl_rt.errors import SinkError, SourceError
from mcdrl_rt.types import VideoFormat
from mcdrl_rt.video.names import legible, plain, redacted, scheme, slash_missing
from mcdrl_rt.video.sink import open_sink
from mcdrl_rt.video.source import open_source

SECRET = st.text(st.sampled_from("xyz@:/?#&=é "), min_size=1).map(lambda text: f"SECRET{text}SECRET")


@given(user=SECRET, password=SECRET, query=SECRET, kind=st.sampled_from(["rtsp", "rtmp", "srt", "http"]))
def test_no_part_of_a_secret_is_shown(user: str, password: str, query: str, kind: str) -> None:
    assert "SECRET" not in redacted(f"{kind}://{user}:{password}@host/live")
    assert "SECRET" not in redacted(f"{kind}://host/live?pass={query}")
    assert "SECRET" not in redacted(f"{kind}://{user}:{password}@host/live?pass={query}")
    assert "SECRET" not in redacted(f"{kind}://host/live;jsessionid={query}")
    assert "SECRET" not in redacted(f"{kind}://host/live#{query}")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("rtsp://admin:secret@10.0.0.5:554/live", "rtsp://…@10.0.0.5:554/live"),
        ("http://host/a.m3u8?token=secret", "http://host/a.m3u8?…"),
        ("RTMP://host/app/secret", "rtmp://host/app/…"),
        ("rtmp://host/app", "rtmp://host/app"),
        ("srt://host:9000?passphrase=secret@1", "srt://…"),
        ("http://host/a.ts;jsessionid=secret", "http://host/a.ts;…"),
        ("http://host/a.ts#secret", "http://host/a.ts#…"),
        ("/data/a?b@c.mp4", "/data/a?b@c.mp4"),
        ("a.mp4", "a.mp4"),
    ],
)
def test_what_is_no_secret_stays(uri: str, name: str) -> None:
    assert redacted(uri) == name


def test_a_file_address_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a b.mp4").touch()
    (tmp_path / "a%20c.mp4").touch()
    for name, file in (("a b.mp4", "a b.mp4"), ("a%20b.mp4", "a b.mp4"), ("a%20c.mp4", "a%20c.mp4")):
        assert plain(f"file://{tmp_path}/{name}") == f"{tmp_path}/{file}"
        assert plain(f"FILE://localhost{tmp_path}/{name}") == f"{tmp_path}/{file}"
    for other in ("a.mp4", "rtsp://h/file://a", "-", "file:a.mp4"):
        assert plain(other) == other


def test_an_address_with_a_slash_too_few_is_none_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for uri in ("rtsp:/u:secret@h/a", "RTMP:u:secret@h", "http:/h/a.mp4?token=secret"):
        assert slash_missing(uri) == f"an address has two slashes: {uri.partition(':')[0]}://…"
        with pytest.raises(SourceError, match="two slashes"):
            open_source(uri)
        with pytest.raises(SinkError, match="two slashes"):
            open_sink(uri, VideoFormat((8, 8), Fraction(1, 25), Fraction(25)))
    Path("udp:a.mp4").touch()
    for uri in ("udp:a.mp4", "rtsp://h/a", "screen:1", "phantom:size=8x8", "a.mp4", "masks:a"):
        assert not slash_missing(uri)


def test_a_name_of_any_bytes_is_legible() -> None:
    assert legible(os.fsdecode(b"caf\xe9.mp4")) == "caf\N{REPLACEMENT CHARACTER}.mp4"
    assert legible("théâtre 1") == "théâtre 1"


def test_scheme() -> None:
    assert [scheme(uri) for uri in ("RTSP://h/a", "C:/a.mp4", "-", "masks:a")] == ["rtsp", "", "", ""]
