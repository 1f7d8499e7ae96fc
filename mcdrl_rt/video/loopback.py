"""A virtual camera (Linux, v4l2loopback): other programs open the annotated video as they would a capture card."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import av

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Shown, VideoFormat
from mcdrl_rt.video.encoder import Encoder
from mcdrl_rt.video.output import Pace, Sink, Timeline, reason

_MICROSECOND = Fraction(1, 1_000_000)


class Loopback(Sink):
    """A v4l2loopback device, fed with raw YUV 4:2:0 frames at the video's own pace.

    Raises:
        SinkError: there is no such device, or it is no output.
    """

    def __init__(self, device: str, format: VideoFormat) -> None:
        self._device = device
        self._timeline, self._pace = Timeline(_MICROSECOND, from_zero=True), Pace(format)
        if not Path(device).exists():
            raise SinkError(f"cannot write to {device}: there is no such device; load one: sudo modprobe v4l2loopback")
        try:
            self._container = av.open(device, "w", format="v4l2")
            self._encoder = Encoder(self._container, "rawvideo", format, _MICROSECOND, live=False)
            self.size = self._encoder.size
            self._container.start_encoding()
        except (av.FFmpegError, OSError, ValueError) as error:
            why = f"{reason(error)}; is it a v4l2loopback device, and not in use?"
            raise SinkError(f"cannot write to {device}: {why}") from None

    def write(self, shown: Shown) -> None:
        """Hand one frame to the device, when it is its turn."""
        pts = self._timeline.place(shown.frame)
        if pts is None:
            return
        self._pace.wait(shown.frame)
        try:
            self._container.mux(self._encoder.encode(shown.frame.picture, pts))
        except (av.FFmpegError, OSError) as error:
            self.close()
            raise SinkError(f"cannot write to {self._device}: {reason(error)}") from None
        self.frames += 1

    def close(self) -> None:
        """Leave the device; readers keep its last picture or are told it is over, as the driver is set."""
        with contextlib.suppress(av.FFmpegError, OSError):  # nothing is held back that could be lost
            self._container.close()

    def abort(self) -> None:
        """The same: what was shown is shown."""
        self.close()

    def hurry(self) -> None:
        """Show what there is, without a long wait for its turn."""
        self._pace.hurry()

    @property
    def problem(self) -> str | None:
        """Frames that could not be shown."""
        return "; ".join(self._timeline.problems + self._encoder.problems) or None
