"""The report in headless Chromium: images load, nothing is complained of, no request leaves, nothing is too wide."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("scipy")
from lcmem_onnx.runtime.audit.report.html_report import Shown, write_report
from lcmem_onnx.runtime.audit.run import Request, audit
from lcmem_onnx.runtime.screening import Screener

EXAMPLES = Path(__file__).parent.parent / "examples" / "pictures"
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
SECONDS = 60.0
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync",
    "--disable-component-update", "--disable-dev-shm-usage", "--remote-debugging-pipe",
]  # fmt: skip


class Browser:
    """Chromium's own debugging protocol over its pipe: JSON objects that end in a NUL byte."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._number, self._read = to, back, 0, b""
        self.events: list[dict[str, Any]] = []

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._back], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self._back, 1 << 20) if ready else b""
            assert part, "Chromium does not answer"
            self._read += part
        line, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "id" not in message:
            self.events.append(message)
        return message

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        request = {"id": self._number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        os.write(self._to, json.dumps(request).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def wait_for(self, method: str) -> None:
        while not any(event["method"] == method for event in self.events):
            self._next()


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    assert CHROMIUM
    from_us, to_it = os.pipe()
    from_it, to_us = os.pipe()

    def pipes() -> None:  # it reads from descriptor 3 and writes to 4
        os.dup2(from_us, 103)
        os.dup2(to_us, 104)
        os.dup2(103, 3)
        os.dup2(104, 4)

    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=pipes,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        yield Browser(to_it, from_it)
    finally:
        os.close(to_it)
        os.close(from_it)
        process.kill()
        process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_the_report_in_a_browser(tmp_path: Path) -> None:
    out = tmp_path / "report"
    request = Request(EXAMPLES / "queries", EXAMPLES / "gallery", out)
    write_report(audit(Screener(), request), Shown(reference=True))
    with browser(tmp_path / "profile") as chromium:
        target = chromium.ask("Target.createTarget", url="about:blank")["targetId"]
        session = chromium.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            chromium.ask(f"{domain}.enable", session)
        chromium.ask("Page.navigate", session, url=(out / "report.html").as_uri())
        chromium.wait_for("Page.loadEventFired")

        def evaluate(expression: str) -> Any:
            return chromium.ask("Runtime.evaluate", session, expression=expression, returnByValue=True, awaitPromise=True)[
                "result"
            ].get("value")

        assert evaluate("document.title").startswith("Audit of a release: 5 released images of 9 match")
        loaded = evaluate(
            "Promise.all([...document.images].map(each => {each.loading = 'eager'; return each.decode().then(() => each.width)}))"
        )
        assert len(loaded) == 10
        assert all(width > 50 for width in loaded)
        assert evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.getAttribute('href')))")
        assert evaluate(
            "new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size == document.querySelectorAll('[id]').length"
        )
        for width, dark in ((1400, False), (390, False), (390, True)):
            chromium.ask("Emulation.setDeviceMetricsOverride", session, width=width, height=900, deviceScaleFactor=1, mobile=False)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            chromium.ask("Emulation.setEmulatedMedia", session, features=[scheme])
            assert evaluate("document.documentElement.scrollWidth") <= width
            ground = evaluate("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") is not dark
        complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        assert [event for event in chromium.events if event["method"] in complaints] == []
        asked_for = [
            event["params"]["request"]["url"] for event in chromium.events if event["method"] == "Network.requestWillBeSent"
        ]
        assert {url.partition(":")[0] for url in asked_for} <= {"file", "data"}
        assert sum(url.startswith("file:") for url in asked_for) == 1
        # What the policy is for is asked for and refused; it shows as well that complaints would have been seen.
        evaluate(
            "new Promise(done => {const i = new Image(); i.onerror = i.onload = () => done(); i.src = 'http://127.0.0.1:9/x.png'})"
        )
        assert any("Content Security Policy" in str(event) for event in chromium.events if event["method"] == "Log.entryAdded")
