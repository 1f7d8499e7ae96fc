"""Names: no message shows what somebody could log in with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdrl_rt.video.names import redacted, scheme

SECRET = st.text(st.sampled_from("xyz@:/?#&=é "), min_size=1).map(lambda text: f"SECRET{text}SECRET")


@given(user=SECRET, password=SECRET, query=SECRET, kind=st.sampled_from(["rtsp", "rtmp", "srt", "http"]))
def test_no_part_of_a_secret_is_shown(user: str, password: str, query: str, kind: str) -> None:
    assert "SECRET" not in redacted(f"{kind}://{user}:{password}@host/live")
    assert "SECRET" not in redacted(f"{kind}://host/live?pass={query}")
    assert "SECRET" not in redacted(f"{kind}://{user}:{password}@host/live?pass={query}")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("rtsp://admin:secret@10.0.0.5:554/live", "rtsp://…@10.0.0.5:554/live"),
        ("http://host/a.m3u8?token=secret", "http://host/a.m3u8?…"),
        ("RTMP://host/app/secret", "rtmp://host/app/…"),
        ("rtmp://host/app", "rtmp://host/app"),
        ("srt://host:9000?passphrase=secret@1", "srt://…"),
        ("/data/a?b@c.mp4", "/data/a?b@c.mp4"),
        ("a.mp4", "a.mp4"),
    ],
)
def test_what_is_no_secret_stays(uri: str, name: str) -> None:
    assert redacted(uri) == name


def test_scheme() -> None:
    assert [scheme(uri) for uri in ("RTSP://h/a", "C:/a.mp4", "-", "masks:a")] == ["rtsp", "", "", ""]
