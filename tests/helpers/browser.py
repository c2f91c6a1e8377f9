"""A real browser for tests: headless Chromium, driven by the DevTools protocol over a pair of pipes.

No driver and no library are needed. Clicks and keys are those of the browser: they go through hit testing and focus.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe", "--hide-scrollbars",
    "--force-color-profile=srgb", "--font-render-hinting=none",
)  # fmt: skip
_KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
_DRAWN = "document.getElementById('main')?.dataset.ready"
_PATIENCE = 60.0  # seconds for an answer; the machine may be busy


class Browser:
    """A page in Chromium: open a file, click, press keys, read what it shows, take pictures of it."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._buffer, self._count, self._loads = b"", 0, 0
        self.messages: list[str] = []  # errors of the page: exceptions, console errors, refusals of its policy
        self.requests: list[str] = []  # addresses that the page asked for
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    _session: str | None = None

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], _PATIENCE)[0], "the browser does not answer"
            data = os.read(self._in, 1 << 20)
            assert data, "the browser has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.messages.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.messages.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Page.loadEventFired":
            self._loads += 1

    def open(self, page: Path, fragment: str = "", width: int = 1400, height: int = 900, dark: bool = False) -> None:
        """Open a file and wait until it has drawn itself."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)
        self._load("Page.navigate", url="about:blank")  # else a new fragment alone would load nothing
        self._load("Page.navigate", url=page.resolve().as_uri() + fragment)
        self.wait(_DRAWN)

    def reload(self) -> None:
        """Load the page once more and wait until it has drawn itself."""
        self._load("Page.reload")
        self.wait(_DRAWN)

    def _load(self, method: str, **params: Any) -> None:
        """Send a command that loads a document. Return when the new document has replaced the old one."""
        before = self._loads
        self._call(method, **params)
        while self._loads == before:
            self._note(self._receive())

    def run(self, script: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.02)

    def texts(self, selector: str) -> list[str]:
        """Return the text of all elements, as it is shown."""
        texts: list[str] = self.run(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((n) => n.innerText ?? n.textContent)"
        )
        return texts

    def click(self, selector: str) -> None:
        """Send a click to the middle of the first element, where it is on the screen."""
        place = f"(() => {{ const n = document.querySelector({json.dumps(selector)}); if (!n) return null;"
        place += "n.scrollIntoView({block: 'center'}); const r = n.getBoundingClientRect();"
        x, y = self.run(place + "return [r.x + r.width / 2, r.y + r.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, *keys: str) -> None:
        """Send keys as a keyboard does: letters type, named keys act."""
        for key in keys:
            code = _KEYS.get(key, ord(key.upper()[0]))
            typed = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            down = {"type": "keyDown", "key": key, "windowsVirtualKeyCode": code, **({"text": typed} if typed else {})}
            self._call("Input.dispatchKeyEvent", **down)
            self._call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium with an empty profile; it ends with the block."""
    assert CHROMIUM, "there is no chromium"
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

        def connect() -> None:  # the protocol reads from descriptor 3 and writes to 4
            low, high = os.dup(to_browser[0]), os.dup(from_browser[1])
            os.dup2(low, 3), os.dup2(high, 4)

        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(
            command, preexec_fn=connect, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser[0]), os.close(from_browser[1])
        try:
            yield Browser(to_browser[1], from_browser[0])
        finally:
            os.close(to_browser[1])
            with suppress(ProcessLookupError):
                process.kill()
            process.wait()
            os.close(from_browser[0])
