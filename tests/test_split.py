"""What is held out stays held out, whatever comes to a site, and whatever a model is trained further on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from miniature import write_site

from mcdrl_rt.errors import SourceError
from training.recipe import Recipe
from training.sites import Sample
from training.split import Split, hold_out, split_of, split_sites

RECIPE = Recipe(name="x", train_sites=("here",), validation_share=0.3, seed=4)


def test_hold_out_is_disjoint_whole_and_the_same_whatever_the_order() -> None:
    samples = [Sample(Path(f"{i:03}.png"), Path("m.png"), str(i)) for i in range(50)]
    kept, held = hold_out(samples, 10, seed=3)
    assert (len(kept), len(held)) == (40, 10)
    assert {*kept, *held} == set(samples)
    assert hold_out(samples[::-1], 10, seed=3) == (kept, held)
    assert hold_out(samples, 10, seed=4)[1] != held
    assert held != samples[:10]


def grow(site: Path, names: list[str]) -> None:
    for name in names:
        for part in ("images", "masks"):
            shutil.copy(site / part / "im0.png", site / part / f"{name}.png")


def test_a_grown_site_is_split_as_it_was(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", count=10)
    began = Split.of(*split_sites(tmp_path, RECIPE), tmp_path)
    grow(site, [f"a{i}" for i in range(10)])
    anew = Split.of(*split_sites(tmp_path, RECIPE), tmp_path)
    assert anew.held & began.kept  # so would it be without
    further = Split.of(*split_sites(tmp_path, RECIPE, began), tmp_path)
    assert began.kept <= further.kept and began.held <= further.held and len(further.held) == 6
    again = dataclasses.replace(RECIPE, seed=5, validation_share=0.1)
    assert began.held <= Split.of(*split_sites(tmp_path, again, began), tmp_path).held
    everything = dataclasses.replace(RECIPE, validation_share=0.0)
    assert Split.of(*split_sites(tmp_path, everything, began), tmp_path).held == frozenset()
    provenance = {
        "recipe": json.dumps(dataclasses.asdict(everything)),
        "images": Split.of(*split_sites(tmp_path, everything, began), tmp_path).to_json(),
        "start": json.dumps({"recipe": json.dumps(dataclasses.asdict(RECIPE)), "images": began.to_json()}),
    }
    assert split_of(provenance, tmp_path, ["here"]).held == frozenset()  # it was trained on in the end


def test_a_patient_stays_on_the_side_it_was_on(tmp_path: Path) -> None:
    site = write_site(tmp_path / "here", count=1)
    (site / "site.toml").write_text(
        'group = "p[0-9]"\n[[layout]]\nimage = "images/*.png"\nmask = "masks/{name}"\n'
    )
    grow(site, [f"p{i}-a" for i in range(8)])
    kept, held = split_sites(tmp_path, RECIPE)
    began = Split.of(kept, held, tmp_path)
    grow(site, [f"p{i}-b" for i in range(8)])
    one, other = split_sites(tmp_path, RECIPE, began)
    assert {s.group for s in one}.isdisjoint({s.group for s in other})
    assert {s.group for s in other} == {s.group for s in held}
    before, after = (sum(sample.group.startswith("p") for sample in side) for side in (held, other))
    assert after == 2 * before > 0


@pytest.mark.parametrize(("then", "now"), [("Kvasir-SEG", "kvasir-seg"), ("kvasir-seg", "Kvasir-SEG"), ("ours", "new")])
def test_a_split_knows_a_site_whatever_its_folder_is_called(tmp_path: Path, then: str, now: str) -> None:
    site = write_site(tmp_path / then, count=10, suffix=".jpg")
    if then == "ours":
        (site / "site.toml").write_text('name = "Ours"\n[[layout]]\nimage = "images/*"\nmask = "masks/{name}"\n')
    recipe = dataclasses.replace(RECIPE, train_sites=(then,))
    kept, held = split_sites(tmp_path, recipe)
    # as it was written when ids began with the folder's name
    ids = [[sha256(f"{then}/images/{s.image.name}".encode()).hexdigest()[:10] for s in side] for side in (kept, held)]
    before, since = Split(*map(frozenset, ids)), Split.of(kept, held, tmp_path)
    assert [before.side(sample, tmp_path) for sample in (*kept, *held)] == [True] * 7 + [False] * 3
    site.rename(tmp_path / now)
    recipe = dataclasses.replace(recipe, train_sites=(now,), seed=5)
    again, held_again = split_sites(tmp_path, recipe, since)
    assert [sample.image.name for sample in held_again] == [sample.image.name for sample in held]
    assert Split.of(again, held_again, tmp_path) == since
    if then != "ours":  # which nobody could know to be called so
        assert all(before.side(sample, tmp_path) for sample in again)
        assert split_sites(tmp_path, dataclasses.replace(recipe, train_sites=(then,)), before) == (again, held_again)


def test_one_site_is_not_trained_on_twice(tmp_path: Path) -> None:
    write_site(tmp_path / "kvasir-seg", count=10, suffix=".jpg")
    with pytest.raises(SourceError, match=r"two of train_sites, Kvasir-SEG, kvasir-seg, are one site by name; keep"):
        split_sites(tmp_path, dataclasses.replace(RECIPE, train_sites=("Kvasir-SEG", "kvasir-seg")))


IDS = st.frozensets(st.text("0123456789abcdef", min_size=1, max_size=5))


@given(kept=IDS, held=IDS)
def test_a_split_is_read_as_it_was_written(kept: frozenset[str], held: frozenset[str]) -> None:
    assert Split.from_json(Split(kept, held).to_json()) == Split(kept, held)


def test_images_without_mask_are_left_out_where_the_recipe_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = write_site(tmp_path / "here", count=5)
    (site / "masks" / "im2.png").unlink()
    with pytest.raises(SourceError, match=r"1 of 5 images have no mask: im2\.png; mend it, or set bad_images='skip'"):
        split_sites(tmp_path, RECIPE)
    kept, held = split_sites(tmp_path, dataclasses.replace(RECIPE, bad_images="skip"))
    assert len(kept) + len(held) == 4
    assert capsys.readouterr().err == f"left out: {site}: 1 of 5 images have no mask: im2.png\n"
