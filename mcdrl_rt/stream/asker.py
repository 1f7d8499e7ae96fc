"""Asking the model about a frame, and waiting for its answer as long as the policy allows."""

from __future__ import annotations

from mcdrl_rt.stream.policy import Policy
from mcdrl_rt.stream.supervisor import Answer, Seat, Ticket
from mcdrl_rt.types import Frame

PATIENCE_S = 5.0  # that a file waits for a failed engine, once
LATE = 3.0  # a live frame is shown without overlay when the model takes so many times what it usually does


class Asker:
    """For the policies that show a frame together with its own mask; for one thread.

    Args:
        seat: the stream's, at the engine.
        policy: ``every`` waits for each answer, and once for a failed engine to come back; ``latest`` waits little more
            than an answer usually takes.
    """

    def __init__(self, seat: Seat, policy: Policy) -> None:
        self._seat, self._policy = seat, policy
        self._patient = policy.mode == "every"
        self._overdue: Ticket | None = None  # of a frame that was shown without waiting any longer

    def ask(self, frame: Frame) -> Answer:
        """The model's answer, or why there is none."""
        return self._in_time(frame) if self._policy.mode == "latest" else self._surely(frame)

    def _surely(self, frame: Frame) -> Answer:
        answer = self._wait(frame)
        if answer.segmentation is None and self._patient and self._seat.wait_until_ready(PATIENCE_S):
            answer = self._wait(frame)
        self._patient = answer.segmentation is not None
        return answer

    def _wait(self, frame: Frame) -> Answer:
        return self._seat.ask(frame.picture, self._policy.opacity).wait() or Answer(reason="no answer")

    def _in_time(self, frame: Frame) -> Answer:
        if self._overdue is not None and self._overdue.answer is None:
            return Answer(reason="the model is late")
        typical_s = self._seat.typical_s
        limit_s = self._policy.max_mask_age_ms / 1e3 if typical_s is None else LATE * typical_s
        ticket = self._seat.ask(frame.picture, self._policy.opacity)
        answer = ticket.wait(limit_s)
        self._overdue = ticket if answer is None else None
        return answer or Answer(reason="the model is late")
