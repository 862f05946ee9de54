"""A small client of Chromium's DevTools protocol: a page as its readers get it.

Messages go through the browser's pipe (`--remote-debugging-pipe`), so neither a driver nor a port
is needed: JSON objects, each ended by a zero byte.
"""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 120  # for an answer; a busy machine is slow
# The browser reads messages from descriptor 3 and writes them to 4.
START = 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'


def find_chromium() -> str | None:
    """The program named by the variable CHROMIUM, or found under one of NAMES; None without."""
    names = filter(None, (os.environ.get("CHROMIUM"), *NAMES))
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """A headless Chromium with one page; a context manager that ends it.

    Attributes:
        complaints: what the page wrote to the console or the browser wrote about it, as text.
        requests: addresses that the page asked for, beside those of its own bytes (data:).
    """

    def __init__(self, program: str, folder: Path):
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--no-first-run", "--remote-debugging-pipe")  # fmt: skip
        self._process = subprocess.Popen(
            ["sh", "-c", START, program, *flags, f"--user-data-dir={folder}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._count, self._session, self._bytes = 0, None, b""
        self.complaints, self.requests, self._events = [], [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self._session = None
        try:
            self.call("Browser.close")
            self._process.wait(SECONDS)
        finally:
            self._process.kill()
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()

    def call(self, method: str, **parameters) -> dict:
        """Asks the browser for something and waits for its answer."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._next()).get("id") != self._count:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _next(self) -> dict:
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._bytes:
            if not select.select([self._process.stdout], [], [], deadline - time.monotonic())[0]:
                raise TimeoutError(f"no word from the browser for {SECONDS} s")
            received = os.read(self._process.stdout.fileno(), 1 << 20)
            if not received:
                raise RuntimeError("the browser ended")
            self._bytes += received
        message, self._bytes = self._bytes.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event: dict) -> None:
        """Keeps what the page complains of and asks for."""
        method, parameters = event.get("method"), event.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            address = parameters["request"]["url"]
            self.requests += [] if address.startswith("data:") else [address]
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters))

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Loads a file in a window of so many CSS pixels; up to 500 wide it is a telephone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width <= 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._note(self._next())

    def evaluate(self, expression: str):
        """The value of JavaScript in the page, or what it promises; RuntimeError if it throws."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key of the keyboard, with its Windows key code, where the focus is."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        """The mouse, in the middle of the first element that `selector` finds."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', inline: 'center'});"
            "const b = e.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
