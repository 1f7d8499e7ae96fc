"""Sites are what their publishers say they are, and what is wrong with one is said."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from miniature import write_pair, write_site

from mcdrl_rt.errors import SourceError, SpecError
from training.manifest import MANIFESTS
from training.sites import (
    UNMATCHED,
    UNTAKEN,
    find_sites,
    load_site,
    read_sample,
    scan_site,
    site_folder,
    site_names,
)
from training.split import hold_out

PLAIN_LAYOUT = '[[layout]]\nimage = "images/*.png"\nmask = "masks/{name}"'


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_site_of_images_and_masks_is_read_in_order(tmp_path: Path, suffix: str) -> None:
    samples = load_site(write_site(tmp_path / "site", suffix=suffix))
    assert [sample.group for sample in samples] == [f"images/im{i}" for i in range(8)]
    pixels, labels = read_sample(samples[0])
    assert (pixels.shape, pixels.dtype, labels.shape, labels.dtype) == ((96, 120, 3), np.uint8, (96, 120), np.uint8)
    assert set(np.unique(labels)) == {0, 1}
    lesion = pixels[labels == 1].mean(axis=0)
    assert lesion[0] > lesion[2] + 100  # RGB


def test_clinic_layout_groups_frames_by_sequence(tmp_path: Path) -> None:
    write_site(tmp_path / "plain", count=1)
    for source, target in (("images", "Original"), ("masks", "Ground Truth")):
        folder = tmp_path / "CVC-ClinicDB" / "PNG" / target
        folder.mkdir(parents=True)
        for number in (1, 25, 26, 50, 612):
            (folder / f"{number}.png").write_bytes((tmp_path / "plain" / source / "im0.png").read_bytes())
    groups = {sample.image.stem: sample.group for sample in load_site(tmp_path / "CVC-ClinicDB")}
    assert groups["1"] == groups["25"] == "sequence-01"
    assert groups["26"] == groups["50"] == "sequence-02"
    assert groups["612"] == "sequence-29"


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/7.png", "masks/7.png"),
        ("Original/7.tif", "Ground Truth/7.tif"),
        ("Original/7.tif", "Ground Truth/p7.tif"),
        ("Original/7.png", "Ground Truth/7.png"),
        ("ETIS-LaribPolypDB/Original/7.tif", "ETIS-LaribPolypDB/Ground Truth/p7.tif"),
    ],
)
def test_etis_is_read_in_every_form_it_is_passed_on_in(tmp_path: Path, image: str, mask: str) -> None:
    folder = tmp_path / "ETIS-LaribPolypDB"
    write_pair(folder / image, folder / mask)
    (sample,) = load_site(folder)
    pixels, labels = read_sample(sample)
    assert (sample.lesion, pixels.shape, labels.mean()) == ("polyp", (40, 50, 3), 0.5)
    assert pixels[0, 0].tolist() == [200, 60, 30]


@pytest.mark.parametrize("name", ["Kvasir-SEG", "CVC-ClinicDB", "ETIS-Larib"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_published_site_may_be_images_and_masks(tmp_path: Path, name: str, suffix: str) -> None:
    write_pair(tmp_path / name / "images" / f"7{suffix}", tmp_path / name / "masks" / "7.png")
    (sample,) = load_site(tmp_path / name)
    assert read_sample(sample)[1].mean() == 0.5


def test_bronchoscopy_polygons_become_masks_and_landmarks_none(tmp_path: Path) -> None:
    folder = tmp_path / "BM-BronchoLC"
    split = folder / "Lung_cancer"
    for name in "abcd":
        write_pair(split / "imgs" / "p1" / f"{name}.png", None)
    square = [{"x": x, "y": y} for x, y in ((10, 5), (29, 5), (29, 24), (10, 24))]
    twice = [("a", ["t1"], square), ("a", ["t1"], square)]  # no hole where outlines overlap
    others = [("a", ["t2"], square), ("a", ["t9"], square), ("b", ["t2"], square), ("b", ["t1"], square[:2])]
    short = [("d", ["t1"], square[:1]), ("d", ["t1"], None)]
    entries = twice + others + short
    annotations = [{"object_id": i, "label_ids": labels, "data": data} for i, labels, data in entries]
    (split / "annotation.json").write_text(json.dumps(annotations))
    names = {"t1": "Tumor", "t2": "Muscosal erythema", "t9": "Carina"}
    (split / "labels.json").write_text(json.dumps([{"id": i, "name": name} for i, name in names.items()]))
    site = scan_site(folder)
    assert [(s.image.stem, s.lesion) for s in site.samples] == [
        ("a", "tumor"),
        ("b", "inflammation"),
        ("c", "none"),
        ("d", "none"),
    ]
    assert (site.unnamed, site.without_mask) == ({"Carina": 1}, [])
    assert site.notes == {
        "images that the annotation does not name, taken as without lesion": 1,
        "outlines of a second class in an image, left out": 1,
        "outlines of one or two points, left out": 2,
    }
    sizes = [int(read_sample(sample)[1].sum()) for sample in site.samples]
    assert sizes == [400, 400, 0, 0]
    assert read_sample(site.samples[0], label=3)[1].max() == 3


def write_outlines(folder: Path, outlines: dict[str, list[tuple[float, float]]]) -> Path:
    """A site of bronchoscopy with an image, ``a``, of 40 × 50 and outlines of tumours."""
    split = folder / "BM-BronchoLC" / "Lung_cancer"
    write_pair(split / "imgs" / "a.png", None)
    entries = [
        {"object_id": name, "label_ids": ["t"], "data": [{"x": x, "y": y} for x, y in points]}
        for name, points in outlines.items()
    ]
    (split / "annotation.json").write_text(json.dumps(entries))
    (split / "labels.json").write_text('[{"id": "t", "name": "Tumor"}]')
    return split.parent


def test_outlines_of_what_is_no_image_are_told(tmp_path: Path) -> None:
    square = [(10.0, 5.0), (29.0, 5.0), (29.0, 24.0)]
    site = scan_site(write_outlines(tmp_path, {"a.png": square, "b": square, "c": []}))
    assert site.notes == {
        "object ids with outlines that are no image's name here, without its suffix: left out": 2,
        "images that the annotation does not name, taken as without lesion": 1,
    }


@pytest.mark.parametrize(
    "outline",
    [
        [(0.1, 0.1), (0.9, 0.1), (0.9, 1)],
        [(50, 5), (60, 5), (60, 9)],
        [(5, -9), (9, -9), (9, -1)],
        [(5, 5), (9, 5), (9, float("nan"))],
        [(5, 5), (9, 5), (9, float("inf"))],
        [(5, 5), (9, 5), (9, 1e30)],
    ],
)
def test_an_outline_outside_of_its_image_is_refused(tmp_path: Path, outline: list[tuple[float, float]]) -> None:
    (sample,) = load_site(write_outlines(tmp_path, {"a": outline}))
    with pytest.raises(SourceError, match=r"a\.png has an outline outside of it: outlines are in pixels, not 0 to 1"):
        read_sample(sample)


def test_an_outline_may_leave_its_image(tmp_path: Path) -> None:
    (sample,) = load_site(write_outlines(tmp_path, {"a": [(-9, -9), (24, -9), (24, 60), (-9, 60)]}))
    assert read_sample(sample)[1].mean() == 0.5


def test_laryngoscopy_without_masks_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "Laryngoscope8"
    write_pair(folder / "Nodules" / "1.jpg", None)
    write_pair(folder / "Cyst" / "2.jpg", folder / "masks" / "Cyst" / "2.png")
    site = scan_site(folder)
    assert [(s.image.name, s.lesion) for s in site.samples] == [("2.jpg", "cyst")]
    assert [path.name for path in site.without_mask] == ["1.jpg"]
    with pytest.raises(SourceError, match=r"1 of 2 images have no mask: 1\.jpg"):
        load_site(folder)


def test_own_manifest_describes_any_folder(tmp_path: Path) -> None:
    for patient in (1, 2):
        for i in range(2):
            write_pair(tmp_path / "f" / f"patient{patient}_{i}.bmp", tmp_path / "t" / f"patient{patient}_{i}_m.png")
    (tmp_path / "site.toml").write_text(
        'name = "Ours"\nclass = "cyst"\ngroup = "patient[0-9]+"\n'
        '[[layout]]\nimage = "f/*.bmp"\nmask = ["t/{stem}.png", "t/{stem}_m.png"]\n'
    )
    site = scan_site(tmp_path)
    assert (site.name, {s.lesion for s in site.samples}) == ("Ours", {"cyst"})
    assert [s.group for s in site.samples] == ["patient1", "patient1", "patient2", "patient2"]
    kept, held = hold_out(site.samples, 1, seed=0)
    assert len(kept) == len(held) == 2 and kept[0].group != held[0].group  # a patient stays on one side


def test_a_site_has_one_name_wherever_it_lies(tmp_path: Path) -> None:
    assert site_names(tmp_path / "kvasir-seg") == ["Kvasir-SEG", "kvasir-seg"]
    assert site_names(tmp_path / "mine") == ["mine"]
    folder = write_site(tmp_path / "kvasir-seg", suffix=".jpg")
    (folder / "site.toml").write_text('class = "cyst"\n[[layout]]\nimage = "images/*"\nmask = "masks/{name}"\n')
    assert site_names(folder) == ["Kvasir-SEG", "kvasir-seg"]  # described anew, and the same pictures
    assert find_sites(tmp_path) == [site_folder(tmp_path, "Kvasir-SEG")] == [folder]
    assert site_folder(tmp_path, "gone") == tmp_path / "gone"
    write_site(tmp_path / "Kvasir-SEG", suffix=".jpg")
    with pytest.raises(SourceError, match=r"Kvasir-SEG and .*kvasir-seg are both the site Kvasir-SEG; keep"):
        find_sites(tmp_path)


def test_a_group_may_be_a_folder_and_what_has_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("patient1/0001", "patient1/0002", "patient2/0001", "others/0001"):
        write_pair(tmp_path / "f" / f"{place}.png", tmp_path / "t" / f"{place.replace('/', '_')}.png")
    (tmp_path / "site.toml").write_text(
        'group = "patient[0-9]+"\n[[layout]]\nimage = "f/*/*.png"\nmask = "t/{folder}_{stem}.png"\n'
    )
    groups = {sample.image.relative_to(tmp_path / "f").as_posix(): sample.group for sample in load_site(tmp_path)}
    assert groups == {
        "patient1/0001.png": "patient1",
        "patient1/0002.png": "patient1",
        "patient2/0001.png": "patient2",
        "others/0001.png": "f/others/0001.png",
    }
    said = capsys.readouterr().err
    assert said == f"{tmp_path}: 1 images that the manifest's group does not match, each a group of its own\n"


def test_images_of_one_name_in_two_folders_are_two_groups(tmp_path: Path) -> None:
    folder = tmp_path / "Laryngoscope8"
    for name in ("Cyst", "Nodules"):
        write_pair(folder / name / "1.jpg", folder / "masks" / name / "1.png")
    assert [sample.group for sample in load_site(folder)] == ["Cyst/1", "Nodules/1"]


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        ("^(.+)_[0-9]+$", {"a_b": 2, "a_c": 1}),
        ("^(?:(a)|x)_([bc])", {"a/b": 2, "a/c": 1}),
        ("^(x)?a_.", {"a_b": 2, "a_c": 1}),
        ("_[0-9]+$", {"_1": 2, "_2": 1}),
    ],
)
def test_a_group_is_what_its_parentheses_take_in(tmp_path: Path, pattern: str, groups: dict[str, int]) -> None:
    for stem in ("a_b_1", "a_b_2", "a_c_1"):
        write_pair(tmp_path / "images" / f"{stem}.png", tmp_path / "masks" / f"{stem}.png")
    (tmp_path / "site.toml").write_text(f"group = '{pattern}'\n{PLAIN_LAYOUT}")
    site = scan_site(tmp_path)
    assert Counter(sample.group for sample in site.samples) == groups and not site.notes


def test_a_group_that_puts_nothing_together_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pair(tmp_path / "images" / "a_1.png", tmp_path / "masks" / "a_1.png")
    (tmp_path / "site.toml").write_text(f"group = '^.+_[0-9]+$'\n{PLAIN_LAYOUT}")
    assert not scan_site(tmp_path).notes
    write_pair(tmp_path / "images" / "a_2.png", tmp_path / "masks" / "a_2.png")
    load_site(tmp_path)
    note = "2 images, no two of which the manifest's group puts together\n"
    assert capsys.readouterr().err == f"{tmp_path}: {note}"
    (tmp_path / "site.toml").write_text(f"group = 'patient'\n{PLAIN_LAYOUT}")
    assert list(scan_site(tmp_path).notes) == [UNMATCHED]


def test_images_of_other_layouts_are_told_or_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, suffix in (("a/1", "png"), ("b/2", "png"), ("b/3", "jpg")):
        write_pair(tmp_path / f"{place}.{suffix}", tmp_path / "masks" / f"{place[2:]}.png")
    layouts = "".join(f'[[layout]]\nimage = "{one}/*"\nmask = "masks/{{stem}}.png"\n' for one in "ab")
    (tmp_path / "site.toml").write_text(layouts)
    assert [sample.image.stem for sample in load_site(tmp_path)] == ["1"]
    assert capsys.readouterr().err == f"{tmp_path}: 2 {UNTAKEN}\n"
    (tmp_path / "site.toml").write_text(f"all_layouts = false\n{layouts}")
    assert len(load_site(tmp_path)) == 1
    (tmp_path / "site.toml").write_text(f"all_layouts = true\n{layouts}")
    assert [sample.image.stem for sample in load_site(tmp_path)] == ["1", "2", "3"]
    assert capsys.readouterr().err == ""
    (tmp_path / "site.toml").write_text(f"all_layouts = true\n{layouts.replace('a/*', '[ab]/*.png')}")
    with pytest.raises(SourceError, match=r"b/2\.png is of two layouts of .*site\.toml: keep it out of one"):
        load_site(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("layout = ", "cannot read"),
        ('name = "é"', "cannot read"),
        (f'classes = "polyp"\n{PLAIN_LAYOUT}', "has .classes. that are no names"),
        (f"class = 5\n{PLAIN_LAYOUT}", "has a class that is no text"),
        (f"group_starts = 5\n{PLAIN_LAYOUT}", "has group_starts that is no list of numbers"),
        (f'folders = "ours"\n{PLAIN_LAYOUT}', "has folders that are no list of names"),
        ("x = 1", "needs .*layout"),
        ("layout = []", "needs .*layout"),
        ('[[layout]]\nimage = "*.png"', "needs .*layout"),
        ('[[layout]]\nimage = "*.png"\nmask = ""', "needs .*layout.* with image, and either mask or polygons"),
        ('[[layout]]\nimage = "*.png"\nmask = []', "needs .*layout"),
        ('[[layout]]\nimage = "*.png"\nmask = ["{stem}.png", 3]', "needs .*layout"),
        ('[[layout]]\nimage = "*.png"\npolygons = 3\nlabels = "l.json"', "needs .*layout"),
        ('[[layout]]\nimage = "*.png"\npolygons = "p.json"\nlabels = 4', "needs .*layout"),
        ('[[layout]]\nimage = "*.png"\npolygons = "p.json"', "needs .*layout.* polygons and labels"),
        ('[[layout]]\nimage = "*.png"\nmask = "{stem}.png"\npolygons = "p.json"\nlabels = "l.json"', "either"),
        (f'{PLAIN_LAYOUT}\ngroup = "p[0-9]"', "has group below a .heading.: it belongs above them all"),
        (f'{PLAIN_LAYOUT}\nclass = "cyst"', "has class below a .heading."),
        (f'[classes]\ngroup = "p[0-9]"\n{PLAIN_LAYOUT}', "has group below a .heading."),
        (f'{PLAIN_LAYOUT}\nmasks = "m/*.png"', "has a ..layout.. with masks, which is none of image, mask, polygons"),
        (f'grup = "p[0-9]"\n{PLAIN_LAYOUT}', "has grup, which is none of name, class, group, "),
        (f'all_layouts = "yes"\n{PLAIN_LAYOUT}', "has all_layouts that is neither true nor false"),
        (f'group = "(p"\n{PLAIN_LAYOUT}', "has a group that is no regular expression"),
        (f'class = "{{organ}}"\n{PLAIN_LAYOUT}', "has a placeholder 'organ' that is none of {stem}, {name}, {folder}"),
        ('[[layout]]\nimage = "/data/*.png"\nmask = "{stem}.png"', "has a pattern that is none .*relative"),
    ],
)
def test_unusable_manifest_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "site.toml").write_text(text, encoding="latin-1")
    with pytest.raises(SpecError, match=complaint):
        load_site(tmp_path)


def test_a_manifest_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_pair(tmp_path / "images" / "é.png", tmp_path / "masks" / "é.png")
    (tmp_path / "site.toml").write_text(f'name = "é"\n{PLAIN_LAYOUT}', encoding="utf-8-sig")
    assert scan_site(tmp_path).name == "é"


@pytest.mark.parametrize("text", ["{", "[1]", '[{"object_id": "a"}]'])
def test_foreign_annotations_are_named(tmp_path: Path, text: str) -> None:
    split = tmp_path / "BM-BronchoLC" / "Lung_cancer"
    write_pair(split / "imgs" / "a.png", None)
    (split / "labels.json").write_text("[]")
    (split / "annotation.json").write_text(text)
    with pytest.raises(SourceError, match=r"annotation\.json is not annotation JSON"):
        load_site(split.parent)
    (split / "labels.json").write_text(text)
    with pytest.raises(SourceError, match=r"labels\.json is not annotation JSON"):
        load_site(split.parent)
    (split / "labels.json").unlink()
    with pytest.raises(SourceError, match=r"cannot read .*labels\.json: No such file"):
        load_site(split.parent)


def test_every_built_in_manifest_is_whole() -> None:
    described = [tomllib.loads(path.read_text()) for path in MANIFESTS.glob("*.toml")]
    assert sorted(one["letter"] for one in described) == ["", "A", "B", "C", "D", "E"]
    for one in described:
        assert one["layout"] and all("image" in layout for layout in one["layout"])


def test_folder_that_is_no_site_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"is no site: expected images/\*\.\* with masks/{stem}\.png .*site\.toml"):
        load_site(tmp_path)
    with pytest.raises(SourceError, match="no site at"):
        load_site(tmp_path / "gone")


def test_missing_masks_are_named(tmp_path: Path) -> None:
    site = write_site(tmp_path / "site")
    (site / "masks" / "im3.png").unlink()
    with pytest.raises(SourceError, match=r"1 of 8 images have no mask: im3\.png"):
        load_site(site)


def test_mask_of_another_size_and_unreadable_image_are_named(tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", count=3)
    cv2.imwrite(str(site / "masks" / "im0.png"), np.zeros((10, 10), np.uint8))
    (site / "images" / "im1.png").write_text("no picture")
    (site / "images" / "im2.png").rename(site / "images" / "im2.tif")
    (site / "images" / "im2.tif").write_text("no picture")
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
