"""Whether an endoscope looks into a body: what it sees before and after is a room, with people in it.

Tissue is lit by the endoscope alone, and red: of what is lit and does not blind, most is clearly more red than green
or blue. That is all this looks at. ``benchmarks/deidentify.py`` measures it: no more than a few photographs of other
things were at hand, and no recording, so how often a room is taken for a body is not known. Of 21 photographs two
begin a view, a retina and a table with a coffee cup, and three more do not end one: a cat, and people on and off a
stage; of four videos no frame does either. A hand, a face, or a red drape that fills the picture looks like tissue;
tissue under dye may not and is blanked, as is all that is seen in narrow-band light (by the synthetic endoscope's).
"""

from __future__ import annotations

import cv2
import numpy as np

from mcdrl_rt.types import Frame, UInt8Array

_SAMPLE = (160, 120)  # (width, height)
_LIT, _BLINDED = 40, 235  # of the brightest channel, and of the darkest
_REDDER = 1.25
TISSUE = 0.45  # share of what can be seen that is red
SURE = 0.75  # and with which it is believed: people on a stage had 0.6, a cat 0.73, 99 % of Kvasir-SEG more
_LEAST = 0.01  # of the frame; with less to be seen, nothing has changed
_SURE_S = 1.0  # inside for so long, before it is believed after a look outside


class OutOfBody:
    """Follows the frames of one video, in their order.

    What may be outside counts as outside at once; inside again is believed after a second that leaves no doubt.

    Args:
        from_start: the first frame is the video's; else what came before may have been outside.

    Attributes:
        is_known: what it says does not depend on what came before.
    """

    def __init__(self, from_start: bool = True) -> None:
        self._inside = False
        self._since_s: float | None = None  # inside, after a look outside
        self._began = not from_start
        self.is_known = from_start

    def __call__(self, frame: Frame, field: UInt8Array | None = None) -> bool:
        """Whether this frame is, or may be, from outside.

        Args:
            frame: RGB.
            field: (H, W) uint8, not zero where the endoscope's picture is; None for all of it.
        """
        share = tissue_share(frame.pixels, field)
        if share is None:
            return not self._inside
        if share < TISSUE:
            self._inside, self._since_s, self.is_known = False, None, True
        elif share < SURE:  # neither: who is inside stays there, who is outside waits
            self._since_s = None
        elif not self._began:
            self._inside = True
        elif not self._inside:
            self._since_s = frame.pts_s if self._since_s is None else self._since_s
            self._inside = frame.pts_s - self._since_s >= _SURE_S
        self._began = True
        self.is_known |= self._inside
        return not self._inside


def tissue_share(rgb: UInt8Array, field: UInt8Array | None = None) -> float | None:
    """The share of what can be seen that is as red as tissue, 0…1; None where there is next to nothing to be seen.

    Args:
        rgb: (H, W, 3) uint8.
        field: (H, W) uint8, not zero where to look; None for all of it.
    """
    small = np.asarray(cv2.resize(rgb, _SAMPLE, interpolation=cv2.INTER_NEAREST), np.int32)
    red, green, blue = small[..., 0], small[..., 1], small[..., 2]
    seen = (small.max(axis=2) > _LIT) & (small.min(axis=2) < _BLINDED)
    if field is not None:
        seen &= cv2.resize(field, _SAMPLE, interpolation=cv2.INTER_NEAREST) > 0
    if np.count_nonzero(seen) < _LEAST * seen.size:
        return None
    tissue = (red > _REDDER * green) & (red > _REDDER * blue)
    return float(np.count_nonzero(tissue & seen) / np.count_nonzero(seen))
