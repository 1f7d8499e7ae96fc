"""A video through the whole pipeline: where the time goes, beside the floor and what one would otherwise write.

    python benchmarks/pipeline.py [--video FILE] [--size 1920x1080] [--fps 30] [--seconds 10] [--rounds 3] [--save NAME]

The same file, to H.264 with the same settings where the form has a choice, each round in turn:

- *floor*: PyAV decodes and encodes it, nothing else;
- *pipeline*: ``Stream`` with an engine that answers at once, with what the model found before: all but inference;
- *mcdrl-rt*: ``Stream`` with the model; and the same to MPEG-4, as the next write it;
- *opencv*: ``VideoCapture``, the model, a tint, ``VideoWriter``, one after the other; with the same engine, and with
  the model in eager torch;
- *supervision*: its ``process_video`` with the same engine and its mask annotator, if it is installed
  (``pip install supervision``).

The video is a synthetic procedure or a file of yours, sound left out. Ratios are of one round, and what is told is the
median over the rounds. OpenCV and supervision write MPEG-4 (``mp4v``) in its fastest and worst quality, and know no
timestamps; ours is of the quality of our H.264. One JSON line at the end.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import describe
from outputs import Parser, check_file, check_outputs, count, finish, run_main
from process import decode_and_encode
from stream import write_clip

from mcdrl_rt import Segmenter
from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.stream.pipeline import Stream
from mcdrl_rt.stream.policy import Policy
from mcdrl_rt.stream.supervisor import Supervisor
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.sink import open_sink
from mcdrl_rt.video.source import open_source

TINT = np.array([80, 220, 60], np.float32)  # BGR


class Replay:
    """An engine that gives the answers of another again, in their order, at no cost."""

    max_batch = 1

    def __init__(self, engine: Any) -> None:
        self.spec, self.name = engine.spec, "replay"
        self._engine, self._answers = engine, list[RawOutput]()
        self._next: Any = None

    def infer(self, frames: UInt8Array) -> RawOutput:
        """The next answer: from the engine the first time through, from memory from then on."""
        if self._next is None:
            self._answers.append(self._engine.infer(frames))
            return self._answers[-1]
        return next(self._next)

    def again(self) -> None:
        """From the first answer on."""
        self._next = itertools.cycle(self._answers)


def main() -> None:
    """Measure, print a table, and end with one JSON line."""
    parser = Parser(__doc__)
    parser.add_argument("--video", type=Path, help="a file instead of the synthetic procedure")
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--fps", type=count, default=30)
    parser.add_argument("--seconds", type=count, default=10, help="of the synthetic procedure")
    parser.add_argument("--rounds", type=count, default=3)
    arguments = parser.parse_args()
    check_outputs(arguments)
    check_file(arguments.video)
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        video, target = arguments.video or Path(folder) / "in.mp4", Path(folder) / "out.mp4"
        if arguments.video is None:
            write_clip(video, arguments.size, arguments.fps, arguments.seconds * arguments.fps)
        write_clip(Path(folder) / "warm.mp4", "640x480", arguments.fps, 10)
        rounds, stages = measure(video, target, arguments.rounds, Path(folder) / "warm.mp4")
    length = f"{arguments.size} at {arguments.fps} frames a second, {arguments.seconds} s"
    result = {
        "benchmark": "pipeline",
        "video": arguments.video.name if arguments.video else length,
        "seconds": rounds,
        "overhead": round(median(rounds, "pipeline", "floor") - 1, 3),
        "over_floor": {name: median(rounds, name, "floor") for name in rounds},
        "over_ours": {name: median(rounds, name, "mcdrl-rt") for name in rounds},
        "stages_p50_ms": stages,
        "machine": describe(),
    }
    for name, seconds in rounds.items():
        over = f"{result['over_floor'][name]:5.2f} × the floor, {result['over_ours'][name]:5.2f} × mcdrl-rt"
        print(f"{name:24} {statistics.median(seconds):7.2f} s  {over}")
    print(f"all but inference costs {result['overhead']:+.0%} of the floor")
    print("a frame, p50: " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in stages.items()))
    if importlib.util.find_spec("supervision") is None:
        print("supervision is not installed, and was left out")
    finish(result, arguments)


def measure(
    video: Path, target: Path, count: int, warm: Path
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each form in each round, and what each stage of ours took of a frame, in milliseconds.

    Each goes through the clip ``warm`` first, so that all that it imports is there; each round begins with another.
    """
    segmenter, eager = Segmenter.load(), Segmenter.load(engine="torch", device="cpu")
    replay = Replay(segmenter.engine)
    stages: dict[str, float] = {}
    forms: dict[str, Callable[[Path], object]] = {
        "floor": lambda path: decode_and_encode(str(path), str(target), in_order=False),
        "pipeline": lambda path: (replay.again(), ours(path, target, Segmenter(replay))),
        "mcdrl-rt": lambda path: stages.update(ours(path, target, segmenter)),
        "mcdrl-rt, MPEG-4": lambda path: ours(path, target.with_suffix(".avi"), segmenter),
        "opencv, same engine": lambda path: with_opencv(path, target, segmenter),
        "opencv, eager torch": lambda path: with_opencv(path, target, eager),
    }
    if importlib.util.find_spec("supervision"):
        forms["supervision, same engine"] = lambda path: with_supervision(path, target, segmenter)
    ours(video, target, Segmenter(replay))  # its answers are kept
    for form in forms.values():
        form(warm)
    names = list(forms)
    rounds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(count):
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            began_s = time.monotonic()
            forms[name](video)
            rounds[name].append(round(time.monotonic() - began_s, 3))
    return rounds, stages


def ours(video: Path, target: Path, segmenter: Any) -> dict[str, float]:
    """The whole way, as ``mcdrl-rt stream`` goes it; the median of each stage."""
    with open_source(str(video)) as source, Supervisor(segmenter) as supervisor:
        sinks = {str(target): open_sink(str(target), source.format)}
        summary = Stream(source, supervisor.seat(), sinks, Policy(), strict=True).run()
    return {name: figures["p50_ms"] for name, figures in summary.stages.items()}


def with_opencv(video: Path, target: Path, segmenter: Any) -> None:
    """What most would write."""
    capture = cv2.VideoCapture(str(video))
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    writer = cv2.VideoWriter(str(target), cv2.VideoWriter.fourcc(*"mp4v"), capture.get(cv2.CAP_PROP_FPS), size)
    segmenter = segmenter.for_stream()
    while True:
        read, frame = capture.read()
        if not read:
            break
        lesion = segmenter(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).labels > 0
        frame[lesion] = (0.65 * frame[lesion] + 0.35 * TINT).astype(np.uint8)
        writer.write(frame)
    capture.release()
    writer.release()


def with_supervision(video: Path, target: Path, segmenter: Any) -> None:
    """Its own way from video to video."""
    import supervision

    annotator, segmenter = supervision.MaskAnnotator(), segmenter.for_stream()

    def show(frame: UInt8Array, _: int) -> UInt8Array:
        lesion = segmenter(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).labels > 0
        if not lesion.any():
            return frame
        masks = lesion[None]
        boxes = supervision.mask_to_xyxy(masks)
        found = supervision.Detections(xyxy=boxes, mask=masks, class_id=np.zeros(1, int))
        return np.asarray(annotator.annotate(frame, found), np.uint8)

    supervision.process_video(str(video), str(target), show)


def median(rounds: dict[str, list[float]], one: str, other: str) -> float:
    """Of how many times as long one takes as the other, in the same round."""
    return round(statistics.median(a / b for a, b in zip(rounds[one], rounds[other], strict=True)), 3)


if __name__ == "__main__":
    run_main(main)
