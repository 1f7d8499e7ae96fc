"""Training: losses are their equations, sites are what they say, and a run resumed is the run itself."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from mcdrl_rt.errors import SourceError, SpecError
from mcdrl_rt.model.checkpoint import load_checkpoint, read_spec
from mcdrl_rt.types import ModelSpec, Region
from training import losses
from training import train as training
from training.dataset import LesionDataset
from training.metrics import score_image, selected_pixels, summarise
from training.recipe import Recipe, load_recipe
from training.sites import Sample, hold_out, load_site, read_sample

ROOT = Path(__file__).parents[1]


# --- losses ------------------------------------------------------------------------------------------------------


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
    assert losses.soft_dice_loss(logits, torch.zeros_like(labels)).item() == pytest.approx(1 - 1 / 3, abs=1e-6)


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


# --- metrics -----------------------------------------------------------------------------------------------------


def test_image_is_scored_by_hand() -> None:
    predicted, truth, seen = np.zeros((3, 4, 4), np.uint8)
    predicted[0, :3], truth[0, 1:], seen[:2, :2] = 1, 1, 1  # two of three agree
    score = score_image(predicted, truth, seen.astype(bool))
    assert (score.dice, score.iou, score.accuracy) == (pytest.approx(2 / 3), 0.5, 14 / 16)
    assert score.recall == pytest.approx(1 / 3)  # of pixels 1…3 only the first is seen
    assert score.lesion == 3 / 16


def test_two_empty_masks_agree_and_recall_is_undefined() -> None:
    empty = np.zeros((4, 4), np.uint8)
    score = score_image(empty, empty, np.ones((4, 4), bool))
    assert (score.dice, score.iou, score.accuracy) == (1.0, 1.0, 1.0)
    assert math.isnan(score.recall)


@pytest.mark.parametrize("stride", [16, 24])
def test_cells_cover_what_they_lie_on(small_spec: ModelSpec, stride: int) -> None:
    """Cells that stick out beyond the input are cut off, not squeezed in; outside the region nothing is seen."""
    height, width = small_spec.input_size
    grid = (-(-height // stride), -(-width // stride))
    spec = dataclasses.replace(small_spec, grid_stride=stride, grid=grid)
    cells = np.zeros(grid, bool)
    cells[0, 1] = cells[-1, -1] = True
    seen = selected_pixels(cells, spec, Region(4, 6, 2 * height, 2 * width), (2 * height + 9, 2 * width + 9))
    expected = np.zeros_like(seen)
    expected[4 : 4 + 2 * stride, 6 + 2 * stride : 6 + 4 * stride] = True
    corner = ((grid[0] - 1) * 2 * stride, (grid[1] - 1) * 2 * stride)
    expected[4 + corner[0] : 4 + 2 * height, 6 + corner[1] : 6 + 2 * width] = True
    np.testing.assert_array_equal(seen, expected)


def test_means_are_per_image_and_recall_per_lesion_pixel() -> None:
    small, large = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    small[0, 0], large[:5] = 1, 1
    top = np.arange(10)[:, None] < np.full(10, 5)
    scores = [
        score_image(small, small, ~top),  # missed by the selection
        score_image(np.zeros_like(large), large, top),
    ]
    figures = summarise(scores)
    assert (figures["dice"], figures["images"], figures["accuracy"]) == (0.5, 2, 0.75)
    assert figures["selection_recall"] == pytest.approx(50 / 51, abs=1e-4)
    assert figures["selection_recall_per_image"] == 0.5
    assert (figures["dice_small"], figures["dice_large"]) == (1.0, 0.0)
    assert "dice_medium" not in figures


# --- sites -------------------------------------------------------------------------------------------------------


def write_site(root: Path, count: int = 8, size: tuple[int, int] = (96, 120), suffix: str = ".png") -> Path:
    """A site of noise with one bright lesion in each image."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        image = rng.integers(80, 120, (*size, 3)).astype(np.uint8)
        mask = np.zeros(size, np.uint8)
        centre = (int(rng.integers(30, size[1] - 30)), int(rng.integers(30, size[0] - 30)))
        cv2.circle(image, centre, 18, (60, 90, 240), -1)  # red, as OpenCV writes it
        cv2.circle(mask, centre, 18, 255, -1)
        cv2.imwrite(str(root / "images" / f"im{i}{suffix}"), image)
        cv2.imwrite(str(root / "masks" / f"im{i}{suffix}"), mask)
    return root


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_site_of_images_and_masks_is_read_in_order(tmp_path: Path, suffix: str) -> None:
    samples = load_site(write_site(tmp_path / "site", suffix=suffix))
    assert [sample.group for sample in samples] == [f"im{i}" for i in range(8)]
    pixels, labels = read_sample(samples[0])
    assert (pixels.shape, pixels.dtype, labels.shape, labels.dtype) == ((96, 120, 3), np.uint8, (96, 120), np.uint8)
    assert set(np.unique(labels)) == {0, 1}
    lesion = pixels[labels == 1].mean(axis=0)
    assert lesion[0] > lesion[2] + 100  # RGB


def test_clinic_layout_groups_frames_by_sequence(tmp_path: Path) -> None:
    write_site(tmp_path / "plain", count=1)
    for source, target in (("images", "Original"), ("masks", "Ground Truth")):
        folder = tmp_path / "clinic" / "PNG" / target
        folder.mkdir(parents=True)
        for number in (1, 25, 26, 50, 612):
            (folder / f"{number}.png").write_bytes((tmp_path / "plain" / source / "im0.png").read_bytes())
    groups = {sample.image.stem: sample.group for sample in load_site(tmp_path / "clinic")}
    assert groups["1"] == groups["25"] == "sequence-01"
    assert groups["26"] == groups["50"] == "sequence-02"
    assert groups["612"] == "sequence-29"


def test_folder_that_is_no_site_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected images/ and masks/, or PNG/Original"):
        load_site(tmp_path)


def test_missing_masks_are_named(tmp_path: Path) -> None:
    site = write_site(tmp_path / "site")
    (site / "masks" / "im3.png").unlink()
    with pytest.raises(SourceError, match=r"1 of 8 images have no mask in masks/ im3\.png"):
        load_site(site)


def test_empty_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="0 of 0 images"):
        load_site(write_site(tmp_path / "site", count=0))


def test_mask_of_another_size_and_unreadable_image_are_named(tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", count=2)
    cv2.imwrite(str(site / "masks" / "im0.png"), np.zeros((10, 10), np.uint8))
    (site / "images" / "im1.png").write_text("no picture")
    for sample in load_site(site):
        with pytest.raises(SourceError, match=sample.image.name):
            read_sample(sample)


def test_clinicdb_is_29_sequences_of_neighbouring_frames(data_root: Path) -> None:
    samples = load_site(data_root / "CVC-ClinicDB")
    assert len(samples) == 612
    assert len({sample.group for sample in samples}) == 29
    in_order = sorted(samples, key=lambda sample: int(sample.image.stem))
    groups = [sample.group for sample in in_order]
    assert groups == sorted(groups)


def test_kvasir_is_1000_images_with_lesions(data_root: Path) -> None:
    samples = load_site(data_root / "Kvasir-SEG")
    assert len(samples) == 1000
    for sample in samples[::250]:
        assert 0 < read_sample(sample)[1].mean() < 1


def test_hold_out_is_disjoint_whole_and_the_same_whatever_the_order() -> None:
    samples = [Sample(Path(f"{i:03}.png"), Path("m.png"), str(i)) for i in range(50)]
    kept, held = hold_out(samples, 10, seed=3)
    assert (len(kept), len(held)) == (40, 10)
    assert {*kept, *held} == set(samples)
    assert hold_out(samples[::-1], 10, seed=3) == (kept, held)
    assert hold_out(samples, 10, seed=4)[1] != held
    assert held != samples[:10]


def test_dataset_serves_crops_of_the_networks_size(tmp_path: Path) -> None:
    samples = load_site(write_site(tmp_path / "site", count=3))
    plain = LesionDataset(samples, (64, 80), augment=False)
    pixels, labels = plain[1]
    assert (pixels.shape, pixels.dtype, labels.shape, labels.dtype) == ((3, 64, 80), torch.uint8, (64, 80), torch.int64)
    assert torch.equal(plain[1][0], pixels)
    augmented = LesionDataset(samples, (64, 80), augment=True, phantom_count=2)
    assert (len(plain), len(augmented)) == (3, 5)
    assert augmented[4][0].shape == (3, 64, 80)
    assert not torch.equal(augmented[1][0], augmented[1][0])
    assert set(augmented[1][1].unique().tolist()) <= {0, 1}


# --- recipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_recipe_in_the_repository_is_a_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name
    assert recipe.causal_from_epoch < recipe.epochs


def test_overrides_are_toml_and_win(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('name = "x"\nepochs = 3\ninput_size = [64, 96]')
    recipe = load_recipe(tmp_path / "r.toml", ["epochs=5", 'classes=["polyp", "cyst"]'])
    assert recipe == Recipe(name="x", epochs=5, input_size=(64, 96), classes=("polyp", "cyst"))


@pytest.mark.parametrize(
    ("text", "overrides", "complaint"),
    [
        (None, [], "cannot read recipe"),
        ("name = ", [], "cannot read recipe"),
        ('name = "x"', ["lr=fast"], "cannot read recipe .*lr=fast"),
        ('name = "x"', ["lr"], "cannot read recipe"),
        ('name = "x"\nepoch = 3', [], "unknown settings epoch; known: alpha, "),
        ("epochs = 3", [], "has no name"),
    ],
)
def test_recipe_that_is_none_is_refused(
    tmp_path: Path, text: str | None, overrides: list[str], complaint: str
) -> None:
    path = tmp_path / "r.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SpecError, match=complaint) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)


# --- the loop ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Recipe:
    """A recipe of two epochs of four steps on the site at ``tmp_path / "tiny"``."""
    write_site(tmp_path / "tiny", count=9)
    return Recipe(
        name="tiny",
        input_size=(64, 64),
        train_site="tiny",
        validation_count=1,
        depth=1,
        confounders=3,
        epochs=2,
        causal_from_epoch=1,
        batch_size=2,
        seed=7,
    )


def weights(path: Path) -> dict[str, Tensor]:
    return load_checkpoint(path).state_dict()


def test_resumed_run_is_the_run_itself(tiny: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    straight = training.train(tiny, tmp_path, tmp_path / "straight")

    torch.manual_seed(tiny.seed)  # the first epoch alone, as if the machine then went down
    model = training.initial_model(tiny, tmp_path)
    samples, _ = hold_out(load_site(tmp_path / "tiny"), 1, tiny.seed)
    dataset = LesionDataset(samples, tiny.input_size, True, 0, tiny.seed)
    trainer = training.Trainer(tiny, model, steps_per_epoch=4)
    trainer.epoch(0, training.batches(dataset, tiny, 0))
    (tmp_path / "resumed").mkdir()
    trainer.save(tmp_path / "resumed" / "last.pt", 1)
    torch.manual_seed(12345)  # another process has other random numbers
    resumed = training.train(tiny, tmp_path, tmp_path / "resumed")

    one, other = weights(straight), weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    log = [json.loads(line) for line in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
    again = [json.loads(line) for line in (tmp_path / "resumed" / "log.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in again] == [2]
    assert {k: v for k, v in again[0].items() if k != "seconds"} == {k: v for k, v in log[1].items() if k != "seconds"}
    assert "causal" not in log[0] and "causal" in log[1]  # the schedule: off at first
    assert training.train(tiny, tmp_path, tmp_path / "resumed") == resumed  # nothing left to do
    assert all(torch.equal(one[name], value) for name, value in weights(resumed).items())
    assert "epochs 2 to 2" in capsys.readouterr().out


def test_order_of_the_data_depends_on_seed_and_epoch_alone(tiny: Recipe, tmp_path: Path) -> None:
    dataset = LesionDataset(load_site(tmp_path / "tiny"), tiny.input_size, augment=True)

    def first(recipe: Recipe, epoch: int) -> Tensor:
        torch.manual_seed(np.random.SeedSequence().entropy % 2**31)  # whatever the process drew before
        return next(iter(training.batches(dataset, recipe, epoch)))[0]

    again = first(tiny, 1)
    assert torch.equal(first(tiny, 1), again)
    assert not torch.equal(first(tiny, 0), again)
    assert not torch.equal(first(dataclasses.replace(tiny, seed=8), 1), again)


def test_checkpoint_carries_its_recipe(tiny: Recipe, tmp_path: Path) -> None:
    path = training.train(dataclasses.replace(tiny, epochs=1), tmp_path, tmp_path / "run")
    spec = read_spec(path)
    assert (spec.name, spec.input_size, spec.classes, spec.grid) == ("tiny", (64, 64), ("polyp",), (4, 4))
    recipe = json.loads(spec.provenance["recipe"])
    assert (recipe["seed"], recipe["train_site"], recipe["epochs"]) == (7, "tiny", 1)


def test_training_learns_the_lesion(tiny: Recipe, tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny, lr=2e-3, warmup_epochs=0.0, epochs=1, causal_from_epoch=0)
    torch.manual_seed(0)
    trainer = training.Trainer(recipe, training.initial_model(recipe, tmp_path), steps_per_epoch=30)
    dataset = LesionDataset(load_site(tmp_path / "tiny"), recipe.input_size, augment=False)
    pixels, labels = (torch.stack(side) for side in zip(*(dataset[i] for i in range(4)), strict=True))
    frozen = {name: value.clone() for name, value in trainer.model.named_buffers() if name.startswith("text_")}
    history = [trainer.step(pixels, labels, intervene=True) for _ in range(30)]
    for name in ("segmentation", "dice", "dense", "causal"):
        assert history[-1][name] < 0.7 * history[0][name], name
    assert all(torch.equal(value, dict(trainer.model.named_buffers())[name]) for name, value in frozen.items())


def test_encoder_weights_are_loaded_and_trained_at_their_own_rate(tiny: Recipe, data_root: Path) -> None:
    recipe = dataclasses.replace(tiny, encoder_weights="weights/mobilenetv2_100_imagenet.safetensors")
    torch.manual_seed(0)
    model = training.initial_model(recipe, data_root)
    torch.manual_seed(0)
    random = training.initial_model(tiny, data_root)
    assert not torch.equal(model.encoder.trunk.conv_stem.weight, random.encoder.trunk.conv_stem.weight)
    groups = training.Trainer(recipe, model, 4).optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == [recipe.encoder_lr, recipe.lr]
    assert len(groups[0]["params"]) == len(list(model.encoder.trunk.parameters()))


def test_encoder_weights_that_do_not_fit_are_refused(tiny: Recipe, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(SpecError, match="no encoder weights at"):
        training.initial_model(dataclasses.replace(tiny, encoder_weights="none.safetensors"), tmp_path)
    save_file({"foreign": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(SpecError, match="does not fit the image trunk"):
        training.initial_model(dataclasses.replace(tiny, encoder_weights="foreign.safetensors"), tmp_path)


def test_command_line_ends_with_one_line_on_a_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "training" / "recipes" / "small.toml"
    arguments = ["train", str(recipe), "--run", str(tmp_path / "run"), "--data", str(tmp_path), "--set", "depht=1"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert training.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: recipe ") and "depht" in err and err.count("\n") == 1
