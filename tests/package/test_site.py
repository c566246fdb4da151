"""The documentation's site as a reader's browser has it: no errors, nothing from elsewhere, no dead links."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from support.browser import Watched, accessibility_problems, chromium

pytest.importorskip("mkdocstrings", reason="needs the site's builder (pip install 'zoomzero[dev]')")
# The theme's own: it gives the copy buttons of all code blocks one name. The page of servers' errors stands alone.
OF_THE_THEME, STANDS_ALONE = "landmark-unique", "404.html"
LOOKED_AT_BY_AXE = ("index.html", "training.html", "examples.html")


@pytest.fixture(scope="module")
def site(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # warnings are errors there
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_every_page_opens_without_errors_requests_or_dead_links(site: Path, browser: Any) -> None:
    pages = [page for page in sorted(site.rglob("*.html")) if page.name != STANDS_ALONE]
    assert len(pages) > 20
    watched = Watched(browser)
    links: set[str] = set()
    for page in pages:
        watched.page.goto(page.as_uri())
        links |= set(watched.page.eval_on_selector_all("article a[href]", "found => found.map((one) => one.href)"))
    assert watched.problems == []
    assert [url for url in watched.requests if not url.startswith(("file:", "data:"))] == []
    assert _dead(links) == []


@pytest.mark.parametrize("name", LOOKED_AT_BY_AXE)
def test_axe_finds_nothing_but_what_is_the_themes(site: Path, browser: Any, name: str) -> None:
    watched = Watched(browser)
    watched.page.goto((site / name).as_uri())
    found = accessibility_problems(watched.page)
    assert [problem for problem in found if not problem.startswith(OF_THE_THEME)] == []
    watched.screenshot(f"site-{name.removesuffix('.html')}")


def _dead(links: set[str]) -> list[str]:
    """Links to files of the site that are not there, or to places that their pages do not have."""
    dead = []
    for link in sorted(links):
        parts = urlparse(link)
        if parts.scheme != "file":
            continue
        target = Path(unquote(parts.path))
        place = f'id="{unquote(parts.fragment)}"'
        if not target.is_file() or (parts.fragment and place not in target.read_text(encoding="utf-8")):
            dead.append(link)
    return dead
