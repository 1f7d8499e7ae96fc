"""The paper's own figures, to stand beside ours in a column of their own."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

TABLES = Path(__file__).with_name("published")


@dataclass(frozen=True)
class Published:
    """One figure of the paper.

    Args:
        table: where it is printed, with the encoder where there is a choice.
        dice: mean Dice in per cent.
    """

    table: str
    dice: float


def published(variant: str, letter: str, backbone: str = "ViT-L-14") -> list[Published]:
    """What the paper prints for a variant on a site.

    Args:
        variant: as a study names it: a method (``MCDRL``, ``w/o CDRL`` …), ``6 confounders``, ``depth 2``.
        letter: of the site, A to E; any other has no figures.
        backbone: of Table 1.
    """
    column, words = f"site_{letter.lower()}", variant.split()
    keys = {
        "table1_domain_generalisation": ({"method": variant, "backbone": backbone}, f"Table 1, {backbone}"),
        "table3_ablation": ({"method": variant}, "Table 3"),
        "table4_confounders": ({"confounders": words[0] if words[1:] == ["confounders"] else ""}, "Table 4"),
        "table5_depth": ({"depth": words[1] if words[0] == "depth" and len(words) == 2 else ""}, "Table 5"),
    }
    found = []
    for name, (wanted, title) in keys.items():
        for row in _rows(name):
            value = row.get(f"{column}_dice") or row.get(column)
            if value and all(row[key] == text for key, text in wanted.items()):
                found.append(Published(title, float(value)))
    return found


def published_by_lesion(variant: str) -> dict[str, float]:
    """Dice in per cent by lesion class that Table 2 prints for a method, over its sites."""
    columns = {"polyp": "polyps", "tumor": "tumors", "inflammation": "inflam", "nodule": "nodules", "cyst": "cyst"}
    rows = [row for row in _rows("table2_lesion_types") if row["method"] == variant]
    return {name: float(row[column]) for row in rows for name, column in columns.items()}


def _rows(name: str) -> list[dict[str, str]]:
    with (TABLES / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))
