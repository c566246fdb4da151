"""Chromium for tests of pages: the system's own, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# Folder that screenshots are written to, for people to look at (CI keeps it); none are written without it.
SCREENSHOTS = os.environ.get("ZOOMZERO_SCREENSHOTS")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; skips without Chromium and Playwright, and fails where ZOOMZERO_REQUIRE_BROWSER=1."""
    missing = []
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing.append("Chromium (Debian: apt-get install chromium)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing.append("playwright (pip install playwright)")
    if missing:
        reason = f"needs {' and '.join(missing)}"
        if os.environ.get("ZOOMZERO_REQUIRE_BROWSER") == "1":
            pytest.fail(f"ZOOMZERO_REQUIRE_BROWSER=1, and a test {reason}")
        pytest.skip(reason)
    with sync_playwright() as playwright:
        # In a container root has no sandbox of its own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page whose console, errors and requests are written down."""

    def __init__(self, browser: Any, *, width: int = 1360, height: int = 900, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def screenshot(self, name: str) -> None:
        """Keep a picture for people, where a folder for them is named."""
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(SCREENSHOTS, f"{name}.png"))


def accessibility_problems(page: Any) -> list[str]:
    """What axe finds on a page: missing names, contrast and the like, one line each."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        f"{found['id']}: {node['target']} {node.get('failureSummary', '')}"
        for found in Axe().run(page).response["violations"]
        for node in found["nodes"]
    ]
