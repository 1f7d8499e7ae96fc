"""The nouns every other module speaks in: frames, segmentations, videos, and what a model is.

Plain frozen dataclasses over NumPy arrays; those that hold arrays are equal to themselves alone. This module imports
nothing of ours but the errors, and neither torch nor OpenVINO.

    >>> spec = ModelSpec(name="demo", encoder="mcdrl-small", input_size=(224, 224), classes=("polyp",))
    >>> ModelSpec.from_json(spec.to_json()) == spec
    True
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mcdrl_rt.errors import SpecError

UInt8Array = NDArray[np.uint8]
FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]


class Native(Protocol):
    """A picture in the form that its video has it in (``video.planes``), and in RGB when that is asked for."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""

    @property
    def pixels(self) -> UInt8Array:
        """(H, W, 3) uint8, RGB."""

    def copy(self) -> Self:
        """Another one alike, to draw on."""


Picture: TypeAlias = "UInt8Array | Native"
"""RGB pixels, (H, W, 3) uint8, or what they can be made of."""


def pixels_of(picture: Picture) -> UInt8Array:
    """A picture as RGB, (H, W, 3) uint8."""
    return picture if isinstance(picture, np.ndarray) else picture.pixels


def size_of(picture: Picture) -> tuple[int, int]:
    """(height, width) of a picture in pixels."""
    return (int(picture.shape[0]), int(picture.shape[1])) if isinstance(picture, np.ndarray) else picture.size


# One colour per lesion class, in order: green, cyan, yellow, magenta and orange stand out against mucosa.
CLASS_COLORS: tuple[tuple[int, int, int], ...] = (
    (64, 255, 96),
    (64, 208, 255),
    (255, 232, 64),
    (255, 96, 232),
    (255, 160, 48),
)


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """One video frame with the time its source gave it.

    Args:
        picture: what it shows; as ``pixels`` in RGB.
        pts: presentation time in units of ``time_base``; never re-invented between source and sink.
        time_base: seconds per unit of ``pts``.
        index: position in the source, from 0.
        capture_time_s: ``time.monotonic()`` at which the frame came into being here: was decoded, or rendered; of a
            recording that is played at its own pace, at which it was due.
        signal: False while a live source is lost: it shows its last picture, greyed, and nothing is to be seen in it.
        duration_s: how long its source shows it, in seconds; 0 where that is not known.
        file: name of the picture file it is; empty for a video's.
    """

    picture: Picture
    pts: int
    time_base: Fraction
    index: int = 0
    capture_time_s: float = field(default_factory=time.monotonic)
    signal: bool = True
    duration_s: Fraction = Fraction(0)
    file: str = ""

    @property
    def pts_s(self) -> float:
        """Presentation time in seconds."""
        return float(self.pts * self.time_base)

    @property
    def pixels(self) -> UInt8Array:
        """The picture as RGB, (H, W, 3) uint8."""
        return pixels_of(self.picture)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return size_of(self.picture)

    def showing(self, picture: Picture) -> Frame:
        """The same moment with another picture (an overlay, say)."""
        return dataclasses.replace(self, picture=picture)


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of a frame, in pixels: rows ``top:top+height``, columns ``left:left+width``."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Row and column slices, to index an (H, W, …) array."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the model says of one frame.

    Args:
        labels: (H, W) uint8 at the frame's own size; 0 is background, ``i`` is ``classes[i - 1]``.
        classes: names of the K lesion classes.
        confounders: (M,) float32, non-negative, summing to 1: how much of each imaging condition the causal
            network attended to (method: CDRL readout).
        confounder_names: the M conditions.
        selected: (h, w) bool, the grid cells the text prompts selected (method: MTRS). Cell (0, 0) is at the top left
            of ``region`` and each is ``ModelSpec.grid_stride`` pixels of the input size wide and high.
        region: the part of the frame the model looked at, the endoscope's field of view.
        latency_ms: time from pixels in to labels out.
        stages_ms: what of it each part took, by name, where that is known.
    """

    labels: UInt8Array
    classes: tuple[str, ...]
    confounders: FloatArray
    confounder_names: tuple[str, ...]
    selected: BoolArray
    region: Region
    latency_ms: float
    stages_ms: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def boxes(self) -> Mapping[int, Region]:
        """Where each class is that some pixel has: its label, and the smallest box around it; by label, from 1.

        The labels are looked through once, whoever asks.
        """
        import cv2  # here, because this module is imported for its nouns alone, too

        if not cv2.hasNonZero(self.labels):
            return {}
        left, top, width, height = cv2.boundingRect(self.labels)
        around, boxes = Region(top, left, height, width), {}
        for label in range(1, len(self.classes) + 1):
            x, y, width, height = cv2.boundingRect(cv2.inRange(self.labels[around.slices], label, label))
            if height:
                boxes[label] = Region(top + y, left + x, height, width)
        return boxes

    def mask(self, label: int, box: Region) -> UInt8Array:
        """Where in a box a class is: (h, w) uint8, 0 or 255."""
        import cv2

        return np.asarray(cv2.inRange(self.labels[box.slices], label, label), np.uint8)

    def top_confounders(self, count: int = 3) -> list[tuple[str, float]]:
        """The ``count`` imaging conditions with the largest weight, largest first."""
        order = np.argsort(-self.confounders, kind="stable")[:count]
        return [(self.confounder_names[i], float(self.confounders[i])) for i in order]


@dataclass(frozen=True, eq=False, slots=True)
class Shown:
    """A frame on its way out: what it looks like, and what is known of it.

    Args:
        frame: with lesions and HUD drawn on its picture.
        clean: the picture as it came in; None where nobody keeps it.
        segmentation: what is drawn, its labels where they lie on this very frame; None without an overlay.
        age_ms: how long before this frame the one was captured that the labels were found on; None without an overlay.
        note: why there is no overlay; empty where there is one.
        stages_ms: milliseconds this frame spent in each stage so far, by name.
    """

    frame: Frame
    clean: Picture | None = None
    segmentation: Segmentation | None = None
    age_ms: float | None = None
    note: str = ""
    stages_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VideoFormat:
    """What a video is, apart from its pictures: all that a sink has to know of a source.

    Args:
        size: (height, width) of the first frame; a later frame may differ.
        time_base: seconds per unit of every frame's ``pts``.
        rate: nominal frames per second, for players and rate control.
        color: ``bt709``, ``bt601`` or ``bt2020``, the matrix to encode with; where BT.601's primaries are known,
            ``smpte170m`` or ``bt470bg``; of HDR, ``bt2020-pq`` or ``bt2020-hlg``.
        pixel_aspect: width of a pixel by its height, as players should show it.
        live: time counts from wherever the source began to count, not from zero.
    """

    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    color: str = "bt709"
    pixel_aspect: Fraction = Fraction(1)
    live: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything that travels with a model, from training to runtime, and is written nowhere else.

    Args:
        name: short name shown to people.
        encoder: an open_clip configuration (``RN50``, ``ViT-B-16``, ``ViT-L-14`` …) or ``mcdrl-small``.
        input_size: (height, width) in pixels the network takes.
        classes: the K lesion classes.
        confounders: the M imaging conditions of the dictionary.
        colors: RGB of each class, 0…255; by default those of ``CLASS_COLORS`` in turn.
        mean, std: per channel, in the unit of pixels / 255.
        grid: (h, w) cells of the feature grid; 0 until the model has been built for ``input_size``.
        embed_dim: d, width of the joint text-image space; 0 until built.
        alpha: share of grid cells selected by the text prompts, in (0, 1].
        depth: number of causal blocks L.
        heads: attention heads in each causal block.
        grid_stride: pixels to a grid cell; a timm trunk can have a finer grid than its own. 0, the encoder's own, until
            built. Where it does not divide the input size, the last row or column of cells sticks out beyond it.
        readout: dense readout: ``clearclip``, ``maskclip``, ``plain`` (ViT), ``native``; empty until built.
        head: ``detail`` or ``grid``.
        dtype: type the weights are stored in.
        provenance: training data, recipe, seed, measurements: free text for people.
    """

    name: str
    encoder: str
    input_size: tuple[int, int]
    classes: tuple[str, ...]
    confounders: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    grid: tuple[int, int] = (0, 0)
    embed_dim: int = 0
    alpha: float = 0.5
    depth: int = 3
    heads: int = 8
    grid_stride: int = 0
    readout: str = ""
    head: str = "detail"
    dtype: str = "float32"
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, fits in _FIELD_TYPES.items():
            if not fits(getattr(self, name)):
                raise SpecError(f"model specification {self.name!r} has an unusable {name}: {getattr(self, name)!r}")
        if not self.colors:
            cycle = (CLASS_COLORS[i % len(CLASS_COLORS)] for i in range(len(self.classes)))
            object.__setattr__(self, "colors", tuple(cycle))
        problems = [
            (not 1 <= len(self.classes) <= 254, "needs between 1 and 254 classes"),
            (len(set(self.classes)) != len(self.classes), "names a class twice"),
            (len(self.colors) != len(self.classes), "needs one colour for each class"),
            (min(self.input_size) < 32 or max(self.input_size) > 4096, "needs an input size from 32×32 to 4096×4096"),
            (self.depth > 64, "needs at most 64 causal blocks"),
            (not 0 < self.alpha <= 1, "needs alpha in (0, 1]"),
            (self.heads < 1, "needs heads ≥ 1"),
            (len(self.mean) != 3 or max(map(abs, self.mean)) > 1e3, "needs 3 means from -1000 to 1000"),
            (len(self.std) != 3 or min(self.std) < 1e-6 or max(self.std) > 1e3, "needs 3 stds from 0.000001 to 1000"),
        ]
        for wrong, what in problems:
            if wrong:
                raise SpecError(f"model specification {self.name!r} {what}")

    @property
    def tokens(self) -> int:
        """T, the number of grid cells."""
        return self.grid[0] * self.grid[1]

    @property
    def selected(self) -> int:
        """N = round(α·T), the static number of selected tokens (method §2)."""
        return max(1, min(self.tokens, round(self.alpha * self.tokens)))

    def to_json(self) -> str:
        """One line of JSON, the form carried by checkpoints, ONNX files and engine sidecars."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what ``to_json`` wrote.

        Raises:
            SpecError: the text is no specification, or one that does not add up.
        """
        try:
            raw = dict(json.loads(text))
            known = {f.name for f in dataclasses.fields(cls)}
            unknown = sorted(set(raw) - known)
            if unknown:
                raise SpecError(f"model specification has unknown fields {', '.join(unknown)}; update mcdrl-rt")
            return cls(**{name: _as_tuple(value) for name, value in raw.items()})
        except (ValueError, TypeError, RecursionError) as error:
            raise SpecError(f"not a model specification: {error}") from error


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tuple_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(map(fits, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # which is false of what is no number


def _is_color(value: Any) -> bool:
    return _tuple_of(_is_count)(value) and len(value) == 3 and max(value) <= 255


# what a field of a ModelSpec must be: a specification may come from an edited file
_FIELD_TYPES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("name", "encoder", "readout", "head", "dtype"), _is_text),
    **dict.fromkeys(("input_size", "grid"), lambda value: _tuple_of(_is_count)(value) and len(value) == 2),
    **dict.fromkeys(("classes", "confounders"), _tuple_of(_is_text)),
    **dict.fromkeys(("mean", "std"), _tuple_of(_is_finite)),
    **dict.fromkeys(("embed_dim", "depth", "heads", "grid_stride"), _is_count),
    "colors": _tuple_of(_is_color),
    "alpha": _is_finite,
    "provenance": lambda value: isinstance(value, Mapping),
}


def _as_tuple(value: Any) -> Any:
    """JSON lists as the tuples a frozen dataclass compares with."""
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
