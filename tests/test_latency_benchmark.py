"""What the benchmark of depths is made of: models that share an encoder, figures, memory and energy, and its words."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT

STORED = ROOT / "benchmarks" / "results" / "cpu-2-cores-latency.json"


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def family() -> Any:
    """mcdrl-small on 64×64 pixels at three depths, for OpenVINO, any batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        from families import OpenVinoFamily

        return OpenVinoFamily("mcdrl-small", 64, 16, (1, 2, 3), (1, 2), "fp32")


@pytest.mark.parametrize(("depth", "batch"), [(1, 1), (2, 2), (3, 1)])
def test_every_form_of_a_depth_is_that_model(family: Any, depth: int, batch: int) -> None:
    """Shallower models are cut out of the deepest: here they are held to the equations of their own depth."""
    from forms import at_depth, unfolded

    frames = family.frames(batch)
    printed = at_depth(family.literal, depth)
    assert len(printed.network.blocks) == depth and len(family.literal.network.blocks) == 3
    assert printed.encoder is not family.literal.encoder
    pairs = zip(printed.encoder.parameters(), family.literal.encoder.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    with torch.no_grad():
        expected = unfolded(printed)(frames)[0].int().numpy()
    forms = family.forms(depth, batch)
    assert list(forms) == ["torch fp32, literal", "openvino fp32, literal", "openvino fp32, folded"]
    logits = forms["torch fp32, literal"]()()
    assert logits.shape == (batch, 2, 64, 64)
    margin = torch.sigmoid(logits[:, 1] - logits[:, 0]) * 256
    assert np.abs(margin.numpy() - 0.5 - expected).max() <= 1.5
    for name in list(forms)[1:]:
        score, label, confounders, selected = forms[name]()()
        assert np.abs(score.astype(int) - expected).max() <= 1, name  # a unit is 1/256
        assert label.shape == score.shape and confounders.shape == (batch, 12) and selected.sum() == batch * 8


def test_depths_differ_in_what_they_say_and_in_parameters(family: Any) -> None:
    scores = [family.forms(depth, 1)["openvino fp32, folded"]()()[0] for depth in (1, 3)]
    assert (scores[0] != scores[1]).any()
    assert family.parameters(3) - family.parameters(2) == family.parameters(2) - family.parameters(1) > 0


def test_figures_of_every_depth_come_from_the_same_rounds(family: Any) -> None:
    from depths import Effort, measure

    found = measure(family, (1, 2), Effort(6, (30.0, 30.0)))
    assert [(row["depth"], row["batch"], row["rounds"]) for row in found["rows"]] == [
        (depth, batch, 6) for batch in (1, 2) for depth in (1, 2, 3)
    ]
    for row in found["rows"]:
        assert set(row["spread_ms"]) == set(row["peak_mib"]) == set(row["p50_ms"])
        assert row["joules"] == {} or set(row["joules"]) == set(row["p50_ms"])
    assert found["refused"] == []
    assert {(g["from"], g["to"]) for g in found["growth"].values()} == {(1, 3)}


def test_form_that_finds_no_room_is_named_and_the_others_are_measured(family: Any) -> None:
    from depths import Effort, measure
    from families import Family

    class Cramped(Family):
        def __init__(self) -> None:
            self.__dict__ = dict(family.__dict__)

        def forms(self, depth: int, batch: int) -> Any:
            def fails() -> Any:
                raise torch.OutOfMemoryError("CUDA out of memory\nof 80 GiB")

            return super().forms(depth, batch) | ({"graph fused": fails} if depth == 2 else {})

    found = measure(Cramped(), (1,), Effort(1, (1.0, 1.0)))
    assert found["refused"] == [{"depth": 2, "batch": 1, "form": "graph fused", "why": "CUDA out of memory"}]
    assert [list(row["p50_ms"]) for row in found["rows"]] == [["torch fp32, literal", "torch fp32, folded"]] * 3


def test_spread_is_how_far_the_parts_of_a_run_lie_apart() -> None:
    from timing import figures, spread

    assert spread([1.0] * 20) == 0
    assert spread([1.0] * 4 + [2.0] * 16) == 1
    assert spread([3.0, 4.0]) is None
    assert figures({"a": [1.0, 2.0]})["spread_ms"] == {"a": None}
    assert figures({"a": [1.0, 2.0, 3.0]})["spread_ms"] == {"a": 2.0}


def test_ratio_of_two_forms_is_that_within_a_round() -> None:
    """A machine that slows down meets both: their ratio does not move."""
    from timing import figures

    slowing = [1.0, 1.5, 2.0, 2.5, 3.0]
    pairs = figures({"a": slowing, "b": [2 * value for value in slowing]})["paired"]
    assert pairs == {"a by b": {"ratio": 0.5, "spread": 0.0}, "b by a": {"ratio": 2.0, "spread": 0.0}}


def test_each_round_has_an_order_of_its_own() -> None:
    """What runs after torch takes longer, for as long as torch's threads spin: no form may always be the next."""
    from timing import timed

    order: list[str] = []
    forms = {name: lambda name=name: order.append(name) for name in "abc"}
    times = timed(forms, 20)
    assert {name: len(values) for name, values in times.items()} == {"a": 20, "b": 20, "c": 20}
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds) and len({tuple(one) for one in rounds}) == 6


def test_rounds_that_count_are_made_however_long_they_take() -> None:
    from timing import timed

    assert len(timed({"a": lambda: None}, 40, warm_up=2, seconds=0, least=5)["a"]) == 5
    assert len(timed({"a": lambda: None}, 3, warm_up=2, seconds=0, least=5)["a"]) == 3


def test_memory_is_what_a_form_took_at_most() -> None:
    from resources import peak_mib

    told = peak_mib(lambda: np.ones((64, 1 << 20), np.uint8).sum(), torch.device("cpu"))
    if sys.platform == "linux":
        assert told is not None and 60 < told < 100
    else:
        assert told is None


def test_energy_is_read_from_every_package_and_over_the_end_of_its_register(tmp_path: Path) -> None:
    from resources import energy_meter, joules

    cpu = torch.device("cpu")
    assert energy_meter(cpu, tmp_path) is None
    for name, micro in (("intel-rapl:0", 900_000), ("intel-rapl:1", 0), ("intel-rapl:0:0", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("1000000")
        (tmp_path / name / "energy_uj").write_text(f"{micro}\n")
    meter = energy_meter(cpu, tmp_path)
    assert meter is not None and meter() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("300000")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("900000")  # a part of package 0
    assert meter() == pytest.approx(0.2 + 0.3)
    readings = iter((0.0, 10.0))
    assert joules(lambda: None, lambda: None, lambda: next(readings), seconds=0.001) > 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("?")
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert energy_meter(cpu, tmp_path) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--depths 0", "--depths go from 1 to 64"),
        ("--depths 5-1", "argument --depths: '5-1' is neither a number nor a range like 1-5"),
        ("--depths 1-x", "argument --depths: '1-x' is neither a number nor a range like 1-5"),
        ("--depths 65", "--depths go from 1 to 64"),
        ("--batches 0", "--batches go from 1 to 256"),
        ("--batches 1-1000000000", "--batches go from 1 to 256"),
        ("--encoder RN5", "no encoder 'RN5'; try RN50, ViT-B-16, ViT-L-14 or mcdrl-small"),
        ("--input-size 8", "--input-size is 32 to 4096 pixels, not 8"),
        ("--runs 0", "--runs is at least 1, not 0"),
        ("--runs many", "argument --runs: invalid int value: 'many'"),
        ("--engine openvino --precision int8", "int8 needs real frames: python benchmarks/precision.py"),
        ("--engine openvino --precision fp8", "OpenVINO engines come in fp32, bf16, fp16, int8, not 'fp8'"),
        ("--engine torch --precision bf16", "--precision is for OpenVINO; torch is measured in fp32"),
        ("--engine tensorrt", "argument --engine: invalid choice: 'tensorrt'"),
        ("--plot /nowhere/depth.png", "cannot write /nowhere/depth.png: No such file or directory"),
        ("--plot depth.txt", "--plot draws .png, .svg, .pdf, not depth.txt"),
        ("--save ../latency", "--save takes a name for benchmarks/results, not '../latency'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_at_once(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import latency

    monkeypatch.setattr(sys, "argv", ["latency.py", *given.split()])
    monkeypatch.setattr(latency, "make", lambda *_: pytest.fail("it began"))
    with pytest.raises(SystemExit) as ended:
        latency.main()
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"latency.py: {said}")


def test_trying_to_write_leaves_nothing_and_takes_nothing(tmp_path: Path) -> None:
    from outputs import try_to_write

    try_to_write(tmp_path / "new.png")
    (tmp_path / "old.png").write_bytes(b"picture")
    try_to_write(tmp_path / "old.png")
    assert [path.name for path in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == b"picture"


def test_what_was_measured_is_printed_though_it_cannot_be_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from outputs import finish, run_main

    def draw(result: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"a picture")  # into a folder that went away meanwhile

    arguments = argparse.Namespace(save=None, plot=tmp_path / "gone" / "plot.png")
    with pytest.raises(SystemExit, match=r"^error: .*gone/plot\.png: No such file or directory$"):
        run_main(lambda: finish({"benchmark": "x"}, arguments, draw))
    assert json.loads(capsys.readouterr().out) == {"benchmark": "x"}


def test_report_shows_every_figure_of_the_stored_result_beside_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from latency_report import draw, show

    result = json.loads(STORED.read_text())
    show(result)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 110 + 30  # only a sentence below the tables may be longer
    for model in result["models"].values():
        for row in model["rows"]:
            if row["batch"] == 1:
                assert all(f"{value:.2f} ±" in shown for value in row["p50_ms"].values())
    assert shown.count("A800, theirs") == 5 * len(result["models"]) + 1
    draw(result, tmp_path / "depth.svg")
    drawing = (tmp_path / "depth.svg").read_text()
    assert all(f">{word}<" not in drawing for word in ("nan", "None"))
    assert "<svg" in drawing
