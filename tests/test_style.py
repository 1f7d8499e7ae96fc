"""Style: a picture takes on another's colours, in part and a little beyond, and keeps what it shows."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom import Phantom
from training.style import Tone, restyle, tone, with_surround


@pytest.fixture(scope="module")
def picture() -> UInt8Array:
    return Phantom((120, 160), seed=3).render(0).pixels


def test_tone_is_of_what_is_lit(picture: UInt8Array) -> None:
    framed = cv2.copyMakeBorder(picture, 60, 60, 60, 60, cv2.BORDER_CONSTANT)
    np.testing.assert_allclose(tone(framed).mean, tone(picture).mean, atol=1)
    assert np.isfinite(tone(np.zeros_like(picture)).mean).all()  # nothing is lit


def test_draws_move_half_of_the_way_on_average_and_vary(picture: UInt8Array) -> None:
    own = tone(picture)
    means = {}
    for sign in (-1, 1):
        other = Tone(own.mean + sign * np.array([10, 15, 10], np.float32), own.spread)
        rng = np.random.default_rng(0)
        drawn = np.array([tone(restyle(rng, picture, other)).mean for _ in range(100)])
        assert (drawn.std(axis=0) > 4).all()
        means[sign] = drawn.mean(axis=0)
    # half of twice the shift; what is out of reach for 8 bits is lost
    np.testing.assert_allclose(means[1] - means[-1], [10, 15, 10], atol=3)


def test_the_same_draw_is_the_same_picture_and_its_shapes_stay(picture: UInt8Array) -> None:
    restyled = [restyle(np.random.default_rng(1), picture, tone(picture)) for _ in range(2)]
    assert np.array_equal(*restyled)
    assert not np.array_equal(restyled[0], picture)
    edges = [cv2.Laplacian(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY), cv2.CV_32F).ravel() for p in (restyled[0], picture)]
    assert np.corrcoef(*edges)[0, 1] > 0.9


def test_a_black_surround_stays_black_in_any_style(picture: UInt8Array) -> None:
    framed = cv2.copyMakeBorder(picture, 30, 30, 30, 30, cv2.BORDER_CONSTANT)
    bright = Tone(np.array([170, 140, 150], np.float32), np.array([20, 5, 5], np.float32))
    restyled = restyle(np.random.default_rng(0), framed, bright)
    assert restyled[:25].max() > 14  # the styles alone light it
    kept = with_surround(restyled, framed)
    assert kept[:25].max() == 0
    lit = framed.max(axis=2) > 60
    assert np.abs(kept[lit].astype(int) - restyled[lit]).max() <= 1
