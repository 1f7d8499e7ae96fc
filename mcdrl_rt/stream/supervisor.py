"""One engine for all streams, and what happens when it fails: the video goes on without it.

The engine works on a thread of its own. Streams hand in frames and take answers; whoever has a frame waiting gets into
the next batch, each in turn. An engine that raises, hangs or answers nonsense is given up: everyone waiting learns why
at once, and it is loaded anew, later each time, then the next runtime in line. A thread that hangs cannot be ended in
Python: it is left behind, and what it may still say is not listened to.

    >>> with Supervisor(segmenter) as supervisor:                    # doctest: +SKIP
    ...     seat = supervisor.seat()                                 # doctest: +SKIP
    ...     answer = seat.ask(frame.picture).wait()                  # doctest: +SKIP
    ...     answer.segmentation, answer.reason                       # doctest: +SKIP
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Self

import numpy as np

from mcdrl_rt.errors import first_line
from mcdrl_rt.segmenter import AnySegmenter, Segmenter, segment_together
from mcdrl_rt.types import ModelSpec, Picture, Segmentation, UInt8Array, size_of

STALL_S = 3.0  # at work on a frame for longer, or for SLOW times what a frame takes, an engine hangs
SLOW = 10.0
FIRST_S = 60.0  # the very first frame: some engines finish their preparations on it
RELOAD_S = 300.0  # loading anew for longer, an engine hangs, too
BACKOFF_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)  # before the first restart, the second …; the last from then on
TRIES = 2  # failures of one runtime in a row, before the next in line is taken
_RUNNING_S = 2.0  # a stream that asked nothing for so long has ended, or needs no turn
LEFT_BEHIND = 5  # threads that hang, each with its engine in memory: then no other is loaded
CLOSE_S = 3.0  # that closing waits for the frame in hand, or for an engine that is being loaded
RECOVERED = 100  # frames answered in a row after which earlier failures are forgotten
_log = logging.getLogger("mcdrl_rt")


class Answer(NamedTuple):
    """What became of a frame: a segmentation, or the reason there is none."""

    segmentation: Segmentation | None = None
    shown: UInt8Array | None = None  # the frame's pixels with the lesions drawn, where the engine's device did that
    reason: str = ""
    waited_ms: float = 0.0  # until the engine took it up
    overtaken: bool = False  # a newer frame of the stream was handed in before the engine had time for this one


class Ticket:
    """A frame handed in."""

    def __init__(self, seat: Seat, picture: Picture, opacity: float | None) -> None:
        self.seat, self.picture, self.opacity = seat, picture, opacity
        self.asked_s = time.monotonic()
        self.answer: Answer | None = None
        self._done = threading.Event()

    def wait(self, timeout_s: float | None = None) -> Answer | None:
        """The answer; None if there is none in time."""
        self._done.wait(timeout_s)
        return self.answer

    def _settle(self, answer: Answer) -> None:
        self.answer = answer
        self._done.set()


class Seat:
    """One stream's place at the engine."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.waiting: Ticket | None = None
        self.asked_s = float("-inf")  # when a frame was handed in last

    def ask(self, picture: Picture, opacity: float | None = None) -> Ticket:
        """Hand in a frame; one of this stream that still waits gives way to it.

        Args:
            picture: of the frame.
            opacity: of the lesions' tint, where the engine's device is to draw them; None draws nothing.
        """
        return self._supervisor._ask(Ticket(self, picture, opacity))

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self._supervisor.spec

    @property
    def engine(self) -> str:
        """The runtime at work now, for people."""
        return self._supervisor.engine

    @property
    def title(self) -> str:
        """Model and runtime, for people."""
        return self._supervisor.title

    @property
    def restarts(self) -> int:
        """How often the engine had to be loaded anew."""
        return self._supervisor.restarts

    @property
    def typical_s(self) -> float | None:
        """What an answer of the engine at work now usually takes, with the turns of other streams; None at first."""
        typical_s = self._supervisor._typical_s.get(self.engine)
        return None if typical_s is None else typical_s * self._supervisor.turns

    def wait_until_ready(self, timeout_s: float) -> bool:
        """Wait for a failed engine to come back; whether it is there."""
        return self._supervisor._ready.wait(timeout_s)


class Supervisor:
    """Runs an engine for any number of streams and outlives it.

    Args:
        segmenter: the engine to begin with.
        reload: loads it anew, passing over so many runtimes as ``Segmenter.load(skip=…)`` does; without, the same
            segmenter is taken up again.
        stall_s: how long it may be at work on a frame before it counts as hanging.

    Attributes:
        restarts: how often the engine had to be loaded anew.
    """

    def __init__(
        self, segmenter: AnySegmenter, reload: Callable[[int], AnySegmenter] | None = None, stall_s: float = STALL_S
    ) -> None:
        self.spec, self.restarts = segmenter.spec, 0
        self._reload, self._stall_s = reload or (lambda skip: segmenter), stall_s
        self._changed, self._ready = threading.Condition(), threading.Event()
        self._closed = threading.Event()
        self._seats: list[Seat] = []
        self._generation = self._failures = self._answered = self._skip = 0
        self._in_hand: list[Ticket] = []
        self._since_s = 0.0  # when the engine took up what it has in hand, or began to load
        self._left_behind = set[int]()  # generations whose thread hangs
        self._max_batch = 1
        self._loading = self._fresh = False  # until it is there; until its first answer
        self._typical_s: dict[str, float] = {}  # what a frame takes, by engine
        self._outage = ""
        self._start(segmenter)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @property
    def title(self) -> str:
        """Model and runtime, for people."""
        return f"{self.spec.name} · {self.engine}"

    @property
    def turns(self) -> int:
        """Batches in which the engine sees a frame of every stream that runs once."""
        now_s = time.monotonic()
        running = sum(now_s - seat.asked_s < _RUNNING_S for seat in list(self._seats))
        return max(1, -(-running // self._max_batch))

    def seat(self) -> Seat:
        """A place for one more stream."""
        seat = Seat(self)
        with self._changed:
            self._seats.append(seat)
        return seat

    def close(self) -> None:
        """Stop working, once the frame in hand is done; whoever waits is told."""
        self._closed.set()
        with self._changed:
            self._generation += 1
            self._dismiss("the stream is ending")
            self._changed.notify_all()
        self._thread.join(CLOSE_S)  # a runtime that is at work when the process ends brings it down

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, ticket: Ticket) -> Ticket:
        with self._changed:
            if self._outage or self._closed.is_set():
                ticket._settle(Answer(reason=self._outage or "the stream is ending"))
                return ticket
            if (earlier := ticket.seat.waiting) is not None:
                earlier._settle(Answer(overtaken=True))
            ticket.seat.waiting, ticket.seat.asked_s = ticket, ticket.asked_s
            self._changed.notify_all()
        return ticket

    def _start(self, segmenter: AnySegmenter) -> None:
        """Take up work with this engine, on a thread of its own."""
        with self._changed:
            self._generation += 1
            self.engine, self._outage = segmenter.engine.name, ""
            self._max_batch = max(1, segmenter.engine.max_batch)
            self._loading, self._fresh = False, True
            self._run("engine", self._work, self._generation, segmenter)
        self._ready.set()

    def _run(self, name: str, work: Callable[..., None], generation: int, *arguments: object) -> None:
        def run() -> None:
            try:
                work(generation, *arguments)
            finally:  # it may have been given up
                with self._changed:
                    self._left_behind.discard(generation)

        self._thread = threading.Thread(target=run, name=name, daemon=True)
        self._thread.start()

    def _work(self, generation: int, segmenter: AnySegmenter) -> None:
        streams: dict[Seat, AnySegmenter] = {}
        try:
            while tickets := self._take(generation, segmenter.engine.max_batch):
                for ticket in tickets:
                    if ticket.seat not in streams:
                        streams[ticket.seat] = segmenter.for_stream()
                self._deliver(generation, _segment([streams[ticket.seat] for ticket in tickets], tickets))
        except BaseException as error:  # whatever it is, the video goes on
            self._lost(generation, _reason(error))

    def _take(self, generation: int, most: int) -> list[Ticket]:
        """The frames to work on next, one of each stream at most, each in turn; none once this engine is given up."""
        with self._changed:
            self._changed.wait_for(lambda: generation != self._generation or any(s.waiting for s in self._seats))
            if generation != self._generation:
                return []
            chosen = [seat for seat in self._seats if seat.waiting is not None][:most]
            self._seats = [seat for seat in self._seats if seat not in chosen] + chosen
            self._in_hand = [seat.waiting for seat in chosen if seat.waiting is not None]
            for seat in chosen:
                seat.waiting = None
            self._since_s = time.monotonic()
            return self._in_hand

    def _deliver(self, generation: int, answers: list[Answer]) -> None:
        with self._changed:
            if generation != self._generation:
                return
            taken_s = time.monotonic() - self._since_s
            self._typical_s[self.engine] = min(taken_s, 1.1 * self._typical_s.get(self.engine, taken_s))
            for ticket, answer in zip(self._in_hand, answers, strict=True):
                ticket._settle(answer._replace(waited_ms=(self._since_s - ticket.asked_s) * 1e3))
            self._in_hand, self._fresh = [], False
            self._answered += len(answers)
            if self._answered >= RECOVERED:
                self._failures = 0

    def _watch(self) -> None:
        """Give the engine up when it hangs."""
        while not self._closed.wait(self._stall_s / 20):
            with self._changed:
                generation, reason = self._generation, f"the engine {'does not load' if self._loading else 'hangs'}"
                owes = self._loading or bool(self._in_hand)
                hangs = owes and time.monotonic() - self._since_s > self._limit_s()
            if hangs:
                self._lost(generation, reason, hangs=True)

    def _limit_s(self) -> float:
        """What the engine is given for what it is doing now."""
        if self._loading:
            return RELOAD_S
        if (typical_s := self._typical_s.get(self.engine)) is None:
            return FIRST_S
        limit_s = max(self._stall_s, SLOW * typical_s)
        # an engine just loaded anew may be slow once more: it is given longer each time, or it would never come back
        return min(limit_s * 2 ** min(self._failures, 16), FIRST_S) if self._fresh else limit_s

    def _lost(self, generation: int, reason: str, hangs: bool = False) -> None:
        """The engine is no more: tell everyone, and see about another."""
        with self._changed:
            if generation != self._generation:
                return
            if hangs:
                self._left_behind.add(generation)
            self._generation += 1
            self._outage = reason
            self._failures += 1
            self._answered = 0
            self._ready.clear()
            self._dismiss(reason)
            self._loading = False
            if again := len(self._left_behind) < LEFT_BEHIND:
                self._run("engine restart", self._restart, self._generation)
        _log.warning("no overlay: %s; the engine is %s", reason, "started again" if again else "given up")

    def _dismiss(self, reason: str) -> None:
        waiting = [seat.waiting for seat in self._seats if seat.waiting is not None]
        for ticket in (*self._in_hand, *waiting):
            ticket._settle(Answer(reason=reason))
        self._in_hand = []
        for seat in self._seats:
            seat.waiting = None

    def _restart(self, generation: int) -> None:
        while not self._closed.wait(BACKOFF_S[min(self._failures, len(BACKOFF_S)) - 1]):
            with self._changed:
                if generation != self._generation:
                    return
                self._skip += self._failures % TRIES == 0
                self._loading, self._since_s = True, time.monotonic()
            try:
                segmenter = self._reload(self._skip)
                if segmenter.spec.classes != self.spec.classes:
                    raise ValueError("another model came")
            except BaseException as error:
                with self._changed:
                    if generation != self._generation:
                        return
                    self._loading = False
                    self._failures += 1
                _log.warning("the engine does not start again: %s", _reason(error))
                continue
            with self._changed:
                if generation != self._generation:  # too late: another is being loaded, or the stream is ending
                    return
                self.restarts += 1
                self._start(segmenter)
            _log.info("the engine is back: %s", segmenter.engine.name)
            return


def _segment(segmenters: list[AnySegmenter], tickets: list[Ticket]) -> list[Answer]:
    """Answers to one frame of each of several streams."""
    plain = [segmenter for segmenter in segmenters if isinstance(segmenter, Segmenter)]
    if len(plain) == len(segmenters):
        found = segment_together(plain, [ticket.picture for ticket in tickets])
        return [_checked(Answer(one), ticket) for one, ticket in zip(found, tickets, strict=True)]
    shown = [one.show(ticket.picture, ticket.opacity) for one, ticket in zip(segmenters, tickets, strict=True)]
    return [_checked(Answer(*one), ticket) for one, ticket in zip(shown, tickets, strict=True)]


def _checked(answer: Answer, ticket: Ticket) -> Answer:
    """The answer, if it can be one to that frame."""
    found = answer.segmentation
    assert found is not None
    if found.labels.shape != size_of(ticket.picture) or found.labels.dtype != np.uint8:
        raise ValueError(f"the engine's labels are {found.labels.shape}, the frame is {size_of(ticket.picture)}")
    return answer


def _reason(error: BaseException) -> str:
    """One line for the HUD."""
    if isinstance(error, MemoryError):
        return "out of memory"
    return first_line(error)[:120]
