"""What ``--deidentify`` takes and what it leaves: text that survives, lesions that are lost, bodies taken for rooms.

    MCDRL_DATA=… python benchmarks/deidentify.py [--photographs FOLDER] [--save NAME]

Text is drawn where its place is known: beside and across the fields of the synthetic procedure and of CVC-ClinicDB's
pictures in a larger canvas; on these pictures, in white and in black, on all or on ten in a row; and, in each picture
by itself, beside the field, on surrounds of any grey, in the notch that Kvasir-SEG's blackened insets leave. Lesions
are those of Kvasir-SEG and CVC-ClinicDB, each picture by itself. Photographs of other things are those that
scikit-learn and matplotlib bring, and those of a folder: a handful, which measures little. The result of the first
machine had 18 more: 16 out of the packages scikit-image, insightface and ultralytics, two of a circuit board.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import describe
from outputs import Parser, check_outputs, finish, run_main

from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.field import field_of, field_of_video
from mcdrl_rt.video.out_of_body import SURE, TISSUE, tissue_share
from mcdrl_rt.video.phantom import Phantom

TEXTS = (("DOE, JANE", (20, 60)), ("D.O.B. 01/02/1950", (20, 100)), ("CVP:2 A5", (20, 300)), ("#4711", (560, 690)))


def main() -> None:
    """Measure, and print what came of it."""
    parser = Parser(__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("MCDRL_DATA"), help="folder of the sites")
    parser.add_argument("--photographs", type=Path, help="folder of more pictures of anything but the inside of a body")
    arguments = parser.parse_args()
    check_outputs(arguments)
    if not arguments.data:
        raise SystemExit("say where the sites are: --data, or MCDRL_DATA")
    clinic, kvasir = list(_clinic(arguments.data)), list(_kvasir(arguments.data))
    some = [rgb for rgb, _ in clinic[::12]]
    result: dict[str, Any] = {
        "benchmark": "deidentify",
        "text_surviving": {
            "synthetic procedure": text_surviving(_phantom()),
            "CVC-ClinicDB in a canvas": text_surviving([_in_canvas(rgb) for rgb in some]),
            "same, single pictures": _mean(_beside(_in_canvas(rgb), 0) for rgb in some),
            "same, surround of 60": _mean(_beside(_in_canvas(rgb), 60) for rgb in some),
            "same, surround of 200": _mean(_beside(_in_canvas(rgb), 200) for rgb in some),
            "in Kvasir-SEG's insets": _mean(_in_inset(rgb) for rgb, _ in kvasir if _inset(rgb) is not None),
            "on CVC-ClinicDB, white": on_the_picture(some, 235, 1.0),
            "same, in a fifth of them": on_the_picture(some, 235, 0.2),
            "on CVC-ClinicDB, black": on_the_picture(some, 10, 1.0),
            "same, black, in a fifth": on_the_picture(some, 10, 0.2),
        },
        "lesion_lost": {"Kvasir-SEG": lesion_lost(kvasir), "CVC-ClinicDB": lesion_lost(clinic)},
        "bodies_taken_for_rooms": {
            "Kvasir-SEG": _mean(_share(rgb) < TISSUE for rgb, _ in kvasir),
            "CVC-ClinicDB": _mean(_share(rgb) < TISSUE for rgb, _ in clinic),
        },
        "bodies_in_doubt": {
            "Kvasir-SEG": _mean(TISSUE <= _share(rgb) < SURE for rgb, _ in kvasir),
            "CVC-ClinicDB": _mean(TISSUE <= _share(rgb) < SURE for rgb, _ in clinic),
        },
        "photographs": {name: _verdict(_share(rgb)) for name, rgb in _photographs(arguments.photographs)},
        "machine": describe(),
    }
    for name in ("text_surviving", "lesion_lost", "bodies_taken_for_rooms", "bodies_in_doubt"):
        for of, share in result[name].items():
            print(f"{name.replace('_', ' '):24} {of:26} {share:.3%}")
    for verdict in ("body", "doubt", "room"):
        names = [name for name, taken in result["photographs"].items() if taken == verdict]
        print(f"photographs, {verdict}: {len(names)} {' '.join(names)}")
    finish(result, arguments)


def text_surviving(frames: list[UInt8Array]) -> float:
    """The share of the pixels of texts and a running clock that are still to be seen, 0…1."""
    written, inks = zip(*(_written(rgb, number) for number, rgb in enumerate(frames)), strict=True)
    field = field_of(written)
    assert field is not None
    return float(np.mean([(field[ink] > 0).mean() for ink in inks]))


def on_the_picture(frames: list[UInt8Array], level: int, share: float) -> float:
    """The share of the pixels of a name on the picture, in the middle ones of a long video's frames, that is left."""
    ink = np.zeros(frames[0].shape[:2], np.uint8)
    cv2.putText(ink, "DOE, JANE", (110, 150), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 1, cv2.LINE_AA)
    count = round(share * len(frames))
    first = (len(frames) - count) // 2
    written = list(frames)
    for number in range(first, first + count):
        written[number] = _inked(frames[number], ink, level)
    field, _ = field_of_video(written, for_a_while=True)
    return 1.0 if field is None else float((field[ink > 127] > 0).mean())


def lesion_lost(pictures: list[tuple[UInt8Array, np.ndarray]]) -> float:
    """The mean share of a lesion's pixels that is blanked, 0…1."""
    lost = []
    for rgb, lesion in pictures:
        field = field_of([rgb])
        lost.append(1.0 if field is None else float((field[lesion] == 0).mean()))
    return float(np.mean(lost))


def _written(rgb: UInt8Array, number: int) -> tuple[UInt8Array, np.ndarray]:
    ink = np.zeros(rgb.shape[:2], np.uint8)
    clock = f"{10 + number // 60:02d}:{number % 60:02d}:{number * 7 % 60:02d}"
    for text, at in (*TEXTS, (clock, (20, 140))):
        cv2.putText(ink, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 2, cv2.LINE_AA)
    return _inked(rgb, ink, 235), ink > 127


def _inked(rgb: UInt8Array, ink: UInt8Array, level: int) -> UInt8Array:
    share = ink[..., None] / 255
    return np.asarray(rgb * (1 - share) + level * share, np.uint8)


def _phantom() -> list[UInt8Array]:
    phantom = Phantom((720, 1280), "mixed", 15, 30.0, 9000)
    return [phantom.render(index * 200).pixels for index in range(40)]


def _beside(rgb: UInt8Array, surround: int) -> float:
    """The share of a name's pixels, in white and in black, that is left beside the picture on an even surround."""
    grey = np.where(rgb.any(axis=2, keepdims=True), rgb, np.uint8(surround))
    ink = np.zeros(rgb.shape[:2], np.uint8)
    cv2.putText(ink, "DOE, JANE 1950", (300, 1010), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 255, 2, cv2.LINE_AA)
    shares = []
    for level in (0, 255):
        written = np.where(ink[..., None] > 127, np.uint8(level), grey)
        field = field_of([written])
        shares.append(0.0 if field is None else float((field[ink > 127] > 0).mean()))
    return max(shares)


def _inset(rgb: UInt8Array) -> tuple[int, int, int, int] | None:
    """Top, left, bottom, right of the black at the lower left, where a picture's inset was blackened; None without."""
    height, width = rgb.shape[:2]
    box = int(0.72 * height), int(0.02 * width), int(0.97 * height), int(0.26 * width)
    return box if (rgb[box[0] : box[2], box[1] : box[3]].max(axis=2) <= 12).mean() > 0.97 else None


def _in_inset(rgb: UInt8Array) -> float:
    """The share of the pixels of four lines in the inset that is left."""
    box = _inset(rgb)
    assert box is not None
    top, left, bottom, right = box
    ink = np.zeros(rgb.shape[:2], np.uint8)
    for line in range(4):
        at = (left, top + (line + 1) * (bottom - top) // 5)
        cv2.putText(ink, "DOE, J 1950", at, cv2.FONT_HERSHEY_SIMPLEX, (right - left) / 220, 255, 1, cv2.LINE_AA)
    field = field_of([np.where(ink[..., None] > 127, np.uint8(235), rgb)])
    return 0.0 if field is None else float((field[ink > 127] > 0).mean())


def _in_canvas(rgb: UInt8Array) -> UInt8Array:
    large = np.asarray(cv2.resize(rgb, (1100, 900)), np.uint8)
    return np.asarray(cv2.copyMakeBorder(large, 20, 160, 20, 60, cv2.BORDER_CONSTANT), np.uint8)


def _kvasir(data: Path) -> Iterator[tuple[UInt8Array, np.ndarray]]:
    for path in sorted((data / "Kvasir-SEG" / "images").iterdir()):
        yield _read(path), _read(data / "Kvasir-SEG" / "masks" / path.name)[..., 0] > 127


def _clinic(data: Path) -> Iterator[tuple[UInt8Array, np.ndarray]]:
    folder = data / "CVC-ClinicDB" / "PNG"
    for path in sorted((folder / "Original").iterdir(), key=lambda path: int(path.stem)):
        yield _read(path), _read(folder / "Ground Truth" / path.name)[..., 0] > 127


def _photographs(folder: Path | None) -> Iterator[tuple[str, UInt8Array]]:
    import matplotlib
    from sklearn.datasets import load_sample_images

    samples = load_sample_images()
    for name, rgb in zip(samples.filenames, samples.images, strict=True):
        yield Path(name).name, rgb
    for path in sorted((Path(matplotlib.get_data_path()) / "sample_data").glob("*.jpg")):
        yield path.name, _read(path)
    for path in sorted(folder.iterdir() if folder else ()):
        yield path.name, _read(path)


def _read(path: Path) -> UInt8Array:
    return np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), np.uint8)


def _share(rgb: UInt8Array) -> float:
    """How much of a picture by itself is red; 0 where nothing is to be seen."""
    return tissue_share(rgb, field_of([rgb])) or 0.0


def _verdict(share: float) -> str:
    return "room" if share < TISSUE else "doubt" if share < SURE else "body"


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


if __name__ == "__main__":
    run_main(main)
