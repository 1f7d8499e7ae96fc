"""Sites are what their publishers say they are, and what is wrong with one is said."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from miniature import write_site

from mcdrl_rt.errors import SourceError
from training.sites import Sample, hold_out, load_site, read_sample


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
