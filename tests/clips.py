"""Miniature real video files for tests, written with PyAV independently of ``mcdrl_rt.video.sink``."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.packet import Packet

from mcdrl_rt.types import UInt8Array

SIZE = (48, 64)


def picture(index: int, size: tuple[int, int] = SIZE) -> UInt8Array:
    """A smooth (H, W, 3) uint8 picture with a bright block at the top left whose place tells the index."""
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]]
    pixels = np.stack([90 + rows, 60 + columns, np.full(size, 80)], axis=2).clip(0, 200).astype(np.uint8)
    left = 4 * (index % 8)
    pixels[2:10, left : left + 8] = 240
    return pixels


def write_clip(
    path: Path,
    *,
    pts: Sequence[int] = range(12),
    time_base: Fraction = Fraction(1, 25),
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: Fraction = Fraction(25),
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    pictures: Sequence[UInt8Array] | None = None,
    matrix: str = "ITU601",
    tags: dict[str, Any] | None = None,
) -> Path:
    """Write one frame for each pts.

    Args:
        rotation: degrees counter-clockwise, horizontal flip, vertical flip of the display matrix.
        pictures: frames to write; by default ``picture(0), picture(1) …``.
        matrix: the YUV matrix the pixels are converted with, swscale's name.
        tags: attributes of the codec context, such as ``{"colorspace": 1, "color_range": 1}``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, width=size[1], height=size[0], time_base=time_base)
        stream.pix_fmt = pix_fmt
        stream.codec_context.options = codec_options or {}
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if rotation:
            stream.set_display_rotation(*rotation)
        full = bool(tags and tags.get("color_range") == 2)
        for index, time in enumerate(pts):
            pixels = pictures[index] if pictures else picture(index, size)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace=matrix, dst_color_range="JPEG" if full else "MPEG"
            )
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def packed_again(path: Path, clip: Path, change: Callable[[list[Packet]], list[Packet]]) -> Path:
    """Write the packets of a clip once more, after a change to them."""
    with av.open(str(clip)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        for packet in change([packet for packet in given.demux(video=0) if packet.size]):
            packet.stream = stream
            container.mux(packet)
    return path


def with_sound(path: Path, video: Path, seconds: float = 0.5) -> Path:
    """The pictures of ``video`` with so much silence, in another file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(video) as pictures, av.open(path, "w") as container:
        stream = container.add_stream_from_template(pictures.streams.video[0])
        sound = container.add_stream("aac", rate=48_000)
        for packet in pictures.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
        for start in range(0, round(48_000 * seconds), 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.pts, frame.sample_rate = start, 48_000
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    return path


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A folder behind http, by a server that sends files from their beginning only; its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def write_audio(path: Path) -> Path:
    """A tenth of a second of silence: a media file without video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        for _ in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            frame.sample_rate = 48_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_pts(path: Path) -> list[Fraction]:
    """Presentation time in seconds of every frame of a file, exact."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [Fraction(frame.pts or 0) * Fraction(frame.time_base) for frame in container.decode(stream)]


def read_pixels(path: Path) -> list[UInt8Array]:
    """Every frame of a file as (H, W, 3) uint8 RGB, by PyAV's own conversion."""
    with av.open(str(path)) as container:
        return [cast(UInt8Array, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
