"""What ``--deidentify`` takes and what it leaves: text that survives, lesions that are lost, bodies taken for rooms.

    MCDRL_DATA=… python benchmarks/deidentify.py [--save NAME]

Text is drawn where its place is known: beside and across the fields of the synthetic procedure and of CVC-ClinicDB's
pictures in a larger canvas. Lesions are those of Kvasir-SEG and CVC-ClinicDB, each picture by itself. Photographs of
other things are those that scikit-learn and matplotlib bring: a handful, which measures little.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from machine import describe

from mcdrl_rt.types import UInt8Array
from mcdrl_rt.video.field import field_of
from mcdrl_rt.video.out_of_body import TISSUE, tissue_share
from mcdrl_rt.video.phantom import Phantom

RESULTS = Path(__file__).parent / "results"
TEXTS = (("DOE, JANE", (20, 60)), ("D.O.B. 01/02/1950", (20, 100)), ("CVP:2 A5", (20, 300)), ("#4711", (560, 690)))


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MCDRL_DATA"), help="folder of the sites")
    parser.add_argument("--save", help="also write benchmarks/results/NAME.json")
    arguments = parser.parse_args()
    if not arguments.data:
        raise SystemExit("say where the sites are: --data, or MCDRL_DATA")
    clinic, kvasir = list(_clinic(arguments.data)), list(_kvasir(arguments.data))
    result: dict[str, Any] = {
        "benchmark": "deidentify",
        "text_surviving": {
            "synthetic procedure": text_surviving(_phantom()),
            "CVC-ClinicDB in a canvas": text_surviving([_in_canvas(rgb) for rgb, _ in clinic[::12]]),
        },
        "lesion_lost": {"Kvasir-SEG": lesion_lost(kvasir), "CVC-ClinicDB": lesion_lost(clinic)},
        "bodies_taken_for_rooms": {
            "Kvasir-SEG": _share(_is_outside(rgb) for rgb, _ in kvasir),
            "CVC-ClinicDB": _share(_is_outside(rgb) for rgb, _ in clinic),
        },
        "photographs_taken_for_bodies": {name: not _is_outside(rgb) for name, rgb in _photographs()},
        "machine": describe(),
    }
    for name in ("text_surviving", "lesion_lost", "bodies_taken_for_rooms"):
        for of, share in result[name].items():
            print(f"{name.replace('_', ' '):24} {of:26} {share:.3%}")
    wrong = [name for name, taken in result["photographs_taken_for_bodies"].items() if taken]
    count = len(result["photographs_taken_for_bodies"])
    print(f"photographs taken for bodies: {len(wrong)} of {count} {' '.join(wrong)}")
    if arguments.save:
        (RESULTS / f"{arguments.save}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def text_surviving(frames: list[UInt8Array]) -> float:
    """The share of the pixels of texts and a running clock that are still to be seen, 0…1."""
    written, inks = zip(*(_written(rgb, number) for number, rgb in enumerate(frames)), strict=True)
    field = field_of(written)
    assert field is not None
    return float(np.mean([(field[ink] > 0).mean() for ink in inks]))


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
    share = ink[..., None] / 255
    return (rgb * (1 - share) + 235 * share).astype(np.uint8), ink > 127


def _phantom() -> list[UInt8Array]:
    phantom = Phantom((720, 1280), "mixed", 15, 30.0, 9000)
    return [phantom.render(index * 200).pixels for index in range(40)]


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


def _photographs() -> Iterator[tuple[str, UInt8Array]]:
    import matplotlib
    from sklearn.datasets import load_sample_images

    samples = load_sample_images()
    for name, rgb in zip(samples.filenames, samples.images, strict=True):
        yield Path(name).name, rgb
    for path in sorted((Path(matplotlib.get_data_path()) / "sample_data").glob("*.jpg")):
        yield path.name, _read(path)


def _read(path: Path) -> UInt8Array:
    return np.asarray(cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB), np.uint8)


def _is_outside(rgb: UInt8Array) -> bool:
    share = tissue_share(rgb, field_of([rgb]))
    return share is None or share < TISSUE


def _share(said: Iterator[bool]) -> float:
    return float(np.mean(list(said)))


if __name__ == "__main__":
    main()
