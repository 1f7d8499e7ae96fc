"""Names: no message shows what somebody could log in with."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdrl_rt.video.names import plain, redacted, scheme

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


def test_scheme() -> None:
    assert [scheme(uri) for uri in ("RTSP://h/a", "C:/a.mp4", "-", "masks:a")] == ["rtsp", "", "", ""]
