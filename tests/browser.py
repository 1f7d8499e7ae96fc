"""A real Chromium without a screen, for pages under test: told by pipe what to do, it tells what it complains of.

It speaks the DevTools protocol: https://chromedevtools.github.io/devtools-protocol
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import subprocess
import threading
from pathlib import Path
from typing import Any

_HANGS_S = 60.0
_KEY_CODES = {"Enter": 13, " ": 32, "PageUp": 33, "PageDown": 34, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """One tab.

    Attributes:
        complaints: errors and warnings of the pages so far.
        requests: every address that was asked for.
    """

    def __init__(self, chromium: str, profile: Path) -> None:
        ours_in, its_out = os.pipe()
        its_in, ours_out = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        command = shlex.join([chromium, *options, "--remote-debugging-pipe", f"--user-data-dir={profile}"])
        self._process = subprocess.Popen(  # it reads its third file and writes its fourth
            ["bash", "-c", f"exec {command} 3<&{its_in} 4>&{its_out}"],
            pass_fds=(its_in, its_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(its_in), os.close(its_out)
        self._in, self._out = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb")
        self._watchdog = threading.Timer(_HANGS_S, self._process.kill)  # then reading ends, and the test fails
        self._watchdog.start()
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters} | self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        self._out.flush()
        while (answer := self._read()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def open(self, page: Path, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a page and wait until it is there."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._events.clear()
        self.do("Page.navigate", url=page.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._read()

    def ask(self, expression: str) -> Any:
        """The value of some JavaScript, waited for where it is a promise."""
        answer = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """Press the mouse's left button there, and let it go."""
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key, by its name in the DOM."""
        text = {"text": "\r" if key == "Enter" else key} if key in ("Enter", " ") else {}
        code = {"key": key, "windowsVirtualKeyCode": _KEY_CODES[key]}  # without it a page does not scroll
        self.do("Input.dispatchKeyEvent", type="keyDown", **code, **text)
        self.do("Input.dispatchKeyEvent", type="keyUp", **code)

    def close(self) -> None:
        """End it."""
        self._watchdog.cancel()
        self._process.kill()
        self._process.wait()
        self._in.close(), self._out.close()

    def _read(self) -> dict[str, Any]:
        text = bytearray()
        while (byte := self._in.read(1)) != b"\0":
            assert byte, "Chromium has ended, or hung"
            text += byte
        message: dict[str, Any] = json.loads(text)
        said = message.get("params", {})
        if "method" in message:
            self._events.append(message)
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(said["args"]))
        elif message.get("method") == "Log.entryAdded":
            self.complaints.append(said["entry"]["text"])
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        return message
