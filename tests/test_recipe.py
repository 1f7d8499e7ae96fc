"""A recipe is checked when it is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from mcdrl_rt.errors import SpecError
from training.recipe import Recipe, load_recipe


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
