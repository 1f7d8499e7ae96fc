"""The synthetic endoscopy: repeatable, exact where it says so, and different from site to site."""

from __future__ import annotations

import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom import SITES, Phantom, PhantomFrame, random_sample

SIZE = (120, 160)


@pytest.fixture(scope="module")
def by_site() -> dict[str, list[PhantomFrame]]:
    """The same moments of the same tube at every site, without the black surround."""
    moments = (0, 150, 400)
    return {
        site: [Phantom((240, 320), site, seed=5, surround=False).render(index) for index in moments]
        for site in SITES
    }


def mean_rgb(frames: list[PhantomFrame]) -> np.ndarray:
    """(3,) mean colour."""
    return np.mean([frame.pixels.mean(axis=(0, 1)) for frame in frames], axis=0)


def sharpness(frames: list[PhantomFrame]) -> float:
    """Variance of the Laplacian of the green channel."""
    return float(np.mean([cv2.Laplacian(frame.pixels[..., 1], cv2.CV_32F).var() for frame in frames]))


def grown(mask: UInt8Array, radius: int) -> np.ndarray:
    """The mask dilated by ``radius`` pixels, as bool."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return cv2.dilate(mask, kernel) > 0


def with_polyp(seed: int, **options: object) -> tuple[int, PhantomFrame]:
    """An index at which a polyp of decent size is seen, and that frame."""
    phantom = Phantom(SIZE, seed=seed, **options)  # type: ignore[arg-type]
    frames = ((index, phantom.render(index)) for index in range(0, 3000, 60))
    return next((index, frame) for index, frame in frames if frame.mask.mean() > 0.02)


def test_a_frame_is_what_it_says() -> None:
    frame = Phantom(SIZE).render(0)
    assert frame.pixels.shape == (*SIZE, 3) and frame.pixels.dtype == np.uint8
    assert frame.mask.shape == SIZE and frame.mask.dtype == np.uint8
    assert frame.site == "white-light" and set(np.unique(frame.mask)) <= {0, 1}
    with pytest.raises(AttributeError):
        frame.site = "dim"  # type: ignore[misc]


def test_random_access_equals_sequential_access() -> None:
    sequential = list(Phantom(SIZE, "mixed", seed=3, frames=6, fps=1))
    other = Phantom(SIZE, "mixed", seed=3, fps=1)
    for index in (5, 0, 3, 5):
        frame = other.render(index)
        np.testing.assert_array_equal(frame.pixels, sequential[index].pixels)
        np.testing.assert_array_equal(frame.mask, sequential[index].mask)


def test_seeds_give_different_pictures() -> None:
    one, two = (Phantom(SIZE, seed=seed).render(0).pixels.astype(int) for seed in (1, 2))
    assert np.abs(one - two).mean() > 10


def test_neighbouring_frames_move_a_little() -> None:
    phantom = Phantom(SIZE, seed=4, polyps=2)
    for index in (0, 500, 10_000):
        now, then = (phantom.render(i).pixels.astype(int) for i in (index, index + 1))
        assert 0.2 < np.abs(now - then).mean() < 12
        later = phantom.render(index + 90).pixels.astype(int)
        assert np.abs(now - later).mean() > np.abs(now - then).mean()


@pytest.mark.parametrize("seed", [0, 3, 8])
def test_polyps_change_the_picture_where_the_mask_says(seed: int) -> None:
    index, frame = with_polyp(seed)
    bare = Phantom(SIZE, seed=seed, polyps=0).render(index)
    assert not bare.mask.any()
    change = np.abs(frame.pixels.astype(int) - bare.pixels).max(axis=2)
    near = grown(frame.mask, 14)  # the fillet to the wall reaches a little beyond the polyp
    assert (change[~near] > 0).mean() < 0.002
    assert (change[frame.mask > 0] > 4).mean() > 0.85


def test_mask_follows_the_picture_to_within_a_pixel_at_any_scale() -> None:
    index, small = with_polyp(0, surround=False)
    large = Phantom((4 * SIZE[0], 4 * SIZE[1]), seed=0, surround=False).render(index)
    shrunk = cv2.resize(large.mask, SIZE[::-1], interpolation=cv2.INTER_AREA)
    wrong = small.mask != shrunk
    core, halo = ~grown(1 - small.mask, 2), grown(small.mask, 2)
    assert not wrong[core].any() and not wrong[~halo].any()


def test_mask_is_empty_outside_the_field_of_view() -> None:
    sizes = (SIZE, (90, 240))
    for size, seed in itertools.product(sizes, range(4)):
        frame = Phantom(size, seed=seed).render(120)
        black = grown((frame.pixels.max(axis=2) == 0).astype(np.uint8), 0)
        assert black[0, 0] and black[-1, -1]
        corners = ~grown((~black).astype(np.uint8), 3)
        assert not frame.mask[corners].any()


def test_no_surround_fills_the_frame(by_site: dict[str, list[PhantomFrame]]) -> None:
    for frame in by_site["white-light"]:
        assert frame.pixels[[0, 0, -1, -1], [0, -1, 0, -1]].max(axis=1).min() > 0


def test_narrow_band_has_other_channel_ratios(by_site: dict[str, list[PhantomFrame]]) -> None:
    white, narrow = mean_rgb(by_site["white-light"]), mean_rgb(by_site["narrow-band"])
    assert white[0] / white[1] > 1.3
    assert narrow[0] / narrow[1] < 1.15


def test_dim_is_darker(by_site: dict[str, list[PhantomFrame]]) -> None:
    assert mean_rgb(by_site["dim"]).sum() < 0.7 * mean_rgb(by_site["white-light"]).sum()


def test_blur_has_less_detail(by_site: dict[str, list[PhantomFrame]]) -> None:
    assert sharpness(by_site["blur"]) < 0.8 * sharpness(by_site["white-light"])


def test_blood_is_redder(by_site: dict[str, list[PhantomFrame]]) -> None:
    white, blood = mean_rgb(by_site["white-light"]), mean_rgb(by_site["blood"])
    assert blood[0] / blood[1:].mean() > 1.03 * white[0] / white[1:].mean()


def test_mixed_shows_every_site_in_turn() -> None:
    phantom = Phantom((64, 64), "mixed", fps=30)
    assert {phantom.site_at(index) for index in range(0, 30 * 30, 15)} == set(SITES)
    assert [phantom.site_at(index) for index in (0, 89, 90)] == [SITES[0], SITES[0], SITES[1]]
    assert phantom.render(90).site == SITES[1]


def test_length_and_iteration() -> None:
    phantom = Phantom((64, 64), frames=2)
    assert len(phantom) == 2 and len(list(phantom)) == 2
    endless = Phantom((64, 64))
    assert len(list(itertools.islice(endless, 3))) == 3
    with pytest.raises(TypeError, match="endless"):
        len(endless)


def test_random_samples_are_varied_and_repeatable() -> None:
    rng = np.random.default_rng(11)
    samples = [random_sample(rng, (72, 88)) for _ in range(16)]
    shares = np.array([sample.mask.mean() for sample in samples])
    assert 0.5 <= (shares > 0).mean() <= 0.95
    assert shares[shares > 0].min() < 0.02 and shares.max() > 0.06
    assert shares.max() <= 0.45
    assert len({sample.site for sample in samples}) >= 4
    again = random_sample(np.random.default_rng(11), (72, 88))
    np.testing.assert_array_equal(again.pixels, samples[0].pixels)
    np.testing.assert_array_equal(again.mask, samples[0].mask)


def test_random_sample_takes_a_site() -> None:
    assert random_sample(np.random.default_rng(0), (64, 64), "blood").site == "blood"
    with pytest.raises(SourceError, match="white-light"):
        random_sample(np.random.default_rng(0), (64, 64), "sepia")


@settings(max_examples=8, deadline=None)
@given(
    height=st.integers(64, 260), width=st.integers(64, 260), index=st.integers(0, 10**7),
    site=st.sampled_from(SITES), surround=st.booleans(),
)  # fmt: skip
def test_any_size_and_any_index(height: int, width: int, index: int, site: str, surround: bool) -> None:
    frame = Phantom((height, width), site, seed=6, surround=surround).render(index)
    assert frame.pixels.shape == (height, width, 3) and frame.mask.shape == (height, width)
    assert frame.pixels.std() > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "sepia"}, "white-light, narrow-band, dim, blur, blood"),
        ({"size": (63, 640)}, "of 64 to 8192 pixels"),
        ({"size": (100_000, 640)}, "of 64 to 8192 pixels"),
        ({"size": (480,)}, "of 64 to 8192 pixels"),
        ({"fps": 0}, "greater than 0"),
        ({"fps": float("nan")}, "greater than 0"),
        ({"frames": -1}, "frames must be"),
        ({"polyps": -2}, "polyps must be"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        Phantom(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_negative_index_is_refused() -> None:
    with pytest.raises(SourceError, match="0 or more"):
        Phantom((64, 64)).render(-1)
