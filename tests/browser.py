"""A headless Chromium, where the machine has one, driven over a pipe by its DevTools protocol."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
WITHIN_S = 60.0


class Page:
    """An open page."""

    def __init__(self, to: int, of: int) -> None:
        self._to, self._of, self._rest = to, of, b""
        self._count, self._session = 0, ""

    def open(self, url: str) -> None:
        target = self.call("Target.createTarget", url=url)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self.wait_for(f"location.href === '{url}' && document.readyState === 'complete'")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come meanwhile are dropped."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._count:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def run(self, code: str) -> Any:
        """Return the value of an expression, awaited if it is a promise."""
        answer = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        end_s = time.monotonic() + WITHIN_S
        while not self.run(condition):
            assert time.monotonic() < end_s, condition
            time.sleep(0.05)

    def choose_file(self, selector: str, file: Path) -> None:
        element = self.call("Runtime.evaluate", expression=f"document.querySelector('{selector}')")
        object_id = element["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=object_id)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._of, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        line, self._rest = self._rest.split(b"\0", 1)
        return json.loads(line)


@contextmanager
def opened(url: str, profile: Path) -> Iterator[Page]:
    """Open a page in a browser of its own, whose files lie in `profile`."""
    assert CHROMIUM
    read_by_browser, to_browser = os.pipe()
    of_browser, written_by_browser = os.pipe()
    flags = (
        f"--headless --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={profile}"
    )
    command = f"exec {CHROMIUM} {flags} 3<&{read_by_browser} 4>&{written_by_browser}"
    with subprocess.Popen(
        ["bash", "-c", command],
        pass_fds=(read_by_browser, written_by_browser),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as browser:
        os.close(read_by_browser)
        os.close(written_by_browser)
        try:
            page = Page(to_browser, of_browser)
            page.open(url)
            yield page
        finally:
            browser.terminate()
            os.close(to_browser)
            os.close(of_browser)
