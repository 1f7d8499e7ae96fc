"""int8: calibrated on real frames, held to the float32 masks, and as small as it should be."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT

from mcdrl_rt.engine import quantize
from mcdrl_rt.engine.build import build_engine
from mcdrl_rt.engine.cache import cached_engine
from mcdrl_rt.engine.choice import DEFAULT_CHECKPOINT, load_engine
from mcdrl_rt.engine.order import Order
from mcdrl_rt.errors import EngineError


@pytest.mark.slow  # two minutes, where NNCF gives layers back until the masks agree
def test_shipped_model_in_int8_is_near_float32_and_quantised(
    data_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcdrl_rt.engine.frames.REAL_FRAMES", 24)
    images = data_root / "Kvasir-SEG" / "images"
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(images.iterdir())[::42]:
        (few / path.name).symlink_to(path)
    plain, _ = cached_engine(DEFAULT_CHECKPOINT)
    capfd.readouterr()
    engine = tmp_path / "x.xml"
    content = build_engine(DEFAULT_CHECKPOINT, engine, Order(precision="int8", frames=few))
    assert capfd.readouterr().out == ""  # NNCF's progress bars are for nobody
    assert content["parity"]["mask_iou"] >= 0.92
    assert engine.with_suffix(".bin").stat().st_size < 0.35 * plain.with_suffix(".bin").stat().st_size
    assert load_engine(engine).name == "openvino int8 CPU"
    with pytest.raises(EngineError, match="is an engine in int8, not fp32"):
        load_engine(engine, precision="fp32")


def test_frames_without_lesions_judge_nothing(tmp_path: Path) -> None:
    """Empty masks agree whatever the model: such an engine was once called ready."""
    frames = tmp_path / "black"
    frames.mkdir()
    for i in range(4):
        cv2.imwrite(str(frames / f"{i}.png"), np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(EngineError, match="finds a lesion in 0 of 2 frames, and int8 is judged by those"):
        build_engine(DEFAULT_CHECKPOINT, tmp_path / "x.xml", Order(precision="int8", frames=frames))
    assert [p.name for p in tmp_path.iterdir()] == ["black"]


def test_without_nncf_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_nncf(name: str, *rest: Any) -> Any:
        if name == "nncf":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", no_nncf)
    with pytest.raises(EngineError, match=r"pip install 'mcdrl-rt\[int8\]'"):
        quantize.quantize(None, [])  # type: ignore[arg-type]


def test_nncf_reports_no_use_to_its_makers() -> None:
    script = """
from mcdrl_rt.engine.quantize import _nncf
_nncf()
from nncf.telemetry.wrapper import telemetry
print(type(telemetry).__module__, type(telemetry).__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "MagicMock" in done.stdout, done.stderr
