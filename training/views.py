"""Random views of a picture and its mask: where the scope is turned to, and what its processor makes of the colours.

torchvision's transforms, but for two that OpenCV does in a sixth of the time: a picture is moved and brought to size in
one step, and hue is turned in steps of 8 bits.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from mcdrl_rt.types import FloatArray, UInt8Array

SHIFT, SCALES = 0.1, (0.6, 1.5)  # as shares of the picture


def random_view(size: tuple[int, int], augmentation: str) -> tuple[v2.Transform, v2.Transform]:
    """Random views of one picture and its mask, at ``size``: first where it lies, then its colours.

    ``plain`` is what any segmentation training does: flips, shift and scale, colour. ``endoscopy`` adds what is the
    instrument's: it turns freely about its axis, no two processors share colours, and it is often out of focus.
    """
    scope = augmentation == "endoscopy"
    place = RandomPlace(size, *((180, 8) if scope else (15, 0)))
    views: list[v2.Transform] = [v2.ColorJitter(0.35, 0.35, 0.35), RandomHue(0.04)]
    if scope:
        views.append(v2.RandomApply([v2.ColorJitter(0.2, 0.2, 0.2), RandomHue(0.3)], 0.1))
        views.append(v2.RandomApply([v2.GaussianBlur(7, (0.3, 2.0))], 0.2))
    return v2.Compose([place, v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]), v2.Compose(views)


class RandomPlace(v2.Transform):
    """Turn, shear, scale and shift about the middle, and bring to ``size``; black beyond the picture's edge.

    Args:
        size: (height, width) of what comes out.
        angle: turned by up to this, either way, in degrees.
        shear: sheared by up to this along the rows, likewise.
    """

    def __init__(self, size: tuple[int, int], angle: float, shear: float) -> None:
        super().__init__()
        self.size, self.angle, self.shear = size, angle, shear

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = flat_inputs[0].shape[-2:]
        turn, slant, right, down, zoom = torch.rand(5).tolist()
        angle, shear = (math.radians((2 * draw - 1) * most) for draw, most in ((turn, self.angle), (slant, self.shear)))
        scale = SCALES[0] + zoom * (SCALES[1] - SCALES[0])
        shift = [(2 * draw - 1) * SHIFT * side for draw, side in ((right, width), (down, height))]
        matrix = placement((height, width), self.size, angle, shear, scale, (shift[0], shift[1]))
        return {"matrix": matrix, "shrunk": scale * min(self.size[0] / height, self.size[1] / width)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        pixels, matrix, shrunk = rows_of(inpt), params["matrix"], params["shrunk"]
        if isinstance(inpt, tv_tensors.Mask):
            moved = cv2.warpAffine(pixels, matrix, self.size[::-1], flags=cv2.INTER_NEAREST)
        else:
            if shrunk < 0.75:  # between four pixels of many, others would be passed over
                height, width = pixels.shape[:2]
                pixels = cv2.resize(pixels, None, fx=shrunk, fy=shrunk, interpolation=cv2.INTER_AREA)
                matrix = matrix @ resizing(pixels.shape[:2], (height, width))
            moved = cv2.warpAffine(pixels, matrix, self.size[::-1], flags=cv2.INTER_LINEAR)
        return tv_tensors.wrap(_planes(np.asarray(moved, np.uint8)), like=inpt)


class RandomHue(v2.Transform):
    """Turn the hue of a picture by up to ``most`` of a full turn, either way; masks stay as they are."""

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"turn": round(256 * self.most * (2 * float(torch.rand(())) - 1)) % 256}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        colours = cv2.cvtColor(rows_of(inpt), cv2.COLOR_RGB2HSV_FULL)
        colours[..., 0] += np.uint8(params["turn"])  # 256 steps are a full turn, and go round by themselves
        turned = cv2.cvtColor(colours, cv2.COLOR_HSV2RGB_FULL)
        return tv_tensors.wrap(_planes(np.asarray(turned, np.uint8)), like=inpt)


def placement(
    size: tuple[int, int],
    target: tuple[int, int],
    angle: float,
    shear: float,
    scale: float,
    shift: tuple[float, float],
) -> FloatArray:
    """The (2, 3) matrix from pixels (x, y) of a picture to those of the placed one.

    Args:
        size, target: (height, width) before and after.
        angle, shear: in radians, clockwise, and along the rows (torchvision's signs).
        scale: of what is shown.
        shift: (right, down) in pixels of the picture.
    """
    turned = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    sheared = scale * turned @ np.array([[1, -math.tan(shear)], [0, 1]])
    middle = np.array([size[1] - 1, size[0] - 1]) / 2  # pixel centres are whole numbers
    placed = np.eye(3)
    placed[:2, :2], placed[:2, 2] = sheared, middle + shift - sheared @ middle
    return np.asarray(resizing(size, target)[:2] @ placed, np.float32)


def resizing(size: tuple[int, int], target: tuple[int, int]) -> FloatArray:
    """The (3, 3) matrix from pixels (x, y) of a picture of ``size`` (height, width) to those of one of ``target``."""
    (high, wide), (rows, columns) = size, target
    across, down = columns / wide, rows / high
    return np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]], np.float32)


def rows_of(picture: Tensor) -> UInt8Array:
    """A picture (3, H, W) as (H, W, 3), as OpenCV has it; a mask (H, W) as it is."""
    pixels = picture.as_subclass(Tensor)
    return np.ascontiguousarray((pixels.permute(1, 2, 0) if pixels.ndim == 3 else pixels).numpy())


def _planes(pixels: UInt8Array) -> Tensor:
    rows = torch.from_numpy(pixels)
    return rows.permute(2, 0, 1) if rows.ndim == 3 else rows
