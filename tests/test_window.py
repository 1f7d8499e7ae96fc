"""Window: on a real screen with real keys, and what stands in the way of one."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from unittest.mock import Mock

import av
import cv2
import numpy as np
import pytest
from conftest import ROOT
from window_program import SIZE, picture

from mcdrl_rt.errors import SinkError
from mcdrl_rt.types import CLASS_COLORS, Frame, Shown, UInt8Array, VideoFormat
from mcdrl_rt.video.overlay import draw
from mcdrl_rt.video.view import View
from mcdrl_rt.video.window import Window

SCREEN = (600, 800)
FORMAT = VideoFormat(SIZE, Fraction(1, 25), Fraction(25))
MIDDLE = (150, 200)  # inside the lesion

needs_pygame = pytest.mark.skipif(importlib.util.find_spec("pygame") is None, reason="needs pygame-ce")


def until(reached: Callable[[], bool], what: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.03)


@pytest.fixture(scope="module")
def screen() -> Iterator[str]:
    """A screen of its own, such as ``:5``."""
    with served() as (name, _):
        yield name


@contextlib.contextmanager
def served() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A screen's name and its server."""
    for tool in ("Xvfb", "xdotool"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} to try a window out")
    reader, writer = os.pipe()
    size = f"{SCREEN[1]}x{SCREEN[0]}x24"
    command = ["Xvfb", "-displayfd", str(writer), "-screen", "0", size, "-nolisten", "tcp"]
    server = subprocess.Popen(command, pass_fds=[writer], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(writer)
    with os.fdopen(reader) as answer:
        number = answer.readline().strip()
    assert number, "Xvfb did not start"
    yield f":{number}", server
    server.terminate()
    server.wait(10)


class Program:
    """``window_program.py``, running on a screen."""

    def __init__(self, screen: str, folder: Path, live: bool, aspect: str) -> None:
        self.screen, self.folder = screen, folder
        command = [sys.executable, str(Path(__file__).with_name("window_program.py")), str(int(live)), aspect]
        path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
        environment = os.environ | {"DISPLAY": screen, "PYTHONPATH": path}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None and self.process.stdout.readline() == "open\n"
        until(lambda: self.shot().any(), "a picture on the screen")
        until(lambda: self.focused() == "théâtre 1", "a window that has the keyboard")
        self.window = self.xdotool("getwindowfocus").strip()

    def xdotool(self, *arguments: str) -> str:
        environment = os.environ | {"DISPLAY": self.screen}
        return subprocess.check_output(["xdotool", *arguments], env=environment, text=True, timeout=20)

    def focused(self) -> str:
        """Title of the window that has the keyboard; empty while none has."""
        command = ["xdotool", "getwindowfocus", "getwindowname"]
        environment = os.environ | {"DISPLAY": self.screen}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20).stdout.strip()

    def press(self, *keys: str) -> None:
        self.xdotool("key", *keys)

    def shot(self) -> UInt8Array:
        """The whole screen."""
        options = {"video_size": f"{SCREEN[1]}x{SCREEN[0]}", "draw_mouse": "0"}
        with av.open(f"{self.screen}.0", format="x11grab", options=options) as grabbed:
            return next(grabbed.decode(video=0)).to_ndarray(format="rgb24")

    def inside(self) -> UInt8Array:
        """The window's part of the screen."""
        lines = self.xdotool("getwindowgeometry", "--shell", self.window).splitlines()
        at = {name: int(value) for name, _, value in (line.partition("=") for line in lines)}
        return self.shot()[at["Y"] : at["Y"] + at["HEIGHT"], at["X"] : at["X"] + at["WIDTH"]]

    def shows(self, expected: UInt8Array, below: int = 0) -> None:
        """Wait until the window shows this, not counting what is written in its upper part."""

        def reached() -> bool:
            seen = self.inside()
            return seen.shape == expected.shape and np.array_equal(seen[below:], expected[below:])

        until(reached, "the expected picture")

    def said(self) -> str:
        return self.process.communicate(timeout=20)[0]


@pytest.fixture
def start(screen: str, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start a program; it is ended with the test."""
    programs = []

    def start(live: bool = False, aspect: str = "1") -> Program:
        programs.append(Program(screen, tmp_path, live, aspect))
        return programs[-1]

    yield start
    for program in programs:
        program.process.kill()
        program.process.communicate(timeout=20)


@needs_pygame
def test_a_screen_that_is_lost_takes_nothing_with_it(tmp_path: Path) -> None:
    with served() as (name, server):
        program = Program(name, tmp_path, live=True, aspect="1")
        server.kill()
        said = program.said()
    assert said == f"lost: the screen at DISPLAY={name} is gone\nclosed\n"
    assert program.process.returncode == 0


@needs_pygame
def test_a_screen_that_does_not_answer_stops_nothing(tmp_path: Path) -> None:
    """SDL would wait for it with Python's lock in its hand: nothing else would run, and no signal be heard."""
    script = """
import signal
from mcdrl_rt.console import attended, leave
from mcdrl_rt.errors import SinkError
from mcdrl_rt.video import window
import window_program
window._OPEN_S = 0.5
def run():
    try:
        window_program.main(False, 1)
    except SinkError as error:
        print(error, flush=True)
    signal.raise_signal(signal.SIGTERM)
leave(attended(run))
"""
    with served() as (name, server):
        server.send_signal(signal.SIGSTOP)
        path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT), str(ROOT / "tests")])
        environment = os.environ | {"DISPLAY": name, "PYTHONPATH": path}
        command = [sys.executable, "-c", script]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
        server.send_signal(signal.SIGCONT)
    assert ended.stdout.startswith("cannot show a window: nothing came of it"), ended.stderr
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, "stopped\n")


@needs_pygame
def test_the_picture_is_there_and_keys_change_its_overlay(start: Callable[..., Program]) -> None:
    program = start()
    clean, found = picture()
    assert tuple(clean[MIDDLE]) == (180, 60, 40)
    program.shows(draw(clean, found, colors=CLASS_COLORS))
    program.press("o")
    program.shows(clean, below=100)
    assert (program.inside()[:100, :300] != clean[:100, :300]).any()  # it says so
    program.press("o")
    program.shows(draw(clean, found, colors=CLASS_COLORS))
    program.press("plus", "KP_Add", "equal", "minus")
    until(lambda: abs(int(program.inside()[MIDDLE][1]) - round(0.45 * 60 + 0.55 * 255)) <= 2, "an opacity of 55 %")
    program.press("h")
    program.press("question")
    program.press("h")
    until(lambda: int(program.inside()[MIDDLE][1]) < 100, "a table of keys on a dark plate")


@needs_pygame
def test_pause_stops_the_picture_and_not_the_stream(start: Callable[..., Program]) -> None:
    program = start(live=True)
    edge = (200, 20)
    before = program.inside()[edge]
    until(lambda: not np.array_equal(program.inside()[edge], before), "a picture that moves")
    program.press("space")
    until(lambda: (program.inside()[5:40, 20:100].max(axis=(0, 1)) > 150).any(), "a mark")
    time.sleep(0.1)
    held = program.inside()
    time.sleep(0.3)
    assert np.array_equal(program.inside(), held)
    program.press("space")
    until(lambda: not np.array_equal(program.inside()[edge], held[edge]), "a picture that moves again")


@needs_pygame
def test_snapshots_lie_where_the_program_was_started(start: Callable[..., Program]) -> None:
    program = start()
    program.press("s")
    folder = program.folder / "snapshots"
    until(lambda: len(list(folder.glob("*.png"))) == 2, "two pictures")
    program.press("q")
    assert program.said() == "quit\nclosed\n"
    clean, seen = (cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in sorted(folder.iterdir()))
    expected, found = picture()
    assert np.array_equal(clean, expected)
    assert np.array_equal(seen, draw(expected, found, colors=CLASS_COLORS))


@needs_pygame
def test_a_resized_window_letterboxes_and_wide_pixels_are_wide(start: Callable[..., Program]) -> None:
    program = start(aspect="3/2")
    assert program.inside().shape == (300, 600, 3)
    program.xdotool("windowsize", "--sync", program.window, "320", "400")
    until(lambda: program.inside().shape == (400, 320, 3) and bool(program.inside()[200, 160].any()), "a new size")
    seen = program.inside()  # 600×300 in 320×400 is 320×160, from row 120 on
    assert not seen[:120].any() and not seen[280:].any()
    assert tuple(seen[124, 4]) == tuple(seen[276, 4]) == (180, 60, 40)
    clean, found = picture()
    assert tuple(seen[200, 160]) == tuple(draw(clean, found, colors=CLASS_COLORS)[MIDDLE])


@pytest.fixture
def manager(screen: str, tmp_path: Path) -> Iterator[None]:
    """A window manager: without one no window gets the whole screen, or a button that closes it."""
    if shutil.which("openbox") is None:
        pytest.skip("needs openbox, a window manager")
    started = tmp_path / "started"
    command = ["openbox", "--startup", f"touch {started}"]
    process = subprocess.Popen(command, env=os.environ | {"DISPLAY": screen}, stderr=subprocess.DEVNULL)
    until(started.exists, "a window manager")  # a window that comes while it starts may never be shown
    yield
    process.terminate()
    process.wait(10)


@needs_pygame
def test_full_screen_and_back_and_the_button_that_closes(manager: None, start: Callable[..., Program]) -> None:
    program = start()
    program.press("f")
    until(lambda: program.inside().shape == (*SCREEN, 3) and bool(program.inside()[5, 400].any()), "the whole screen")
    assert tuple(program.inside()[2, 2]) == (180, 60, 40)
    program.press("f")
    until(lambda: program.inside().shape == (*SIZE, 3) and not program.shot()[5, 5].any(), "a window again")
    program.press("alt+F4")
    assert program.said() == "quit\nclosed\n"


@needs_pygame
def test_the_user_quits(start: Callable[..., Program]) -> None:
    program = start()
    program.press("Escape")
    assert program.said() == "quit\nclosed\n"
    assert program.process.returncode == 0
    assert not program.shot().any()


@needs_pygame
def test_signals_are_the_programs_own(start: Callable[..., Program]) -> None:
    program = start()
    program.process.terminate()
    assert program.said() == ""
    assert program.process.returncode == -15


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Window]:
    """Open a window that SDL shows nobody, in this process."""
    if importlib.util.find_spec("pygame") is None:
        pytest.skip("needs pygame-ce")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    view = View(colors=CLASS_COLORS, title=lambda: "small")
    return lambda: Window(FORMAT, "unseen", view, on_quit=lambda: None)


def shown(pixels: UInt8Array, index: int = 0) -> Shown:
    return Shown(Frame(pixels, index, Fraction(1, 25)))


def test_one_window_at_a_time(unseen: Callable[[], Window]) -> None:
    with unseen():
        with pytest.raises(SinkError) as caught:
            unseen()
        assert str(caught.value) == "one window is open already; show another stream with another mcdrl-rt"
    with unseen() as again:
        again.close()
    again.close()
    assert "window" not in {thread.name for thread in threading.enumerate()}


def test_a_screen_that_does_not_answer_is_said(unseen: Callable[[], Window], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr("mcdrl_rt.video.window._OPEN_S", 0.2)
    opens = Window._open
    monkeypatch.setattr(Window, "_open", lambda window: (answers.wait(20), opens(window)))
    with pytest.raises(SinkError, match=r"nothing came of it in 0 s; does the screen answer\?"):
        unseen()
    answers.set()
    until(lambda: "window" not in {thread.name for thread in threading.enumerate()}, "its end, however late")


def test_writing_waits_for_no_screen_and_the_newest_is_drawn(
    unseen: Callable[[], Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, free = [], threading.Event()

    def slow(pixels: UInt8Array, size: tuple[int, int], *_: object) -> UInt8Array:
        drawn.append(int(pixels[0, 0, 0]))
        assert free.wait(20)
        return np.zeros((*size, 3), np.uint8)

    monkeypatch.setattr("mcdrl_rt.video.window.compose", slow)
    with unseen() as window:
        until(lambda: len(drawn) == 1, "a first picture")
        for value in range(1, 101):  # returns though nothing is drawn
            window.write(shown(np.full((*SIZE, 3), value, np.uint8)))
        assert window.frames == 100
        free.set()
        until(lambda: drawn[-1] == 100, "the newest frame")
    assert set(drawn) == {0, 100}


def test_what_goes_wrong_in_the_window_is_raised_where_frames_come_from(
    unseen: Callable[[], Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    import pygame

    for error, kind in ((ValueError("a bug"), ValueError), (pygame.error("the screen is gone"), SinkError)):
        window = unseen()
        with monkeypatch.context() as patch:
            patch.setattr(window, "_draw", Mock(side_effect=error))
            window.write(shown(np.zeros((*SIZE, 3), np.uint8)))
            until(lambda window=window: not window._thread.is_alive(), "the end of the window")  # type: ignore[misc]
        with pytest.raises(kind, match=f"{error}$"):
            window.write(shown(np.zeros((*SIZE, 3), np.uint8)))
        window.close()


def test_closing_the_window_asks_for_the_end_once(unseen: Callable[[], Window]) -> None:
    import pygame

    with unseen() as window:
        window._on_quit = Mock()
        pygame.event.post(pygame.event.Event(pygame.WINDOWCLOSE))
        pygame.event.post(pygame.event.Event(pygame.QUIT))
        until(lambda: not window._thread.is_alive(), "the end of the window")
        window.write(shown(np.zeros((*SIZE, 3), np.uint8)))  # the stream is still on its way to its end
        assert window.frames == 0
    window._on_quit.assert_called_once_with()


def test_a_frame_of_another_size_is_shown(unseen: Callable[[], Window]) -> None:
    with unseen() as window:
        for size in ((40, 50), (1080, 1920), (1, 1)):
            window.write(shown(np.zeros((*size, 3), np.uint8)))
            until(lambda: not window._arrived.is_set(), "a drawn frame")
    assert window._failure is None


def refusal() -> str:
    with pytest.raises(SinkError) as caught:
        Window(FORMAT, "x", View(colors=CLASS_COLORS, title=lambda: "small"), on_quit=lambda: None)
    return str(caught.value)


def test_without_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.setenv(name, "")
    assert refusal() == "cannot show a window: no screen here, neither DISPLAY nor WAYLAND_DISPLAY is set"


@needs_pygame
def test_with_a_screen_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":4242")
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    assert refusal() == "cannot show a window at DISPLAY=:4242: x11 not available"
    assert refusal()  # and not "one window is open already"


def test_without_pygame_or_with_its_ancestor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert refusal() == "a window needs pygame-ce: pip install 'mcdrl-rt[window]'"
    monkeypatch.setitem(sys.modules, "pygame", types.ModuleType("pygame"))
    assert refusal() == "a window needs pygame-ce: pip uninstall pygame; pip install 'mcdrl-rt[window]'"


def test_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert refusal() == "cannot show a window: macOS allows one only to a program's first thread"
