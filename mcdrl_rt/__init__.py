"""mcdrl-rt: real-time lesion segmentation for endoscopy video.

    >>> from mcdrl_rt import Segmenter
    >>> segmenter = Segmenter.load()          # doctest: +SKIP
    >>> out = segmenter(rgb)                  # doctest: +SKIP

Importing this package imports nothing else: what a name needs is loaded when the name is first used.
Research use only; not a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mcdrl_rt.version import __version__

if TYPE_CHECKING:
    from mcdrl_rt.errors import McdrlError
    from mcdrl_rt.segmenter import Segmenter
    from mcdrl_rt.types import Frame, ModelSpec, Region, Segmentation

__all__ = ["Frame", "McdrlError", "ModelSpec", "Region", "Segmentation", "Segmenter", "__version__"]
_HOMES = dict.fromkeys(("Frame", "ModelSpec", "Region", "Segmentation"), "types")
_HOMES |= {"McdrlError": "errors", "Segmenter": "segmenter"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mcdrl_rt' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"mcdrl_rt.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
