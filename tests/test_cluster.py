"""A real cluster of two nodes, in processes of this machine: the same results, though one is lost."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clips import write_clip
from streams import BrightEngine
from test_hands import SETTINGS, content

from mcdrl_rt.engine.base import RawOutput
from mcdrl_rt.errors import EngineError
from mcdrl_rt.offline import Loader, cluster, engine_facts, plan, process
from mcdrl_rt.offline.cluster import Cluster
from mcdrl_rt.segmenter import Segmenter
from mcdrl_rt.types import UInt8Array

pytestmark = pytest.mark.slow
SLOWLY_S = 0.02


class Slow(BrightEngine):
    """Takes its time, so that there is a midst to be lost in."""

    def infer(self, frames: UInt8Array) -> RawOutput:
        time.sleep(SLOWLY_S)
        return super().infer(frames)


@dataclass(frozen=True)
class Load:
    """What the workers of a test are given."""

    model: Path | None = None
    name: str = "bright"

    def __call__(self) -> Segmenter:
        engine = Slow()
        engine.name = self.name
        return Segmenter(engine)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of two nodes with a core each, and none on its head."""
    utils = pytest.importorskip("ray.cluster_utils", reason="needs Ray: pip install ray")
    paths = (str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    folder = tempfile.mkdtemp(prefix="ray")  # a socket's name has to be short
    monkeypatch.setenv("RAY_TMPDIR", folder)
    nodes = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes.workers = [nodes.add_node(num_cpus=1) for _ in range(2)]
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for name, frames in (("a", 150), ("b", 60)):
        write_clip(folder / f"{name}.mp4", pts=range(frames), codec_options={"g": "5", "bf": "0"})
    return folder


def segments_done(out: Path) -> int:
    """Of all procedures that are being worked on."""
    manifests = [path.read_text() for path in out.rglob("manifest.json")]
    return sum(len(json.loads(text)["done"]) for text in manifests)


def facts() -> dict[str, str]:
    return engine_facts(Load()())


def test_a_cluster_makes_what_one_process_makes_though_a_node_is_lost(
    nodes: Any, archive: Path, tmp_path: Path
) -> None:
    one, out = tmp_path / "one", tmp_path / "two"
    list(process(plan([archive], one), one, Load()(), SETTINGS, engine=facts()))
    with Cluster(nodes.address, Load(), facts()) as hands:
        assert hands.count == 2
        outcomes = process(plan([archive], out), out, Load()(), SETTINGS, hands=hands, engine=facts())

        def lose_one() -> None:
            deadline = time.monotonic() + 60
            while not segments_done(out) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert segments_done(out)
            nodes.remove_node(nodes.workers[0], allow_graceful=False)

        thread = threading.Thread(target=lose_one)
        thread.start()
        ended = list(outcomes)
        thread.join()
    assert [outcome.error for outcome in ended] == [None, None]
    assert len(content(one)) == 8
    assert content(one) == content(out)


def test_a_cluster_that_has_lost_all_of_its_workers_is_an_error(
    nodes: Any, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_PATIENCE_S", 2.0)
    out = tmp_path / "out"
    with Cluster(nodes.address, Load(), facts()) as hands:
        for node in nodes.workers:
            nodes.remove_node(node, allow_graceful=False)
        outcomes = list(process(plan([archive], out), out, Load()(), SETTINGS, hands=hands, engine=facts()))
    for outcome in outcomes:
        assert outcome.error is not None
        assert "no machine of the Ray cluster is left that has what a worker needs: {'num_cpus': 1}" in outcome.error


def test_workers_that_differ_or_see_nothing_are_refused(nodes: Any, archive: Path, tmp_path: Path) -> None:
    other = Load(name="another")
    with Cluster(nodes.address, other, facts()) as hands:
        out = tmp_path / "out"
        outcomes = list(process(plan([archive], out), out, Load()(), SETTINGS, hands=hands, engine=facts()))
    for outcome in outcomes:
        assert outcome.error is not None
        assert "has another engine than the head (engine name: bright there, another now)" in outcome.error


def test_no_cluster_is_one_line() -> None:
    pytest.importorskip("ray")
    with pytest.raises(EngineError, match=r"cannot join the Ray cluster at 127\.0\.0\.1:1: "):
        Cluster("127.0.0.1:1", Loader(), {"name": "openvino"})
