"""The deployed form of MCDRL: uint8 frames in, labels out, the causal network folded (method §7).

One input contract for every engine: RGB uint8 at the model's input size; normalisation happens inside, from the
``ModelSpec``. One output contract: see ``FoldedMCDRL.forward``.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.intervention import FoldedNetwork
from mcdrl_rt.model.mcdrl import MCDRL, pad_to_stride
from mcdrl_rt.model.selection import scatter_tokens, selected_cells

INPUT = "frames"
OUTPUTS = ("score", "label", "confounders", "selected", "logits")


class FoldedMCDRL(nn.Module):
    """A trained model with the dictionary folded into its weights, exactly.

    Raises:
        SpecError: the model has no causal block to fold (depth 0).
    """

    def __init__(self, model: MCDRL) -> None:
        super().__init__()
        if model.spec.depth < 1:
            raise SpecError("only a model with at least one causal block can be deployed")
        model = copy.deepcopy(model).eval()
        self.spec, self.encoder, self.head = model.spec, model.encoder, model.head
        self.network = FoldedNetwork(
            model.network, model.text_dictionary, model.text_classes, model.spec.selected
        )
        self.register_buffer("mean", torch.tensor(model.spec.mean) * 255)
        self.register_buffer("std", torch.tensor(model.spec.std) * 255)
        grid, stride, doublings = model.encoder.grid, model.encoder.stride, model.head.doublings
        for name, cells, pixels in zip(("rows", "columns"), grid, model.spec.input_size, strict=True):
            self.register_buffer(name, bilinear(cells * 2**doublings, cells * stride)[:pixels])
        self.mean: Tensor
        self.std: Tensor
        self.rows: Tensor  # (H, h_L)
        self.columns: Tensor  # (W, w_L)
        self.requires_grad_(False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Segment frames.

        Args:
            frames: (B, H, W, 3) uint8 RGB, (H, W) = ``spec.input_size``.

        Returns:
            In the order of ``OUTPUTS``: how sure a pixel is lesion, (B, H, W) uint8, lesion from 128 on (there the
            best lesion class beats background, so no threshold is tuned); the best lesion class from 1, (B, H, W)
            uint8; the confounder readout (B, M) float; the selected cells (B, h, w) uint8; logits (B, K+1, H, W).
        """
        # TensorRT knows bytes only at its inputs and outputs, and only as what floats are made of and made into. Turned
        # last: a runtime that keeps channels last has nothing to move then
        images = ((frames.to(self.mean.dtype) - self.mean) / self.std).permute(0, 3, 1, 2)
        images = images.to(self.network.texts.dtype)  # what the network computes in: mcdrl_rt.model.half
        features = self.encoder(pad_to_stride(images, self.encoder.stride))
        f, indices, confounders = self.network(features.tokens)
        coarse = self.head(scatter_tokens(f, indices, self.encoder.grid), features.details).to(self.mean.dtype)
        margins = self.to_input_size(coarse[:, 1:] - coarse[:, :1])  # linear, so as good as logits
        best, label = margins.max(dim=1) if margins.shape[1] > 1 else (margins[:, 0], torch.zeros_like(margins[:, 0]))
        score = (torch.sigmoid(best) * 256).clamp(max=255).to(torch.uint8)  # floor: 128 is a half
        cells = selected_cells(indices, self.encoder.grid).to(torch.uint8)
        logits = self.to_input_size(coarse)
        return score, (label.to(best.dtype) + 1).to(torch.uint8), confounders, cells, logits

    def to_input_size(self, maps: Tensor) -> Tensor:
        """``mcdrl_rt.model.mcdrl.to_input_size`` as two products, which every runtime has a fast form of."""
        return self.rows @ maps @ self.columns.T


def bilinear(source: int, target: int) -> Tensor:
    """The matrix (target, source) float that resamples a line bilinearly, corners not aligned."""
    eye = torch.eye(source).unsqueeze(0)  # each row a line of its own
    return F.interpolate(eye, size=target, mode="linear", align_corners=False)[0].T.contiguous()
