"""What the network is trained on: pictures and masks that stay together, whatever is done to them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from miniature import write_site

from mcdrl_rt.errors import SourceError, SpecError
from mcdrl_rt.model.prompts import confounder_names
from training.conditions import PLAIN
from training.dataset import PARTS, EpochBatches, Item, LesionDataset, blank, part_of
from training.sites import load_site


def test_dataset_serves_crops_of_the_networks_size(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=3))
    plain = LesionDataset(samples, (64, 80))
    pixels, labels, _ = plain[0, 1]
    assert (pixels.shape, pixels.dtype, labels.shape, labels.dtype) == ((3, 64, 80), torch.uint8, (64, 80), torch.int64)
    assert torch.equal(plain[0, 1].pixels, pixels)
    augmented = LesionDataset(samples, (64, 80), augmentation="endoscopy", phantom_count=2)
    assert (len(plain), len(augmented)) == (3, 5)
    assert augmented[0, 4].pixels.shape == (3, 64, 80)
    assert not torch.equal(augmented[0, 1].pixels, augmented[1, 1].pixels)
    assert set(augmented[0, 1].labels.unique().tolist()) <= {0, 1}


def test_mask_stays_on_the_lesion_whatever_is_drawn(tmp_path: Path) -> None:
    """The lesion of these pictures is red, its surroundings grey."""
    samples = load_site(write_site(tmp_path / "site", count=4))
    names = ("a close-up view", "a tangential view")
    dataset = LesionDataset(samples, (96, 128), augmentation="endoscopy", conditions=names, condition_rate=1.0)
    for item in (dataset[epoch, i] for epoch in range(6) for i in range(4)):
        pixels, lesion = item.pixels.float(), item.labels > 0
        inside, outside = (pixels[:, where].mean(dim=1) for where in (lesion, ~lesion))
        if lesion.float().mean() > 0.01:
            spread = [float((colour.max() - colour.min()) / colour.max()) for colour in (inside, outside)]
            assert spread[0] > spread[1] + 0.1


@pytest.mark.parametrize("size", [(64, 64), (96, 130), (200, 260)])
def test_masks_lie_where_their_pictures_lie(tmp_path: Path, size: tuple[int, int]) -> None:
    """To a small part of a pixel: edges are what a segmentation is measured by."""
    site = write_site(tmp_path / "site", count=12, size=(150, 190))
    for sample in load_site(site):
        assert sample.mask is not None
        mask = cv2.imread(str(sample.mask), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(sample.image), np.where(mask > 127, 255, 60).astype(np.uint8))
    for part_rate in (0.0, 1.0):
        dataset = LesionDataset(load_site(site), size, part_rate=part_rate)
        shifts = []
        for item in (dataset[epoch, i] for epoch in range(40) for i in range(12)):
            light, labels = item.pixels[0].numpy().astype(float) - 60, item.labels.numpy()
            edges = labels[[0, -1]].any() or labels[:, [0, -1]].any()
            if labels.any() and not edges:
                shifts.append([np.average(g, weights=labels) - np.average(g, weights=light) for g in np.indices(size)])
        assert len(shifts) > 10
        assert np.abs(np.mean(shifts, axis=0)).max() < 0.12


def test_what_was_drawn_is_what_is_said(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=2))
    names = confounder_names(12)
    plain = LesionDataset(samples, (64, 64), augmentation="none", conditions=names)
    assert [names[i] for i in plain[0, 0].shown.nonzero().flatten()] == ["white-light imaging"]
    dim = LesionDataset(samples, (64, 64), augmentation="none", conditions=("dim lighting",), condition_rate=1.0)
    assert dim[0, 0].shown.tolist() == [1.0]
    assert dim[0, 0].pixels.float().mean() < 0.6 * plain[0, 0].pixels.float().mean()
    phantom = LesionDataset(samples, (64, 64), augmentation="none", phantom_count=12, conditions=names)
    said = {tuple(names[j] for j in phantom[0, i].shown.nonzero().flatten()) for i in range(2, 14)}
    assert said <= {
        ("white-light imaging",),
        ("narrow-band imaging",),
        ("dim lighting", "uneven lighting"),
        ("mucus", "blood"),
    }
    assert len(said) > 2


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31), st.floats(0, 0.3), st.booleans())
def test_part_is_of_the_kind_that_is_asked_for(height: int, width: int, seed: int, dense: float, lesion: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random((height, width)) < dense**3).astype(np.uint8)
    part = part_of(rng, labels, lesion)
    smallest = [max(1, int(side * PARTS[0])) for side in labels.shape]
    views = np.lib.stride_tricks.sliding_window_view(labels, smallest)
    if part is None:  # no place is free, or there is nothing to be seen
        assert views.any(axis=(2, 3)).all() or (lesion and not labels.any())
    else:
        shown = labels[part]
        assert bool(shown.any()) is lesion
        shares = [shown.shape[i] / labels.shape[i] for i in range(2)]
        assert all(smallest[i] <= shown.shape[i] for i in range(2)) and max(shares) <= 1
        assert all(share <= PARTS[1] or shown.shape[i] == 1 for i, share in enumerate(shares))


def test_how_large_a_part_is_says_nothing_of_the_lesion() -> None:
    labels = np.zeros((90, 90), np.uint8)
    labels[20:55, 15:60] = 1
    sides = {
        lesion: [part_of(np.random.default_rng(seed), labels, lesion)[0] for seed in range(200)]  # type: ignore[index]
        for lesion in (False, True)
    }
    assert [s.stop - s.start for s in sides[True]] == [s.stop - s.start for s in sides[False]]


def test_part_without_lesion_has_none(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=4))
    dataset = LesionDataset(samples, (64, 64), augmentation="none", part_rate=1.0)
    found = [dataset[epoch, i] for epoch in range(10) for i in range(4)]
    without = [item for item in found if not item.labels.any()]
    assert 10 < len(without) < 30  # half, give or take
    for item in without:
        red, _, blue = item.pixels.float().mean(dim=(1, 2))
        assert abs(red - blue) < 15
    conditions = ("blood", PLAIN)
    parts = LesionDataset(samples, (64, 64), part_rate=1.0, conditions=conditions)
    assert not any(parts[0, i].shown.any() for i in range(4))  # whether one is a close-up nobody knows
    for labels in parts.labels:
        labels[:] = 1  # no part is free of it: the pictures stay whole, and show what they show
    halves = [tuple(parts[epoch, i].shown.tolist()) for epoch in range(10) for i in range(4)]
    assert set(halves) <= {(0.0, 0.0), (0.0, 1.0)} and (0.0, 1.0) in halves
    drawn = LesionDataset(samples, (64, 64), part_rate=1.0, conditions=conditions, condition_rate=1.0)
    assert all(drawn[0, i].shown[0] for i in range(4))


def test_blank_pictures_show_nothing_and_differ(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=4))
    dataset = LesionDataset(
        samples,
        (64, 64),
        augmentation="none",
        blank_rate=1.0,
        conditions=confounder_names(12),
        condition_rate=1.0,
        style_rate=1.0,
    )
    found = [dataset[epoch, i] for epoch in range(5) for i in range(4)]
    assert not any(item.labels.any() or item.shown.any() for item in found)
    assert max(float(item.pixels.float().diff(dim=2).abs().mean()) for item in found) < 12  # no style's contrast
    assert np.std([float(item.pixels.float().mean()) for item in found]) > 20
    pixels = LesionDataset(samples, (64, 64)).pixels[0]
    shuffled = np.random.default_rng(0).permutation(pixels.reshape(-1, 3)).reshape(pixels.shape)
    for seed in range(10):  # of the picture's shapes nothing is left
        one, other = (blank(np.random.default_rng(seed), p).astype(int) for p in (pixels, shuffled))
        assert np.abs(one - other).max() <= 1
    some = LesionDataset(samples, (64, 64), augmentation="none", blank_rate=0.3)
    share = np.mean([not some[epoch, i].labels.any() for epoch in range(40) for i in range(4)])
    assert 0.2 < share < 0.4


def test_other_rates_share_the_pictures(tmp_path: Path) -> None:
    dataset = LesionDataset(load_site(write_site(tmp_path / "site", count=3)), (64, 64), conditions=("blood",))
    other = dataset.with_rates(condition_rate=1.0, part_rate=0.0)
    assert other.pixels is dataset.pixels and dataset.condition_rate == 0
    assert torch.equal(dataset[0, 1].shown, torch.zeros(1)) and torch.equal(other[0, 1].shown, torch.ones(1))


def test_plain_pictures_alone_lend_their_colours(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=3))
    dataset = LesionDataset(samples, (64, 64), style_rate=1.0, phantom_count=6)
    plain = [shown == (PLAIN,) for shown in dataset.shown]
    assert len(dataset.tones) == sum(plain) < len(dataset)
    untouched = LesionDataset(samples, (64, 64), phantom_count=6)
    assert not any(torch.equal(dataset[0, i].pixels, untouched[0, i].pixels) for i in range(9))
    assert all(torch.equal(dataset[0, i].labels, untouched[0, i].labels) for i in range(9))


def test_item_depends_on_seed_epoch_and_index_alone(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=2))

    def draw(seed: int, epoch: int) -> list[Item]:
        torch.manual_seed(np.random.SeedSequence().entropy % 2**31)  # whatever the process drew before
        names = confounder_names(15)
        dataset = LesionDataset(
            samples, (64, 64), augmentation="endoscopy", seed=seed, conditions=names, condition_rate=0.7, style_rate=0.7
        )
        return [dataset[epoch, i] for i in (1, 0)]

    one, again = draw(3, 5), draw(3, 5)
    assert all(torch.equal(x, y) for a, b in zip(one, again, strict=True) for x, y in zip(a, b, strict=True))
    for other in (draw(4, 5), draw(3, 6)):
        assert not any(torch.equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))


def test_drawing_an_item_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=1))
    dataset = LesionDataset(samples, (64, 64), augmentation="endoscopy")
    state = torch.get_rng_state()
    dataset[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(8, 90), st.sampled_from([(8, 1, 1), (8, 2, 1), (8, 2, 2), (8, 1, 4), (6, 3, 2)]), st.integers(0, 5))
def test_processes_and_parts_share_one_order(length: int, shape: tuple[int, int, int], epoch: int) -> None:
    size, parts, world = shape

    def batches(parts: int, rank: int, world: int) -> list[list[tuple[int, int]]]:
        return list(EpochBatches(length, size, seed=1, epoch=epoch, parts=parts, rank=rank, world=world))

    whole = batches(1, 0, 1)
    assert len(whole) == length // size and all(len(batch) == size for batch in whole)
    seen = [index for batch in whole for _, index in batch]
    assert len(set(seen)) == len(seen) and {e for batch in whole for e, _ in batch} <= {epoch}
    shares = [batches(parts, rank, world) for rank in range(world)]
    for i, batch in enumerate(whole):
        together = [key for share in shares for part in share[i * parts : (i + 1) * parts] for key in part]
        assert sorted(together) == sorted(batch)


def test_unreadable_image_stops_or_is_left_out_as_asked(tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", count=4)
    (site / "images" / "im2.png").write_text("no picture")
    with pytest.raises(SourceError, match=r"cannot read .*im2\.png: .*; mend it, or set bad_images='skip'"):
        LesionDataset(load_site(site), (64, 64))
    dataset = LesionDataset(load_site(site), (64, 64), skip_bad=True)
    assert len(dataset) == 3 and len(dataset.shown) == 3
    assert len(dataset.skipped) == 1 and "im2.png" in dataset.skipped[0]
    with pytest.raises(SourceError, match="no image to train on"):
        LesionDataset([], (64, 64))


def test_labels_are_the_places_of_the_classes(tmp_path: Path) -> None:
    sample = load_site(write_site(tmp_path / "site", count=1))[0]
    samples = [dataclasses.replace(sample, lesion=name) for name in ("cyst", "polyp", "none")]
    dataset = LesionDataset(samples, (64, 64), ("polyp", "cyst"))
    assert [int(dataset[0, i].labels.max()) for i in range(3)] == [2, 1, 0]
    with pytest.raises(SpecError, match=r"no prompt for class cyst \(of .*im0\.png\); the recipe's classes are polyp"):
        LesionDataset(samples, (64, 64), ("polyp",))


def test_plain_augmentation_keeps_the_scope_upright(tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", count=1, size=(96, 96))
    sample = load_site(site)[0]
    stripes = np.repeat(np.where(np.arange(96) // 8 % 2, 200, 40)[:, None], 96, axis=1).astype(np.uint8)
    cv2.imwrite(str(sample.image), np.repeat(stripes[:, :, None], 3, axis=2))

    def tilt(augmentation: str) -> float:
        """Share of the gradient that runs along the rows, over many views."""
        dataset = LesionDataset([sample], (64, 64), augmentation=augmentation)
        views = [dataset[epoch, 0].pixels.float().mean(dim=0)[16:48, 16:48] for epoch in range(30)]
        changes = [[float(view.diff(dim=d).abs().sum()) for d in (0, 1)] for view in views]
        return float(np.mean([across / (down + across) for down, across in changes]))

    assert tilt("plain") < 0.3 < 0.4 < tilt("endoscopy")
