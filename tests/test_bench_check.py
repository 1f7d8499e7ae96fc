"""make bench-check: ratios of the stored results, what may move by how much, and what other machines are good for."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def stored(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"cpu-2-cores-{name}.json").read_text())


def slower(result: dict[str, Any], form: str, factor: float) -> dict[str, Any]:
    """The same result in which one form took longer."""
    result = copy.deepcopy(result)
    for row in result["precisions"].values():
        for figure in ("p50_ms", "p95_ms", "p99_ms"):
            row[figure][form] *= factor
    return result


def test_every_benchmark_that_is_checked_has_a_stored_result_with_ratios() -> None:
    from check import SHORT, stored_results
    from ratios import RATIOS

    assert set(SHORT) == set(RATIOS)
    for name, ratios in RATIOS.items():
        results = stored_results(name)
        assert RESULTS / f"cpu-2-cores-{name}.json" in results
        found = ratios(results[RESULTS / f"cpu-2-cores-{name}.json"])
        assert found and all(ratio.value > 0 and 0 <= ratio.spread < 0.3 for ratio in found.values()), found


@pytest.mark.parametrize("name", ["latency", "precision", "rival", "pipeline"])
def test_result_is_as_good_as_itself(name: str) -> None:
    from check import choose, compare, stored_results

    result = stored(name)
    path, same_kind = choose(result, stored_results(name))
    assert path == RESULTS / f"cpu-2-cores-{name}.json" and same_kind
    verdicts = compare(result, result, same_kind)
    assert verdicts and {one.verdict for one in verdicts} <= {"as before", "unsteady"}
    assert all(one.stored == one.now and one.tolerance >= 0.05 for one in verdicts)


def test_what_depth_costs_and_what_folding_gains_are_among_the_ratios_of_latency() -> None:
    from ratios import of_latency

    result = stored("latency")
    ratios = of_latency(result)
    fast = result["precision"]
    row = next(row for row in result["models"]["RN50"]["rows"] if (row["depth"], row["batch"]) == (5, 1))
    folded, literal = (row["p50_ms"][f"openvino {fast}, {form}"] for form in ("folded", "literal"))
    what = f"RN50, depth 5: openvino {fast}, folded by openvino {fast}, literal"
    assert ratios[what].value == pytest.approx(folded / literal)
    growth = ratios[f"RN50, openvino {fast}, folded: depth 5 by depth 1"]
    assert growth.value == result["models"]["RN50"]["growth"][f"openvino {fast}, folded"]["ratio"]


def test_what_got_worse_or_better_beyond_the_spreads_is_said() -> None:
    from check import compare

    result = stored("rival")
    verdicts = {factor: compare(result, slower(result, "mcdrl", factor), True) for factor in (1.04, 1.5, 0.6)}
    assert [one.verdict for one in verdicts[1.04]] == ["as before"] * len(result["precisions"])
    assert {one.verdict for one in verdicts[1.5]} == {"WORSE"}
    assert {one.verdict for one in verdicts[0.6]} == {"better"}
    assert verdicts[1.5][0].what == "openvino fp32: mcdrl by unet"
    # both slower alike is another machine's day, not a change of ours
    busy = slower(slower(result, "mcdrl", 2.0), "unet", 2.0)
    assert {one.verdict for one in compare(result, busy, True)} == {"as before"}


def test_tolerance_grows_with_the_spread_until_nothing_can_be_said() -> None:
    from check import LEAST, MOST, judge
    from ratios import Ratio

    steady, shaky = Ratio(1.0, 0.0), Ratio(1.3, 0.16)
    assert judge("x", steady, Ratio(1.04, 0.0), True)[3:] == (LEAST, "as before")
    assert judge("x", steady, Ratio(1.3, 0.0), True).verdict == "WORSE"
    assert judge("x", steady, Ratio(1.2, 0.16), True)[3:] == (0.24, "as before")
    assert judge("x", steady, shaky, True).verdict == "WORSE"
    one = judge("x", steady, Ratio(1.5, 0.4), True)
    assert one.verdict == "unsteady" and one.tolerance > MOST
    assert judge("x", steady, Ratio(9.0, 0.4), True).verdict == "WORSE"  # whatever the machine does


def test_of_another_kind_of_machine_only_which_is_faster_counts() -> None:
    from check import compare
    from ratios import alike

    result = stored("rival")
    result["machine"].pop("family", None)  # older results do not tell it
    other = copy.deepcopy(result)
    other["machine"]["processor"] = "Intel(R) Core(TM) i5-8250U"
    assert alike(result, result) and not alike(result, other)
    few = copy.deepcopy(result)
    few["machine"]["cores"] = 8
    gpu = copy.deepcopy(result)
    gpu["machine"]["gpu"] = "NVIDIA H100"
    without = copy.deepcopy(result)
    del without["precisions"]["bf16"]
    family = [result | {"machine": result["machine"] | {"family": name}} for name in ("AMD 26", "AMD 23")]
    assert not any(alike(result, one) for one in (few, gpu, without))
    assert alike(result, family[0]) and not alike(*family)
    assert {one.verdict for one in compare(slower(other, "mcdrl", 0.5), result, False)} == {"as before"}
    assert {one.verdict for one in compare(other, slower(result, "mcdrl", 3.0), False)} == {"WORSE"}
    assert {one.verdict for one in compare(slower(other, "mcdrl", 3.0), result, False)} == {"not judged"}


def test_forms_whose_stored_times_are_known_to_be_wrong_are_passed_over() -> None:
    from check import compare

    result = stored("latency")
    assert result["unsound"] == ["openvino bf16, literal"]
    judged = {one.what for one in compare(result, result, True)}
    assert judged and not any("openvino bf16, literal" in what for what in judged)
    assert any("openvino bf16, folded by torch" in what for what in judged)


def test_of_several_results_the_one_of_this_machine_is_taken() -> None:
    from check import choose

    result = stored("rival")
    other = copy.deepcopy(result)
    other["machine"]["cores"] = 64
    here, there = Path("here.json"), Path("there.json")
    assert choose(result, {there: other, here: result}) == (here, True)
    assert choose(result, {there: other}) == (there, False)
    foreign = copy.deepcopy(other)
    foreign["precisions"] = {"int4": result["precisions"]["fp32"]}
    assert choose(result, {there: foreign}) == (None, False)
    assert choose(result, {}) == (None, False)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """``check.py --only rival`` as if the short run had given this."""
    import check as program

    def run(result: Any) -> tuple[int, list[str], dict[str, Any]]:
        def give(name: str) -> Any:
            if isinstance(result, Exception):
                raise result
            return result

        monkeypatch.setattr(program, "run", give)
        monkeypatch.setattr(program, "NEEDS", {})
        monkeypatch.setattr(sys, "argv", ["check.py", "--only", "rival"])
        status = 0
        try:
            program.main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        *lines, last = capsys.readouterr().out.splitlines()
        return status, lines, json.loads(last)

    return run


def test_check_ends_with_a_status_and_a_line_for_each_ratio(check: Any) -> None:
    result = stored("rival")
    status, lines, summary = check(result)
    assert status == 0 and summary["worse"] == [] and len(summary["ratios"]) == len(result["precisions"])
    assert lines[0] == "rival, against cpu-2-cores-rival.json"
    value = f"{summary['ratios'][0]['stored']:.3f}"
    start = f"  as before   openvino fp32: mcdrl by unet: stored {value}   now {value}   (may move by "
    assert lines[1].startswith(start) and lines[1].endswith("%)")
    status, lines, summary = check(slower(result, "mcdrl", 1.6))
    assert status == 1 and len(summary["worse"]) == len(result["precisions"])
    assert lines[1].startswith("  WORSE ") and lines[-1].endswith(" got worse")


def test_check_says_where_there_is_nothing_to_compare_and_what_could_not_be_run(check: Any) -> None:
    result = stored("rival")
    result["machine"]["processor"] = "another"
    status, lines, _ = check(result)
    assert status == 0 and lines[0].endswith(", of another kind of machine: only which is the faster")
    result["precisions"] = {"fp8": result["precisions"]["fp32"]}
    status, lines, summary = check(result)
    assert status == 3 and summary["ratios"] == []
    assert lines[0] == "rival: nothing to compare, no stored result has a ratio of this one"
    status, lines, summary = check(RuntimeError("ModuleNotFoundError: No module named 'x'"))
    assert (status, summary["failed"]) == (1, ["rival"])
    assert lines == ["rival: FAILED, ModuleNotFoundError: No module named 'x'", "0 ratios, 0 got worse; failed: rival"]


def test_program_that_ends_badly_is_told_by_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    import check as program

    monkeypatch.setitem(program.SHORT, "rival", "--runs none")
    with pytest.raises(RuntimeError, match=r"it is a whole number from 1 on, not 'none'$"):
        program.run("rival")
