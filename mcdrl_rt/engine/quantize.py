"""int8 for OpenVINO: post-training quantisation through NNCF, held to the float32 model's own masks.

Layers whose quantisation moves the masks too far go back to floating point, the worst first, until what is left of
the agreement is enough. NNCF is an extra: ``pip install 'mcdrl-rt[int8]'``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import openvino as ov

from mcdrl_rt.engine.base import LESION
from mcdrl_rt.engine.gpu import hush_cuda
from mcdrl_rt.errors import EngineError, first_line
from mcdrl_rt.types import BoolArray, UInt8Array

MAX_DROP = 0.01  # of the mean Dice between the masks of the quantised model and those of the float32 one
FEWEST_LESIONS = 4  # frames with a lesion among those that judge; empty masks agree whatever the model
_CALIBRATION = 100  # frames NNCF gathers statistics on; it needs no more
_RANKING = 16  # frames, those that suffer most, by which it ranks layers: it compiles the model anew for each of them


def quantize(model: ov.Model, frames: Sequence[UInt8Array], max_drop: float | None = MAX_DROP) -> ov.Model:
    """The int8 form of a converted model.

    Args:
        model: in float32.
        frames: real frames at the model's input size; every other one calibrates, the rest judge.
        max_drop: most that mean Dice against the float32 masks may lose; None quantises all and judges nothing.

    Raises:
        EngineError: NNCF is not installed, or it cannot quantise this model.
    """
    nncf = _nncf()
    calibrate, judge = frames[::2], frames[1::2] or frames
    common = {
        "calibration_dataset": nncf.Dataset(calibrate, lambda frame: frame[None]),
        "preset": nncf.QuantizationPreset.MIXED,  # activations of either sign: attention and tokens
        "subset_size": min(_CALIBRATION, len(calibrate)),
    }
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars: standard output is for programs
            if max_drop is None:
                return nncf.quantize(model, **common)
            truth = _masks(ov.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), judge)
            shown = [(frame, mask) for frame, mask in zip(judge, truth, strict=True) if mask.any()]
            if len(shown) < FEWEST_LESIONS:
                raise EngineError(
                    f"float32 finds a lesion in {len(shown)} of {len(judge)} frames, and int8 is judged by those: "
                    f"--frames must show at least {2 * FEWEST_LESIONS} lesions"
                )
            return nncf.quantize_with_accuracy_control(
                model,
                **common,
                validation_dataset=nncf.Dataset(shown),
                validation_fn=_agreement,
                max_drop=max_drop,
                advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                    ranking_subset_size=_RANKING
                ),
            )
    except EngineError:
        raise
    except Exception as error:  # NNCF's errors have no common base but this
        raise EngineError(f"cannot quantise this model: {first_line(error)}") from error


def _agreement(compiled: ov.CompiledModel, data: Iterable[tuple[UInt8Array, BoolArray]]) -> float:
    """Mean Dice between a model's masks and those that are wanted."""
    frames, wanted = zip(*data, strict=True)
    return float(np.mean([_dice(*pair) for pair in zip(_masks(compiled, frames), wanted, strict=True)]))


def _nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # or it reports every use to its makers
    hush_cuda()
    try:
        import nncf
    except ImportError as error:
        raise EngineError("an int8 engine needs NNCF to be built: pip install 'mcdrl-rt[int8]'") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _masks(compiled: ov.CompiledModel, frames: Sequence[UInt8Array]) -> Iterable[BoolArray]:
    for frame in frames:
        yield np.asarray(compiled(frame[None])["score"][0] >= LESION)


def _dice(one: BoolArray, other: BoolArray) -> float:
    total = int(one.sum() + other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0
