"""The page of `zoomzero serve`: a real server, a real upload in Chromium, and nothing asked of the network."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Watched, chromium

from zoomzero.synthetic import make_clips

pytest.importorskip("gradio", reason="needs gradio (pip install 'zoomzero[serve]')")
PORT = 17863
ADDRESS = f"http://127.0.0.1:{PORT}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    temporary = folder / "temporary"
    temporary.mkdir()
    code = "import sys; from zoomzero.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", "--port", str(PORT), "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert ADDRESS in process.stdout.readline()
        yield ADDRESS
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    # Clips and uploads are gone with the process.
    assert list(temporary.glob("zoomzero-serve-*")) == []


def test_an_upload_is_answered_pass_by_pass_and_nothing_leaves_the_machine(server: str, folder: Path) -> None:
    clip = make_clips(folder / "clips", 1, seed=3, workers=1)[0].path
    with chromium() as browser:
        watched = Watched(browser, width=1280, height=1000)
        page = watched.page
        page.goto(server)
        page.get_by_role("button", name="Ask").wait_for()
        page.locator("input[type=file]").first.set_input_files(str(clip))
        page.locator("video").first.wait_for()
        page.get_by_label("Question", exact=True).fill("Which letter is on the red sign? <img src=x onerror=alert(1)>")
        page.get_by_label("Options, one a line").fill("A\nB\nC\n<script>x</script>")
        page.get_by_role("button", name="Ask").click()
        page.locator("#answer", has_text="% sure").wait_for(timeout=120_000)
        assert page.locator("#passes section").count() == 2
        assert page.locator("#passes .frames img").count() > 4
        assert page.locator("#passes script, #answer script").count() == 0
        watched.screenshot("serve")
        outside = [url for url in watched.requests if not url.startswith((server, "data:", "blob:", "ws://127.0.0.1"))]
        assert outside == []
        for path in ("/etc/passwd", "../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", str(clip), str(folder)):
            assert page.request.get(f"{server}/gradio_api/file={path}").status in (403, 404), path
