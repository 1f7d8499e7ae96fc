"""Random views: a picture is moved as torchvision would move it, its mask with it, and colours turn as they should."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.phantom import Phantom
from training.views import SCALES, SHIFT, RandomHue, RandomPlace, placement, random_view

SIZE = (72, 88)


@pytest.fixture(scope="module")
def picture() -> UInt8Array:
    return cv2.GaussianBlur(Phantom(SIZE, seed=3).render(0).pixels, (0, 0), 3)


@pytest.mark.parametrize(
    ("angle", "shear", "scale", "shift"),
    [(0, 0, 1.0, (0, 0)), (90, 0, 1.0, (0, 0)), (-35, 0, 0.8, (0, 0)), (0, 8, 1.3, (4, -6)), (70, -8, 1.2, (-5, 3))],
)
def test_picture_is_placed_as_torchvision_places_it(
    picture: UInt8Array, angle: float, shear: float, scale: float, shift: tuple[float, float]
) -> None:
    planes = torch.from_numpy(picture).permute(2, 0, 1).float()
    moved = functional.affine(
        planes, angle, list(shift), scale, [shear, 0], interpolation=functional.InterpolationMode.BILINEAR
    )
    for target in (SIZE, (50, 60)):
        wanted = functional.resize(moved, list(target), antialias=False).permute(1, 2, 0).numpy()
        matrix = placement(SIZE, target, math.radians(angle), math.radians(shear), scale, shift)
        placed = cv2.warpAffine(picture, matrix, target[::-1], flags=cv2.INTER_LINEAR)
        inside = wanted.min(axis=2) > 30  # at the picture's own edge the two fade differently
        assert inside.mean() > 0.2
        assert np.abs(placed - wanted)[inside].mean() < 2


@given(st.integers(0, 2**31), st.tuples(st.integers(40, 100), st.integers(40, 100)))
def test_mask_goes_where_its_picture_goes(seed: int, size: tuple[int, int]) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[20:50, 30:70] = 1
    planes = np.repeat(mask[None] * np.uint8(255), 3, axis=0)
    torch.manual_seed(seed)
    views = RandomPlace(size, 180, 8)(tv_tensors.Image(planes), tv_tensors.Mask(mask))
    assert isinstance(views[0], tv_tensors.Image) and isinstance(views[1], tv_tensors.Mask)
    assert views[0].shape == (3, *size) and views[1].shape == size
    bright = views[0].numpy().mean(axis=0)
    assert 0.02 < views[1].numpy().mean() < 0.9  # still in the picture, whatever was drawn
    assert (bright[views[1].numpy() == 1] > 40).mean() > 0.99  # nearest and bilinear differ by half a pixel
    assert (bright[views[1].numpy() == 0] < 215).mean() > 0.99


def test_places_fill_their_ranges_and_stay_inside() -> None:
    place = RandomPlace(SIZE, 30, 0)
    middle = np.array([SIZE[1] - 1, SIZE[0] - 1, 2]) / 2
    drawn = []
    for seed in range(300):
        torch.manual_seed(seed)
        matrix = place.make_params([tv_tensors.Mask(np.zeros(SIZE, np.uint8))])["matrix"]
        turn, scale = math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])), math.hypot(matrix[0, 0], matrix[1, 0])
        drawn.append([turn / 30, scale, *((matrix @ middle - middle[:2]) / (SIZE[1], SIZE[0]))])
    low, high = np.min(drawn, axis=0), np.max(drawn, axis=0)
    for i, (least, most) in enumerate([(-1, 1), SCALES, (-SHIFT, SHIFT), (-SHIFT, SHIFT)]):
        room = 0.05 * (most - least)
        assert least - 1e-3 <= low[i] < least + room and most - room < high[i] <= most + 1e-3


def test_small_views_pass_nothing_over() -> None:
    """Lines of one pixel in eight are still an eighth of the light when the picture is shown half as large."""
    lines = np.zeros((96, 96), np.uint8)
    lines[:, ::8] = 240
    planes = tv_tensors.Image(np.repeat(lines[None], 3, axis=0))
    place = RandomPlace((96, 96), 0, 0)
    params = {"matrix": placement((96, 96), (96, 96), 0, 0, 0.5, (0, 0)), "shrunk": 0.5}
    half = place.transform(planes, params)[0].numpy()[26:70, 28:68].astype(float)
    assert half.max() < 130 and abs(half.mean() - 30) < 4
    centre = np.average(np.arange(96), weights=place.transform(planes, params)[0].sum(dim=0).numpy())
    assert abs(centre - (47.5 - 3.5 / 2)) < 0.3  # the lines begin at the left edge


def test_hue_turns_as_torchvision_turns_it_and_leaves_masks_alone(picture: UInt8Array) -> None:
    planes = tv_tensors.Image(picture.transpose(2, 0, 1))
    for turn in (0, 10, 85, 200):
        wanted = functional.adjust_hue(planes, (turn / 256 + 0.5) % 1 - 0.5)
        turned = RandomHue(0.5).transform(planes, {"turn": turn})
        difference = (turned.as_subclass(torch.Tensor).int() - wanted.as_subclass(torch.Tensor).int()).abs().float()
        assert difference.mean() < 1.5 and difference.max() < 16
    mask = tv_tensors.Mask(torch.ones(8, 8, dtype=torch.uint8))
    red = tv_tensors.Image(torch.tensor([200, 40, 40], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8))
    torch.manual_seed(0)
    turns = []
    for _ in range(200):
        view, same = RandomHue(0.1)(red, mask)
        assert torch.equal(same, mask)
        turns.append(math.atan2(float(view[1, 0, 0]) - float(view[2, 0, 0]), 160) / math.tau)
    assert -0.11 < min(turns) < -0.08 and 0.08 < max(turns) < 0.11


@pytest.mark.parametrize("augmentation", ["plain", "endoscopy"])
def test_views_differ_and_repeat_with_the_seed(picture: UInt8Array, augmentation: str) -> None:
    place, colours = random_view((48, 64), augmentation)
    planes = tv_tensors.Image(picture.transpose(2, 0, 1))
    mask = tv_tensors.Mask(np.zeros(SIZE, np.uint8))

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return colours(place(planes, mask)[0])

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert draw(1).shape == (3, 48, 64) and draw(1).dtype == torch.uint8
