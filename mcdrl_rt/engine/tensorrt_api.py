"""TensorRT's Python API, made to speak in our errors: is it here, what went wrong, how far is it, the plugin.

Imported without TensorRT; every function but the first needs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from mcdrl_rt.errors import EngineError

MINIMUM = (10, 3)  # IPluginV3OneBuildV2
T = TypeVar("T")
PLUGINS = ("select_intervene", "intervene")
_logger = logging.getLogger(__name__)


def require_tensorrt() -> str:
    """The version of TensorRT, if this machine can use it.

    Raises:
        EngineError: it is not installed, does not load or is too old, or there is no NVIDIA GPU.
    """
    version = installed_tensorrt()
    if not torch.cuda.is_available():
        raise EngineError("TensorRT needs an NVIDIA GPU, and torch sees none; use --engine openvino")
    return version


def installed_tensorrt() -> str:
    """The version of TensorRT, GPU or not.

    Raises:
        EngineError: it is not installed, does not load or is too old.
    """
    try:
        import tensorrt as trt
    except ModuleNotFoundError as error:
        raise EngineError("TensorRT is not installed; pip install 'mcdrl-rt[tensorrt]'") from error
    except (ImportError, OSError, RuntimeError) as error:
        why = _first_line(str(error))
        raise EngineError(f"TensorRT does not load ({why}); reinstall 'mcdrl-rt[tensorrt]'") from error
    version = str(trt.__version__)
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM:
        raise EngineError(f"TensorRT {version} is too old; pip install --upgrade 'mcdrl-rt[tensorrt]'")
    return version


def started(kind: Callable[[Any], T], log: Any) -> T:
    """TensorRT's builder or runtime.

    Raises:
        EngineError: it does not start, for want of a driver, say.
    """
    try:
        return kind(log)
    except (TypeError, RuntimeError) as error:  # what pybind11 makes of a null pointer
        raise EngineError(f"TensorRT does not start: {logged(log, () if log.errors else [str(error)])}") from error


def load_plugin(path: Path) -> None:
    """Make the plugins of a library known to TensorRT, in this process; once is enough.

    Raises:
        EngineError: no such library, or not one with our plugins.
    """
    import tensorrt as trt

    registry = trt.get_plugin_registry()
    known = {creator.name for creator in registry.all_creators}
    if known.issuperset(PLUGINS):
        return
    if not path.is_file():
        raise EngineError(f"no TensorRT plugin at {path}; build it as engines/README.md says")
    try:  # TensorRT crashes on a file that is no library, or one without getCreators
        usable = hasattr(ctypes.CDLL(os.fspath(path)), "getCreators")
    except OSError as error:
        raise EngineError(f"{path} is no library for this machine: {_first_line(str(error))}") from error
    if usable:
        registry.load_library(os.fspath(path))
    if not {creator.name for creator in registry.all_creators}.issuperset(PLUGINS):
        raise EngineError(f"{path} is no TensorRT plugin of mcdrl-rt, or not for TensorRT {trt.__version__}")


def make_log() -> Any:
    """A TensorRT logger that keeps its errors (``errors``) for the exception; ``logging`` gets all it says."""
    import tensorrt as trt

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(msg)
            _logger.debug("%s", msg)

    return Log()


@contextlib.contextmanager
def held_signals() -> Iterator[list[int]]:
    """Ctrl-C and requests to end, held back while TensorRT is at work and answered after it.

    Python answers a signal wherever its code runs next, which would be inside a callback: TensorRT swallows what is
    raised there. The list fills as they come; who holds it should end soon. Outside the main thread nothing is held.
    """
    held: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers}
    try:
        yield held
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def make_progress(tell: Callable[[str], None], held: Sequence[int] = ()) -> Any:
    """A progress monitor that tells of TensorRT's phases; what ``tell`` raises, or a held signal, ends the build."""
    import tensorrt as trt

    class Progress(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: Any) -> None:
            self._steps[phase_name] = int(num_steps)
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: Any) -> bool:
            self._tell(f"{phase_name}, {int(step) + 1} of {self._steps.get(phase_name, 0)}")
            return self.error is None and not held

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def _tell(self, stage: str) -> None:
            try:  # an exception must not reach TensorRT, which has no way to pass it on
                tell(stage)
            except BaseException as error:
                self.error = self.error or error

    return Progress()


def logged(log: Any, errors: Sequence[str] = ()) -> str:
    """The first line that says anything of ``errors``, or of what TensorRT logged as errors since the last question."""
    lines = [_first_line(text) for text in (*errors, *log.errors)]
    log.errors.clear()
    return next((line for line in lines if line), "it does not say why")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
