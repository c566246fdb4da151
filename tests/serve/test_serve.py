"""The page of `zoomzero serve`: a real server, real uploads in Chromium, and nothing asked of the network."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.browser import Watched, accessibility_problems, chromium

from zoomzero.synthetic import make_clips

pytest.importorskip("gradio", reason="needs gradio (pip install 'zoomzero[serve]')")
PORT = 17863
ADDRESS = f"http://127.0.0.1:{PORT}"
HOSTILE = "<img src=x onerror=alert(1)>"
UPLOADED = "video:not(table video)"  # the examples stand in a table
# A whole answer of the tiny model, on a machine that does other things too.
PATIENCE_MS = 180_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def clip(folder: Path) -> Path:
    return make_clips(folder / "clips", 1, seed=3, workers=1)[0].path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    temporary = folder / "temporary"
    temporary.mkdir()
    code = "import sys; from zoomzero.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", "--port", str(PORT), "--device", "cpu", "--max-upload", "1mb"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert ADDRESS in process.stdout.readline()
        yield ADDRESS
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    # Clips and uploads are gone with the process.
    assert list(temporary.glob("zoomzero-serve-*")) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def opened(browser: Any, server: str) -> Iterator[Any]:
    """opened() -> the page in a session of its own; in the end none may have asked anything but the server."""
    watched: list[Watched] = []

    def open_page(**how: Any) -> Watched:
        one = Watched(browser, **({"width": 1280, "height": 1000} | how))
        watched.append(one)
        one.page.goto(server)
        one.page.get_by_role("button", name="Ask", exact=True).wait_for()
        return one

    yield open_page
    for one in watched:
        outside = [url for url in one.requests if not url.startswith((server, "data:", "blob:", "ws://127.0.0.1"))]
        assert outside == []
        one.page.close()


def _upload(page: Any, path: Path | dict[str, Any]) -> None:
    page.locator("input[type=file]").first.set_input_files(path if isinstance(path, dict) else str(path))
    page.locator(UPLOADED).wait_for()


def _ask(page: Any, question: str) -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.get_by_label("Options, one a line").fill("A\nB\nC\n<script>x</script>")
    page.get_by_role("button", name="Ask", exact=True).click()


def _wait_for_answer(page: Any) -> None:
    page.locator("#answer", has_text="% sure").wait_for(timeout=PATIENCE_MS)


def _addresses_of(watched: Watched, name: str) -> set[str]:
    return {url for url in watched.requests if "/file=" in url and url.endswith(f"/{name}")}


def test_an_upload_is_answered_pass_by_pass_with_times_and_the_true_length(opened: Any, clip: Path) -> None:
    watched = opened()
    page = watched.page
    _upload(page, clip)
    _ask(page, f"Which letter is on the red sign? {HOSTILE}")
    _wait_for_answer(page)
    passes = page.locator("#passes section")
    assert passes.count() == 2
    for place in range(2):
        assert "visual tokens" in passes.nth(place).inner_text()
        seconds = passes.nth(place).locator("small").inner_text().split(" · ")[2]
        assert float(seconds.removesuffix(" s")) > 0
    assert "The video is 32.0 s long." in page.locator("#passes").inner_text()
    assert page.locator("#passes .frames img").count() > 4
    assert page.locator("#passes script, #answer script").count() == 0
    watched.screenshot("serve")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_runs_over_the_edge_of_a_phone(opened: Any, scheme: str) -> None:
    page = opened(width=390, height=900, scheme=scheme).page
    assert accessibility_problems(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_example_is_answered_after_a_click(opened: Any) -> None:
    watched = opened()
    page = watched.page
    page.get_by_role("row").filter(has_text="Which letter").first.click()
    page.locator(UPLOADED).wait_for()
    assert "Which letter" in page.get_by_label("Question", exact=True).input_value()
    assert len(page.get_by_label("Options, one a line").input_value().splitlines()) == 4
    page.get_by_role("button", name="Ask", exact=True).click()
    _wait_for_answer(page)
    assert page.locator("#passes section").count() == 2
    watched.screenshot("serve-example")


def test_two_visitors_share_one_queue_and_nothing_else(opened: Any, clip: Path, server: str) -> None:
    first, second = opened(), opened()
    _upload(first.page, clip)
    _upload(second.page, {"name": "other.mp4", "mimeType": "video/mp4", "buffer": clip.read_bytes() + bytes(100)})
    _ask(first.page, "Which letter is on the red sign?")
    _ask(second.page, "Which letter is on the blue sign?")
    _wait_for_answer(first.page)
    _wait_for_answer(second.page)
    mine, theirs = _addresses_of(first, clip.name), _addresses_of(second, "other.mp4")
    assert mine
    assert theirs
    assert not mine & _addresses_of(second, clip.name)
    # An address holds a hash that is nobody else's to know; the folders above it are not shown.
    for address in mine:
        parts = address.split("/")
        assert len(parts[-2]) == 64
        for shorter in ("/".join(parts[:-1]), "/".join(parts[:-2]), address.replace(parts[-2], "0" * 64)):
            assert second.page.request.get(shorter).status in (403, 404), shorter
        assert parts[-2] not in second.page.content()


def test_one_question_is_answered_at_a_time(opened: Any, clip: Path, server: str) -> None:
    upload = {"files": {"name": "queued.mp4", "mimeType": "video/mp4", "buffer": clip.read_bytes()}}
    (path,) = opened().page.request.post(f"{server}/gradio_api/upload", multipart=upload).json()
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "Which letter?", "A\nB", "single"]
    with ThreadPoolExecutor() as pool:
        spans = list(pool.map(lambda name: _call(server, data, name), ("one", "two", "three")))
    assert all(event["success"] for _, event in spans)
    times = sorted(when for when, _ in spans)
    assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(times))


OUTSIDE = ("/etc/passwd", "../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/proc/self/environ")


def test_files_outside_of_the_uploads_are_refused(opened: Any, server: str, clip: Path, folder: Path) -> None:
    page = opened().page
    for path in (*OUTSIDE, str(clip), str(folder)):
        assert page.request.get(f"{server}/gradio_api/file={path}").status in (403, 404), path
        # Nor does the form take one.
        video = {"path": path, "meta": {"_type": "gradio.FileData"}}
        _, event = _call(server, [video, "q?", "", "single"], "by hand")
        assert event["success"] is False, path
        assert "validation" not in json.dumps(event)  # refused for its place, not for its form
        assert "root:" not in json.dumps(event)


def _call(server: str, data: list[Any], session: str) -> tuple[tuple[float, float], dict[str, Any]]:
    """When a request, made by hand as a page would make it, was begun and ended, and what the queue said in the end."""
    with urllib.request.urlopen(f"{server}/config", timeout=60) as reply:
        entries = json.load(reply)["dependencies"]
    (click,) = (entry for entry in entries if (len(entry["inputs"]), len(entry["outputs"])) == (4, 2))
    body = json.dumps({"data": data, "fn_index": click["id"], "session_hash": session}).encode()
    request = urllib.request.Request(f"{server}/gradio_api/queue/join", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=60).close()
    begun = 0.0
    address = f"{server}/gradio_api/queue/data?session_hash={urllib.parse.quote(session)}"
    with urllib.request.urlopen(address, timeout=PATIENCE_MS / 1000) as events:
        for line in events:
            event = json.loads(line[6:]) if line.startswith(b"data: ") else {"msg": ""}
            if event["msg"] == "process_starts":
                begun = time.monotonic()
            if event["msg"] == "process_completed":
                return (begun, time.monotonic()), event
    raise AssertionError("the queue ended without an answer")


def test_an_upload_above_the_limit_is_refused(opened: Any, server: str) -> None:
    watched = opened()
    page = watched.page
    large = {"name": "large.mp4", "mimeType": "video/mp4", "buffer": bytes(2 << 20)}
    assert page.request.post(f"{server}/gradio_api/upload", multipart={"files": large}).status == 413
    page.locator("input[type=file]").first.set_input_files(large)
    page.get_by_text("exceed the maximum allowed size").first.wait_for()
    assert page.locator(UPLOADED).count() == 0


def test_hostile_names_and_broken_files_give_a_plain_message(opened: Any, clip: Path) -> None:
    watched = opened()
    page = watched.page
    name = f"{HOSTILE.replace('/', '')}.mp4"
    _upload(page, {"name": name, "mimeType": "video/mp4", "buffer": clip.read_bytes()[:2000]})
    _ask(page, "what?")
    page.locator(".toast-body, [data-testid=toast-body]").first.wait_for(timeout=PATIENCE_MS)
    said = page.locator(".toast-body, [data-testid=toast-body]").first
    assert said.locator("img[src=x]").count() == 0
    assert page.locator("img[src=x]").count() == 0
    assert "zoomzero-serve-" not in said.inner_text()
    watched.screenshot("serve-broken")


def test_a_decoder_without_a_sign_of_life_is_stopped(clip: Path) -> None:
    import gradio

    from zoomzero import ZoomZero
    from zoomzero.serve import ServeLimits
    from zoomzero.serve.app import _ask

    answers = _ask(
        ZoomZero.from_pretrained(device="cpu"), ServeLimits(time_limit=0.001), (str(clip), "q?", "", "single")
    )
    with pytest.raises(gradio.Error, match=rf"{clip.name}: .*0\.001") as stopped:
        list(answers)
    assert str(clip.parent) not in str(stopped.value)
