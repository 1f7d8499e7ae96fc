"""Pictures are read as they are, and masks are not taken for something else."""

from __future__ import annotations

import zlib
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from mcdrl_rt.errors import SourceError
from training.pictures import read_mask, read_pixels

DISC = cv2.circle(np.zeros((200, 240), np.uint8), (120, 100), 40, 255, -1)
WIDE = cv2.circle(np.zeros((200, 240), np.uint8), (120, 100), 60, 255, -1)
RIM = WIDE - DISC


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write pixels, grey or BGR or BGRA, by OpenCV; grey and RGBA to TIFF by FFmpeg, as they are."""
    if path.suffix != ".tif":
        assert cv2.imwrite(str(path), pixels)
        return path
    names = {(2, 1): "gray", (2, 2): "gray16le", (3, 1): "rgba"}
    frame = av.VideoFrame.from_ndarray(pixels, format=names[pixels.ndim, pixels.itemsize])
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("tiff", width=frame.width, height=frame.height, pix_fmt=frame.format.name)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_picture_that_is_cut_off_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    cv2.imwrite(str(path), pixels)
    whole = path.read_bytes()
    assert read_pixels(path).shape == (60, 80, 3)
    if suffix == ".jpg":  # a preview in the metadata has an end of its own
        comment = b"\xff\xd8 preview \xff\xd9"
        whole = whole[:2] + b"\xff\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + whole[2:]
        path.write_bytes(whole)
        assert read_pixels(path).shape == (60, 80, 3)
    for length in (0, 10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        with pytest.raises(SourceError, match="damaged, or no image"):
            read_pixels(path)


def test_picture_that_says_it_is_huge_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "picture.png", DISC)
    data = path.read_bytes()
    header = data[12:16] + (1 << 16).to_bytes(4) + (1 << 15).to_bytes(4) + data[24:29]  # 2³¹ pixels
    path.write_bytes(data[:12] + header + zlib.crc32(header).to_bytes(4) + data[33:])
    with pytest.raises(SourceError, match=r"cannot read .*picture\.png: damaged, or of more pixels than OpenCV takes"):
        read_pixels(path)


def test_a_jpeg_in_a_tiff_is_read(tmp_path: Path) -> None:
    """FFmpeg takes it for a picture of one colour."""
    path = tmp_path / "picture.tif"
    pixels = np.dstack([DISC, WIDE, DISC])
    options = [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_JPEG, cv2.IMWRITE_TIFF_ROWSPERSTRIP, 8]
    assert cv2.imwrite(str(path), pixels, options)
    assert np.abs(read_pixels(path).astype(np.int16) - pixels).mean() < 3
    assert cv2.imwrite(str(path), DISC, options)
    np.testing.assert_array_equal(read_mask(path) >= 128, DISC > 0)


def test_a_tiff_of_a_foreign_compression_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "picture.tif", DISC)
    data = path.read_bytes()
    tag = data.index((259).to_bytes(2, "little") + (3).to_bytes(2, "little"))
    path.write_bytes(data[: tag + 8] + (50000).to_bytes(2, "little") + data[tag + 10 :])  # Zstandard
    with pytest.raises(SourceError, match=r"damaged, no image, or of a compression that is not supported; save it as"):
        read_pixels(path)


def test_mask_of_zeros_and_ones_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", DISC // 255)
    with pytest.raises(SourceError, match="marks nothing: lesion is 128 or more, its highest value is 1"):
        read_mask(path)
    assert not read_mask(save(path, DISC * 0)).any()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".bmp"])
def test_masks_that_would_be_misread_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mask{suffix}"
    assert (read_mask(save(path, DISC)) == DISC).all()
    for levels in ((85, 255), (170, 255), (1, 255), (2, 255), (128, 200)):
        rim, disc = (np.uint8(level) for level in levels)
        save(path, np.where(DISC > 0, disc, np.where(RIM > 0, rim, np.uint8(0))))
        with pytest.raises(SourceError, match=rf"has levels between 0 and {disc} \({rim}\): label maps are not"):
            read_mask(path)
    if suffix in (".png", ".tif"):
        save(path, np.where(DISC > 0, np.uint16(3), np.uint16(0)))  # as 8 bits, nothing at all
        with pytest.raises(SourceError, match="has 16 bits: save masks with 8"):
            read_mask(path)
    if suffix != ".bmp":
        save(path, np.dstack([DISC | 255] * 3 + [DISC]))  # all of it white, and visible in part
        with pytest.raises(SourceError, match="is transparent in part: save masks without alpha"):
            read_mask(path)
    assert (read_mask(save(path, np.dstack([DISC] * 3 + [DISC | 255]))) == DISC).all()


@pytest.mark.parametrize("palette", [True, False])
def test_a_labels_ignored_edge_is_no_lesion(tmp_path: Path, palette: bool) -> None:
    labels = np.where(DISC > 0, np.uint8(1), np.where(RIM > 0, np.uint8(2), np.uint8(0)))
    edge = cv2.dilate(WIDE, np.ones((5, 5), np.uint8)) != cv2.erode(WIDE, np.ones((5, 5), np.uint8))
    labels[edge] = 255
    colours = np.zeros((256, 3), np.uint8)  # of the usual palette, 224 at most
    colours[[1, 2, 255]] = (0, 0, 128), (0, 64, 0), (192, 224, 224)
    with pytest.raises(SourceError, match="label maps are not supported"):
        read_mask(save(tmp_path / "mask.png", colours[labels] if palette else labels))


@pytest.mark.parametrize("colours", [((0, 0, 0), (0, 0, 128), (0, 128, 0)), ((0, 0, 255), (0, 0, 128), (255, 0, 255))])
def test_a_mask_in_colour_is_refused(tmp_path: Path, colours: tuple[tuple[int, int, int], ...]) -> None:
    labels = np.where(DISC > 0, np.uint8(1), np.where(RIM > 0, np.uint8(2), np.uint8(0)))
    for suffix in (".png", ".jpg", ".tif"):
        path = tmp_path / f"mask{suffix}"
        assert cv2.imwrite(str(path), np.array(colours, np.uint8)[labels])
        with pytest.raises(SourceError, match="is in colour: label maps are not supported, save lesion as 255"):
            read_mask(path)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_label_map_that_was_jpeg_is_refused(tmp_path: Path, quality: int) -> None:
    labels = np.where(DISC > 0, np.uint8(255), np.where(RIM > 0, np.uint8(85), np.uint8(0)))
    labels[:40, :40] = 170
    cv2.imwrite(str(tmp_path / "mask.jpg"), labels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    for path in (tmp_path / "mask.jpg", save(tmp_path / "mask.png", cv2.imread(str(tmp_path / "mask.jpg")))):
        with pytest.raises(SourceError, match=r"has levels between 0 and 255 .*: label maps are not supported"):
            read_mask(path)


def test_smooth_edges_and_noise_are_no_labels(tmp_path: Path) -> None:
    """Of masks that were drawn smoothly, made smaller or larger, or were JPEG before."""
    smooth = cv2.circle(np.zeros((64, 64), np.uint8), (30, 30), 15, 255, -1, cv2.LINE_AA)
    small = cv2.resize(WIDE, (60, 50), interpolation=cv2.INTER_AREA)
    masks = [smooth, small, cv2.resize(small, (480, 400)), cv2.GaussianBlur(WIDE, (0, 0), 5)]
    masks.append(cv2.GaussianBlur(cv2.circle(np.zeros((1080, 1920), np.uint8), (900, 500), 300, 255, -1), (0, 0), 15))
    for quality in (30, 75, 95, 100):
        coded = cv2.imencode(".jpg", WIDE, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        masks.append(np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE), np.uint8))
    for mask in masks:
        np.testing.assert_array_equal(read_mask(save(tmp_path / "mask.png", mask)), mask)
    assert (read_mask(save(tmp_path / "mask.jpg", WIDE))[WIDE > 0] > 128).mean() > 0.99
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None], 20, axis=0)
    with pytest.raises(SourceError, match=r"has levels between 0 and 255 \(32, 33, 34\)"):
        read_mask(save(tmp_path / "mask.png", grey))


def test_the_real_masks_are_masks(data_root: Path) -> None:
    for folder in ("Kvasir-SEG/masks", "CVC-ClinicDB/PNG/Ground Truth"):
        for path in sorted((data_root / folder).iterdir()):
            assert (read_mask(path) >= 128).any()


def test_clinicdb_tiffs_are_its_pngs_in_colour(data_root: Path) -> None:
    folder = data_root / "CVC-ClinicDB"
    paths = sorted((folder / "Original").glob("*.tif"))
    assert paths
    for path in paths:
        pixels = read_pixels(path)
        np.testing.assert_array_equal(pixels, read_pixels(folder / "PNG" / "Original" / f"{path.stem}.png"))
        assert np.ptp(pixels.astype(np.int16), axis=2).mean() > 20  # not grey
        mask = read_pixels(folder / "Ground Truth" / path.name)
        np.testing.assert_array_equal(mask, read_pixels(folder / "PNG" / "Ground Truth" / f"{path.stem}.png"))
