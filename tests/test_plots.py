"""The report's pictures: each is of the image whose figure it bears, and none costs the report its tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.axes import Axes
from miniature import write_site

from mcdrl_rt.errors import SourceError
from training import plots
from training.methods import Method, build_method
from training.methods.causal import Causal
from training.recipe import Recipe
from training.report import Result
from training.sites import Sample, load_site

RECIPE = Recipe(name="x", input_size=(64, 64), grid_stride=16, depth=1, confounders=3)


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A site with images of one name in two folders: red, then green, then blue."""
    folder = tmp_path / "Laryngoscope8"
    for place, colour in {"Cyst/1": (0, 0, 200), "Nodules/1": (0, 200, 0), "Nodules/2": (200, 0, 0)}.items():
        for path in (folder / f"{place}.jpg", folder / "masks" / f"{place}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((96, 120, 3), 255 if "masks" in path.parts else colour, np.uint8))
    return folder


def measured(samples: list[Sample], dice: list[float], folder: Path, *, by_place: bool = True) -> Result:
    places = [sample.image.relative_to(folder).as_posix() for sample in samples]
    images = {"image": [Path(place).name for place in places], "dice": dice} | ({"place": places} if by_place else {})
    return Result("MCDRL", folder.name, RECIPE, {}, images, {}, {}, folder, 0)


def test_panels_show_the_images_whose_dice_they_tell(nested: Path, tmp_path: Path) -> None:
    samples = load_site(nested)
    methods: dict[str, Method] = {}
    for dice, colours in (([0.1, 0.5, 0.9], [2, 1, 0]), ([0.9, 0.1, 0.5], [1, 0, 2])):
        runs = {"MCDRL": measured(samples, dice, nested)}
        _, path = plots.panels(nested, samples, methods, runs, tmp_path / "panels.jpg")
        rows = np.split(np.asarray(cv2.imread(str(path))), 3)
        assert [int(row[60:-10].mean(axis=(0, 1)).argmax()) for row in rows] == colours  # B, G, R
    runs = {"MCDRL": measured(samples, [0.1, 0.5, 0.9], nested, by_place=False)}
    with pytest.raises(SourceError, match=r"Laryngoscope8 has 2 images 1\.jpg; evaluate the run again"):
        plots.panels(nested, samples, methods, runs, tmp_path / "panels.jpg")
    (nested / "Cyst" / "1.jpg").unlink()
    samples = load_site(nested)
    runs = {"MCDRL": measured(samples, [0.1, 0.9], nested, by_place=False)}
    plots.panels(nested, samples, methods, runs, tmp_path / "panels.jpg")
    runs["other"] = measured(samples[:1], [0.1], nested)
    with pytest.raises(SourceError, match="its runs measured different images"):
        plots.panels(nested, samples, methods, runs, tmp_path / "panels.jpg")


def test_points_bear_the_class_of_their_own_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(write_site(tmp_path / "a", count=3), tmp_path / "b")
    samples = {name: load_site(tmp_path / name) for name in ("a", "b")}
    samples["a"][0].image.write_text("no picture")
    method = build_method(RECIPE, tmp_path).eval()
    assert isinstance(method, Causal)
    drawn: list[int] = []
    scatter = Axes.scatter

    def counted(axes: Axes, x: np.ndarray, y: np.ndarray, **style: object) -> object:
        drawn.append(len(x))
        return scatter(axes, x, y, **style)  # type: ignore[arg-type]

    monkeypatch.setattr(Axes, "scatter", counted)
    plots.tsne("a", samples, {"MCDRL": method}, tmp_path / "tsne.png")
    assert drawn == [2, 3]
