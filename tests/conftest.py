"""What every test shares: data, a small random model, and an environment that leaves the user's own alone."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:  # torch takes seconds to import, and half of the tests do without
    from torch import nn

    from mcdrl_rt.model.mcdrl import MCDRL
    from mcdrl_rt.types import ModelSpec, UInt8Array

ROOT = Path(__file__).parents[1]

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models here are tiny; threads that wait for each other cost more


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            give_up = pytest.fail if os.environ.get("MCDRL_REQUIRE_GPU") == "1" else pytest.skip
            give_up("needs an NVIDIA GPU, and torch sees none")


@pytest.fixture(scope="session", autouse=True)
def heeded_signals() -> Iterator[None]:
    """Ctrl-C and the loss of the terminal reach tests and their children, in the background and under nohup too."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    handlers = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """A program that a test runs in this process sets levels for itself, not for the tests after it."""
    levels = {logger: logger.level for logger in map(logging.getLogger, (None, "mcdrl_rt"))}
    yield
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The engine cache of this session: engines are built once, never into the user's cache or with the user's key."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("MCDRL_CACHE", str(folder))
        patch.setenv("MCDRL_STATE", str(tmp_path_factory.mktemp("state")))
        yield folder


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws from torch does not depend on the tests before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the sites; without it a test is skipped, but never in CI."""
    folder = Path(os.environ.get("MCDRL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        give_up = pytest.fail if os.environ.get("MCDRL_CI") or os.environ.get("CI") else pytest.skip
        give_up(f"needs the data sets, and {folder} is no folder (set MCDRL_DATA)")
    return folder


@pytest.fixture(scope="session")
def small_spec() -> ModelSpec:
    """mcdrl-small for three classes and twelve confounders on 128×160 pixels, 8×10 cells."""
    from mcdrl_rt.model.prompts import confounder_names
    from mcdrl_rt.types import ModelSpec

    return ModelSpec(
        name="small",
        encoder="mcdrl-small",
        input_size=(128, 160),
        classes=("polyp", "tumor", "cyst"),
        confounders=confounder_names(12),
        grid_stride=16,
        depth=2,
    )


@pytest.fixture(scope="session")
def make_model(pictures: UInt8Array) -> Callable[[ModelSpec], MCDRL]:
    """Build the model of a specification with random weights under which every part has a say.

    Initialised as for training, residual branches are all but off and logits all but constant.
    """
    import torch

    from mcdrl_rt.model.mcdrl import build_model

    @torch.no_grad()
    def make(spec: ModelSpec) -> MCDRL:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = build_model(spec)
            shake(model.network)
        images = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
        images = torch.nn.functional.interpolate(images, size=spec.input_size)
        norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # running statistics become those of the pictures
        logits = model.train()(images).logits
        model.eval()
        if spec.head == "detail":  # as many pixels lesion as not
            model.head.classify.bias[0] += (logits[:, 1:].amax(dim=1) - logits[:, 0]).median()
        return model

    return make


@pytest.fixture(scope="session")
def small_model(make_model: Callable[[ModelSpec], MCDRL], small_spec: ModelSpec) -> MCDRL:
    """The model of ``small_spec``; not to be changed by a test."""
    return make_model(small_spec)


@pytest.fixture(scope="session")
def small_checkpoint(small_model: MCDRL, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``small_model``, saved."""
    from mcdrl_rt.model.checkpoint import save_checkpoint

    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_checkpoint(small_model, path)
    return path


@pytest.fixture(scope="session")
def small_engine(small_checkpoint: Path, cache_folder: Path) -> Path:
    """The OpenVINO engine of ``small_checkpoint``, in this session's cache; to be read only."""
    from mcdrl_rt.engine import build, cache

    with pytest.MonkeyPatch.context() as patch:
        # random weights put a third of all pixels on the fence; the gate is tested with others
        patch.setitem(build.GATES, "bf16", build.Gate(0.5, 0.0))
        return cache.cached_engine(small_checkpoint)[0]


@pytest.fixture(scope="session")
def pictures() -> UInt8Array:
    """Synthetic endoscopy, (6, 128, 160, 3) uint8."""
    from mcdrl_rt.video.phantom import Phantom

    return np.stack([Phantom((128, 160), seed=seed).render(5 * seed).pixels for seed in range(6)])


def shake(module: nn.Module) -> None:
    """Give every parameter of a network a value that matters: no zero bias, no idle branch, no identity norm."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
