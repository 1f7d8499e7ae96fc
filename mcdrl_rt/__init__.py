"""mcdrl-rt: real-time lesion segmentation for endoscopy video.

    >>> from mcdrl_rt import Segmenter
    >>> segmenter = Segmenter.load()          # doctest: +SKIP
    >>> out = segmenter(rgb)                  # doctest: +SKIP

Importing this package is cheap: torch, OpenVINO and the rest are loaded by what needs them.
Research use only; not a medical device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcdrl_rt.errors import McdrlError
from mcdrl_rt.types import Frame, ModelSpec, Region, Segmentation
from mcdrl_rt.version import __version__

if TYPE_CHECKING:
    from mcdrl_rt.segmenter import Segmenter

__all__ = ["Frame", "McdrlError", "ModelSpec", "Region", "Segmentation", "Segmenter", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Segmenter":  # loads the engine stack, so only when asked for
        from mcdrl_rt.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module 'mcdrl_rt' has no attribute {name!r}")
