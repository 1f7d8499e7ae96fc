"""What can be trained: MCDRL, its ablations and its rivals.

All see the same images in the same order, draw with the same head from the same encoder and share the pixel losses,
so that what differs between two rows of a table is the method. Only the U-Net has a decoder of its own.

    >>> method = build_method(recipe, data)                      # doctest: +SKIP
    >>> terms = method(batch, intervene=True)                    # named, weighted losses; doctest: +SKIP
    >>> method.predict(images).logits                            # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.methods.base import Method, Prediction, start_model
from training.methods.causal import ABLATIONS, Causal, ablated
from training.methods.prompted import BiomedCoOp, StyLIP
from training.methods.unet import UNet
from training.recipe import Recipe

__all__ = ["Method", "Prediction", "build_method"]


def build_method(recipe: Recipe, data: Path, clip: Path | None = None) -> Method:
    """The method of a recipe before its first step.

    Args:
        recipe: its ``seed`` decides all random weights.
        data: where ``encoder_weights`` lies.
        clip: weights of ``training.pretrain`` to start from, in place of ``encoder_weights``.

    Raises:
        SpecError: the recipe asks for what cannot be built, or its weights are missing or do not fit.
    """
    torch.manual_seed(recipe.seed)
    if recipe.method in ABLATIONS:
        recipe = ablated(recipe)
        return Causal(recipe, start_model(recipe, data, clip))
    rivals = {"stylip": StyLIP, "biomedcoop": BiomedCoOp, "unet": UNet}
    return rivals[recipe.method](recipe, data, clip)
