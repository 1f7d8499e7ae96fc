"""What the network is trained on: pictures and masks that stay together, whatever is done to them."""

from __future__ import annotations

from pathlib import Path

import torch
from miniature import write_site

from mcdrl_rt.model.prompts import confounder_names
from training.dataset import Item, LesionDataset
from training.sites import load_site


def test_dataset_serves_crops_of_the_networks_size(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=3))
    plain = LesionDataset(samples, (64, 80), augment=False)
    pixels, labels, _ = plain[1]
    assert (pixels.shape, pixels.dtype, labels.shape, labels.dtype) == ((3, 64, 80), torch.uint8, (64, 80), torch.int64)
    assert torch.equal(plain[1].pixels, pixels)
    augmented = LesionDataset(samples, (64, 80), augment=True, phantom_count=2)
    assert (len(plain), len(augmented)) == (3, 5)
    assert augmented[4].pixels.shape == (3, 64, 80)
    assert not torch.equal(augmented[1].pixels, augmented[1].pixels)
    assert set(augmented[1].labels.unique().tolist()) <= {0, 1}


def test_mask_stays_on_the_lesion_whatever_is_drawn(tmp_path: Path) -> None:
    """The lesion of these pictures is red, its surroundings grey."""
    samples = load_site(write_site(tmp_path / "site", count=4))
    names = ("a close-up view", "a distant view", "a tangential view")
    dataset = LesionDataset(samples, (96, 128), augment=True, conditions=names, condition_rate=1.0)
    torch.manual_seed(0)
    for item in (dataset[i % 4] for i in range(24)):
        pixels, lesion = item.pixels.float(), item.labels > 0
        inside, outside = (pixels[:, where].mean(dim=1) for where in (lesion, ~lesion))
        if lesion.float().mean() > 0.01:
            spread = [float((colour.max() - colour.min()) / colour.max()) for colour in (inside, outside)]
            assert spread[0] > spread[1] + 0.1


def test_what_was_drawn_is_what_is_said(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=2))
    names = confounder_names(12)
    plain = LesionDataset(samples, (64, 64), augment=False, conditions=names)
    assert [names[i] for i in plain[0].shown.nonzero().flatten()] == ["white-light imaging"]
    dim = LesionDataset(samples, (64, 64), augment=False, conditions=("dim lighting",), condition_rate=1.0)
    assert dim[0].shown.tolist() == [1.0]
    assert dim[0].pixels.float().mean() < 0.6 * plain[0].pixels.float().mean()
    phantom = LesionDataset(samples, (64, 64), augment=False, phantom_count=12, conditions=names)
    said = {tuple(names[j] for j in phantom[i].shown.nonzero().flatten()) for i in range(2, 14)}
    assert said <= {
        ("white-light imaging",),
        ("narrow-band imaging",),
        ("dim lighting", "uneven lighting"),
        ("mucus", "blood"),
    }
    assert len(said) > 2


def test_part_without_lesion_has_none(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=4))
    dataset = LesionDataset(samples, (64, 64), augment=False, lesion_free=1.0)
    torch.manual_seed(1)
    found = [dataset[i % 4] for i in range(20)]
    without = [item for item in found if not item.labels.any()]
    assert len(without) > 4
    for item in without:
        red, _, blue = item.pixels.float().mean(dim=(1, 2))
        assert abs(red - blue) < 15


def test_item_depends_on_the_random_state_alone(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=2))
    dataset = LesionDataset(samples, (64, 64), augment=True, conditions=confounder_names(15), condition_rate=0.7)

    def draw(seed: int) -> list[Item]:
        torch.manual_seed(seed)
        return [dataset[i % 2] for i in range(6)]

    one, again, other = draw(3), draw(3), draw(4)
    assert all(torch.equal(x, y) for a, b in zip(one, again, strict=True) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, other, strict=True))
