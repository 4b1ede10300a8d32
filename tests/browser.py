"""A real Chromium, driven over its DevTools protocol: https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 60  # that anything may take
KEY_CODES = {"Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
TEXTS = {"Enter": "\r"}  # what keys write, where it is not their name


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Start a headless Chromium whose profile lies in an empty folder."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    command += ["--disable-background-networking", "--disable-component-update"]
    command += [
        "--disable-background-timer-throttling",
        "--disable-renderer-backgrounding",
        f"--user-data-dir={folder}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "about:blank"], stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)}
        )
    try:
        told = folder / "DevToolsActivePort"
        _wait_for(lambda: process.poll() is not None or (told.exists() and "\n" in told.read_text()))
        assert process.poll() is None, (folder / "log").read_text()
        yield Browser(int(told.read_text().split()[0]))
    finally:
        process.terminate()
        process.wait(SECONDS)


class Browser:
    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/json"

    @contextlib.contextmanager
    def page(self, url: str) -> Iterator[Page]:
        """Open a page in a tab of its own."""
        request = urllib.request.Request(f"{self.address}/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            target = json.load(answer)["webSocketDebuggerUrl"]
        with connect(target, max_size=None) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.call("Page.navigate", url=url)
            yield page


class Page:
    """One tab, and what it complained of and asked for since it was opened."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.numbers = socket, itertools.count(1)
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv(timeout=SECONDS))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown" or (event == "Runtime.consoleAPICalled" and told["type"] == "error"):
            self.complaints.append(json.dumps(told))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])

    def value(self, script: str) -> Any:
        """Return what a JavaScript expression gives; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> None:
        """Wait until a JavaScript expression holds."""
        _wait_for(lambda: self.value(script))

    def press(self, key: str) -> None:
        """Press and let go of a key."""
        code = KEY_CODES.get(key, ord(key[0].upper()))
        for kind in ("keyDown", "keyUp"):
            written = TEXTS.get(key, key if len(key) == 1 else "")
            text = {"text": written} if written and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        place = "(e => { e.scrollIntoView({block: 'center'}); return e.getBoundingClientRect().toJSON(); })"
        box = self.value(f"{place}(document.querySelector({selector!r}))")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def show(self, width: int, height: int, scheme: str = "light", motion: str = "no-preference") -> None:
        """Set the window's size, the colour scheme, `light` or `dark`, and the wish for motion, such as `reduce`."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        media = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
