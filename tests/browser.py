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
SECONDS = 120  # without a message; a busy machine is slow
# The browser reads messages from descriptor 3 and writes them to 4.
START = 'exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1'
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--no-first-run", "--remote-debugging-pipe")  # fmt: skip


def find_chromium() -> str | None:
    """The program named by the variable CHROMIUM, or found under one of NAMES; None without."""
    names = filter(None, (os.environ.get("CHROMIUM"), *NAMES))
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """A headless Chromium with one page; a context manager that ends it.

    Attributes:
        complaints: what the open page wrote to the console or the browser wrote about it, as text.
        requests: addresses that the open page asked for, other than `data:`.
    """

    def __init__(self, program: str, folder: Path):
        self._process = subprocess.Popen(
            ["sh", "-c", START, program, *FLAGS, f"--user-data-dir={folder}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._count, self._session, self._bytes = 0, {}, b""
        self.complaints, self.requests = [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.communicate(timeout=SECONDS)

    def call(self, method: str, **parameters) -> dict:
        """Asks the browser for something, waits for its answer, and notes events before it."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters} | self._session
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        while (answer := self._receive()).get("id") != self._count:
            event, found = answer["method"], answer["params"]
            if event == "Network.requestWillBeSent":
                address = found["request"]["url"]
                self.requests += [] if address.startswith("data:") else [address]
            elif event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
                self.complaints.append(json.dumps(found))
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self._bytes:
            if not select.select([self._process.stdout], [], [], SECONDS)[0]:
                raise TimeoutError(f"no message from the browser for {SECONDS} s")
            received = os.read(self._process.stdout.fileno(), 1 << 20)
            if not received:
                raise RuntimeError("the browser ended")
            self._bytes += received
        message, self._bytes = self._bytes.split(b"\0", 1)
        return json.loads(message)

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Loads a file in a window of so many CSS pixels; up to 500 wide it is a telephone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width <= 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.complaints, self.requests = [], []
        address = path.resolve().as_uri()
        self.call("Page.navigate", url=address)
        while self.evaluate("() => location.href + document.readyState") != f"{address}complete":
            time.sleep(0.05)

    def evaluate(self, function: str, *arguments):
        """What a function of JavaScript returns or promises; RuntimeError if it throws."""
        expression = f"({function})({', '.join(map(json.dumps, arguments))})"
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press_enter(self) -> None:
        """The key of the keyboard, where the focus is."""
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)
