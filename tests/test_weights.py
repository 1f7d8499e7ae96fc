"""The default weights: small enough to ship, and a card that says what was measured and nothing else."""

from __future__ import annotations

import json

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.sidecar import file_hash
from mcdrl_rt.model.checkpoint import read_spec
from training.card import notes_on, render_card


def test_the_card_is_what_the_evaluation_wrote() -> None:
    measured = json.loads(DEFAULT_CHECKPOINT.with_suffix(".json").read_text())
    assert measured["weights"] == file_hash(DEFAULT_CHECKPOINT)
    notes = notes_on(DEFAULT_CHECKPOINT)
    card = DEFAULT_CHECKPOINT.with_suffix(".md").read_text()
    assert card == render_card(read_spec(DEFAULT_CHECKPOINT), measured, notes) and notes in card


def test_the_figures_clear_the_bars_the_default_was_shipped_for() -> None:
    sites = json.loads(DEFAULT_CHECKPOINT.with_suffix(".json").read_text())["sites"]
    held, unseen = sites["Kvasir-SEG (held out)"], sites["CVC-ClinicDB (unseen)"]
    assert held["images"] == 100 and unseen["images"] == 612
    assert held["dice"] >= 0.89 and unseen["dice"] >= 0.853
    assert held["selection_recall"] >= 0.97 and unseen["selection_recall"] >= 0.92
    assert unseen["recall_small"] >= 0.85


def test_the_weights_folder_stays_under_16_mb() -> None:
    assert sum(path.stat().st_size for path in DEFAULT_CHECKPOINT.parent.iterdir()) <= 16_000_000
