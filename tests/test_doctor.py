"""Doctor: what is found is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcdrl_rt import doctor


def test_capture_devices_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_DEVICES", tmp_path / "dev")
    monkeypatch.setattr(doctor, "_DEVICE_NAMES", tmp_path / "sys")
    (tmp_path / "dev").mkdir()
    found = {finding.what: finding for finding in doctor.examine()}["capture devices"]
    assert (found.present, found.detail) == (False, f"none ({tmp_path}/dev/video*)")
    for number in (0, 2):
        (tmp_path / "dev" / f"video{number}").touch()
    (tmp_path / "sys" / "video0").mkdir(parents=True)
    (tmp_path / "sys" / "video0" / "name").write_text("USB Capture HDMI+\n")
    found = {finding.what: finding for finding in doctor.examine()}["capture devices"]
    assert (found.present, found.detail) == (
        True,
        f"{tmp_path}/dev/video0 (USB Capture HDMI+), {tmp_path}/dev/video2",
    )
