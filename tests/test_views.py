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
from training.views import RandomHue, RandomPlace, placement, random_view

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


@given(st.integers(0, 2**31), st.tuples(st.integers(16, 64), st.integers(16, 64)))
def test_mask_goes_where_its_picture_goes(seed: int, size: tuple[int, int]) -> None:
    mask = np.zeros(SIZE, np.uint8)
    mask[20:50, 30:70] = 1
    planes = np.repeat(mask[None] * np.uint8(255), 3, axis=0)
    torch.manual_seed(seed)
    views = RandomPlace(size, 180, 8)(tv_tensors.Image(planes), tv_tensors.Mask(mask))
    assert isinstance(views[0], tv_tensors.Image) and isinstance(views[1], tv_tensors.Mask)
    assert views[0].shape == (3, *size) and views[1].shape == size
    bright = views[0].numpy().mean(axis=0)
    assert (bright[views[1].numpy() == 1] > 60).all()  # nearest and bilinear differ by half a pixel
    assert (bright[views[1].numpy() == 0] < 195).all()


def test_hue_turns_by_what_is_drawn_and_leaves_masks_alone() -> None:
    red = torch.tensor([200, 40, 40], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)
    mask = tv_tensors.Mask(torch.ones(8, 8, dtype=torch.uint8))
    torch.manual_seed(0)
    turned, same = zip(*(RandomHue(0.5)(tv_tensors.Image(red), mask) for _ in range(60)), strict=True)
    assert all(torch.equal(one, mask) for one in same)
    strongest = {int(one[:, 0, 0].argmax()) for one in turned}
    assert strongest == {0, 1, 2}
    small = [RandomHue(0.04)(tv_tensors.Image(red)) for _ in range(60)]
    assert all(int(one[0, 0, 0]) == 200 for one in small)  # still red first
    assert len({tuple(one[:, 0, 0].tolist()) for one in small}) > 5
    with_none = RandomHue(0.0)(tv_tensors.Image(red))
    assert (with_none.int() - red.int()).abs().max() <= 3  # there and back through 8 bits


@pytest.mark.parametrize("augmentation", ["plain", "endoscopy"])
def test_views_differ_and_repeat_with_the_seed(picture: UInt8Array, augmentation: str) -> None:
    view = random_view((48, 64), augmentation)
    planes = tv_tensors.Image(picture.transpose(2, 0, 1))
    mask = tv_tensors.Mask(np.zeros(SIZE, np.uint8))

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return view(planes, mask)[0]

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert draw(1).shape == (3, 48, 64) and draw(1).dtype == torch.uint8
