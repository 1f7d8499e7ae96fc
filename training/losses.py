"""The losses, one function for each equation of the paper (§4.2.3), and some of our own, named so."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def segmentation_loss(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Eq. 10: pixel-wise cross-entropy of logits (B, K+1, H, W) with labels (B, H, W) int64, 0 = background.

    ``weight`` (B, H, W), ours, lets some pixels count more; all count the same in the paper.
    """
    if weight is None:
        return F.cross_entropy(logits, labels)
    return weighted_mean(F.cross_entropy(logits, labels, reduction="none"), weight)


def causal_loss(intervened: Tensor, targets: Tensor, classes: Tensor) -> Tensor:
    """Eq. 11: squared distance of pooled F_ca to the mean of t_k,m over the dictionary, both of unit length.

    Args:
        intervened: F_ca, (B, N, d).
        targets: mean over m of t_k,m, (K, d).
        classes: (B,) int64, the image's lesion class from 1; 0 = no lesion, which takes no part.
    """
    lesion = classes > 0
    pooled = F.normalize(intervened.mean(dim=1), dim=-1)
    target = F.normalize(targets, dim=-1)[(classes - 1).clamp_min(0)]
    return weighted_mean((pooled - target).square().sum(dim=-1), lesion)


def contrast_loss(summary: Tensor, texts: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """Eq. 12: InfoNCE of the image feature (B, d) over the K class texts (K, d); no lesion, no part."""
    logits = F.normalize(summary, dim=-1) @ F.normalize(texts, dim=-1).T / temperature
    losses = F.cross_entropy(logits, (classes - 1).clamp_min(0), reduction="none")
    return weighted_mean(losses, classes > 0)


def edge_weight(labels: Tensor, strength: float, share: float = 0.09) -> Tensor:
    """Ours, not the paper's (after F3Net, arXiv 1911.11445): pixel weights (B, H, W), 1 + strength near an edge.

    Args:
        labels: (B, H, W) int64.
        strength: extra weight of a pixel whose neighbourhood is all of the other kind.
        share: side of the neighbourhood, as a share of the image's.
    """
    lesion = (labels > 0).float().unsqueeze(1)
    side = round(labels.shape[-1] * share) | 1
    half, around = side // 2, lesion
    for shape, padding in (((side, 1), (half, 0)), ((1, side), (0, half))):  # in turn: side times less to add up
        around = F.avg_pool2d(around, shape, stride=1, padding=padding, count_include_pad=False)
    return 1 + strength * (around - lesion).abs().squeeze(1)


def readout_loss(readout: Tensor, shown: Tensor) -> Tensor:
    """Ours, not the paper's: cross-entropy of the confounder readout (B, M) with the conditions shown (B, M), 0 or 1.

    The paper leaves attention over the dictionary to itself; this holds it to what a picture is known to show. One
    that shows nothing the dictionary names takes no part.
    """
    count = shown.sum(dim=1, keepdim=True)
    costs = -(shown / count.clamp_min(1) * readout.clamp_min(1e-6).log()).sum(dim=1)
    return weighted_mean(costs, count[:, 0] > 0)


def soft_dice_loss(logits: Tensor, labels: Tensor, smooth: float = 1.0, weight: Tensor | None = None) -> Tensor:
    """Ours, not the paper's: 1 − Dice of the lesion probability (any class), averaged over the images with lesion.

    On one without, it would hardly move what is marked wrongly and push on where nothing is: those are cross-entropy's.
    """
    lesion = 1 - logits.softmax(dim=1)[:, 0]  # (B, H, W)
    truth = (labels > 0).to(lesion.dtype)
    weight = torch.ones_like(lesion) if weight is None else weight
    overlap = (weight * lesion * truth).sum(dim=(1, 2))
    total = (weight * (lesion + truth)).sum(dim=(1, 2))
    return weighted_mean(1 - (2 * overlap + smooth) / (total + smooth), truth.amax(dim=(1, 2)))


def dense_alignment_loss(
    similarities: Tensor, labels: Tensor, stride: int, scale: float, positive_weight: float = 3.0
) -> Tensor:
    """Ours, not the paper's (after DenseCLIP, arXiv 2112.01518): token–text similarity against the mask.

    A cell that a lesion touches shall be like its class text, every other unlike all; selection ranks by this.

    Args:
        similarities: S, (B, T, K).
        labels: (B, H, W) int64.
        stride: pixels to a grid cell; T = ⌈H / stride⌉·⌈W / stride⌉.
        scale: turns a cosine into a logit.
        positive_weight: lesion cells are few; how much more each counts.
    """
    classes = similarities.shape[-1]
    one_hot = F.one_hot(labels, classes + 1)[..., 1:].permute(0, 3, 1, 2).float()  # (B, K, H, W)
    touched = F.max_pool2d(one_hot, stride, ceil_mode=True).flatten(2).mT  # (B, T, K)
    weight = torch.tensor(positive_weight, device=similarities.device)
    return F.binary_cross_entropy_with_logits(similarities * scale, touched, pos_weight=weight)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w·v / Σ w, the sum of weights taken over all processes; zero where nothing counts.

    So the mean over processes of what each returns is the mean over the whole batch, however the images lie.
    """
    total = weights.detach().sum(dtype=torch.promote_types(weights.dtype, torch.float32))
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return (values * weights).sum() / torch.where(total > 0, total, 1.0)
