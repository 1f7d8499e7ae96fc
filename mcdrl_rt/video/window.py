"""A window on the screen that shows the stream and obeys keys.

SDL wants one thread to open the window, read its events and draw, always the same. The window has one of its own:
``write`` leaves a frame there and returns, keys are obeyed while no frame comes, and a screen that cannot follow gets
the newest frame only. macOS wants that thread to be the program's first, which belongs to the command line: there is
no window there.

    >>> view = View(colors=spec.colors, title=lambda: spec.name)
    >>> with Window(source.format, "theatre 1", view, on_quit=stop.set) as window:
    ...     window.write(shown)
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import Shown, VideoFormat
from mcdrl_rt.video.canvas import Notes, compose, fit
from mcdrl_rt.video.sink import Sink
from mcdrl_rt.video.view import View

_POLL_S = 0.02  # a key waits this long at most
_OPEN_S = 20.0
_STALL_S = 5.0  # that a screen does not answer, before that is told
_CLOSE_S = 5.0
_SMALLEST = 240, 320  # (height, width)
_SHARE = 0.9  # of the screen, at most, that a window takes before anyone has resized it
_SCREENS = {"DISPLAY": "x11", "WAYLAND_DISPLAY": "wayland"}  # where Linux says so, and SDL's name for it
_IOErrorHandler = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_one = threading.Lock()  # SDL has one queue of events for all windows of a process


class Window(Sink):
    """Shows what is written to it.

    The arrays of the newest frame are read after ``write`` has returned, and must not be written to again.

    Args:
        format: of the frames to come; a later frame may be of another size.
        title: of the window.
        view: what of them is to be seen; belongs to the window from now on.
        on_quit: called once, on the window's thread, when the user closes the window; it only asks for the end, say by
            setting an event.

    Raises:
        SinkError: no window can be opened here.
    """

    def __init__(self, format: VideoFormat, title: str, view: View, on_quit: Callable[[], None]) -> None:
        self.size = format.size
        self._format, self._title, self._view, self._on_quit = format, title, view, on_quit
        self._newest: Shown | None = None
        self._arrived, self._opened, self._end = threading.Event(), threading.Event(), threading.Event()
        self._failure: BaseException | None = None
        self._full_screen = False
        self._busy_s = time.monotonic()  # when it last had nothing to wait for
        self._written: Notes | None = None  # on the screen now
        self._on_screen_lost = _IOErrorHandler(self._screen_lost)  # must live as long as the window
        self._pygame = _import_pygame()
        if not _one.acquire(blocking=False):
            raise SinkError("one window is open already; show another stream with another mcdrl-rt")
        self._thread = threading.Thread(target=self._run, name="window", daemon=True)
        self._thread.start()
        if not self._opened.wait(_OPEN_S):
            self._end.set()
            raise SinkError(f"cannot show a window: nothing came of it in {_OPEN_S:.0f} s; does the screen answer?")
        self._raise_failure()

    @property
    def down(self) -> str:  # type: ignore[override]
        """That the screen does not answer; empty while it does."""
        late_s = time.monotonic() - self._busy_s
        return f"the screen has not answered for {late_s:.0f} s" if late_s > _STALL_S and not self._end.is_set() else ""

    def write(self, shown: Shown) -> None:
        """Show a frame next, in place of one that still waits; after the user has quit, nothing.

        Raises:
            SinkError: the window is gone, though nobody closed it.
        """
        self._raise_failure()
        if not self._end.is_set():
            self._newest = shown
            self._arrived.set()
            self.frames += 1

    def close(self) -> None:
        """Close the window; safe to call twice."""
        self._end.set()
        self._arrived.set()
        if self._failure is None:
            self._thread.join(_CLOSE_S)  # a screen that hangs keeps nobody from finishing a recording

    def abort(self) -> None:
        """Close the window."""
        self.close()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._open()
            self._opened.set()
            while not self._end.is_set():
                self._busy_s = time.monotonic()
                self._step()
            self._window.destroy()
        except self._pygame.error as error:
            screen = "".join(f" at {name}={os.environ[name]}" for name in _SCREENS if os.environ.get(name))
            self._failure = SinkError(f"cannot show a window{screen}: {error}")
        except BaseException as error:  # raised where the frames come from
            self._failure = error
        finally:
            self._pygame.display.quit()
            _one.release()
            self._opened.set()

    def _open(self) -> None:
        _wait_for_x11()
        self._pygame.display.init()
        height, width = self.size[0], round(self.size[1] * self._format.pixel_aspect)
        across, down = (round(side * _SHARE) for side in self._pygame.display.get_desktop_sizes()[0])
        if height > down or width > across:
            place = fit((height, width), (down, across))
            height, width = place.height, place.width
        size = max(width, _SMALLEST[1]), max(height, _SMALLEST[0])
        self._window = self._pygame.Window(self._title, size, resizable=True)
        self._window.minimum_size = _SMALLEST[::-1]
        if self._pygame.display.get_driver() == "x11" and sys.platform == "linux":
            self._outlive_the_screen()

    def _outlive_the_screen(self) -> None:
        """Have Xlib tell us when the X server is gone: it would end the process, and a recording with it.

        SDL's part of Python's own end hangs then, and ``console.leave`` is the way out.
        """
        libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libX11" in line}
        for library in libraries:
            if "libX11-xcb" not in library:
                ctypes.CDLL(library).XSetIOErrorHandler(self._on_screen_lost)

    def _screen_lost(self, _: object) -> int:
        self._failure = SinkError(f"the screen at DISPLAY={os.environ.get('DISPLAY')} is gone")
        threading.Event().wait()  # for ever: Xlib ends the process when this returns
        return 0

    def _step(self) -> None:
        """Take what has come, a frame and keys, and draw if that changed anything."""
        stale = False
        if self._arrived.wait(_POLL_S):
            self._arrived.clear()
            if self._newest is not None:
                stale = self._view.take(self._newest)
        for event in self._pygame.event.get():
            stale |= self._obey(event)
        notes = self._view.notes()
        if stale or notes != self._written:
            self._draw(notes)

    def _obey(self, event: Any) -> bool:
        """Do what an event asks for; True where the picture must be drawn again."""
        sdl, view = self._pygame, self._view
        if event.type in (sdl.QUIT, sdl.WINDOWCLOSE):
            view.close()
        pressed = event.type == sdl.KEYDOWN and view.press(event.unicode)
        if view.closed and not self._end.is_set():
            self._end.set()
            self._on_quit()
        if view.full_screen != self._full_screen:
            self._toggle_full_screen()
        return pressed or event.type in (sdl.WINDOWEXPOSED, sdl.WINDOWSIZECHANGED)

    def _toggle_full_screen(self) -> None:
        self._full_screen = not self._full_screen
        if self._full_screen:
            self._window.set_fullscreen(desktop=True)
        else:
            self._window.set_windowed()
        self._pygame.mouse.set_visible(not self._full_screen)

    def _draw(self, notes: Notes) -> None:
        surface = self._window.get_surface()
        width, height = surface.get_size()
        canvas = compose(self._view.picture(), (height, width), notes, self._format.pixel_aspect)
        surface.blit(self._pygame.image.frombuffer(canvas, (width, height), "RGB"), (0, 0))
        self._window.flip()
        self._written = notes


def _wait_for_x11() -> None:
    """Wait until the X server answers, if there is one; pygame would wait for it with Python's lock in its hand."""
    if sys.platform != "linux" or not os.environ.get("DISPLAY"):
        return
    try:
        xlib = ctypes.CDLL("libX11.so.6")
    except OSError:
        return
    xlib.XOpenDisplay.restype = ctypes.c_void_p
    if display := xlib.XOpenDisplay(None):
        xlib.XCloseDisplay(ctypes.c_void_p(display))


def _import_pygame() -> Any:
    """SDL's Python binding, where a window is possible."""
    if sys.platform == "darwin":
        raise SinkError("cannot show a window: macOS allows one only to a program's first thread")
    if sys.platform.startswith("linux"):
        drivers = [driver for variable, driver in _SCREENS.items() if os.environ.get(variable)]
        if not drivers:
            raise SinkError(f"cannot show a window: no screen here, neither {' nor '.join(_SCREENS)} is set")
        os.environ.setdefault("SDL_VIDEODRIVER", ",".join(drivers))  # else SDL may end up drawing for nobody
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    os.environ.setdefault("SDL_NO_SIGNAL_HANDLERS", "1")  # signals belong to the command line
    try:
        import pygame
    except ImportError:
        raise SinkError("a window needs pygame-ce: pip install 'mcdrl-rt[window]'") from None
    if not hasattr(pygame, "Window"):  # its ancestor, which has the same name in Python
        raise SinkError("a window needs pygame-ce: pip uninstall pygame; pip install 'mcdrl-rt[window]'")
    return pygame
