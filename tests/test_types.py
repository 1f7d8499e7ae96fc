"""Types: a specification travels unchanged, and says in one line what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcdrl_rt.errors import SpecError
from mcdrl_rt.types import CLASS_COLORS, Frame, ModelSpec, Region, Segmentation, Shown

BASE: dict[str, Any] = {"name": "demo", "encoder": "mcdrl-small", "input_size": (224, 224), "classes": ("polyp",)}
DEEP = "[" * 100_000
NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=9, unique=True).map(tuple)


@given(
    classes=NAMES,
    confounders=NAMES,
    input_size=st.tuples(st.integers(32, 2000), st.integers(32, 2000)),
    alpha=st.floats(0.01, 1),
    depth=st.integers(0, 9),
    provenance=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)
def test_specification_survives_json_on_one_line(**fields: Any) -> None:
    spec = ModelSpec(**BASE | fields)
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert "\n" not in spec.to_json()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"classes": ()}, "between 1 and 254 classes"),
        ({"classes": tuple(map(str, range(255)))}, "between 1 and 254 classes"),
        ({"classes": ("polyp", "polyp")}, "twice"),
        ({"colors": ((1, 2, 3), (4, 5, 6))}, "one colour for each class"),
        ({"input_size": (16, 224)}, "from 32×32"),
        ({"input_size": (224, 100_000)}, "to 4096×4096"),
        ({"depth": 1_000_000}, "at most 64 causal blocks"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "unusable alpha"),
        ({"alpha": 1.01}, "alpha"),
        ({"depth": -1}, "depth"),
        ({"heads": 0}, "heads"),
        ({"std": (0.0, 1.0, 1.0)}, "3 stds"),
        ({"std": (1e-50, 1.0, 1.0)}, "3 stds"),
        ({"std": (1e50, 1.0, 1.0)}, "3 stds"),
        ({"std": (10**400, 1.0, 1.0)}, "unusable std"),
        ({"mean": (1e4, 0.5, 0.5)}, "3 means"),
        ({"std": (float("inf"), 1.0, 1.0)}, "unusable std"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "unusable mean"),
        ({"mean": (0.5, 0.5)}, "3 means"),
        ({"depth": 2.5}, "unusable depth: 2.5"),
        ({"heads": True}, "unusable heads"),
        ({"classes": (1,)}, "unusable classes"),
        ({"confounders": "blur"}, "unusable confounders"),
        ({"input_size": (224.0, 224.0)}, "unusable input_size"),
        ({"input_size": (224,)}, "unusable input_size"),
        ({"colors": ((0, 0, 256),)}, "unusable colors"),
        ({"provenance": "none"}, "unusable provenance"),
    ],
)
def test_contradiction_is_named(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint) as caught:
        ModelSpec(**BASE | fields)
    assert "'demo'" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "3", "null", '"text"', "{}", '{"name": "x"}', '[["name", 3]]', DEEP],
    ids=lambda text: text[:9],
)
def test_foreign_text_is_no_specification(text: str) -> None:
    with pytest.raises(SpecError):
        ModelSpec.from_json(text)


def test_field_of_a_newer_version_asks_for_an_update() -> None:
    raw = json.loads(ModelSpec(**BASE).to_json()) | {"novelty": 1}
    with pytest.raises(SpecError, match=r"novelty.*update"):
        ModelSpec.from_json(json.dumps(raw))


def test_colours_default_to_the_first_k_and_then_repeat() -> None:
    assert ModelSpec(**BASE).colors == CLASS_COLORS[:1]
    many = ModelSpec(**BASE | {"classes": tuple("abcdefg")})
    assert many.colors == CLASS_COLORS + CLASS_COLORS[:2]


@pytest.mark.parametrize(
    ("alpha", "grid", "count"), [(0.5, (8, 10), 40), (0.3, (7, 7), 15), (1.0, (7, 9), 63), (0.01, (4, 4), 1)]
)
def test_selected_is_the_rounded_share_and_at_least_one(alpha: float, grid: tuple[int, int], count: int) -> None:
    assert ModelSpec(**BASE, alpha=alpha, grid=grid).selected == count


def test_frame_keeps_its_time_when_pixels_change() -> None:
    frame = Frame(np.zeros((4, 6, 3), np.uint8), pts=7, time_base=Fraction(1, 50), index=3)
    other = frame.showing(np.ones((4, 6, 3), np.uint8))
    assert (other.pts, other.time_base, other.index) == (7, Fraction(1, 50), 3)
    assert other.capture_time_s == frame.capture_time_s
    assert (frame.pts_s, frame.size, int(other.pixels.max())) == (0.14, (4, 6), 1)


def test_region_indexes_its_own_pixels() -> None:
    canvas = np.zeros((10, 12), bool)
    canvas[Region(2, 3, 4, 5).slices] = True
    assert canvas.sum() == 20
    assert canvas[2:6, 3:8].all()


def test_each_class_has_the_box_around_its_pixels() -> None:
    labels = np.zeros((20, 30), np.uint8)
    labels[3:5, 7:9], labels[10, 20], labels[12, 2] = 1, 2, 3  # of no class
    boxes = {1: Region(3, 7, 2, 2), 2: Region(10, 20, 1, 1)}
    for classes in (("polyp",), ("polyp", "ulcer")):
        shares = np.ones(1, np.float32)
        out = Segmentation(labels, classes, shares, ("blur",), np.zeros((1, 1), bool), Region(0, 0, 20, 30), 1.0)
        assert out.boxes == {label: boxes[label] for label in range(1, len(classes) + 1)}
        assert out.mask(1, Region(2, 6, 4, 3)).tolist() == [[0, 0, 0], [0, 255, 255], [0, 255, 255], [0, 0, 0]]
    assert dataclasses.replace(out, labels=np.zeros_like(labels)).boxes == {}


def test_what_holds_arrays_is_equal_to_itself_alone() -> None:
    labels, cells, shares = np.zeros((4, 6), np.uint8), np.zeros((1, 1), bool), np.ones(1, np.float32)
    frame = Frame(np.zeros((4, 6, 3), np.uint8), pts=0, time_base=Fraction(1, 25))
    out = Segmentation(labels, ("polyp",), shares, ("blur",), cells, Region(0, 0, 4, 6), 1.0)
    for one in (frame, out, Shown(frame)):
        assert one != dataclasses.replace(one) and one in {one}


def test_top_confounders_are_largest_first_and_ties_keep_their_order() -> None:
    out = Segmentation(
        labels=np.zeros((2, 2), np.uint8),
        classes=("polyp",),
        confounders=np.array([0.25, 0.375, 0.25, 0.125], np.float32),
        confounder_names=("blur", "blood", "mucus", "glare"),
        selected=np.zeros((1, 1), bool),
        region=Region(0, 0, 2, 2),
        latency_ms=1.0,
    )
    assert out.top_confounders() == [("blood", 0.375), ("blur", 0.25), ("mucus", 0.25)]
