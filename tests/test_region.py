"""Region: the box holds the picture, ignores what is beside it, and stays put."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.types import Region, UInt8Array
from mcdrl_rt.video.region import RegionTracker, crop_and_resize, find_region


def scope(size: tuple[int, int], box: Region, level: int = 150, surround: int = 0) -> UInt8Array:
    """A canvas with an evenly lit picture in ``box``."""
    rgb = np.full((*size, 3), surround, np.uint8)
    rgb[box.slices] = (level, level // 2, level // 3)
    return rgb


def holds(outer: Region, inner: Region) -> bool:
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and outer.top + outer.height >= inner.top + inner.height
        and outer.left + outer.width >= inner.left + inner.width
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_box_holds_the_picture_and_little_more(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(64, 700)), data.draw(st.integers(64, 900))
    tall, wide = data.draw(st.integers(height // 2, height)), data.draw(st.integers(width // 2, width))
    top, left = data.draw(st.integers(0, height - tall)), data.draw(st.integers(0, width - wide))
    box = Region(top, left, tall, wide)
    found = find_region(scope((height, width), box, surround=data.draw(st.integers(0, 25))))
    assert holds(found, box)
    margin = 3 * (max(height, width) // 160 + 1)
    full = Region(0, 0, height, width)
    assert found == full or (found.height <= tall + 2 * margin and found.width <= wide + 2 * margin)


@pytest.mark.parametrize("level", [0, 5, 12])
def test_darkness_is_the_full_frame(level: int) -> None:
    rgb = np.random.default_rng(0).integers(0, level + 1, (480, 640, 3)).astype(np.uint8)
    assert find_region(rgb) == Region(0, 0, 480, 640)


def test_full_bleed_is_the_full_frame() -> None:
    assert find_region(np.full((480, 640, 3), 120, np.uint8)) == Region(0, 0, 480, 640)


def test_dark_lumen_in_the_middle_is_inside() -> None:
    box = Region(40, 300, 640, 700)
    rgb = scope((720, 1280), box)
    rgb[40:680, 560:700] = (9, 4, 3)  # cuts the picture in two
    assert holds(find_region(rgb), box)


def test_text_and_icons_beside_the_picture_are_outside() -> None:
    box = Region(40, 700, 1000, 1000)
    rgb = scope((1080, 1920), box, surround=8)
    for row in range(200, 700, 70):
        cv2.putText(rgb, "DOE JANE 12/03/2024", (40, row), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 255, 255), 3)
    found = find_region(rgb)
    assert holds(found, box)
    assert found.left > 650


def test_strided_input_is_fine() -> None:
    box = Region(50, 60, 300, 400)
    rgb = scope((400, 600), box)
    assert find_region(np.asfortranarray(rgb)) == find_region(rgb)


def test_tracker_is_not_shrunk_by_a_dark_moment() -> None:
    box = Region(40, 200, 400, 400)
    track = RegionTracker(every=1, memory=5)
    lit = track(scope((480, 800), box))
    dark = scope((480, 800), box, level=10)
    half = scope((480, 800), Region(40, 200, 200, 400))  # lumen: half of the picture is dark
    assert [track(rgb) for rgb in [dark] * 9 + [half] * 3] == [lit] * 12


def test_tracker_grows_at_once_and_shrinks_when_sure() -> None:
    small, large = Region(100, 300, 250, 250), Region(40, 200, 400, 400)
    track = RegionTracker(every=1, memory=5)
    assert not holds(track(scope((480, 800), small)), large)
    grown = track(scope((480, 800), large))
    assert holds(grown, large)
    after = [track(scope((480, 800), small)) for _ in range(6)]
    assert after[:4] == [grown] * 4
    assert after[-1].height < 300


def test_tracker_does_not_jitter() -> None:
    track = RegionTracker(every=1, memory=4)
    rng = np.random.default_rng(1)
    seen = []
    for _ in range(60):
        top, left = (int(value) for value in rng.integers(36, 44, 2))
        seen.append(track(scope((480, 640), Region(top, left, 400, 500))))
    assert len(set(seen)) <= 4  # it may grow a little as more is seen …
    assert len(set(seen[30:])) == 1  # … then it stands


def test_tracker_starts_over_with_another_size() -> None:
    track = RegionTracker()
    track(scope((480, 800), Region(40, 200, 400, 400)))
    assert track(np.full((720, 1280, 3), 120, np.uint8)) == Region(0, 0, 720, 1280)


def test_tracker_waits_for_light() -> None:
    track, box = RegionTracker(every=1000), Region(40, 200, 400, 400)
    assert track(np.zeros((480, 800, 3), np.uint8)) == Region(0, 0, 480, 800)
    assert track(scope((480, 800), box)).width < 500


@pytest.mark.parametrize(
    ("images", "masks", "step"),
    [
        ("Kvasir-SEG/images", "Kvasir-SEG/masks", 20),
        ("CVC-ClinicDB/PNG/Original", "CVC-ClinicDB/PNG/Ground Truth", 6),
    ],
)
def test_no_lesion_is_cropped_away(images: str, masks: str, step: int, data_root: Path) -> None:
    outside = total = 0
    for path in sorted((data_root / images).iterdir())[::step]:
        rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        lesion = cv2.imread(str(data_root / masks / path.name), cv2.IMREAD_GRAYSCALE) > 127
        total += int(lesion.sum())
        outside += int(lesion.sum() - lesion[find_region(rgb).slices].sum())
    assert total > 0
    assert outside <= 0.0005 * total


@pytest.mark.parametrize("size", [(1, 640), (2, 640), (640, 2), (1, 1)])
def test_a_sliver_of_a_frame_is_its_own_region(size: tuple[int, int]) -> None:
    assert find_region(np.full((*size, 3), 120, np.uint8)) == Region(0, 0, *size)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 900), st.integers(1, 1200), st.integers(32, 300), st.integers(32, 300), st.integers(0, 99))
def test_a_picture_made_small_in_steps_is_the_one_made_at_once(
    tall: int, wide: int, height: int, width: int, seed: int
) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    rgb = np.asarray(cv2.resize(coarse, (wide + 20, tall + 10), interpolation=cv2.INTER_CUBIC), np.uint8)
    region = Region(7, 11, tall, wide)
    made = crop_and_resize(rgb, region, (height, width))
    how = cv2.INTER_AREA if tall * wide > height * width else cv2.INTER_LINEAR
    at_once = cv2.resize(rgb[region.slices], (width, height), interpolation=how)
    assert made.shape == (height, width, 3) and made.dtype == np.uint8
    assert cv2.absdiff(made, at_once).mean() < 3


def test_what_is_not_much_larger_is_made_small_at_once() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (570, 580, 3)).astype(np.uint8)
    at_once = cv2.resize(rgb, (288, 288), interpolation=cv2.INTER_AREA)
    assert np.array_equal(crop_and_resize(rgb, Region(0, 0, 570, 580), (288, 288)), at_once)


@pytest.mark.parametrize("size", [(720, 1280), (1080, 1920), (1080, 1104), (2160, 3840), (600, 6000)])
def test_what_is_much_larger_is_made_small_without_passing_over_a_pixel(size: tuple[int, int]) -> None:
    """Points of light of one pixel, on which sampling would find some and miss others."""
    rgb = np.zeros((*size, 3), np.uint8)
    places = np.random.default_rng(0).integers(0, size, (2000, 2))
    rgb[places[:, 0], places[:, 1]] = 255
    made = crop_and_resize(rgb, Region(0, 0, *size), (288, 288)).astype(float)
    at_once = cv2.resize(rgb, (288, 288), interpolation=cv2.INTER_AREA)
    assert made.mean() == pytest.approx(at_once.mean(), rel=0.1)
    blurred = [cv2.blur(one.astype(np.float32), (9, 9)) for one in (made, at_once)]
    assert np.abs(blurred[0] - blurred[1]).mean() < 0.3 * blurred[1].mean()
