"""The data check: it counts what is there, and names what is wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from miniature import write_site

from mcdrl_rt.video.phantom import Phantom
from training import data
from training.data import check_folder, perceptual_hash


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two sites: one of noise, one of the phantom's pictures, the second of which is among the first site's too."""
    noise = write_site(tmp_path / "noise", count=3)
    for i in range(4):
        frame = Phantom((120, 160), seed=i).render(20 * i)
        for folder, pixels in (("images", frame.pixels[..., ::-1]), ("masks", frame.mask * 255)):
            (tmp_path / "phantom" / folder).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "phantom" / folder / f"{i}.png"), pixels)
    picture = cv2.imread(str(tmp_path / "phantom" / "images" / "1.png"))
    cv2.imwrite(str(noise / "images" / "again.jpg"), cv2.resize(picture, (140, 105)))
    cv2.imwrite(str(noise / "masks" / "again.png"), np.zeros((105, 140), np.uint8))
    return tmp_path


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["data", "check", str(folder), *options])
    return data.main()


def close(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Close a folder, to root, who may run the tests, as to anybody."""
    stat = os.stat

    def closed(path: object, **options: bool) -> os.stat_result:
        if place in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "stat", closed)


def test_sites_are_counted(archive: Path) -> None:
    (noise, phantom), twins = check_folder(archive)
    assert (noise.site, noise.images, noise.classes, noise.groups) == ("noise", 4, {"polyp": 3}, 4)
    assert noise.sizes == ("96×120", "105×140")
    assert noise.empty == ["images/again.jpg"] and noise.usable  # a picture without lesion is no fault
    assert phantom.images == 4 and phantom.sizes == ("120×160", "120×160")
    (pair,) = twins
    assert {Path(path).name for path in pair} == {"again.jpg", "1.png"}


def test_pictures_that_are_no_site_are_told(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(archive, monkeypatch) == 0
    out = capsys.readouterr().out
    assert "holds pictures" not in out and "neither image nor mask" not in out
    for place in ("images/more/x.png", "masks/orphan.png"):
        (archive / "noise" / place).parent.mkdir(exist_ok=True)
        (archive / "noise" / place).write_bytes((archive / "noise" / "masks" / "im0.png").read_bytes())
    assert run(archive, monkeypatch) == 0
    assert "  2 are neither image nor mask: images/more/x.png, masks/orphan.png\n" in capsys.readouterr().out
    (archive / "noise").rename(archive / "other")
    (archive / "other" / "images").rename(archive / "other" / "Images")
    assert run(archive, monkeypatch) == 0
    assert f"{archive / 'other'} holds pictures, but no site: expected images/" in capsys.readouterr().out


def test_what_stops_training_is_named_and_fails(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(archive, monkeypatch) == 0
    assert "1 pairs look the same" in capsys.readouterr().out
    (archive / "noise" / "masks" / "im0.png").unlink()
    (archive / "noise" / "images" / "im1.png").write_text("cut off")
    cv2.imwrite(str(archive / "noise" / "masks" / "im2.png"), np.zeros((9, 9), np.uint8))
    assert run(archive, monkeypatch) == 1
    out = capsys.readouterr().out
    assert "1 have no mask: images/im0.png" in out
    assert "2 cannot be used: " in out and "im1.png: damaged" in out and "im2.png and its mask differ in size" in out
    assert run(archive, monkeypatch, "--json") == 1
    sites = json.loads(capsys.readouterr().out)["sites"]
    assert [len(site["unreadable"]) for site in sites] == [2, 0]


def test_a_folder_that_is_closed_is_passed_over(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (archive / "lost+found").mkdir()
    close(monkeypatch, "lost+found/")
    assert run(archive, monkeypatch) == 0
    out, err = capsys.readouterr()
    assert "noise" in out and "lost+found" not in out
    assert err == f"passed over: cannot look into {archive / 'lost+found'}: Permission denied\n"
    assert run(archive / "lost+found", monkeypatch) == 1
    assert capsys.readouterr().err == f"error: cannot look into {archive / 'lost+found'}: Permission denied\n"


def test_masks_that_are_closed_stop_the_check_of_no_other_site(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    close(monkeypatch, "noise/masks/")
    assert run(archive, monkeypatch) == 1
    out, err = capsys.readouterr()
    said = f"cannot look for the mask of {archive / 'noise' / 'images' / 'again.jpg'}: Permission denied\n"
    assert f"0 images in 0 groups; none with a lesion\n  1 cannot be used: {said}phantom" in out and not err
    assert run(archive / "noise", monkeypatch) == 1
    assert capsys.readouterr().err.endswith(f"\nerror: {said}")


BENCHMARK = "import sys; sys.path.insert(0, 'benchmarks'); import outputs; outputs.run_main(lambda: print('x'))"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", [("-m", "training.data", "check", "."), ("-c", BENCHMARK)], ids=lambda one: one[0])
def test_a_reader_that_leaves_ends_it_quietly(program: tuple[str, ...], unbuffered: str, archive: Path) -> None:
    arguments = [str(archive) if word == "." else word for word in program]
    reader, writer = os.pipe()
    os.close(reader)  # as head does
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_one_site_alone_and_none_at_all(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(archive / "phantom", monkeypatch) == 0
    assert "no near-duplicates" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    for folder in (tmp_path / "none", tmp_path / "gone"):
        assert run(folder, monkeypatch) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_a_published_site_in_another_layout_is_told_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_site(tmp_path / "sites" / "BM-BronchoLC", count=1)
    assert run(tmp_path / "sites", monkeypatch) == 1
    expected = "expected Lung_cancer/imgs/**/*.* with Lung_cancer/annotation.json; or Non_lung_cancer/"
    strange = f"{folder} holds pictures, but no site: {expected}"
    assert capsys.readouterr().err.startswith(f"error: no site in {folder.parent}, nor is it one: {strange}")
    write_site(tmp_path / "sites" / "other", count=1)
    assert run(tmp_path / "sites", monkeypatch) == 0
    assert strange in capsys.readouterr().out


@pytest.mark.parametrize(("bits", "told"), [(10, 1), (12, 1), (14, 1), (16, 0)])
def test_images_of_16_bits_that_use_few_are_told(tmp_path: Path, bits: int, told: int) -> None:
    site = write_site(tmp_path / "site", count=2)
    noise = np.random.default_rng(0).integers(0, 1 << bits, (96, 120, 3)).astype(np.uint16)
    cv2.imwrite(str(site / "images" / "im0.png"), noise)
    cv2.imwrite(str(site / "images" / "im1.png"), np.zeros((96, 120, 3), np.uint8))  # dark, and of 8
    ((report,), _) = check_folder(site)
    note = "images of 16 bits that use few of them, and read nearly black: save them with 8"
    assert report.notes.get(note, 0) == told and report.usable


def test_hash_survives_size_and_compression_and_tells_pictures_apart() -> None:
    pictures = [Phantom((240, 320), seed=i).render(0).pixels for i in range(6)]
    hashes = [perceptual_hash(picture) for picture in pictures]
    for picture, bits in zip(pictures, hashes, strict=True):
        _, coded = cv2.imencode(".jpg", cv2.resize(picture, (200, 150)), [cv2.IMWRITE_JPEG_QUALITY, 60])
        again = perceptual_hash(np.asarray(cv2.imdecode(coded, cv2.IMREAD_UNCHANGED), np.uint8))
        assert np.bitwise_count(bits ^ again).sum() <= data.NEAR
    apart = [np.bitwise_count(hashes[i] ^ hashes[j]).sum() for i in range(6) for j in range(i)]
    assert min(apart) > 2 * data.NEAR


def test_the_real_sites_are_as_published(data_root: Path) -> None:
    reports = {report.site: report for report in check_folder(data_root / "CVC-ClinicDB")[0]}
    clinic = reports["CVC-ClinicDB"]
    assert (clinic.images, clinic.groups, clinic.classes) == (612, 29, {"polyp": 612})
    assert clinic.sizes == ("288×384", "288×384") and clinic.usable


def test_phantom_sites_are_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["data", "phantom", str(tmp_path / "p"), "--count", "3"])
    assert data.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    monkeypatch.setattr(sys, "argv", ["data", "check", str(tmp_path / "p"), "--json"])
    assert data.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert [(site["site"], site["images"]) for site in found["sites"]] == [
        (f"phantom-{name}", 3) for name in ("blood", "blur", "dim", "narrow-band", "white-light")
    ]
    assert any(site["classes"] == {"polyp": 3 - len(site["empty"])} for site in found["sites"])
    monkeypatch.setattr(sys, "argv", ["data", "phantom", str(tmp_path / "p"), "--count", "3"])
    assert data.main() == 1
    assert "is there already; name another folder" in capsys.readouterr().err
