"""How pixels become packets: the encoders used here with their settings, and the frames as each one wants them.

``auto`` is the first of the graphics processors' H.264 encoders that encodes a few frames here, else libx264. None
of them was at hand when this was written: their options are FFmpeg's, checked by name.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, TypeGuard, cast

import av
import cv2
import numpy as np
from av.codec.context import CodecContext, Flags
from av.container import OutputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Picture, UInt8Array, VideoFormat, pixels_of
from mcdrl_rt.video import planes
from mcdrl_rt.video.planes import Planes

H264 = "libx264"
AUTO = "auto"
# color -> swscale's matrix, then FFmpeg's numbers for matrix, transfer and primaries (2: not specified, because
# BT.601 does not say which of two it means)
_COLORS = {
    "bt709": ("ITU709", 1, 1, 1),
    "bt601": ("ITU601", 6, 6, 2),
    "smpte170m": ("ITU601", 6, 6, 6),
    "bt470bg": ("ITU601", 5, 6, 5),
    "bt2020": ("BT2020", 9, 14, 9),
    "bt2020-pq": ("BT2020", 9, 16, 9),  # HDR, in eight bits
    "bt2020-hlg": ("BT2020", 9, 18, 9),
}
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG, what every player expects of YUV video
_RESTART_S = 1  # of a live video: what a crash may cost, and what a receiver waits that joins late
_BITS_PER_PIXEL = 0.15  # where an encoder or a network needs a bit rate: 1080p at 60 Hz is 19 Mbit/s


@dataclass(frozen=True)
class Codec:
    """How one encoder is used here.

    Args:
        options: FFmpeg's, always.
        live: and these, where each frame must leave at once and the pictures that start anew are set from outside.
        pix_fmt: what it is fed.
        even: it needs even sides.
        tagged: it can say which YUV matrix it used.
        constant_quality: without, it needs a bit rate.
    """

    options: dict[str, str] = field(default_factory=dict)
    live: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    even: bool = False
    tagged: bool = True
    constant_quality: bool = True


CODECS = {
    # visually lossless; "veryfast" makes files a fifth smaller for twice the time, which belongs to the model
    H264: Codec({"preset": "superfast", "crf": "18"}, {"tune": "zerolatency", "forced-idr": "1"}, even=True),
    "libvpx-vp9": Codec(
        {"deadline": "realtime", "cpu-used": "8", "row-mt": "1", "crf": "24"}, {"lag-in-frames": "0"}
    ),
    "mpeg4": Codec({"qmin": "2", "qmax": "4"}, even=True, tagged=False),
    "ffv1": Codec(live={"g": "1"}, pix_fmt="bgr0"),  # RGB: lossless to the bit
    "rawvideo": Codec(even=True),
    "h264_nvenc": Codec(
        {"preset": "p4", "rc": "vbr", "cq": "19", "forced-idr": "1"},
        {"tune": "ll", "zerolatency": "1", "delay": "0", "bf": "0"},
        even=True,
    ),
    "h264_qsv": Codec(
        {"preset": "veryfast", "global_quality": "19", "forced_idr": "1"},
        {"async_depth": "1", "bf": "0"},
        pix_fmt="nv12",
        even=True,
    ),
    "h264_amf": Codec(
        {"quality": "speed", "rc": "cqp", "qp_i": "19", "qp_p": "21", "forced_idr": "1"},
        {"usage": "lowlatency", "bf": "0"},
        pix_fmt="nv12",
        even=True,
    ),
    "h264_videotoolbox": Codec(live={"realtime": "1", "bf": "0"}, even=True, constant_quality=False),
    "h264_v4l2m2m": Codec(live={"bf": "0"}, even=True, constant_quality=False),
}
_HARDWARE = tuple(name for name in CODECS if name.startswith("h264_"))


def codec_name(wish: str | None, default: str) -> str:
    """The encoder to use: the one wished for, ``auto``, or the ``default`` of the place it goes to.

    Raises:
        SinkError: there is none of this name.
    """
    if wish == AUTO:  # what cannot hold H.264 keeps its own
        return hardware_codec() or default if default == H264 else default
    if wish is not None and wish not in CODECS:
        raise SinkError(f"unknown codec {wish!r}; use one of {', '.join(CODECS)}, or {AUTO}")
    return wish or default


@functools.cache
def hardware_codec() -> str | None:
    """The first hardware encoder that works on this machine; asked once in a process."""
    return next((name for name in _HARDWARE if _works(name)), None)


def _works(name: str) -> bool:
    """Whether an encoder makes a picture here: that it is compiled in says nothing of the hardware."""
    try:
        context = cast(VideoCodecContext, CodecContext.create(name, "w"))
        context.width, context.height = 320, 240
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
        _configure(context, CODECS[name], context.framerate, live=True)
        packets = []
        for index in range(4):
            grey = np.full((240, 320, 3), 128, np.uint8)
            frame = VideoFrame.from_ndarray(grey, format="rgb24").reformat(format=context.pix_fmt)
            frame.pts, frame.time_base = index, context.time_base
            packets += context.encode(frame)
        packets += context.encode(None)
    except (av.FFmpegError, OSError, ValueError):
        return False
    return any(packet.is_keyframe for packet in packets)


def _configure(context: VideoCodecContext, codec: Codec, rate: Fraction, live: bool) -> None:
    context.thread_count = 0  # as many as there are cores
    context.pix_fmt = codec.pix_fmt
    context.options = codec.options | (codec.live if live else {})
    if not codec.constant_quality:
        context.bit_rate = bit_rate((context.height, context.width), rate)


def bit_rate(size: tuple[int, int], rate: Fraction) -> int:
    """Bits per second that do for video of this size (height, width) and rate."""
    return round(size[0] * size[1] * rate * _BITS_PER_PIXEL)


class Encoder:
    """The video stream of a container, fed with pictures of any size, RGB or planes.

    Args:
        container: to add the stream to; its header is not written yet.
        name: of the codec, a key of ``CODECS``.
        format: of the video; frames of another size are scaled into it with black bars.
        time_base: seconds per unit of the times given to ``encode``.
        live: every frame leaves at once, and a new start is made each second.
        in_order: no picture is stored before one that is shown earlier.
        grey: all channels of the pixels are alike, and stored as one; each picture stands for itself, and one that
            looks like the last one is not encoded again.
        options: of FFmpeg's, beyond those in ``CODECS``.

    Attributes:
        size: (height, width) of what is encoded: even, where the codec needs it.
        rescaled: frames that came in another size.
        restarted: whether the last frame encoded makes such a new start.
    """

    def __init__(
        self,
        container: OutputContainer,
        name: str,
        format: VideoFormat,
        time_base: Fraction,
        *,
        live: bool,
        in_order: bool = False,
        grey: bool = False,
        options: dict[str, str] | None = None,
    ) -> None:
        self._codec, self._picture_size = CODECS[name], format.size
        if grey:
            self._codec = replace(self._codec, pix_fmt="gray", options=self._codec.options | {"g": "1"})
        self._last: tuple[UInt8Array, bytes] | None = None  # a grey picture, and what it was encoded as
        self.size = encoded_size(name, format.size)
        self._time_base, self._live, self._frame_s = time_base, live, 1 / format.rate
        # half a frame early rather than late: times are rounded
        self._restart_after = round((_RESTART_S - 1 / (2 * format.rate)) / time_base)
        self.rescaled, self.restarted = 0, False
        self._next_start = 0  # in units of time_base
        self._reformatter = VideoReformatter()
        height, width = self.size
        stream = container.add_stream(name, rate=format.rate, width=width, height=height, time_base=time_base)
        self._stream = cast(VideoStream, stream)
        context = self._stream.codec_context
        _configure(context, self._codec, format.rate, live)
        context.options |= options or {}
        context.sample_aspect_ratio = format.pixel_aspect
        context.flags |= Flags.frame_duration  # else each picture lasts as long as all do on average
        if in_order:
            context.max_b_frames = 0
        color = format.color
        if not self._codec.tagged:  # then use the one that players assume
            color = "bt709" if format.size[0] >= 720 else "bt601"
        self._matrix = _COLORS[color][0]
        if self._is_yuv:
            _, context.colorspace, context.color_trc, context.color_primaries = _COLORS[color]
            context.color_range = _LIMITED_RANGE

    def open(self) -> None:
        """Open the codec, so that what it does not take shows before the first picture."""
        self._stream.codec_context.open()

    def encode(self, picture: Picture, pts: int, duration_s: Fraction = Fraction(0)) -> list[Packet[VideoStream]]:
        """Packets of a picture to be shown at ``pts``; none yet, where the codec looks ahead.

        Containers need to know how long the last picture is shown; where that is not known it is 0.
        """
        frame = self._same(picture) if self._takes(picture) else self._frame(pixels_of(picture))
        frame.pts, frame.time_base = pts, self._time_base
        frame.duration = round((duration_s or self._frame_s) / self._time_base)
        self.restarted = self._live and pts >= self._next_start
        if self.restarted:
            frame.pict_type = PictureType.I
            self._next_start = pts + self._restart_after
        return self._encode_once(frame) if self._codec.pix_fmt == "gray" else self._stream.encode(frame)

    def flush(self) -> list[Packet[VideoStream]]:
        """The packets that were held back; the last there are."""
        return self._stream.encode(None)

    @property
    def problems(self) -> list[str]:
        """What became of frames that came in another size than the first."""
        height, width = self.size
        text = f"{self.rescaled} frames were of another size and were scaled into {width}×{height}"
        return [text] if self.rescaled else []

    @property
    def _is_yuv(self) -> bool:
        return self._codec.pix_fmt not in ("bgr0", "gray")

    def _takes(self, picture: Picture) -> TypeGuard[Planes]:
        """Whether a picture's numbers may stay as they are."""
        if not isinstance(picture, Planes) or self._codec.pix_fmt not in (planes.FORMAT, "nv12"):
            return False
        return picture.size == self.size == self._picture_size and _COLORS[picture.matrix][0] == self._matrix

    def _encode_once(self, frame: VideoFrame) -> list[Packet[VideoStream]]:
        """Most frames show no lesion: their masks are all alike, and looking is faster than encoding."""
        grey = np.frombuffer(cast(Any, frame.planes[0]), np.uint8)
        if self._last is None or not np.array_equal(grey, self._last[0]):
            (packet,) = packets = self._stream.encode(frame)
            self._last = grey, bytes(packet)
            return packets
        packet = cast("Packet[VideoStream]", Packet(self._last[1]))
        packet.stream, packet.time_base, packet.is_keyframe = self._stream, self._time_base, True
        packet.pts = packet.dts = frame.pts
        packet.duration = frame.duration
        return [packet]

    def _same(self, picture: Planes) -> VideoFrame:
        return self._reformatter.reformat(picture.frame(), format=self._codec.pix_fmt)

    def _frame(self, pixels: UInt8Array) -> VideoFrame:
        """The picture in the encoder's size and pixel format, in one conversion."""
        self.rescaled += pixels.shape[:2] != self._picture_size
        pixels = _fit(pixels, self._picture_size, exact=not self._is_yuv)
        below, right = self.size[0] - pixels.shape[0], self.size[1] - pixels.shape[1]
        if below or right:
            pixels = np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")
        if self._codec.pix_fmt == "gray":
            # copied: of a single pixel NumPy calls contiguous what PyAV does not
            return VideoFrame.from_numpy_buffer(pixels[:, :, 0].copy(), format="gray")
        rgb = VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), format="rgb24")
        yuv = {"dst_colorspace": self._matrix, "dst_color_range": "MPEG"}
        kind: dict[str, Any] = yuv if self._is_yuv else {}
        return self._reformatter.reformat(rgb, format=self._codec.pix_fmt, **kind)


def encoded_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) a codec makes of a size: H.264 and MPEG-4 need even sides."""
    return (size[0] + size[0] % 2, size[1] + size[1] % 2) if CODECS[name].even else size


def _fit(pixels: UInt8Array, size: tuple[int, int], exact: bool) -> UInt8Array:
    """Scale into ``size`` with black bars, keeping the shape of things; usually there is nothing to do.

    ``exact`` invents no value between two: what is written losslessly may be class ids.
    """
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    scale = min(size[0] / height, size[1] / width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    fitted = np.zeros((*size, 3), np.uint8)
    smooth = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(pixels, inner[::-1], interpolation=cv2.INTER_NEAREST if exact else smooth)
    fitted[top : top + inner[0], left : left + inner[1]] = scaled
    return fitted
