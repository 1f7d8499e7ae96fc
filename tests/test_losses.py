"""Losses are their equations, worked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor

from training import losses


def test_segmentation_loss_is_cross_entropy_over_background_and_classes() -> None:
    logits = torch.zeros(1, 3, 1, 2)
    logits[0, 2, 0, 1] = math.log(2)  # probabilities ⅓ ⅓ ⅓ and ¼ ¼ ½
    loss = losses.segmentation_loss(logits, tensor([[[0, 2]]]))
    assert loss.item() == pytest.approx((math.log(3) + math.log(2)) / 2)


def test_causal_loss_is_the_squared_distance_of_unit_vectors() -> None:
    intervened = tensor([[[3.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 4.0]]])  # pool to (2, 0) and (0, 3)
    targets = tensor([[5.0, 0.0], [3.0, 4.0]])  # unit: (1, 0) and (0.6, 0.8)
    loss = losses.causal_loss(intervened, targets, tensor([1, 2]))
    assert loss.item() == pytest.approx((0 + 0.36 + 0.04) / 2)
    both_second = losses.causal_loss(intervened, targets, tensor([2, 2]))
    assert both_second.item() == pytest.approx((0.16 + 0.64 + 0.36 + 0.04) / 2)


def test_contrast_loss_is_infonce_over_the_classes() -> None:
    summary, texts = tensor([[2.0, 0.0]]), tensor([[7.0, 0.0], [0.0, 1.0]])
    loss = losses.contrast_loss(summary, texts, tensor([2]), temperature=0.5)  # cosines 1, 0 → logits 2, 0
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.e**2)), rel=1e-5)


def test_image_without_lesion_takes_no_part_in_the_text_losses() -> None:
    torch.manual_seed(0)
    f, targets, summary = torch.randn(3, 4, 8), torch.randn(2, 8), torch.randn(3, 8)
    classes, lesions = tensor([1, 0, 2]), [0, 2]
    causal = losses.causal_loss(f, targets, classes)
    assert torch.allclose(causal, losses.causal_loss(f[lesions], targets, classes[lesions]))
    contrast = losses.contrast_loss(summary, targets, classes, 0.5)
    assert torch.allclose(contrast, losses.contrast_loss(summary[lesions], targets, classes[lesions], 0.5))


def test_batch_without_any_lesion_costs_nothing_and_trains_nothing() -> None:
    f, summary, targets = (torch.randn(2, 4, 8), torch.randn(2, 8), torch.randn(2, 8))
    f.requires_grad_(), summary.requires_grad_()
    none = tensor([0, 0])
    total = losses.causal_loss(f, targets, none) + losses.contrast_loss(summary, targets, none, 0.5)
    total.backward()
    assert total.item() == 0
    assert f.grad is not None and summary.grad is not None
    assert not f.grad.any() and not summary.grad.any()


def test_dice_loss_is_one_minus_dice_per_image() -> None:
    logits = torch.full((2, 2, 2, 2), 0.0)
    logits[:, 1] = tensor([[50.0, 50.0], [-50.0, -50.0]])  # the upper row is lesion
    labels = tensor([[[1, 1], [0, 0]], [[1, 0], [1, 0]]])
    expected = ((1 - (2 * 2 + 1) / (2 + 2 + 1)) + (1 - (2 * 1 + 1) / (2 + 2 + 1))) / 2
    assert losses.soft_dice_loss(logits, labels).item() == pytest.approx(expected, abs=1e-6)
    without = torch.zeros_like(labels)
    assert losses.soft_dice_loss(logits, without).item() == 0  # cross-entropy alone tells what is marked wrongly there
    both = losses.soft_dice_loss(torch.cat([logits, logits]), torch.cat([labels, without])).item()
    assert both == pytest.approx(expected, abs=1e-6)


def test_dense_alignment_wants_touched_cells_like_their_class_and_others_unlike_all() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 1, 1] = 2  # one pixel touches the first of 2×2 cells
    similarities = torch.zeros(1, 4, 2)
    similarities[0, 0, 1], similarities[0, 3, 0] = 0.5, -0.25
    loss = losses.dense_alignment_loss(similarities, labels, 2, scale=4.0, positive_weight=3.0)

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    expected = (3 * softplus(-2.0) + softplus(-1.0) + 6 * softplus(0.0)) / 8
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_dense_alignment_keeps_the_grids_order() -> None:
    labels = torch.zeros(1, 4, 5, dtype=torch.int64)
    labels[0, :2, 4:] = 1  # top right of 2×3 cells of stride 2, the last column of which sticks out
    right, wrong = torch.full((1, 6, 1), -1.0), torch.full((1, 6, 1), -1.0)
    right[0, 2, 0], wrong[0, 3, 0] = 1.0, 1.0
    cost = [losses.dense_alignment_loss(s, labels, 2, 10.0).item() for s in (right, wrong)]
    assert cost[0] < 0.01 < 1 < cost[1]


def test_pixels_near_an_edge_count_more_and_far_ones_alike() -> None:
    labels = torch.zeros(1, 40, 40, dtype=torch.int64)
    labels[0, :, 20:] = 1
    weight = losses.edge_weight(labels, strength=3.0, share=0.1)  # a neighbourhood of 5 pixels
    assert torch.equal(weight[0, :, :18], torch.ones(40, 18)) and torch.equal(weight[0, :, 22:], torch.ones(40, 18))
    assert weight[0, 7, 19].item() == pytest.approx(1 + 3 * 2 / 5)  # two of five columns are of the other kind
    assert torch.equal(losses.edge_weight(torch.zeros_like(labels), 3.0), torch.ones(1, 40, 40))


def test_weights_matter_to_the_segmentation_terms() -> None:
    logits, labels = torch.randn(1, 2, 1, 2), tensor([[[0, 1]]])
    first, second = (losses.segmentation_loss(logits[..., i : i + 1], labels[..., i : i + 1]) for i in (0, 1))
    weight = tensor([[[1.0, 3.0]]])
    assert losses.segmentation_loss(logits, labels, weight).item() == pytest.approx((first + 3 * second).item() / 4)
    plain = losses.soft_dice_loss(logits, labels)
    assert torch.equal(losses.soft_dice_loss(logits, labels, weight=torch.ones(1, 1, 2)), plain)


def test_readout_loss_is_least_where_the_readout_names_what_is_shown() -> None:
    shown = tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    readout = tensor([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]])
    expected = (-(math.log(0.5) + math.log(0.25)) / 2 - math.log(0.6)) / 2
    assert losses.readout_loss(readout, shown).item() == pytest.approx(expected, rel=1e-5)
