"""Segmenter: any picture in, labels of its own size out, and nothing outside the endoscope's field of view."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mcdrl_rt
from mcdrl_rt import Region, Segmenter
from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import SourceError
from mcdrl_rt.segmenter import labels_at
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom import Phantom


@pytest.fixture(scope="module")
def segmenter(small_engine: Path) -> Segmenter:
    return Segmenter.load(small_engine)


def picture(size: tuple[int, int], seed: int = 1) -> UInt8Array:
    """Something lit all over, with a bright disc."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(90, 130, (*size, 3)).astype(np.uint8)
    return cv2.circle(rgb, (size[1] // 2, size[0] // 2), min(size) // 4, (230, 120, 110), -1).astype(np.uint8)


def assert_contract(out: mcdrl_rt.Segmentation, segmenter: Segmenter, size: tuple[int, int]) -> None:
    spec = segmenter.spec
    assert (out.labels.shape, out.labels.dtype) == (size, np.uint8)
    assert out.labels.max() <= len(spec.classes)
    assert out.classes == spec.classes == ("polyp", "tumor", "cyst")
    assert (out.confounders.shape, out.confounders.dtype) == ((12,), np.float32)
    assert (out.confounders >= 0).all()
    assert math.isclose(float(out.confounders.sum()), 1, abs_tol=1e-5)
    assert out.confounder_names == spec.confounders
    assert (out.selected.shape, out.selected.dtype) == (spec.grid, np.bool_)
    assert out.selected.sum() == spec.selected
    assert 0 < out.latency_ms < 60_000
    inside = np.zeros(size, bool)
    inside[out.region.slices] = True
    assert inside.sum() == out.region.height * out.region.width > 0
    assert not out.labels[~inside].any()


@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.usefixtures("small_engine")
def test_every_engine_keeps_the_contract(small_checkpoint: Path, engine: str) -> None:
    segmenter = Segmenter.load(small_checkpoint, engine=engine)
    out = segmenter(Phantom((240, 320), seed=4).render(20).pixels)
    assert_contract(out, segmenter, (240, 320))
    assert 0 < (out.labels > 0).mean() < 1
    names = [name for name, _ in out.top_confounders()]
    assert len(set(names)) == 3 and set(names) <= set(segmenter.spec.confounders)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(3, 400), width=st.integers(3, 400))
def test_any_size_works(segmenter: Segmenter, height: int, width: int) -> None:
    assert_contract(segmenter(picture((height, width))), segmenter, (height, width))


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (2, 3), (127, 161), (2160, 3840), (3000, 41)])
def test_tiny_and_large_frames_work(segmenter: Segmenter, size: tuple[int, int]) -> None:
    assert_contract(segmenter(picture(size)), segmenter, size)


@pytest.mark.parametrize("level", [0, 255])
def test_frame_of_one_colour_works(segmenter: Segmenter, level: int) -> None:
    assert_contract(segmenter(np.full((120, 200, 3), level, np.uint8)), segmenter, (120, 200))


def test_what_lies_beside_the_field_of_view_is_neither_seen_nor_labelled(segmenter: Segmenter) -> None:
    box, alone = Region(30, 260, 480, 600), picture((480, 600))
    canvas = np.zeros((540, 960, 3), np.uint8)
    canvas[box.slices] = alone
    cv2.putText(canvas, "DOE JANE", (20, 200), cv2.FONT_HERSHEY_SIMPLEX, 1, (255, 255, 255), 2)
    out = segmenter(canvas)
    assert_contract(out, segmenter, (540, 960))
    assert out.region.left > 230 and out.region.width < 650
    assert out.labels.any()
    blank = canvas.copy()
    blank[:, :240] = 0
    assert np.array_equal(segmenter(blank).labels, out.labels)


def test_result_does_not_depend_on_memory_layout(segmenter: Segmenter) -> None:
    rgb = Phantom((240, 320), seed=4).render(20).pixels
    expected = segmenter(rgb).labels
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    padded = np.zeros((240, 400, 3), np.uint8)
    padded[:, 40:360] = rgb
    for view in (bgr[..., ::-1], padded[:, 40:360], np.asfortranarray(rgb)):
        assert np.array_equal(segmenter(view).labels, expected)


def test_picture_is_left_as_it_was(segmenter: Segmenter) -> None:
    rgb = picture((200, 300))
    kept = rgb.copy()
    rgb.flags.writeable = False
    segmenter(rgb)
    assert np.array_equal(rgb, kept)


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "frame.png",
        [[[1, 2, 3]]],
        np.zeros((40, 50), np.uint8),
        np.zeros((40, 50, 4), np.uint8),
        np.zeros((3, 40, 50), np.uint8),
        np.zeros((1, 40, 50, 3), np.uint8),
        np.zeros((40, 50, 3), np.float32),
        np.zeros((0, 50, 3), np.uint8),
        np.zeros((40, 0, 3), np.uint8),
    ],
    ids=lambda bad: f"{type(bad).__name__}{getattr(bad, 'shape', '')}",
)
def test_what_is_no_picture_is_refused_in_one_line(segmenter: Segmenter, bad: Any) -> None:
    with pytest.raises(SourceError, match=r"\(H, W, 3\) uint8 array, RGB; got") as caught:
        segmenter(bad)
    assert "\n" not in str(caught.value)


def test_pictures_stand_for_themselves_and_a_stream_keeps_its_region(segmenter: Segmenter) -> None:
    lit, box = np.zeros((480, 800, 3), np.uint8), Region(40, 200, 400, 400)
    lit[box.slices] = 150
    half = lit.copy()
    half[200:440] = 0
    assert segmenter(half).region.height < segmenter(lit).region.height
    stream = segmenter.for_stream()
    first = stream(lit).region
    assert stream(half).region == first
    assert segmenter.for_stream()(half).region != first  # a stream of its own


def test_label_of_a_pixel_is_its_best_class_where_the_score_says_lesion() -> None:
    score = np.array([[[0, 127, 128, 255]]], np.uint8)
    label = np.array([[[3, 3, 2, 1]]], np.uint8)
    raw = RawOutput(score, label, np.ones((1, 1), np.float32), np.ones((1, 1, 1), np.uint8))
    labels = labels_at(raw, Region(1, 2, 1, 4), (3, 7))
    expected = np.zeros((3, 7), np.uint8)
    expected[1, 2:6] = [0, 0, 2, 1]
    assert np.array_equal(labels, expected)


def test_boundary_is_drawn_between_the_networks_pixels() -> None:
    """The score is resampled, not the label: a half-covered network pixel moves the edge."""
    score = np.array([[[255, 255, 0, 0]]], np.uint8)
    raw = RawOutput(score, np.ones_like(score), np.ones((1, 1), np.float32), np.ones((1, 1, 1), np.uint8))
    labels = labels_at(raw, Region(0, 0, 1, 40), (1, 40))[0]
    assert labels.tolist() == sorted(labels, reverse=True)
    assert 19 <= labels.sum() <= 21
    surer = raw._replace(score=np.maximum(score, 100))
    assert labels_at(surer, Region(0, 0, 1, 40), (1, 40)).sum() > 21


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_labels_are_those_of_all_cells_enlarged(data: st.DataObject) -> None:
    """Only the part with lesions is enlarged, and it becomes what it becomes with all the rest."""
    side, (height, width) = data.draw(st.integers(32, 96)), data.draw(st.tuples(*[st.integers(1, 400)] * 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    score = cv2.GaussianBlur(rng.integers(0, 256, (side, side)).astype(np.uint8), (0, 0), 2)
    score[score < data.draw(st.integers(100, 150))] //= 2  # few places are left that are lesions
    label = rng.integers(1, 3, (side, side)).astype(np.uint8)
    raw = RawOutput(score[None], label[None], np.ones((1, 1), np.float32), np.ones((1, 1, 1), np.uint8))
    labels = labels_at(raw, Region(3, 5, height, width), (height + 4, width + 6))
    whole = cv2.resize(score, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width)
    nearest = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST).reshape(height, width)
    differs = labels[3 : 3 + height, 5 : 5 + width] != np.where(whole >= 128, nearest, 0)
    assert differs.mean() <= 1e-3 and set(whole[differs].tolist()) <= {127, 128}  # weights are rounded
    labels[3 : 3 + height, 5 : 5 + width] = 0
    assert not labels.any()


def test_embedded_default_finds_polyps_it_has_never_seen(data_root: Path) -> None:
    segmenter = Segmenter.load()
    assert segmenter.spec.classes == ("polyp",)
    folder, scores = data_root / "CVC-ClinicDB" / "PNG", []
    for path in sorted((folder / "Original").iterdir(), key=lambda p: int(p.stem))[::25]:
        rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(np.uint8)
        truth = cv2.imread(str(folder / "Ground Truth" / path.name), cv2.IMREAD_GRAYSCALE) >= 128
        found = segmenter(rgb).labels > 0
        scores.append(2 * (found & truth).sum() / max(1, found.sum() + truth.sum()))
    assert len(scores) == 25
    assert np.mean(scores) > 0.7  # all 612 average 0.83: a wrong channel order or a shifted mask falls below
