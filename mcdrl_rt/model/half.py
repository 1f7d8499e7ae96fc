"""The deployed form in half precision, for devices that compute in it."""

from __future__ import annotations

import copy

from mcdrl_rt.model.folded import FoldedMCDRL


def to_half(model: FoldedMCDRL) -> FoldedMCDRL:
    """A copy of ``model`` that computes in float16; what comes in and out has the types it had.

    torch takes the sums of LayerNorm and softmax in float32 whatever the type, and so do the operators of
    ``mcdrl_rt.ops``.
    """
    return copy.deepcopy(model).half()
