"""What moving masks along the flow gains, what averaging them does (``--steady``), and what both cost.

    python benchmarks/steadiness.py [--clip VIDEO] [--frames 150] [--save NAME]

Masks 1…4 frames old beside the mask of the current frame: left where they were, and moved. On three phantoms those are
their true masks; on a real clip, where nobody knows the truth, the shipped model's own. Flicker and lag are those of
the shipped model's masks, as they come and steadied. One JSON line at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import describe
from outputs import Parser, check_file, check_outputs, count, finish, run_main
from timing import interleaved

from mcdrl_rt import Segmenter
from mcdrl_rt.segmenter import AnySegmenter
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.motion import Motion
from mcdrl_rt.video.phantom import Phantom
from mcdrl_rt.video.source import open_source
from mcdrl_rt.video.steady import Steady, flicker

AGES = (1, 2, 3, 4)
SEEDS = (21, 42, 101)  # none of those that thresholds and weights were chosen on (3, 7, 15)
SIZES = {"1080p": (1080, 1920), "2160p": (2160, 3840)}


@dataclass(frozen=True)
class Video:
    """Frames (H, W, 3), what the model says of each, and what is true where that is known."""

    name: str
    frames: list[UInt8Array]
    found: list[UInt8Array]
    truth: list[UInt8Array] | None = None


def main() -> None:
    """Measure, print a table, and end with one JSON line."""
    parser = Parser(__doc__)
    parser.add_argument("--clip", type=Path, help="a real video as well")
    parser.add_argument("--frames", type=count, default=150, help="of each video, at most")
    parser.add_argument("--runs", type=count, default=40, help="of each timing")
    arguments = parser.parse_args()
    check_outputs(arguments)
    check_file(arguments.clip)
    logging.getLogger().setLevel(logging.ERROR)
    cv2.setNumThreads(1)  # the cost is that of one core
    segmenter, rows = Segmenter.load(), []
    sources: list[Callable[[], Video]] = [lambda s=seed: phantom(segmenter, s, arguments.frames) for seed in SEEDS]
    if arguments.clip:
        sources.append(lambda: clip(segmenter, arguments.clip, arguments.frames))
    for source in sources:  # one in memory at a time
        video = source()
        row = {"video": video.name, "frames": len(video.frames), "moved": moved(video), "steady": steadied(video)}
        rows.append(row)
        show(row)
    lag, cost = late(arguments.frames), {name: timed(size, arguments.runs) for name, size in SIZES.items()}
    print("steadied, a lesion appears {appears} and vanishes {vanishes} frames late".format(**lag))
    for name, times in cost.items():
        print(f"{name}  " + "  ".join(f"{what} {ms:.2f} ms" for what, ms in times["p50_ms"].items()))
    result = {"benchmark": "steadiness", "videos": rows, "late_frames": lag, "cost": cost, "machine": describe()}
    finish(result, arguments)


def phantom(segmenter: AnySegmenter, seed: int, count: int) -> Video:
    """A phantom of all sites at 25 frames per second."""
    frames = [Phantom((480, 640), "mixed", seed, fps=25).render(index) for index in range(count)]
    following, pictures = segmenter.for_stream(), [frame.pixels for frame in frames]
    found = [following(pixels).labels for pixels in pictures]
    return Video(f"phantom {seed}", pictures, found, [frame.mask for frame in frames])


def clip(segmenter: AnySegmenter, path: Path, count: int) -> Video:
    """The first frames of a video."""
    following = segmenter.for_stream()
    with open_source(str(path)) as source:
        pictures = [frame.pixels for frame, _ in zip(source, range(count), strict=False)]
    return Video(path.name, pictures, [following(pixels).labels for pixels in pictures])


def overlap(one: UInt8Array, other: UInt8Array) -> float | None:
    """Intersection over union; None where both are empty."""
    changed = flicker([(one, other)])
    return None if changed is None else 1 - changed


def mean(values: list[float | None]) -> float:
    """The mean of those there are, rounded."""
    return round(float(np.mean([value for value in values if value is not None])), 4)


def moved(video: Video) -> list[dict[str, Any]]:
    """For each age: overlap with the current mask of an old one left and moved, where it can be moved, and how often
    it cannot."""
    masks, motion = video.truth or video.found, Motion()
    pairs: dict[int, list[tuple[float | None, float | None]]] = {age: [] for age in AGES}
    for index, pixels in enumerate(video.frames):
        motion.follow(pixels, index)
        for age in AGES:
            if index < age or (left := overlap(masks[index - age], masks[index])) is None:
                continue
            there = motion.move(masks[index - age], index - age)
            pairs[age].append((left, None if there is None else overlap(there, masks[index])))
    rows = []
    for age, each in pairs.items():
        known = [(left, there) for left, there in each if there is not None]
        given_up = round(1 - len(known) / len(each), 4)
        left, there = mean([left for left, _ in known]), mean([there for _, there in known])
        rows.append({"age": age, "left": left, "moved": there, "given_up": given_up})
    return rows


def steadied(video: Video) -> dict[str, Any]:
    """Flicker, patches that come or go, and overlap with the truth 0, 1 and 2 frames ago: as found, and steadied."""
    motion, shown = Motion(), []
    steady = Steady(motion)
    for index, pixels in enumerate(video.frames):
        motion.follow(pixels, index)
        shown.append(steady(video.found[index], index))
    return {"as found": calm(video, video.found), "steadied": calm(video, shown)}


def calm(video: Video, masks: list[UInt8Array]) -> dict[str, Any]:
    """The figures of one sequence of masks."""
    motion, pairs = Motion(), []
    for index, pixels in enumerate(video.frames):
        motion.follow(pixels, index)
        before = motion.move(masks[index - 1], index - 1) if index else None
        if before is not None:
            pairs.append((before, masks[index]))
    blinks = sum(alone(one, other) + alone(other, one) for one, other in pairs) / len(pairs)
    figures = {"flicker": round(flicker(pairs) or 0.0, 4), "blinks_per_frame": round(blinks, 4)}
    if video.truth is None:
        return figures
    since = {lag: zip(masks[2:], video.truth[2 - lag :], strict=False) for lag in range(3)}
    return figures | {"overlap_by_lag": [mean([overlap(*pair) for pair in pairs]) for pairs in since.values()]}


def alone(labels: UInt8Array, other: UInt8Array) -> int:
    """Patches of ``labels`` that touch nothing of ``other``."""
    count, patches = cv2.connectedComponents((labels > 0).astype(np.uint8))
    return count - len(np.unique(patches[(other > 0) | (labels == 0)]))


def late(count: int) -> dict[str, int]:
    """Frames after which a lesion that comes and goes from one frame to the next is shown, and no longer shown."""
    scene, motion, seen = Phantom((480, 640), seed=SEEDS[0], fps=25), Motion(), []
    steady = Steady(motion)
    middle = min(20, count // 2)
    for index in range(2 * middle + 20):
        frame = scene.render(index)
        motion.follow(frame.pixels, index)
        found = frame.mask * (middle <= index < 2 * middle)
        seen.append((overlap(steady(found, index), frame.mask) or 0) > 0.5)
    return {"appears": seen.index(True) - middle, "vanishes": seen.index(False, 2 * middle) - 2 * middle}


def timed(size: tuple[int, int], runs: int) -> dict[str, Any]:
    """Milliseconds to follow a frame, to move a mask four frames on, and to steady one."""
    frames = [Phantom(size, seed=SEEDS[0]).render(index) for index in range(5)]
    motion, index = Motion(), 0
    steady = Steady(motion)

    def follow() -> None:
        nonlocal index
        turn = index % 8  # there and back: no jump
        motion.follow(frames[min(turn, 8 - turn)].pixels, index)
        index += 1

    for _ in range(5):
        follow()
    forms: dict[str, Callable[[], Any]] = {
        "follow": follow,
        "move": lambda: motion.move(frames[0].mask, index - 5),
        "steady": lambda: steady(frames[0].mask, index - 1),
    }
    return interleaved(forms, runs)


def show(row: dict[str, Any]) -> None:
    """Print the figures of one video."""
    print(f"{row['video']}, {row['frames']} frames")
    for each in row["moved"]:
        print("  {age} old: left {left:.3f}, moved {moved:.3f}, given up {given_up:.1%}".format(**each))
    for name, each in row["steady"].items():
        print(f"  {name:>8}: " + ", ".join(f"{what} {value}" for what, value in each.items()), flush=True)


if __name__ == "__main__":
    run_main(main)
