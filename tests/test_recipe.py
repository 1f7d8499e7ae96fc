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


def test_recipe_builds_on_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('name = "base"\nepochs = 3\nlr = 1')
    (tmp_path / "r.toml").write_text('base = "base.toml"\nname = "x"\nepochs = 5')
    assert load_recipe(tmp_path / "r.toml") == Recipe(name="x", epochs=5, lr=1)


def test_the_papers_recipe_has_no_loss_of_ours() -> None:
    paper = load_recipe(ROOT / "training" / "recipes" / "paper.toml")
    assert (paper.dice, paper.edge, paper.dense, paper.readout, paper.pretrain_epochs) == (0, 0, 0, 0, 0)
    assert (paper.lr, paper.encoder_lr, paper.epochs, paper.causal_from_epoch) == (5e-3, 5e-3, 50, 10)
    assert (paper.causal, paper.contrast, paper.temperature, paper.input_size) == (0.5, 0.1, 0.5, (224, 224))


def test_overrides_are_toml_and_win(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text('name = "x"\nepochs = 3\ninput_size = [64, 96]')
    own = load_recipe(ROOT / "training" / "recipes" / "small.toml", ["alpha=0.3"])
    assert (own.alpha, own.deployed_alpha) == (0.3, 0.0)  # and not another recipe's
    both = load_recipe(ROOT / "training" / "recipes" / "small.toml", ["deployed_alpha=0.4"])
    assert (both.alpha, both.deployed_alpha) == (0.5, 0.4)
    recipe = load_recipe(tmp_path / "r.toml", ["epochs=5", 'classes=["polyp", "cyst"]'])
    assert recipe == Recipe(name="x", epochs=5, input_size=(64, 96), classes=("polyp", "cyst"))


@pytest.mark.parametrize(
    ("text", "overrides", "complaint"),
    [
        (None, [], "cannot read recipe"),
        ("name = ", [], "cannot read recipe"),
        ('name = "x"', ["epochs=3", "lr=fast"], "^--set lr=fast: lr is a number, 3 or 0.5$"),
        ('name = "x"', ["lr"], "^--set lr: a setting is NAME=VALUE, epochs=3$"),
        ('name = "x"', ["=3"], "^--set =3: a setting is NAME=VALUE"),
        ('name = "x"', ["method=foo"], """^--set method=foo: text needs quotes, --set 'method="foo"'$"""),
        ('name = "x"', ["method='foo"], """text needs quotes, --set 'method="foo"'$"""),
        ('name = "x"', ["train_sites=[a, b-c]"], r"""text needs quotes, --set 'train_sites=\["a", "b-c"\]'$"""),
        ('name = "x"', ["input_size=96,96"], r"input_size is numbers in brackets, \[96, 96\]$"),
        ('name = "x"', ["epoch=three"], "unknown settings epoch; known: accumulate, alpha, "),
        ('name = "x"\nepoch = 3', [], "unknown settings epoch; known: accumulate, alpha, "),
        ("epochs = 3", [], "has no name"),
        ('name = "x"', ["lr='fast'"], "unusable lr: 'fast'"),
        ('name = "x"', ["epochs=2.5"], "unusable epochs: 2.5"),
        ('name = "x"', ["input_size=[224]"], r"unusable input_size: \(224,\)"),
        ('name = "x"', ["classes=[1]"], r"unusable classes: \(1,\)"),
        ('name = "x"', ["epochs=true"], "unusable epochs: True"),
        ('name = "x"', ["method='unett'"], "method is one of mcdrl, baseline, .*, not 'unett'"),
        ('name = "x"', ["bad_images='ignore'"], "bad_images is one of stop, skip, not 'ignore'"),
        ('name = "x"', ["accumulate=3"], "a batch_size that accumulate does not divide"),
        ('name = "x"', ["train_sites=[]"], "has no train_sites"),
        ('name = "x"', ["epochs=0"], "has no epochs"),
        ('name = "x"', ["lr=-1"], "has a learning rate that is not above 0"),
        ('name = "x"', ["lr=nan"], "unusable lr: nan"),
        ('name = "x"', ["warmup_epochs=inf"], "unusable warmup_epochs: inf"),
        ('name = "x"', ["patience=-1"], "has a patience below 0"),
        ('name = "x"', ["dice=-1.0", "phantom_count=-5"], "has a dice, phantom_count below 0"),
        ('name = "x"', ["temperature=0"], "has a temperature, or a dense_scale, that is not above 0"),
        ('name = "a/b"', [], "has a name that no file can have"),
        ('name = "method"', [], "has a name that no file can have"),
        ('name = "x"', ['train_sites=["a", "b/"]'], r"train_sites that are no names of folders .* \('b/'\)"),
        ('name = "x"', ['train_sites=["a", "a"]'], "has a site twice in train_sites"),
        ('name = "x"\nbase = 3', [], "base is the name of a recipe's file, not 3"),
        ('name = "x"', ["deployed_alpha=7"], r"has a deployed_alpha outside \[0, 1\]"),
        ('name = "x"', ["start_share=0.5"], "has a start_share, but no start"),
        ('name = "x"\nstart = "mcdrl-small"', ["start_share=1"], "has a start_share outside"),
        ('name = "x"', ["branches=2"], "has branches, but no start that they branch off"),
        ('name = "x"', ["part_rate=40"], r"has a rate outside \[0, 1\]"),
        ('name = "x"', ["style_rate=-0.1"], r"has a rate outside \[0, 1\]"),
        ('name = "x"', ["classes=['polyp', 'none']"], "has a class called none"),
        ('name = "x"', ["seed=-1"], "has a seed outside"),
        ('name = "x"', ["seed=99999999999999999999"], "has a seed outside"),
        ('name = "x"\nbase = "r.toml"', [], "builds on itself"),
        ('name = "x"', ["start='mcdrl-small'", "method='unet'"], "has a start, which is for method mcdrl, not unet"),
        ('name = "x"', ["validation_share=0", "patience=3"], "has patience, but no validation_share"),
        ('name = "x"\nbase = "gone.toml"', [], "cannot read recipe"),
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
