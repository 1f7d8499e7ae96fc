"""A live stream as an operating room has it: delay of the picture, age of the masks, frames lost, memory over time.

    python benchmarks/stream.py [--minutes 5] [--size 1920x1080] [--fps 30] [--streams 1] [--output null]
        [--save NAME]

A synthetic procedure is recorded once and then played at its own pace, over and over, through ``mcdrl-rt stream
--live`` (policy ``pass``), as a capture card would deliver it: decoding it is part of the load, rendering it is not.
Memory is that of the process, once a second; the first quarter, in which buffers fill, is not compared.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from machine import describe
from outputs import Parser, check_minutes, check_outputs, count, finish, run_main

CLIP_S = 10  # of video that is rendered


def main() -> None:
    """Stream, and print what came of it."""
    parser = Parser(__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--fps", type=count, default=30)
    parser.add_argument("--streams", type=count, default=1, help="at once, on one engine")
    parser.add_argument("--output", action="append", help="as of mcdrl-rt stream; default null")
    arguments = parser.parse_args()
    check_outputs(arguments)
    check_minutes(arguments.minutes)
    outputs = arguments.output or ["null"]
    with tempfile.TemporaryDirectory() as folder:
        clips = record(Path(folder), arguments.size, arguments.fps, arguments.minutes * 60)
        summaries, memory_mib = stream(clips, arguments.streams, outputs)
    interval_ms = 1000 / arguments.fps
    settled = memory_mib[len(memory_mib) // 4 :] or memory_mib
    third = max(1, len(settled) // 3)
    growth = statistics.median(settled[-third:]) / statistics.median(settled[:third]) - 1
    result = {
        "benchmark": "stream",
        "video": f"{arguments.size} at {arguments.fps} frames a second, {arguments.minutes:g} minutes",
        "outputs": outputs,
        "frame_interval_ms": round(interval_ms, 2),
        "streams": [_figures(summary, interval_ms) for summary in summaries],
        "memory_mib": {"median": round(statistics.median(settled)), "most": round(max(memory_mib))},
        "memory_growth": round(growth, 4),
        "engine": summaries[0]["engine"],
        "machine": describe(),
    }
    for figures in result["streams"]:
        delay = figures["video_delay"]
        print(f"{figures['frames']} frames, {figures['frames_lost']} lost; {result['engine']}")
        print(f"video delay  p50 {delay['p50_ms']:6.1f}  p99 {delay['p99_ms']:6.1f} ms (a frame: {interval_ms:.1f} ms)")
        if age := figures["mask_age"]:
            without = f"{figures['without_overlay']:.1%} of frames without overlay"
            print(f"mask age     p50 {age['p50_ms']:6.1f}  p99 {age['p99_ms']:6.1f} ms; {without}")
    print(f"memory       {result['memory_mib']['median']} MiB, {growth:+.1%} from the first to the last third")
    finish(result, arguments)


def _figures(summary: dict[str, Any], interval_ms: float) -> dict[str, Any]:
    """What matters of one stream; ``engine_share``: of a frame's time, what the model takes."""
    segment = summary["stages"].get("segment", {"p50_ms": math.nan})
    return {
        "frames": summary["frames_out"],
        "frames_lost": summary["frames_dropped"],
        "video_delay": summary["stages"]["video_delay"],
        "mask_age": summary["mask_age"],
        "without_overlay": round(summary["frames_without_overlay"] / summary["frames_out"], 4),
        "engine_share": round(segment["p50_ms"] / interval_ms, 3),
        "stages": summary["stages"],
    }


def record(folder: Path, size: str, fps: int, seconds: float) -> Path:
    """A folder that plays for so many seconds: one rendered clip under many names."""
    clip, clips = folder / "clip.mp4", folder / "clips"
    clips.mkdir()
    length_s = min(CLIP_S, seconds)
    write_clip(clip, size, fps, round(length_s * fps))
    for i in range(math.ceil(seconds / length_s)):
        (clips / f"{i:04d}.mp4").symlink_to(clip)
    return clips


def write_clip(path: Path, size: str, fps: int, frames: int) -> None:
    """Render the phantom into a file."""
    from mcdrl_rt.types import Shown
    from mcdrl_rt.video.sink import open_sink
    from mcdrl_rt.video.source import open_source

    with open_source(f"phantom:size={size},frames={frames},fps={fps},seed=15") as source:
        with open_sink(str(path), source.format) as sink:
            for frame in source:
                sink.write(Shown(frame))


def stream(clips: Path, streams: int, outputs: list[str]) -> tuple[list[dict[str, Any]], list[float]]:
    """Run the command; the streams' summaries, and its memory in MiB once a second."""
    command = [sys.executable, "-m", "mcdrl_rt.cli", "stream", "--live", "--json"]
    command += ["--input", str(clips)] * streams
    for output in outputs:
        command += ["--output", output]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    memory_mib: list[float] = []
    watcher = threading.Thread(target=_watch, args=(process, memory_mib), daemon=True)
    watcher.start()
    printed, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"mcdrl-rt stream ended with status {process.returncode}")
    return [json.loads(line) for line in printed.splitlines()], memory_mib


def _watch(process: subprocess.Popen[str], memory_mib: list[float]) -> None:
    status = Path(f"/proc/{process.pid}/statm")
    while process.poll() is None and status.exists():
        fields = status.read_text().split()
        if len(fields) > 1 and int(fields[1]):
            memory_mib.append(int(fields[1]) * 4096 / 2**20)
        time.sleep(1.0)


if __name__ == "__main__":
    run_main(main)
