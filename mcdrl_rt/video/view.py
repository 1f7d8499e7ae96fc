"""What the user of a window has chosen to see, key by key. It knows no screen: a window shows what it says.

    >>> view = View(colors=spec.colors, title=lambda: spec.name)
    >>> view.take(shown)
    >>> view.press("o")
    >>> canvas = compose(view.picture(), (720, 1280), view.notes())
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np

from mcdrl_rt.types import Shown, UInt8Array, pixels_of
from mcdrl_rt.video.canvas import Notes
from mcdrl_rt.video.overlay import Color, Hud, draw

KEYS = (
    ("space", "pause the picture; the stream goes on"),
    ("o", "overlay on or off"),
    ("+ −", "opacity of the overlay"),
    ("s", "snapshot"),
    ("f", "full screen"),
    ("h ?", "these keys"),
    ("q Esc", "quit"),
)
_STEP = 0.1  # of opacity
_MESSAGE_S, _HELP_S = 1.5, 8.0


class View:
    """The state behind a window, for one thread.

    Args:
        colors: RGB of each class, to draw the overlay anew when its opacity is changed.
        title: what segments now, for the HUD of an overlay drawn anew; None where the stream draws no HUD.
        opacity: that the stream draws the overlay with.
        snapshots: folder for snapshots, made with the first.

    Attributes:
        closed: the user has asked for the end.
        full_screen: the user wants the whole screen.
    """

    def __init__(
        self,
        *,
        colors: Sequence[Color],
        title: Callable[[], str] | None = None,
        opacity: float = 0.35,
        snapshots: Path = Path("snapshots"),
    ) -> None:
        self._colors, self._title, self._snapshots = colors, title, snapshots
        self._newest: Shown | None = None
        self._shown: Shown | None = None
        self.closed = self.full_screen = False
        self._overlay, self._paused = True, False
        self._opacity, self._redraws = opacity, False  # until the user changes it, what the stream drew is shown
        self._message, self._message_until_s, self._help_until_s = "", 0.0, 0.0
        self._actions = {
            " ": self._pause,
            "o": self._toggle_overlay,
            "+": lambda: self._change_opacity(_STEP),
            "=": lambda: self._change_opacity(_STEP),  # + without the shift key
            "-": lambda: self._change_opacity(-_STEP),
            "s": self._snapshot,
            "f": self._toggle_full_screen,
            "h": self._help,
            "?": self._help,
            "q": self.close,
            "\x1b": self.close,
        }

    def take(self, shown: Shown) -> bool:
        """The newest frame; True where it is to be seen now."""
        self._newest = shown
        if not self._paused:
            self._shown = shown
        return not self._paused

    def press(self, character: str) -> bool:
        """Obey a key by the character it stands for; True if it has a meaning."""
        action = self._actions.get(character.lower())
        if action is not None:
            action()
        return action is not None

    def close(self) -> None:
        """The user wants the end."""
        self.closed = True

    def picture(self) -> UInt8Array:
        """The frame as the user wants it, in its own resolution; black before the first."""
        shown = self._shown
        if shown is None:
            return np.zeros((9, 16, 3), np.uint8)
        if shown.clean is None:
            return shown.frame.pixels
        if not self._overlay:
            return pixels_of(shown.clean)
        if not self._redraws or shown.segmentation is None:
            return shown.frame.pixels
        hud = None if self._title is None else Hud(self._title(), shown.age_ms, shown.note)
        return draw(pixels_of(shown.clean), shown.segmentation, colors=self._colors, hud=hud, opacity=self._opacity)

    def notes(self) -> Notes:
        """What is to be written over it now."""
        now = time.monotonic()
        states = {
            "waiting for the first frame": self._shown is None,
            "paused": self._paused,
            "overlay off": not self._overlay,
        }
        return Notes(
            marks=tuple(mark for mark, holds in states.items() if holds),
            message=self._message if now < self._message_until_s else "",
            table=KEYS if now < self._help_until_s else (),
        )

    def _pause(self) -> None:
        self._paused = not self._paused
        if not self._paused:
            self._shown = self._newest

    def _toggle_overlay(self) -> None:
        if self._has_clean():
            self._overlay = not self._overlay

    def _change_opacity(self, step: float) -> None:
        if self._has_clean():
            self._redraws = self._overlay = True
            self._opacity = min(1.0, max(0.0, self._opacity + step))
            self._say(f"opacity {self._opacity:.0%}")

    def _has_clean(self) -> bool:
        has = self._shown is not None and self._shown.clean is not None
        if not has:
            self._say("there is no frame without overlay")
        return has

    def _toggle_full_screen(self) -> None:
        self.full_screen = not self.full_screen

    def _help(self) -> None:
        now = time.monotonic()
        self._help_until_s = 0.0 if now < self._help_until_s else now + _HELP_S

    def _snapshot(self) -> None:
        """Keep what is shown, and the frame as it came."""
        if self._shown is None:
            return
        name = f"{datetime.now():%Y%m%d-%H%M%S-%f}"[:-3]
        pictures = {f"{name}.png": self.picture(), f"{name}-clean.png": self._shown.clean}
        try:
            self._snapshots.mkdir(parents=True, exist_ok=True)
            for file, pixels in pictures.items():
                if pixels is not None:
                    (self._snapshots / file).write_bytes(_png(pixels_of(pixels)))
        except OSError as error:
            self._say(f"cannot write {self._snapshots}: {(error.strerror or str(error)).lower()}")
        else:
            self._say(f"saved {self._snapshots / name}.png")

    def _say(self, message: str) -> None:
        self._message, self._message_until_s = message, time.monotonic() + _MESSAGE_S


def _png(pixels: UInt8Array) -> bytes:
    _, png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    return png.tobytes()
