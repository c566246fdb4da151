"""Strategies with vLLM as the language model: in this process the same answers as ours, and over its own server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.vllm_engine import import_vllm

from zoomzero import Answer, AnswerOptions, Query, ZoomZero
from zoomzero.answering.backends.http import ServerError
from zoomzero.answering.engine import Engine
from zoomzero.answering.loading import ModelOptions, load_engine
from zoomzero.answering.strategies import STRATEGIES
from zoomzero.synthetic import make_clips, tiny_checkpoint
from zoomzero.synthetic.clips import Clip

import_vllm()

OPTIONS = ("A", "B", "C", "D")
SERVER_SECONDS = 600


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return make_clips(tmp_path_factory.mktemp("clips"), 2, seed=41)


@pytest.fixture(scope="module")
def queries(clips: list[Clip]) -> list[Query]:
    asked = [Query(clip.path, question.question, OPTIONS) for clip in clips for question in clip.questions]
    return [*asked, Query(clips[0].path, "Which letter is on the red sign?")]


@pytest.fixture(scope="module")
def in_vllm() -> Engine:
    return load_engine(ModelOptions(engine="vllm", device="cpu"))


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_vllm_answers_as_our_own_loop(in_vllm: Engine, queries: list[Query], strategy: str) -> None:
    options = AnswerOptions(strategy, max_new_tokens=40)
    ours = ZoomZero.from_pretrained(device="cpu").answer_batch(queries, options)
    theirs = in_vllm.answer_batch(queries, options)
    for own, other in zip(ours, theirs, strict=True):
        assert [look.text for look in own.passes] == [look.text for look in other.passes]
        assert (own.letter, own.text, own.spans) == (other.letter, other.text, other.spans)
        assert own.confidence == pytest.approx(other.confidence, abs=1e-4)
        for one, two in zip(own.passes, other.passes, strict=True):
            assert one.confidence == pytest.approx(two.confidence, abs=1e-4)
            assert one.span_confidence == pytest.approx(two.span_confidence, abs=1e-3)
            assert (one.cost.visual_tokens, one.cost.text_tokens) == (two.cost.visual_tokens, two.cost.text_tokens)
            assert one.cost.flops == two.cost.flops


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """vLLM's own server with the tiny checkpoint, on loopback, behind a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_checkpoint()),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--enforce-eager", "--max-model-len", "4096", "--skip-mm-profiling", "--api-key", "secret-key",
        "--limit-mm-per-prompt", '{"image": 64, "video": 1}', "--max-num-seqs", "8", "--no-enable-log-requests",
        # All frames, and in nearly the size in which they are sent: the published default enlarges these a hundredfold.
        "--media-io-kwargs", '{"video": {"num_frames": -1}}',
        "--mm-processor-kwargs", '{"size": {"shortest_edge": 256, "longest_edge": 602112}}',
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("server") / "log"
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "NO_PROXY": "127.0.0.1"}
    with log.open("wb") as out:
        # In a session of its own, so that its engine and workers end with it.
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"vLLM's server did not start: {log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _served(address: str, monkeypatch: pytest.MonkeyPatch, frames_as: str, key: str = "secret-key") -> Engine:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    settings = ZoomZero.from_pretrained(device="cpu").processor.settings
    engine = load_engine(ModelOptions("tiny", "openai", base_url=address, frames_as=frames_as), settings.prompts)
    # The server's checkpoint is no folder here: its budgets are told.
    engine.planner.settings = settings
    return engine


@pytest.mark.parametrize("frames_as", ["video", "images"])
def test_a_server_answers_with_letters_spans_and_confidence(
    address: str, queries: list[Query], monkeypatch: pytest.MonkeyPatch, frames_as: str
) -> None:
    engine = _served(address, monkeypatch, frames_as)
    answers: list[Answer] = engine.answer_batch(queries[:4], AnswerOptions("coarse_to_fine", max_new_tokens=40))
    for answer in answers:
        assert [look.name for look in answer.passes] == ["coarse", "zoom"]
        assert answer.letter in OPTIONS
        assert 0 < answer.confidence <= 1
        assert answer.passes[0].text
        assert answer.total_cost.text_tokens > 0


def test_a_server_says_what_is_wrong(address: str, queries: list[Query], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError, match="answered 401: Unauthorized") as refused:
        _served(address, monkeypatch, "images", key="wrong-key").answer_batch(queries[:1])
    assert "wrong-key" not in str(refused.value)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    absent = load_engine(ModelOptions(str(Path("absent")), "openai", base_url=address))
    absent.planner.settings = _served(address, monkeypatch, "images").planner.settings
    with pytest.raises(ServerError, match=r"answered 404: .*absent.*does not exist"):
        absent.answer_batch(queries[:1])
