"""Single pictures out of a video file."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import av

from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.container import video_stream
from mcdrl_rt.video.deinterlace import Deinterlacer
from mcdrl_rt.video.rgb import ToPicture

_EARLY_S = 1e-6  # floating point must not lead to the frame after


class Pictures:
    """Finds frames of a video by their time.

    Args:
        path: of the video.
        origin_s: the time that is zero in it.
    """

    def __init__(self, path: Path, origin_s: Fraction) -> None:
        self._container = av.open(f"file:{path.absolute()}")
        self._stream = video_stream(self._container, path.name)
        self._origin_s = float(origin_s)
        self._to_picture = ToPicture()

    @property
    def length_s(self) -> float | None:
        """How long the video is, as its container says; None where it does not."""
        its, base = self._stream.duration, self._stream.time_base
        whole = self._container.duration
        return float(its * base) if its and base else whole / av.time_base if whole else None

    def __call__(self, time_s: float) -> UInt8Array | None:
        """The frame shown at a time, (H, W, 3) uint8, RGB; None if there is none."""
        place_s = time_s - self._origin_s
        with contextlib.suppress(av.FFmpegError):
            self._container.seek(max(0, int(place_s * av.time_base)))
            unit = self._stream.time_base or Fraction(1, 1000)
            deinterlaced = Deinterlacer(unit)
            for decoded in self._container.decode(self._stream):
                for frame in deinterlaced(decoded):
                    if frame.pts is not None and frame.pts * unit >= place_s - _EARLY_S:
                        return self._to_picture.pixels(frame)
        return None

    def close(self) -> None:
        """Close the video."""
        self._container.close()
