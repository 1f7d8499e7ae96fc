"""A recorded procedure: how long ``mcdrl-rt process`` takes beside decoding and encoding it and nothing else.

    python benchmarks/process.py [--minutes 1] [--size 1920x1080] [--fps 30] [--video FILE] [--rounds 3]
        [--options "--masks none"] [--save NAME]

The video is a synthetic procedure, ten seconds of it rendered and repeated, or a file of yours. In each round it is
decoded and encoded by PyAV with the settings of annotated videos, sound left out, and processed; the ratio of the two
is of one round, and what is told is the median. Memory is the most that a process had at any time.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import av
from machine import describe
from outputs import Parser, check_file, check_minutes, check_outputs, count, finish, run_main
from stream import write_clip

from mcdrl_rt.errors import McdrlError

CLIP_S = 10  # of video that is rendered


def main() -> None:
    """Measure, and print what came of it."""
    parser = Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of the synthetic procedure")
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--fps", type=count, default=30)
    parser.add_argument("--video", type=Path, help="a file instead of the synthetic procedure")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--options", default="", help="of mcdrl-rt process, in one word")
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        decode_and_encode(*arguments.plain)
        return
    check_outputs(arguments)
    check_minutes(arguments.minutes)
    check_file(arguments.video)
    with tempfile.TemporaryDirectory() as folder:
        video = arguments.video or synthetic(Path(folder), arguments.size, arguments.fps, arguments.minutes * 60)
        rounds = [measure(video, Path(folder), shlex.split(arguments.options)) for _ in range(arguments.rounds)]
    length = f"{arguments.size} at {arguments.fps} frames a second, {arguments.minutes:g} minutes"
    result = {
        "benchmark": "process",
        "video": arguments.video.name if arguments.video else length,
        "options": arguments.options,
        "ratio": round(statistics.median(one["process_s"] / one["plain_s"] for one in rounds), 3),
        "rounds": rounds,
        "machine": describe(),
    }
    for one in rounds:
        print(f"plain {one['plain_s']:7.1f} s   process {one['process_s']:7.1f} s, {one['process_mib']} MiB")
    print(f"{result['ratio']:.2f} times as long as decoding and encoding alone")
    finish(result, arguments)


def synthetic(folder: Path, size: str, fps: int, seconds: float) -> Path:
    """A file of so many seconds: one rendered clip, its packets repeated."""
    clip, video = folder / "clip.mp4", folder / "procedure.mp4"
    length_s = min(CLIP_S, seconds)
    write_clip(clip, size, fps, round(length_s * fps))
    with av.open(video, "w") as target:
        stream, shift = None, 0
        for _ in range(round(seconds / length_s)):
            with av.open(clip) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                length = round(length_s / source.streams.video[0].time_base)
                for packet in source.demux(video=0):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                        target.mux(packet)
            shift += length
    return video


def measure(video: Path, folder: Path, options: list[str]) -> dict[str, Any]:
    """One round: both ways, one after the other."""
    with tempfile.TemporaryDirectory(dir=folder) as results:
        plain_s, _ = run([__file__, "--plain", str(video), str(Path(results) / "plain.mp4")])
        command = ["-m", "mcdrl_rt.cli", "process", str(video), "--output", str(Path(results) / "out"), *options]
        process_s, process_mib = run(command)
    return {"plain_s": round(plain_s, 2), "process_s": round(process_s, 2), "process_mib": round(process_mib)}


def run(arguments: list[str]) -> tuple[float, float]:
    """Seconds that a Python program took, and the most memory it had, in MiB."""
    began_s = time.monotonic()
    with tempfile.TemporaryFile("w+") as words:
        process = subprocess.Popen([sys.executable, *arguments], stderr=words)
        _, status, usage = os.wait4(process.pid, 0)
        took_s = time.monotonic() - began_s
        if (code := os.waitstatus_to_exitcode(status)) != 0:
            words.seek(0)
            last = (words.read().strip().splitlines() or ["without a word"])[-1]
            raise McdrlError(f"{' '.join(arguments)} ended with status {code}: {last}")
    return took_s, usage.ru_maxrss / 1024


def decode_and_encode(video: str, target: str, in_order: bool = True) -> None:
    """What nobody can do without, the fastest way PyAV has; ``in_order``: without B-frames, as in archives."""
    from mcdrl_rt.video.encoder import CODECS, H264

    with av.open(video) as source, av.open(target, "w") as container:
        pictures = source.streams.video[0]
        pictures.thread_type = "AUTO"
        stream = container.add_stream(H264, rate=pictures.average_rate, options=CODECS[H264].options)
        stream.width, stream.height, stream.pix_fmt = pictures.width, pictures.height, "yuv420p"
        stream.time_base = pictures.time_base
        if in_order:
            stream.codec_context.max_b_frames = 0
        for frame in source.decode(pictures):
            frame.pict_type = av.video.frame.PictureType.NONE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    run_main(main)
