"""What happens to pixels before and after the network, as plain torch: any device, no synchronisation.

The same operations ``Segmenter`` and ``mcdrl_rt.video.overlay`` do with OpenCV. A separable resize is two products with
small matrices of weights, so OpenCV's own weights are taken and the results agree to its rounding; pictures that
``region.crop_and_resize`` halves first, to save time there, to a fifth of a grey level on average.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcdrl_rt.engine.base import LESION
from mcdrl_rt.engine.tensors import upload
from mcdrl_rt.errors import SourceError
from mcdrl_rt.types import Region
from mcdrl_rt.video.planes import LUMA

# FFmpeg's numbers for the matrices
_MATRICES = {1: "bt709", 5: "bt601", 6: "bt601", 9: "bt2020", 10: "bt2020"}
_FULL_RANGE = 2


class Nv12(NamedTuple):
    """A frame as video decoders leave it: luma, and chroma at half the resolution."""

    luma: Tensor  # (H, W) uint8, or uint16 with the bits at the top (P010)
    chroma: Tensor  # (H/2, W/2, 2), the same type
    matrix: str = "bt709"  # or bt601, bt2020
    full_range: bool = False


def from_video_frame(frame: Any) -> Nv12:
    """The planes of a PyAV ``VideoFrame`` in NV12 or P010, without a copy, where they are: in GPU memory when it was
    decoded there (``av.open(…, hwaccel=HWAccel("cuda", is_hw_owned=True))``, PyAV 18).

    Raises:
        SourceError: a frame of another format.
    """
    layout = (frame.sw_format or frame.format).name
    if layout not in ("nv12", "p010le", "p016le"):
        raise SourceError(f"frames on a device are NV12 or P010, not {layout}")
    # a capsule: asked through torch, PyAV refuses, as it waits for no stream (the device path does)
    luma, chroma = (torch.from_dlpack(plane.__dlpack__()) for plane in frame.planes)
    guess = "bt709" if frame.height >= 720 else "bt601"  # what players assume
    return Nv12(luma, chroma, _MATRICES.get(int(frame.colorspace), guess), int(frame.color_range) == _FULL_RANGE)


def to_rgb(frame: Nv12) -> Tensor:
    """(H, W, 3) uint8 RGB; a chroma sample is that of its four pixels."""
    red, blue = LUMA[frame.matrix]
    depth = 1 if frame.luma.dtype == torch.uint8 else 256
    height, width = frame.luma.shape
    chroma = frame.chroma.float()[:, None, :, None].expand(-1, 2, -1, 2, -1).reshape(height, width, 2)
    y, (u, v) = frame.luma.float() / depth, (chroma / depth - 128).unbind(dim=-1)
    if not frame.full_range:
        y, u, v = (y - 16) * (255 / 219), u * (255 / 224), v * (255 / 224)
    green = 1 - red - blue
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = y - (2 * blue * (1 - blue) / green) * u - (2 * red * (1 - red) / green) * v
    return _to_uint8(torch.stack([r, g, b], dim=-1))


class Scaler:
    """Resizes one region of frames of one size to the network's input, and the network's answer back.

    Args:
        region: the field of view.
        input_size: (height, width) of the network.
        device: where the pixels are.
    """

    def __init__(self, region: Region, input_size: tuple[int, int], device: torch.device) -> None:
        self.region = region
        sides, inputs = (region.height, region.width), input_size
        weights = _weights_down(sides, inputs)
        self._rows, self._columns = (upload(one, device) for one in weights)
        self._rows_back, self._columns_back = (
            upload(_linear(one, other), device) for one, other in zip(inputs, sides, strict=True)
        )
        self._nearest = tuple(upload(_nearest(one, other), device) for one, other in zip(inputs, sides, strict=True))

    def down(self, frame: Tensor) -> Tensor:
        """The region of a frame (H, W, 3) uint8 at the input size, (h, w, 3) uint8."""
        cut = frame[self.region.slices]
        height, width = len(self._rows), cut.shape[1]
        x = self._rows @ cut.float().reshape(len(cut), -1)  # (h, W·3)
        x = x.view(height, width, 3).transpose(1, 2).reshape(-1, width) @ self._columns.T  # (h·3, w)
        return _to_uint8(x.view(height, 3, -1).transpose(1, 2))

    def labels(self, score: Tensor, label: Tensor, size: tuple[int, int], classes: int) -> Tensor:
        """Labels of a whole frame from the network's answer, background outside the region.

        Args:
            score, label: (h, w) uint8, as ``FoldedMCDRL.forward`` gives them.
            size: (H, W) of the frame.
            classes: K; where there is one, ``label`` is not looked at.

        Returns:
            (H, W) uint8.
        """
        lesion = (self._rows_back @ score.float() @ self._columns_back.T).round() >= LESION
        named = lesion.to(torch.uint8)
        if classes > 1:
            rows, columns = self._nearest
            named = named * label.index_select(0, rows).index_select(1, columns)
        labels = score.new_zeros(size)
        labels[self.region.slices] = named
        return labels


def paint(frame: Tensor, labels: Tensor, colors: Tensor, opacity: float, around: Region) -> Tensor:
    """A copy of a frame with lesions tinted and outlined; all other pixels as they were.

    The outline is as wide as ``overlay.draw``'s, but follows the mask pixel by pixel, where that one smoothes.

    Args:
        frame: (H, W, 3) uint8.
        labels: (H, W) uint8, not zero only inside ``around``.
        colors: (K + 1, 3) float, RGB 0…255 by label; the first row is not used.
        opacity: of the tint, 0…1.
        around: where lesions can be.
    """
    reach = max(1, round(max(2, round(min(labels.shape) / 400)) / 2))
    top, left = max(0, around.top - reach), max(0, around.left - reach)
    box = (slice(top, around.top + around.height + reach), slice(left, around.left + around.width + reach))
    here, named = frame[box], labels[box].long()
    shade = (colors * opacity).round()[named]  # (h, w, 3)
    tinted = (here.float() * (1 - opacity)).round() + shade
    highest, lowest = _extremes(labels[box], reach)
    painted = torch.where((named > 0)[..., None], tinted, here.float())
    painted = torch.where((highest != lowest)[..., None], colors[highest.long()], painted)
    out = frame.clone()
    out[box] = _to_uint8(painted)
    return out


def _extremes(labels: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Highest and lowest label within ``reach`` pixels of each, beyond the edge 0: where they differ is an outline."""
    padded = F.pad(labels.float(), [reach] * 4)[None]
    highest, lowest = (sign * F.max_pool2d(sign * padded, 2 * reach + 1, stride=1)[0] for sign in (1, -1))
    return highest, lowest


def _to_uint8(x: Tensor) -> Tensor:
    return x.round().clamp(0, 255).to(torch.uint8)


def _weights_down(sides: tuple[int, int], inputs: tuple[int, int]) -> list[NDArray[np.float32]]:
    """The weights of OpenCV's INTER_AREA where the picture has more pixels, else of its INTER_LINEAR."""
    pairs = list(zip(sides, inputs, strict=True))
    if sides[0] * sides[1] <= inputs[0] * inputs[1]:
        return [_linear(source, target) for source, target in pairs]
    if all(source >= target for source, target in pairs):
        return [_area(source, target) for source, target in pairs]
    return [_area_growing(source, target) for source, target in pairs]


def _area(source: int, target: int) -> NDArray[np.float32]:
    """(target, source): each new pixel is the mean of what it covers."""
    scale = source / target
    begin = (np.arange(target) * scale)[:, None]
    end = np.minimum(begin + scale, source)
    pixel = np.arange(source)[None]
    covered = np.clip(np.minimum(end, pixel + 1) - np.maximum(begin, pixel), 0, None)
    return (covered / (end - begin)).astype(np.float32)


def _linear(source: int, target: int) -> NDArray[np.float32]:
    """(target, source): between the two nearest pixel centres."""
    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    place = np.clip(place, 0, source - 1)
    first = np.floor(place).astype(np.int64)
    return _between(first, place - first, source)


def _area_growing(source: int, target: int) -> NDArray[np.float32]:
    """(target, source): what OpenCV makes of INTER_AREA where only one side shrinks."""
    inverse = target / source
    index = np.arange(target)
    first = np.floor(index * (1 / inverse)).astype(np.int64)
    share = ((index + 1) - (first + 1) * inverse).astype(np.float32)  # as OpenCV rounds: it decides on whole numbers
    share = np.where(share <= 0, 0, share - np.floor(share))
    return _between(np.minimum(first, source - 1), np.where(first >= source - 1, 0, share), source)


def _between(first: NDArray[np.int64], share: NDArray[np.float64], source: int) -> NDArray[np.float32]:
    weights = np.zeros((len(first), source), np.float32)
    rows = np.arange(len(first))
    weights[rows, first] = 1 - share
    weights[rows, np.minimum(first + 1, source - 1)] += share
    return weights


def _nearest(source: int, target: int) -> NDArray[np.int64]:
    """(target,): the pixel OpenCV's INTER_NEAREST takes."""
    return np.minimum(np.floor(np.arange(target) * (source / target)), source - 1).astype(np.int64)
