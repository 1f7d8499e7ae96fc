"""Policies: which frames are segmented, and that nothing is drawn that does not belong to the frame it is on."""

from __future__ import annotations

import itertools
import time
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import picture, read_pixels
from hypothesis import given
from hypothesis import strategies as st
from streams import BrightEngine, Kept, ListSource, run

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import SpecError
from mcdrl_rt.stream.compose import NO_SIGNAL, Compositor
from mcdrl_rt.stream.policy import MODES, Picker, Policy
from mcdrl_rt.types import Frame, Region, Segmentation, UInt8Array
from mcdrl_rt.video.overlay import draw
from mcdrl_rt.video.phantom import Phantom
from mcdrl_rt.video.region import find_region
from mcdrl_rt.video.sink import open_sink


def frames(pts: list[int], time_base: Fraction = Fraction(1, 1000)) -> list[Frame]:
    return [Frame(picture(0), time, time_base, i) for i, time in enumerate(pts)]


def segmentation(labels: UInt8Array) -> Segmentation:
    shares, selected = np.full(2, 0.5, np.float32), np.ones((4, 4), bool)
    return Segmentation(labels, ("polyp",), shares, ("blur", "blood"), selected, Region(0, 0, *labels.shape), 1.0)


@pytest.mark.parametrize(
    "wrong", [{"mode": "fast"}, {"stride": 0}, {"fps": 0.0}, {"fps": -1.0}, {"max_mask_age_ms": 0.0}]
)
def test_policies_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        Policy(**wrong)  # type: ignore[arg-type]


@given(stride=st.integers(1, 7), count=st.integers(1, 60))
def test_a_stride_asks_for_one_in_so_many(stride: int, count: int) -> None:
    picker = Picker(Policy(stride=stride))
    due = [frame.index for frame in frames(list(range(count))) if picker.due(frame)]
    assert due == list(range(0, count, stride))


@given(rate=st.sampled_from([24, 25, 30, 50, 60]), fps=st.floats(1, 60), count=st.integers(100, 300))
def test_a_rate_is_kept_on_the_average(rate: int, fps: float, count: int) -> None:
    picker = Picker(Policy(fps=fps))
    due = [f.index for f in frames(list(range(count)), Fraction(1, rate)) if picker.due(f)]
    assert len(due) == pytest.approx(min(fps / rate, 1) * count, abs=2)
    assert due[0] == 0


def test_frames_without_signal_are_never_asked_about() -> None:
    picker = Picker(Policy())
    assert not picker.due(Frame(picture(0), 0, Fraction(1), signal=False))


def test_a_picture_that_stands_still_keeps_its_mask_and_is_counted() -> None:
    noise = np.random.default_rng(0)
    phantom = Phantom((240, 320), seed=3)
    pixels = [phantom.render(0).pixels] * 10 + [phantom.render(30).pixels] * 10
    noisy = [np.clip(p + noise.normal(0, 2, p.shape), 0, 255).astype(np.uint8) for p in pixels]
    sink = Kept()
    summary = run(ListSource(noisy), {"kept": sink}, policy=Policy(skip_static=True))
    assert summary.frames_reused == 18
    assert all(shown.segmentation is not None and shown.age_ms == 0 for shown in sink.shown)
    assert sink.shown[5].segmentation is not None and sink.shown[0].segmentation is not None
    assert np.array_equal(sink.shown[5].segmentation.labels, sink.shown[0].segmentation.labels)


class Dark(BrightEngine):
    """Sees no lesion anywhere."""

    def infer(self, frames: UInt8Array) -> RawOutput:
        output = super().infer(frames)
        return output._replace(score=np.zeros_like(output.score))


@pytest.mark.parametrize("mode", MODES)
def test_a_frame_without_overlay_is_the_frame_that_came_in(tmp_path: Path, mode: str) -> None:
    """Through a lossless file, to the bit; with the HUD, above its strip."""
    source_pictures = [picture(i, (240, 320)) for i in range(12)]
    for hud in (False, True):
        source = ListSource(source_pictures, live=mode != "every", every_s=0.03)
        path, kept = tmp_path / f"{mode}-{hud}.mkv", Kept()
        with open_sink(str(path), source.format, codec="ffv1") as sink:
            run(source, {"file": sink, "kept": kept}, Dark(), policy=Policy(mode=mode, hud=hud))
        written = read_pixels(path)
        assert len(written) == len(kept.shown) > 0
        for got, shown in zip(written, kept.shown, strict=True):
            came_in = source_pictures[shown.frame.index]
            rows = 200 if hud else 240
            assert np.array_equal(got[:rows], came_in[:rows])
            assert np.array_equal(got, came_in) != hud
            assert shown.clean is not None and np.array_equal(shown.clean, came_in)


@pytest.mark.parametrize("mode", MODES)
def test_outside_the_overlay_no_pixel_changes(tmp_path: Path, mode: str) -> None:
    source = ListSource([picture(i, (240, 320)) for i in range(12)], live=mode != "every", every_s=0.03)
    path, kept = tmp_path / "out.mkv", Kept()
    policy = Policy(mode=mode, hud=False, max_mask_age_ms=5000)
    with open_sink(str(path), source.format, codec="ffv1") as sink:
        run(source, {"file": sink, "kept": kept}, policy=policy)
    drawn = 0
    for got, shown in zip(read_pixels(path), kept.shown, strict=True):
        assert shown.clean is not None
        if shown.segmentation is None:
            assert np.array_equal(got, shown.clean)
            continue
        drawn += 1
        expected = draw(shown.clean, shown.segmentation, colors=BrightEngine.spec.colors)
        assert np.array_equal(got, expected)
    assert drawn


def test_no_mask_older_than_allowed_is_drawn() -> None:
    compositor = Compositor(Policy(mode="pass", max_mask_age_ms=1000), BrightEngine.spec)
    phantom, now = Phantom((240, 320), seed=3), time.monotonic()
    labels = np.zeros((240, 320), np.uint8)
    labels[80:140, 100:180] = 1
    old = Frame(phantom.render(0).pixels, 0, Fraction(1, 30), 0, capture_time_s=now)
    compositor.follow(old)
    compositor.found(old, segmentation(labels))
    fresh = Frame(phantom.render(1).pixels, 1, Fraction(1, 30), 1, capture_time_s=now + 0.03)
    compositor.follow(fresh)
    shown = compositor.compose(fresh, "bright")
    assert shown.segmentation is not None and shown.segmentation.labels.any() and shown.note == ""
    assert shown.age_ms is not None and 0 <= shown.age_ms <= 1000
    time.sleep(1.05)
    late = compositor.compose(fresh, "bright")
    assert late.segmentation is None and late.age_ms is None
    assert late.note.startswith("no overlay: the newest mask is 1")
    assert compositor.compose(fresh, "bright", "the engine hangs").note == "no overlay: the engine hangs"


def test_a_lost_signal_shows_no_overlay_and_ends_what_was_known() -> None:
    compositor = Compositor(Policy(mode="pass", max_mask_age_ms=5000), BrightEngine.spec)
    pixels = Phantom((240, 320), seed=3).render(0).pixels
    first = Frame(pixels, 0, Fraction(1, 30), 0)
    compositor.follow(first)
    compositor.found(first, segmentation(np.ones((240, 320), np.uint8)))
    lost = Frame(pixels // 3, 1, Fraction(1, 30), 1, signal=False)
    compositor.follow(lost)
    shown = compositor.compose(lost, "bright")
    assert (shown.segmentation, shown.note) == (None, NO_SIGNAL)
    assert not np.array_equal(shown.frame.pixels, lost.pixels)  # the HUD says so
    again = Frame(pixels, 2, Fraction(1, 30), 2)
    compositor.follow(again)
    assert compositor.compose(again, "bright").segmentation is None


@pytest.mark.parametrize("mode", ["every", "pass"])
def test_between_segmented_frames_masks_are_moved_along(mode: str) -> None:
    phantom = Phantom((240, 320), seed=7)
    rendered, asked = [phantom.render(i) for i in range(24)], itertools.count()

    class Knowing(BrightEngine):
        """Finds the true lesion of the frames that it is asked about, if those are every third."""

        def infer(self, frames: UInt8Array) -> RawOutput:
            index = min(3 * next(asked), len(rendered) - 1)
            seen = rendered[index].mask[find_region(rendered[index].pixels).slices]
            score = cv2.resize(seen * np.uint8(255), (64, 64), interpolation=cv2.INTER_LINEAR)
            return super().infer(frames)._replace(score=score[None])

    sink = Kept()
    source = ListSource([r.pixels for r in rendered], live=mode == "pass", every_s=0.03 if mode == "pass" else 0)
    policy = Policy(mode=mode, stride=3, max_mask_age_ms=2000, steady=True)
    summary = run(source, {"kept": sink}, Knowing(), policy=policy)
    ages = [shown.age_ms for shown in sink.shown if shown.age_ms is not None]
    assert summary.frames_out == 24 and len(ages) >= 12
    if mode == "every":
        assert ages == pytest.approx([0, 40, 80] * 8)  # by the video's own clock
        drawn = [shown.segmentation.labels > 0 for shown in sink.shown if shown.segmentation]
        between = [i for i in range(24) if i % 3]
        moved, left = (sum((mask(i) != (rendered[i].mask > 0)).sum() for i in between) for mask in (
            lambda i: drawn[i],
            lambda i: drawn[i - i % 3],
        ))
        assert moved < 0.8 * left
    else:
        assert max(ages) <= 2000


def test_a_lesion_that_appears_and_then_stands_still_is_drawn() -> None:
    """Frames like the one asked about do not pass on the mask from before it while its own answer is on the way."""

    class Slow(BrightEngine):
        def infer(self, frames: UInt8Array) -> RawOutput:
            time.sleep(0.045)
            return super().infer(frames)

    before, after = np.full((240, 320, 3), 60, np.uint8), np.full((240, 320, 3), 60, np.uint8)
    after[80:160, 100:200] = 240
    sink = Kept()
    source = ListSource([before] * 10 + [after] * 60, live=True, every_s=0.01)
    policy = Policy(mode="pass", skip_static=True, max_mask_age_ms=5000)
    run(source, {"kept": sink}, Slow(), policy=policy)
    last = sink.shown[-1].segmentation
    assert last is not None and last.labels[120, 150] == 1


def test_a_mask_is_not_passed_on_to_another_scene_when_the_engine_fails_on_it() -> None:
    compositor = Compositor(Policy(skip_static=True), BrightEngine.spec)
    scene = Frame(picture(0), 0, Fraction(1, 25), 0)
    compositor.follow(scene)
    compositor.found(scene, segmentation(np.ones(scene.size, np.uint8)))
    other = Frame(picture(5), 2, Fraction(1, 25), 2)  # like frame 1, on which the engine failed
    compositor.follow(other)
    assert not compositor.confirm(other, like=1)
    assert compositor.compose(other, "bright", "broken").segmentation is None
