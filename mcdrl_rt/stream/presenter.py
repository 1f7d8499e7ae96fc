"""From a frame to what is shown of it: the model is asked or not, and the overlay drawn; whatever fails, it is shown.

    >>> presenter = Presenter(policy, seat, telemetry)                     # doctest: +SKIP
    >>> shown = presenter.at_once(frame)                                   # doctest: +SKIP
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from mcdrl_rt.errors import EngineError
from mcdrl_rt.stream.asker import Asker
from mcdrl_rt.stream.compose import Compositor
from mcdrl_rt.stream.lateness import Lateness
from mcdrl_rt.stream.policy import Picker, Policy
from mcdrl_rt.stream.supervisor import Answer, Seat, Ticket
from mcdrl_rt.stream.telemetry import Telemetry
from mcdrl_rt.types import Frame, Shown

T = TypeVar("T")
_log, _journal = logging.getLogger("mcdrl_rt.stream"), logging.getLogger("mcdrl_rt.journal")


class Segmented(NamedTuple):
    """A frame and what became of it: an answer, or None where the model was not asked."""

    frame: Frame
    answer: Answer | None = None
    like: int | None = None  # index of the frame that it looks like, and whose mask it keeps


class Presenter:
    """The frames of one stream, in their order.

    Args:
        policy: decided.
        seat: the stream's, at the engine.
        telemetry: takes the times of the model.
        name: of the stream, for the log.
        strict: a frame without an answer of the model, or that cannot be drawn on, is an error.
    """

    def __init__(self, policy: Policy, seat: Seat, telemetry: Telemetry, name: str = "", strict: bool = False) -> None:
        self._policy, self._seat, self._telemetry, self._name, self._strict = policy, seat, telemetry, name, strict
        self._compositor = Compositor(policy, seat.spec)
        self._picker, self._asker = Picker(policy), Asker(seat, policy)
        self._asked: list[tuple[Frame, Ticket]] = []  # what ``at_once`` waits for
        self._lateness = Lateness(policy)
        self._reason = ""  # why the model did not answer last
        self._faulty = set[str]()  # what went wrong and was told of
        self._unanswered, self._undrawn = Counter[str](), Counter[str]()  # frames, by the reason

    @property
    def reused(self) -> int:
        """Frames that stood still and kept a mask."""
        return self._picker.reused

    @property
    def problems(self) -> list[str]:
        """What went wrong most often, in lines for people."""
        problems = []
        for what, reasons in (("the model did not answer for", self._unanswered), ("no drawing on", self._undrawn)):
            problems += [f"{what} {count} frames: {why}" for why, count in reasons.most_common(1)]
        late = self._lateness.problem
        return problems if late is None else [*problems, late]

    def segment(self, frame: Frame) -> Segmented:
        """Ask the model about a frame, where the policy wants that, and wait for the answer.

        Raises:
            EngineError: there is none, and it is an error.
        """
        try:
            return self._segment(frame)
        except Exception as error:
            if self._strict:
                raise
            self._tell_of_fault("asking the model", error)
            return Segmented(frame, Answer(reason=f"a fault: {type(error).__name__}"))

    def _segment(self, frame: Frame) -> Segmented:
        if not self._picker.due(frame):
            return Segmented(frame)
        if self._picker.still(frame):
            return Segmented(frame, like=self._picker.like)
        answer = self._asker.ask(frame)
        if answer.segmentation is None and self._strict:
            raise EngineError(f"frame {frame.index} could not be segmented: {answer.reason}")
        return Segmented(frame, answer)

    def with_answer(self, item: Segmented) -> Shown:
        """A frame with its own mask; may be called on another thread than ``segment``."""
        return self._surely(self._with_answer, item, item.frame)

    def at_once(self, frame: Frame) -> Shown:
        """A frame with the newest mask there is; the model is asked, and not waited for."""
        return self._surely(self._at_once, frame, frame)

    def _with_answer(self, item: Segmented) -> Shown:
        frame, answer = item.frame, item.answer
        self._compositor.follow(frame)
        if item.like is not None and not self._compositor.confirm(frame, item.like):
            self._picker.forget()
        if answer is not None:
            self._take(frame, answer)
        drawn = None if answer is None else answer.shown
        return self._compositor.compose(frame, self._seat.title, self._reason, drawn)

    def _at_once(self, frame: Frame) -> Shown:
        self._compositor.follow(frame)
        asked, self._asked = self._asked, []
        for earlier, ticket in asked:
            if (answer := ticket.answer) is not None:
                self._take(earlier, answer)
            else:  # those overtaken are gone: behind one that hangs they would fill the memory
                self._asked.append((earlier, ticket))
        if self._picker.due(frame):
            if not self._picker.still(frame):
                self._asked.append((frame, self._seat.ask(frame.picture)))
            elif not self._compositor.confirm(frame, self._picker.like) and not self._is_asked(self._picker.like):
                self._picker.forget()  # until that one's answer is here, the newest mask keeps its age
        shown = self._compositor.compose(frame, self._seat.title, self._reason)
        if frame.signal and not self._reason and (warning := self._lateness.see(self._compositor.late)):
            _log.warning("%s: %s", self._name, warning, extra={"stream": self._name})
        return shown

    def _is_asked(self, index: int | None) -> bool:
        """Whether the answer about a frame is still to come."""
        return any(frame.index == index for frame, _ in self._asked)

    def _take(self, frame: Frame, answer: Answer) -> None:
        """Remember a segmentation, or why there is none."""
        if answer.overtaken:
            return
        self._reason = answer.reason
        if (found := answer.segmentation) is None:
            self._picker.forget()
            self._unanswered[answer.reason] += 1
            return
        self._compositor.found(frame, found)
        self._lateness.answered(answer.waited_ms + found.latency_ms)
        self._telemetry.add("queue", answer.waited_ms)
        self._telemetry.add("segment", found.latency_ms)
        for stage, milliseconds in found.stages_ms.items():
            self._telemetry.add(stage, milliseconds)

    def _tell_of_fault(self, where: str, error: Exception) -> None:
        """Once: the next frame may well have it, too."""
        if where not in self._faulty:
            self._faulty.add(where)
            why, extra = f"{type(error).__name__}: {error}", {"stream": self._name}
            _log.warning("%s: no overlay: a fault in %s: %s", self._name, where, why, extra=extra)
            _journal.error("%s: the fault", self._name, exc_info=error, extra=extra)

    def _surely(self, present: Callable[[T], Shown], item: T, frame: Frame) -> Shown:
        """What is shown; if that fails, the frame as it came, and what was found on those before it is forgotten."""
        try:
            return present(item)
        except Exception as error:
            if self._strict:
                raise
            why = f"{type(error).__name__}: {error}"
            self._tell_of_fault("drawing it", error)
            self._undrawn[why] += 1
            self._compositor = Compositor(self._policy, self._seat.spec)
            self._picker.forget()
            return Shown(frame, frame.picture, note="no overlay: a fault in drawing it")
