"""AOTInductor: a model compiled to native code ahead of time, one ``.pt2`` file for one device and batch size.

A package is native code: load none that was not built here. Its fused operators are called by name, so importing
this module (which registers them) is all that running one needs; the checkpoint is not read again.

    >>> build_aoti(to_half(folded), Path("polyp.pt2"), "cuda")                   # doctest: +SKIP
    >>> engine = AotiEngine(Path("polyp.pt2"), "cuda")                           # doctest: +SKIP
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch._inductor
from torch import Tensor

from mcdrl_rt import ops as _ops  # noqa: F401 (registers the operators a package calls)
from mcdrl_rt.engine.gpu import hush_cuda
from mcdrl_rt.engine.tensors import Capture, TensorEngine, example_frames, failures, find_device
from mcdrl_rt.errors import EngineError, SpecError, first_line, unreadable
from mcdrl_rt.types import ModelSpec

if TYPE_CHECKING:
    from mcdrl_rt.model.folded import FoldedMCDRL

SUFFIX = ".pt2"
_LOAD_S = 600  # longer than any package took to load
_LOAD = "import pathlib, sys; from mcdrl_rt.engine import aoti; aoti.AotiEngine(pathlib.Path(sys.argv[1]), sys.argv[2])"


def build_aoti(model: FoldedMCDRL, output: Path, device: str = "cuda", batch: int = 1) -> None:
    """Compile a model; ``output`` appears whole and once it has been loaded, or not at all. Takes a minute or two.

    Args:
        model: the deployed form in the precision wanted; moved to ``device``.
        output: a ``.pt2`` file; its folder must exist.
        device: ``cpu``, ``cuda`` or ``cuda:N``: where it will run.
        batch: frames at a time; the package takes no other number.

    Raises:
        EngineError: no such device, no compiler, the compiler refused the model, or what it made does not load.
    """
    if output.suffix != SUFFIX or output.is_dir():
        raise EngineError(f"an AOTInductor package is a {SUFFIX} file, not {str(output)!r}")
    from mcdrl_rt.engine.graph import precision  # and with it the model and open_clip, which running does without

    hush_cuda()
    where = find_device(device)
    about = {"spec": model.spec.to_json(), "batch": str(batch), "precision": precision(model), "device": where.type}
    frames = example_frames(model.spec, batch, where)
    options: dict[str, Any] = {"aot_inductor.metadata": about}
    with tempfile.TemporaryDirectory(prefix=f".{output.stem}.", dir=output.parent) as folder:
        partial = Path(folder) / output.name
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # deprecations inside the compiler, nothing a user can act on
                program = torch.export.export(model.eval().to(where), (frames,), strict=False)
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(partial), inductor_configs=options
                )
        except Exception as error:  # the compiler's errors have no common base but this
            raise EngineError(f"cannot compile {model.spec.name} for {device}: {first_line(error)}") from error
        _try(partial, device)
        os.replace(partial, output)


def _try(path: Path, device: str) -> None:
    """Load a package in a process of its own: one with a C++ library inside ends the one that it is loaded in."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-c", _LOAD, str(path.absolute()), device]
    try:
        ended = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LOAD_S
        )
    except subprocess.TimeoutExpired:
        what = f"not within {_LOAD_S} s"
    else:
        if not ended.returncode:
            return
        lines = ended.stderr.strip().splitlines() or ["without a word"]
        what = "it crashes" if ended.returncode < 0 else lines[-1].partition(": ")[2] or lines[-1]
    raise EngineError(
        f"what torch {torch.__version__} compiled for {device} does not load: {what}; without a package, "
        f"--engine torch runs the same model{' in a CUDA graph' if device != 'cpu' else ''}"
    )


class AotiEngine(TensorEngine):
    """A compiled package; on a GPU it is captured in a CUDA graph.

    Args:
        path: written by ``build_aoti`` on this machine.
        device: ``cpu``, ``cuda`` or ``cuda:N``, of the kind it was built for.

    Raises:
        EngineError: no such device, no room on it, or the file is no package of ours for it.
    """

    def __init__(self, path: Path, device: str = "cuda") -> None:
        hush_cuda()
        where = find_device(device)
        if why := unreadable(path):
            raise EngineError(f"no engine at {path} ({why}); make one with 'mcdrl-rt build'")
        try:
            # a package's own lock synchronises threads in ways that a graph cannot record
            self._package = torch._inductor.aoti_load_package(
                str(path), run_single_threaded=True, device_index=-1 if where.index is None else where.index
            )
            about = self._package.loader.get_metadata()
            spec, batch = ModelSpec.from_json(about["spec"]), int(about["batch"])
        except (RuntimeError, KeyError, ValueError, SpecError) as error:
            raise EngineError(f"{path} is no engine of mcdrl-rt: {first_line(error)}") from error
        if about["device"] != where.type:
            raise EngineError(f"{path} was compiled for {about['device']}, not for {device}")
        super().__init__(spec, f"torch compiled {about['precision']} {device}", where)
        self.batch = self.max_batch = batch
        with failures(f"cannot ready {path} on {device}"):
            self._capture = Capture(lambda frames: tuple(self._package(frames)), example_frames(spec, batch, where))

    def run(self, frames: Tensor) -> tuple[Tensor, ...]:
        """See ``TensorEngine.run``; ``frames`` has the batch size the package was compiled for.

        Raises:
            EngineError: it has another.
        """
        if len(frames) != self.batch:
            raise EngineError(f"this engine was compiled for {self.batch} frames at a time, not {len(frames)}")
        return self._capture(frames)
