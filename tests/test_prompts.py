"""Prompts: the paper's sentences, and dictionaries that nest."""

from __future__ import annotations

import pytest

from mcdrl_rt.errors import SpecError
from mcdrl_rt.model.prompts import (
    CLASSES,
    CONFOUNDER_COUNTS,
    CONFOUNDERS,
    class_confounder_prompt,
    class_prompt,
    confounder_names,
    confounder_prompt,
)

CATEGORIES = {"view quality", "illumination", "imaging technique", "distance", "surface interference"}


def test_smaller_dictionary_is_a_prefix_of_every_larger_one() -> None:
    assert CONFOUNDER_COUNTS == (3, 6, 9, 12, 15)
    largest = confounder_names(15)
    assert len(set(largest)) == 15
    for count in CONFOUNDER_COUNTS:
        assert confounder_names(count) == largest[:count]


def test_categories_are_covered_as_early_as_the_size_allows() -> None:
    seen = [category for _, category in CONFOUNDERS]
    assert set(seen) == CATEGORIES
    assert len(set(seen[:3])) == 3
    assert set(seen[:5]) == CATEGORIES


@pytest.mark.parametrize("count", [0, 5, 16, -3])
def test_other_counts_are_refused_with_the_choices(count: int) -> None:
    with pytest.raises(SpecError, match="3, 6, 9, 12, 15"):
        confounder_names(count)


def test_sentences_are_those_of_the_paper() -> None:
    assert class_prompt("polyp") == "A polyp in an endoscopic image"
    assert confounder_prompt("motion blur") == "An endoscopy image with motion blur."
    assert class_confounder_prompt("cyst", "blood") == "A cyst with blood"
    assert CLASSES == ("polyp", "tumor", "inflammation", "nodule", "cyst")
