"""The GPU benchmark rehearsed on a CPU: every part runs, one that fails loses nothing else, and bars are judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

PROGRAM = ROOT / "benchmarks" / "gpu.py"
# what a bare GPU machine need not have
HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
"""
ABSENT = {"av", "openvino", "nncf", "platformdirs", "lightning", "lightning_fabric", "segmentation_models_pytorch"}


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which the video, OpenVINO and training packages cannot be imported."""
    (tmp_path / "site").mkdir()
    # before the interpreter's own: whatever that did is done all the same
    own = "\n".join(
        Path(folder, "sitecustomize.py").read_text()
        for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if folder and Path(folder, "sitecustomize.py").is_file()
    )
    (tmp_path / "site" / "sitecustomize.py").write_text(own + HIDE.format(hidden=sorted(ABSENT)))
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def rehearse(output: Path, environment: dict[str, str], *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The summary, and what was measured."""
    command = [sys.executable, PROGRAM, "--rehearse", "--output", output, *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert (ended.returncode, ended.stderr) == (0, "")
    summary = json.loads(ended.stdout.splitlines()[-1])
    result = json.loads((output / "gpu.json").read_text())
    assert result["summary"] == summary
    return summary, result["parts"]


@pytest.mark.slow
def test_rehearsal_measures_everything_without_what_a_gpu_machine_lacks(tmp_path: Path, bare: dict[str, str]) -> None:
    output = tmp_path / "out"
    summary, parts = rehearse(output, bare, "--only", "kernels", "latency", "path", "tests", "sanitizer")
    assert set(summary["status"].values()) == {"done"}, summary["status"]
    assert summary["failed"] == []
    (model,) = parts["latency"]["models"].values()
    forms = ["eager fp32", "eager fp16", "graph unfused", "graph fused"]
    assert [(row["depth"], row["batch"]) for row in model["rows"]] == [(1, 1), (2, 1), (1, 2)]
    assert all(list(row[p]) == forms for row in model["rows"] for p in ("p50_ms", "p95_ms", "p99_ms"))
    assert set(model["microseconds_per_block"]) == set(model["p50_ms_by_depth"]) == set(forms[2:])
    assert 0 < model["throughput"]["share_of_ceiling"] and model["encoder_gflops"] > 0
    assert parts["kernels"]["within_bounds"] is True and parts["kernels"]["native"] is False
    assert all(row["select_intervene"].keys() == row["intervene"].keys() for row in parts["kernels"]["microseconds"])
    assert parts["path"]["agreement"]["label_flips"] <= 0.005
    assert len(parts["path"]["frames"]["tiny"]["p50_ms"]) == 5
    written = sorted(path.name for path in output.iterdir())
    assert written == ["gpu.json", "latency-by-batch.png", "latency-by-depth.png", "log.txt"]
    assert "test_native_operators_are_captured_in_a_graph" in (output / "log.txt").read_text()


@pytest.mark.slow
def test_rehearsal_of_the_slow_parts(tmp_path: Path) -> None:
    summary, parts = rehearse(tmp_path, dict(os.environ), "--only", "build", "compiled")
    assert summary["status"]["compiled"] == "done"
    assert summary["status"]["build"] in ("done", "left out: needs cmake and nvcc")
    (model,) = parts["compiled"]["models"].values()
    assert list(model["p50_ms"]) == ["graph fused", "torch.compile, graph"]


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu import Benchmark

    return Benchmark(tmp_path, minutes=1, rehearse=False)


def test_part_that_fails_loses_no_other(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(until: float) -> str:
        raise ZeroDivisionError("a fault of the part's own")

    def ends_badly(until: float) -> str:
        return f"failed: {benchmark.call([sys.executable, '-c', 'raise SystemExit(3)'], until).reason}"

    plan = {"first": (5, raises), "second": (5, ends_badly), "third": (5, lambda until: "done")}
    monkeypatch.setattr(benchmark, "plan", lambda: plan)
    summary = benchmark.run([])
    assert summary["status"] == {
        "first": "failed: ZeroDivisionError: a fault of the part's own",
        "second": "failed: status 3: ",
        "third": "done",
    }
    assert summary["failed"] == ["first", "second"]
    assert json.loads((tmp_path / "gpu.json").read_text())["summary"]["failed"] == ["first", "second"]


def test_program_that_hangs_is_stopped_and_its_figures_are_kept(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu

    program = (
        "import sys, subprocess, time, pathlib\n"
        "pathlib.Path(sys.argv[sys.argv.index('--result') + 1]).write_text('{\"figure\": 1}')\n"
        "subprocess.Popen(['sleep', '60'])\n"
        "time.sleep(60)"
    )
    folder = benchmark.scratch / "programs"
    folder.mkdir()
    (folder / "gpu_hanging.py").write_text(program)
    monkeypatch.setattr(gpu, "HERE", folder)
    monkeypatch.setattr(gpu, "GRACE_S", 1)
    started = time.monotonic()
    assert benchmark.program("hanging", time.time()) == "failed after some figures: out of time"
    assert time.monotonic() - started < 20
    assert benchmark.parts["hanging"] == {"figure": 1}


def test_tests_are_judged_one_by_one(benchmark: Any) -> None:
    from gpu import judged

    told = [
        "tests/test_a.py::test_one[1-float16] PASSED                              [ 10%]",
        "[gw3] [ 20%] PASSED tests/test_a.py::test_two",
        "tests/test_b.py::test_three FAILED                                       [ 30%]",
    ]
    stopped = judged(told, None)
    assert (stopped["passed"], stopped["count"], stopped["failures"]) == (False, 2, ["tests/test_b.py::test_three"])
    assert judged(told[:2], None)["passed"] is None  # of those that were to come nobody knows
    assert judged(told[:2], 0)["passed"] is True
    without = "SKIPPED [1] tests/test_tensorrt.py:282: needs TensorRT"
    assert judged([*told[:2], without], 0)["passed"] is True
    other = judged([*told[:2], "SKIPPED [1] tests/test_graph.py:12: needs a GPU"], 0)
    assert other["passed"] is False and len(other["skipped"]) == 1
    again = judged([*told, "FAILED tests/test_b.py::test_three - assert 0", "ERROR tests/test_c.py"], 1)
    assert again["failures"] == ["tests/test_b.py::test_three", "tests/test_c.py"]


@pytest.mark.parametrize(
    "name", ["kernels", *(pytest.param(name, marks=pytest.mark.slow) for name in ("compiled", "latency"))]
)
def test_what_there_is_no_time_for_is_told(benchmark: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    status = benchmark_of(benchmark, name, monkeypatch)
    assert status.startswith("left out for time: "), status
    if name == "kernels":
        assert benchmark.parts[name]["within_bounds"] is None


def benchmark_of(benchmark: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a part ends that is out of time when it begins."""
    benchmark.rehearse = True
    call = benchmark.call
    with monkeypatch.context() as patched:
        patched.setattr(benchmark, "call", lambda command, until, *more: call(command, until + 300, *more))
        return str(benchmark.program(name, time.time()))


def test_what_fails_inside_a_part_is_noted_and_the_rest_is_kept(benchmark: Any, tmp_path: Path) -> None:
    from part import Part

    part = Part(tmp_path / "part.json", until=time.time() + 5, rehearse=True)
    part.save(first=1)
    assert part.attempt("second", lambda: 1 / 0) is None
    assert part.attempt("third", lambda: 3) == 3
    assert json.loads((tmp_path / "part.json").read_text()) == {
        "first": 1,
        "errors": {"second": "ZeroDivisionError: division by zero"},
    }
    assert part.has_time() and not part.has_time(60)


def test_no_part_begins_when_the_time_is_over(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark.until = time.time() - 1
    summary = benchmark.run([])
    assert set(summary["status"].values()) == {"left out: no time"} and len(summary["status"]) == 7


def parts_with(fused_ms: float, select_us: float) -> dict[str, Any]:
    p50 = {"eager fp32": 10.0, "graph fused": fused_ms}
    model = {
        "rows": [{"depth": 3, "batch": 1, "p50_ms": p50}],
        "microseconds_per_block": {"graph fused": 12.0},
        "throughput": {"share_of_ceiling": 0.4},
    }
    micro = [{"batch": 1, "select_intervene": {"fused": select_us, "torch, fp16": 60.0}}]
    kernels = {"native": True, "within_bounds": True, "microseconds": micro}
    return {"latency": {"models": {"ViT-L-14": model}}, "kernels": kernels, "tests": {"passed": False}}


def test_bars_are_judged_where_something_was_measured(benchmark: Any) -> None:
    from gpu_report import bars

    judged = list(bars(parts_with(1.0, 10.0)).values())
    assert [bar["met"] for bar in judged] == [True, True, True, True, False, True, True, None, None, False, None]
    judged = list(bars(parts_with(2.5, 20.0)).values())
    assert [bar["met"] for bar in judged[:4]] == [False, False, True, False]
    assert judged[1]["value"] == 4.0 and judged[3]["value"] == 3.0
    assert {bar["met"] for bar in bars({}).values()} == {None}


def test_slope_is_the_cost_of_one_more(benchmark: Any) -> None:
    from timing import interleaved, slope

    assert slope({1: 5.0, 2: 7.0, 5: 13.0}) == pytest.approx(2.0)
    calls: list[str] = []
    forms = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    figures = interleaved(forms, 3, warm_up=1, wait=lambda: calls.append("."))
    assert calls[1::2] == ["."] * 8
    assert [sorted(calls[i : i + 4]) for i in range(0, 16, 4)] == [[".", ".", "a", "b"]] * 4
    assert figures["rounds"] == 3 and figures["p50_ms"]["a"] <= figures["p99_ms"]["a"]
    assert interleaved({"a": lambda: time.sleep(0.01)}, 1000, warm_up=0, seconds=0.05)["rounds"] < 20
