"""Benchmarks run as they are typed, from the root, and end in one JSON line; what they measure is not judged here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT
from mcdrl_rt.engine.sidecar import file_hash

ROOT = Path(__file__).parents[1]


def bench(*arguments: str) -> tuple[list[str], dict[str, Any]]:
    """The lines for people, and the one for programs."""
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=600
    )
    said = [line for line in ended.stderr.splitlines() if not line.startswith("building the engine of ")]
    assert (ended.returncode, said) == (0, [])
    *lines, last = ended.stdout.splitlines()
    return lines, json.loads(last)


@pytest.mark.slow
def test_startup() -> None:
    lines, result = bench("benchmarks/startup.py", "--runs", "1")
    assert (result["benchmark"], result["runs"]) == ("startup", 1)
    assert list(result["median_s"]) == ["python", "import mcdrl_rt", "mcdrl-rt --help", "mcdrl-rt stream, one frame"]
    assert len(lines) == 4
    assert all(0 < seconds < math.inf for seconds in result["median_s"].values())
    # importing the package must not cost what using it does
    assert result["median_s"]["import mcdrl_rt"] < result["median_s"]["mcdrl-rt stream, one frame"]
    assert result["machine"]["cores"] >= 1


@pytest.mark.slow
def test_latency(tmp_path: Path) -> None:
    plot = tmp_path / "depth.png"
    given = ("--encoder", "mcdrl-small", "--depths", "1-2", "--batches", "1", "2", "--runs", "2", "--plot", str(plot))
    lines, result = bench("benchmarks/latency.py", *given)
    assert (result["benchmark"], result["engine"], result["runs"]) == ("latency", "openvino", 2)
    model = result["models"]["mcdrl-small"]
    assert [(row["depth"], row["batch"]) for row in model["rows"]] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    forms = ["torch fp32, literal", *(f"openvino {result['precision']}, {form}" for form in ("literal", "folded"))]
    for row in model["rows"]:
        assert list(row["p50_ms"]) == forms
        assert all(0 < row["p50_ms"][form] <= row["p95_ms"][form] <= row["p99_ms"][form] for form in forms)
        assert all(rate == pytest.approx(row["batch"] / row["p50_ms"][f] * 1e3, rel=0.01)
                   for f, rate in row["images_per_s"].items())  # fmt: skip
    assert list(model["growth"]) == list(model["ms_per_block"]) == forms
    assert result["paper"]["ms"] == [142, 178, 215, 252, 290] and "A800" in result["paper"]["what"]
    assert result["shipped"]["engine"].startswith("openvino ")
    assert any("A800, theirs" in line and "142" in line for line in lines)
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_pipeline() -> None:
    options = ("--size", "160x128", "--seconds", "1", "--rounds", "1")
    lines, result = bench("benchmarks/pipeline.py", *options)
    forms = {"floor", "pipeline", "mcdrl-rt", "opencv, same engine", "opencv, eager torch"}
    assert forms <= set(result["seconds"]) and len(lines) >= len(forms) + 2
    assert result["over_ours"]["mcdrl-rt"] == result["over_floor"]["floor"] == 1
    assert result["overhead"] == result["over_floor"]["pipeline"] - 1
    assert {"capture", "infer", "compose", "encode"} <= set(result["stages_p50_ms"])


@pytest.mark.slow
def test_precision(data_root: Path) -> None:
    clip = str(data_root / "video" / "colonoscopy_560x480_25fps.mp4")
    lines, result = bench("benchmarks/precision.py", "--frames", clip, "--models", "shipped", "--runs", "2")
    (row,) = result["models"]
    assert {"torch fp32, literal", "openvino fp32", "openvino int8"} <= set(row["p50_ms"])
    assert len(lines) == len(row["p50_ms"])


@pytest.mark.slow
def test_roofline(tmp_path: Path) -> None:
    plot = tmp_path / "roofline.png"
    lines, result = bench("benchmarks/roofline.py", "--models", "shipped", "--rounds", "2", "--plot", str(plot))
    assert set(result["ceilings"]["gops"]) >= {"fp32", "int8"}
    for engine in result["engines"]:
        assert {"input", "encoder", "selection", "block 1", "head", "output"} < set(engine["parts"])
        assert engine["gop"] == pytest.approx(sum(part["gop"] for part in engine["parts"].values()), abs=0.001)
        middle, least, most = engine["share"]
        assert 0 < least <= middle <= most
        assert any(engine["engine"] in line for line in lines)
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_accuracy_speed(data_root: Path, tmp_path: Path) -> None:
    plot = tmp_path / "pareto.png"
    some = ("--frames", "4", "--sizes", "192", "288", "--alphas", "0.3", "--plot", str(plot))
    lines, result = bench("benchmarks/accuracy_speed.py", "--data", str(data_root), *some)
    assert result["weights"] == file_hash(DEFAULT_CHECKPOINT)
    assert set(result["images"].values()) == {4}
    assert sum(form["shipped"] for form in result["forms"]) == 1
    assert {form["depth"] for form in result["forms"]} == {1, 2, 3}
    assert {form["alpha"] for form in result["forms"]} == {0.3, 0.6}
    assert all(0 < form["dice_unseen"] <= 1 for form in result["forms"])
    assert any("shipped" in line for line in lines) and any(form["pareto"] for form in result["forms"])
    assert plot.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("roofline.py", "--rounds", "0"), "--rounds is at least 1, not 0"),
        (("roofline.py", "--plot", "roofline.txt"), "a plot's name ends in .png, .svg, .pdf, not 'roofline.txt'"),
        (("roofline.py", "--plot", "/nowhere/a.png"), "no folder /nowhere for the plot"),
        (("roofline.py", "--models", "RN5"), "no encoder 'RN5'"),
        (("accuracy_speed.py", "--save", "a/b"), "--save is a name for benchmarks/results, without folder, not 'a/b'"),
        (("accuracy_speed.py", "--data", "/nowhere"), "no site at /nowhere/Kvasir-SEG"),
        (("accuracy_speed.py", "--sizes", "8"), "needs an input size from 32×32 to 4096×4096"),
        (("accuracy_speed.py", "--alphas", "2"), "needs alpha in (0, 1]"),
        (("accuracy_speed.py", "--checkpoints", "nothing.safetensors"), "no checkpoint at nothing.safetensors"),
        (("accuracy_speed.py", "--checkpoints", "tests"), "tests holds no finished run"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(arguments: tuple[str, ...], told: str) -> None:
    program, *options = arguments
    command = [sys.executable, f"benchmarks/{program}", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert ended.returncode != 0 and ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and told in line


@pytest.mark.slow
def test_rival() -> None:
    lines, result = bench("benchmarks/rival.py", "--runs", "2")
    assert "fp32" in result["precisions"]
    for row in result["precisions"].values():
        assert row["ratio"] == pytest.approx(row["p50_ms"]["mcdrl"] / row["p50_ms"]["unet"], abs=0.001)
    assert len(lines) == len(result["precisions"])


@pytest.mark.slow
def test_picture(tmp_path: Path) -> None:
    path = tmp_path / "sheet.jpg"
    subprocess.run([sys.executable, "benchmarks/picture.py", str(path)], cwd=ROOT, check=True, timeout=600)
    assert path.read_bytes()[:3] == b"\xff\xd8\xff"


@pytest.mark.parametrize("program", sorted(path.name for path in (ROOT / "benchmarks").glob("*.py")))
def test_no_result_names_its_machine(program: str) -> None:
    """A benchmark may print versions and the processor, never a host or a user."""
    text = (ROOT / "benchmarks" / program).read_text()
    assert not any(word in text for word in ("gethostname", "platform.node", "getuser", "getlogin"))


@pytest.mark.slow
def test_stream() -> None:
    given = ("--minutes", "0.1", "--size", "640x360", "--fps", "25", "--streams", "2")
    for _ in range(2):  # a machine that was busy has another chance
        lines, result = bench("benchmarks/stream.py", *given)
        if all(figures["without_overlay"] < 0.5 for figures in result["streams"]):
            break
    assert result["benchmark"] == "stream"
    for figures in result["streams"]:
        assert figures["frames"] + figures["frames_lost"] == 150
        assert figures["frames"] >= 140
        assert figures["video_delay"]["p50_ms"] < 3 * result["frame_interval_ms"]
        assert figures["mask_age"].get("max_ms", 0) <= 125  # none older is drawn; the HUD comes after
        assert figures["without_overlay"] < 0.5
    assert result["memory_mib"]["most"] > 0
    assert len(lines) == 7


@pytest.mark.slow
def test_steadiness() -> None:
    _, result = bench("benchmarks/steadiness.py", "--frames", "30", "--runs", "2")
    assert result["benchmark"] == "steadiness"
    for row in result["videos"]:
        assert all(each["moved"] > each["left"] for each in row["moved"])
        assert row["steady"]["steadied"]["flicker"] < row["steady"]["as found"]["flicker"]
