"""What every source of frames has in common, whatever they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from typing import Self

from mcdrl_rt.types import Frame, VideoFormat


class Source(ABC):
    """A video that can be read once, frame by frame, its ``pts`` strictly increasing.

    Attributes:
        name: short, for people; credentials removed.
        size: (height, width) of the first frame; a later frame may differ.
        time_base: seconds per unit of every frame's ``pts``.
        rate: nominal frames per second.
        frame_count: frames expected, an estimate for progress bars; None when unknown or endless.
        live: the world does not wait for us: drop the oldest frame rather than block.
        color: ``bt709``, ``bt601`` or ``bt2020``, the matrix to encode with again.
        pixel_aspect: width of a pixel by its height, as players should show it.
        problem: after iteration, what was wrong with the video, in one line; None when nothing was.
        note: what is worth knowing of it though nothing is wrong, in one line; may change while it is read.
        reconnections: how often a live source was lost and came back.
        dropped: frames of a live source that nobody took in time.
    """

    name: str
    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    frame_count: int | None = None
    live: bool = False
    color: str = "bt709"
    pixel_aspect: Fraction = Fraction(1)
    problem: str | None = None
    note: str | None = None
    reconnections: int = 0
    dropped: int = 0

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]:
        """Frames in presentation order; a second iteration goes on where the first one stopped."""

    @property
    def format(self) -> VideoFormat:
        """All that a sink has to know."""
        return VideoFormat(self.size, self.time_base, self.rate, self.color, self.pixel_aspect, self.live)

    def close(self) -> None:  # noqa: B027 (the phantom has nothing to release)
        """Release the file or device; safe to call twice, from the thread that iterates."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _take_facts(self, source: Source) -> None:
        """Be known as ``source`` is: for a source that hands on another's frames."""
        self.name, self.size, self.time_base, self.rate = source.name, source.size, source.time_base, source.rate
        self.frame_count, self.color, self.pixel_aspect = source.frame_count, source.color, source.pixel_aspect
