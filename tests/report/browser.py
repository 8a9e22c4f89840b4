"""Drive Chromium through chromedriver's plain HTTP, without another dependency."""

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = None if CHROMIUM and DRIVER else "no chromium and chromedriver on this machine"

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
_START_S = 30.0
_CALL_S = 30.0


class Browser:
    """One headless window. Leaving it as a context manager ends the browser, the driver and their folder."""

    def __init__(self, *, size: tuple[int, int] = (1280, 900), dark: bool = False, mobile: bool = False) -> None:
        self._folder = tempfile.mkdtemp(prefix="gmcli-chromium-")
        self._driver = subprocess.Popen(
            [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            self._base = f"http://127.0.0.1:{self._port()}"
            options: dict[str, Any] = {"args": self._arguments(size), "binary": CHROMIUM}
            if mobile:
                metrics = {"width": size[0], "height": size[1], "pixelRatio": 2, "touch": True, "mobile": True}
                options["mobileEmulation"] = {"deviceMetrics": metrics}
            wanted = {
                "browserName": "chrome",
                "unhandledPromptBehavior": "ignore",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
            }
            session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._base += f"/session/{session['sessionId']}"
            scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
            self.devtools("Emulation.setEmulatedMedia", scheme)
        except BaseException:
            self.__exit__()
            raise

    def _arguments(self, size: tuple[int, int]) -> list[str]:
        return [*_OPTIONS, f"--user-data-dir={self._folder}", f"--window-size={size[0]},{size[1]}"]

    def _port(self) -> int:
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            line = self._driver.stdout.readline()
            if "on port " in line and "started" in line:
                return int(line.rsplit("port ", 1)[1].strip(" .\n"))
            if self._driver.poll() is not None:
                break
        raise RuntimeError("chromedriver did not start")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if "/session/" in getattr(self, "_base", ""):
                self._call("DELETE", "")
        except (OSError, RuntimeError):
            pass
        finally:
            self._driver.terminate()
            self._driver.wait(10)
            self._driver.stdout.close()
            shutil.rmtree(self._folder, ignore_errors=True)

    def _call(self, method: str, path: str, value: Any = None) -> Any:
        body = None if method != "POST" else json.dumps(value or {}).encode()
        request = urllib.request.Request(self._base + path, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=_CALL_S) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, page: Path, fragment: str = "") -> None:
        # A mere change of the fragment would not load the page anew.
        self._call("POST", "/url", {"url": "about:blank"})
        self._call("POST", "/url", {"url": page.as_uri() + fragment})

    def run(self, script: str, *arguments: object) -> Any:
        """Run a function's body in the page and return what it returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, seconds: float = 15.0) -> Any:
        """Wait until an expression holds; return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            if time.monotonic() > end:
                raise AssertionError(f"never true: {script}")
            time.sleep(0.05)
        return value

    def press(self, key: str) -> None:
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def dialog(self) -> str | None:
        """Return the text of an alert that is open, if any."""
        try:
            return self._call("GET", "/alert/text")
        except RuntimeError:
            return None

    def log(self) -> list[str]:
        """Return what the console said since the last call."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
