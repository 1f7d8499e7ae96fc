"""What every video source is, whatever it reads from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from typing import Self

from mcdrl_rt.types import Frame, VideoFormat


class Source(ABC):
    """A video that can be read once, frame by frame; ``pts`` always rises.

    Attributes:
        name: short, for people; credentials removed.
        size: (height, width) of the first frame; a later frame may differ.
        time_base: seconds per unit of every frame's ``pts``.
        rate: nominal frames per second.
        frame_count: frames expected, an estimate for progress bars; None when unknown or endless.
        live: the world does not wait for us: drop the oldest frame rather than block.
        color: as ``VideoFormat`` has it, the matrix to encode with again.
        pixel_aspect: width of a pixel by its height, as players should show it.
        sound: it has sound, which is not read with the pictures.
        problem: after iteration, what was wrong with the video, in one line; None when nothing was.
        reconnections: how often a live source was opened again.
        dropped: frames of a live source that its consumer came too late for.
    """

    name: str
    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    frame_count: int | None = None
    live: bool = False
    color: str = "bt709"
    pixel_aspect: Fraction = Fraction(1)
    sound: bool = False
    problem: str | None = None
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
        """Release the file or device, unless a thread is held up reading it; safe to call twice."""

    def _take_facts(self, other: Source) -> None:
        """Be what another source is, as far as sinks and people ask."""
        self.name, self.size, self.time_base, self.rate = other.name, other.size, other.time_base, other.rate
        self.color, self.pixel_aspect, self.sound = other.color, other.pixel_aspect, other.sound

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
