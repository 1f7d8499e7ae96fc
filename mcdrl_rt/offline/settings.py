"""What is to be made of every procedure, and how."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from mcdrl_rt.errors import SinkError
from mcdrl_rt.video.found import ANNOTATED, MASKS, REPORT, SUMMARY, TABLE


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One job's choices, the same for all of its procedures.

    Args:
        annotated: write the video with the lesions drawn on it.
        masks: of ``MASKS``, in any order.
        table: write the table of frames.
        report: write the report, which needs the table.
        segment_s: seconds of video that are worked on at a time: what an interruption costs.
        opacity: of the lesions' tint, 0…1.
        private: take out what would say who it is of, see ``privacy``.

    Raises:
        SinkError: an unknown form of masks, segments without end, or nothing is to be written.
    """

    annotated: bool = True
    masks: tuple[str, ...] = ("ffv1",)
    table: bool = True
    report: bool = True
    segment_s: float = 60.0
    opacity: float = 0.35
    private: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.masks if name not in MASKS]
        if unknown:
            raise SinkError(f"no masks {unknown[0]!r}; choose {', '.join(MASKS)}, or none alone")
        if not math.isfinite(self.segment_s):
            raise SinkError(f"a segment has a number of seconds, not {self.segment_s}; for a single one, say 1000000")
        object.__setattr__(self, "masks", tuple(name for name in MASKS if name in self.masks))
        object.__setattr__(self, "report", self.report and self.table)
        if not (self.annotated or self.masks or self.table):
            raise SinkError("nothing is to be written: neither annotated video, masks nor table")

    @property
    def ends(self) -> list[str]:
        """How the names of all that is made end, the summary's last."""
        masks = [MASKS[form] for form in self.masks]
        return [ANNOTATED] * self.annotated + masks + [TABLE] * self.table + [REPORT] * self.report + [SUMMARY]

    def facts(self) -> dict[str, Any]:
        """The choices, as JSON takes them."""
        return dataclasses.asdict(self) | {"masks": list(self.masks)}
