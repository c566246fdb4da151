"""Requests to a chat server: what is sent, what comes back in good and bad replies; a real server on loopback."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from zoomzero.answering.backends import http as http_module
from zoomzero.answering.backends.http import ServerError, post_json
from zoomzero.answering.engine import Engine
from zoomzero.answering.loading import ModelOptions, load_engine
from zoomzero.answering.strategies import STRATEGIES
from zoomzero.synthetic import make_clips, tiny_processor
from zoomzero.synthetic.clips import Clip

OPTIONS = ("A", "B", "C", "D")
TEXT = "<think>é</think>\n<answer>B</answer>\n<glue>[(3, 5)]</glue>"
# Of the last one the server sends no step: the end token has no text.
PIECES = [
    b"<think>", b"\xc3", b"\xa9", b"</think>\n", b"<answer>", b"B", b"</answer>", b"\n<glue>", b"[(3, 5)]", b"</glue>",
]  # fmt: skip

Reply = Callable[[dict[str, Any]], tuple[int, bytes, dict[str, str]]]


def _step(piece: bytes, probability: float) -> dict[str, Any]:
    logp = float(np.log(probability))
    others = [{"token": f"x{number}", "logprob": logp - number} for number in range(1, 3)]
    own = {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": logp}
    return {**own, "top_logprobs": [own, *others]}


def _completion(body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
    """The fixed response, or the letter C where four tokens are asked for."""
    if body["max_tokens"] == 4:
        letters = [{"token": "(C", "bytes": list(b"(C"), "logprob": float(np.log(0.6))}]
        letters += [{"token": " D", "bytes": list(b" D"), "logprob": float(np.log(0.3))}]
        steps, text = [{**letters[0], "top_logprobs": letters}], "(C)"
    else:
        steps, text = [_step(piece, 0.5) for piece in PIECES] + [_step(b"", 0.9)], TEXT
    choice = {"message": {"content": text}, "logprobs": {"content": steps}}
    reply = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 11}}
    return 200, json.dumps(reply).encode(), {}


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Reply], tuple[str, list[Any]]]]:
    """Starts servers: serve(reply) gives an address and the list of (headers, body) received."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[ThreadingHTTPServer] = []

    def start(reply: Reply) -> tuple[str, list[Any]]:
        received: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                received.append((self.headers, body))
                status, content, headers = reply(body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1", received

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return make_clips(tmp_path_factory.mktemp("clips"), 1, seed=43)[0]


def _engine(address: str, frames_as: str = "images") -> Engine:
    engine = load_engine(ModelOptions("some-model", "openai", base_url=address, frames_as=frames_as))
    processor = tiny_processor()
    engine.planner.settings, engine.planner.geometry = processor.settings, processor.geometry
    return engine


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_answers_and_confidence_come_from_the_reply(serve: Any, clip: Clip, strategy: str) -> None:
    address, received = serve(_completion)
    answer = _engine(address).answer(clip.path, "Which letter?", OPTIONS, strategy)
    coarse = answer.passes[0]
    assert (coarse.letter, coarse.spans, coarse.text) == ("B", ((3.0, 5.0),), TEXT)
    assert coarse.confidence == pytest.approx(0.5)
    assert coarse.span_confidence == pytest.approx(-np.log(0.5) + 1)
    assert coarse.cost.text_tokens == 100 - 32 + 11
    if strategy in ("coarse_to_fine", "rounds"):
        assert (answer.letter, answer.confidence) == ("C", pytest.approx(0.6))
    assert all(body["model"] == "some-model" and body["temperature"] == 0 for _, body in received)


def test_frames_stand_in_the_message_as_the_model_would_see_them(serve: Any, clip: Clip) -> None:
    address, received = serve(_completion)
    answer = _engine(address).answer(clip.path, "Which letter?", OPTIONS, "single", keep_frames=True)
    frames = answer.passes[0].frames
    assert frames is not None
    parts = received[0][1]["messages"][0]["content"]
    times = [part["text"] for part in parts if part["type"] == "text" and part["text"].endswith("seconds>")]
    assert times == [f"<{seconds:.1f} seconds>" for seconds in answer.passes[0].plan.timestamps]
    images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    sent = [np.asarray(Image.open(io.BytesIO(base64.b64decode(image.split(",")[1])))) for image in images]
    np.testing.assert_array_equal(np.stack(sent), frames.numpy())
    assert "Which letter?" in parts[0]["text"]


def test_a_video_holds_all_frames_at_their_rate(serve: Any, clip: Clip) -> None:
    address, received = serve(_completion)
    answer = _engine(address, "video").answer(clip.path, "Which letter?", OPTIONS, "coarse_to_fine", keep_frames=True)
    for (_, body), look in zip(received, answer.passes, strict=True):
        (url,) = [part["video_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "video_url"]
        with av.open(io.BytesIO(base64.b64decode(url.split(",")[1]))) as container:
            assert float(container.streams.video[0].average_rate or 0) == pytest.approx(look.plan.sample_fps, rel=1e-2)
            decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert look.frames is not None
        assert len(decoded) == len(look.plan.timestamps)
        assert np.abs(np.stack(decoded).astype(int) - look.frames.numpy()).mean() < 12


def test_without_log_probabilities_letters_are_read_and_confidence_is_zero(serve: Any, clip: Clip) -> None:
    def bare(body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        text = "The answer is D" if body["max_tokens"] == 4 else TEXT
        return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode(), {}

    address, _ = serve(bare)
    answer = _engine(address).answer(clip.path, "Which letter?", OPTIONS)
    assert [look.letter for look in answer.passes] == ["B", "D"]
    assert answer.passes[0].spans == ((3.0, 5.0),)
    assert [look.confidence for look in answer.passes] == [0.0, 0.0]
    words = _engine(address).answer(clip.path, "Which letter?")
    assert (words.text, words.confidence) == (TEXT, 0.0)


def test_the_key_goes_with_the_request_and_into_no_error(
    serve: Any, clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")

    def refuse(_: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        return 401, b'{"error": {"message": "no such key: sk-very-secret"}}', {}

    address, received = serve(refuse)
    engine = _engine(address)
    with pytest.raises(ServerError, match=r"answered 401: no such key: \[the key\]"):
        engine.answer(clip.path, "Which letter?", OPTIONS)
    assert received[0][0]["Authorization"] == "Bearer sk-very-secret"
    assert "very-secret" not in repr(engine.server)  # type: ignore[attr-defined]


def test_a_busy_server_is_asked_again(serve: Any) -> None:
    pauses: list[float] = []
    left = [503, 429]

    def busy(_: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        return (left.pop(), b"later", {"Retry-After": "7"}) if left else (200, b'{"a": 1}', {})

    address, _ = serve(busy)
    assert post_json(address, {}, sleep=pauses.append) == {"a": 1}
    assert pauses == [7.0, 7.0]
    left[:] = [503] * 9
    with pytest.raises(ServerError, match="answered 503: later"):
        post_json(address, {}, sleep=pauses.append)
    assert len(left) == 9 - http_module.NUM_TRIES


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((200, b"<html>", {}), r"the reply must be JSON, got '<html>'"),
        ((200, b"[" * 100_000, {}), "the reply must be JSON"),
        ((302, b"", {"Location": "http://127.0.0.1:9/"}), "the server answered 302"),
        ((500, b"<b>broken \x1b[31m</b>", {}), r"answered 500: <b>broken \[31m</b>"),
        ((400, b'{"error": "too long"}', {}), "answered 400: too long"),
        ((200, b"{", {"Content-Length": "100"}), "the reply must be JSON|cannot be asked"),
    ],
)
def test_bad_replies_are_told_in_the_servers_words(serve: Any, reply: Any, message: str) -> None:
    address, _ = serve(lambda _: reply)
    with pytest.raises(ServerError, match=message):
        post_json(address, {})


def test_sizes_and_times_are_bounded(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "MAX_REPLY_BYTES", 100)
    address, _ = serve(lambda _: (200, b" " * 1000, {}))
    with pytest.raises(ServerError, match="at most 100 bytes"):
        post_json(address, {})
    monkeypatch.setattr(http_module, "MAX_REQUEST_BYTES", 10)
    with pytest.raises(ValueError, match="at most 10 bytes, got 21"):
        post_json(address, {"text": "123456789"})
    monkeypatch.undo()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ended = threading.Event()
    slow, _ = serve(lambda _: (ended.wait(5), (200, b"{}", {}))[1])
    started = time.monotonic()
    with pytest.raises(ServerError, match="timed out"):
        post_json(slow, {}, timeout=0.3)
    ended.set()
    assert time.monotonic() - started < 4
    with pytest.raises(ServerError, match=r"cannot be asked: .*refused"):
        post_json("http://127.0.0.1:9/v1", {})


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": [{"message": None}]}, [1], "text"])
def test_replies_that_are_no_completions_are_told(serve: Any, clip: Clip, reply: Any) -> None:
    address, _ = serve(lambda _: (200, json.dumps(reply).encode(), {}))
    with pytest.raises(ServerError, match="the reply must be a chat completion, got"):
        _engine(address).answer(clip.path, "Which letter?", OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "other"}, "engine must be one of own, vllm, openai, got 'other'"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ({"engine": "openai"}, "the engine openai, and no other, needs base_url"),
        ({"base_url": "http://a/v1"}, "the engine openai, and no other, needs base_url"),
        ({"engine": "vllm", "load_in_4bit": True}, "load_in_4bit is not for the engine vllm"),
        ({"engine": "openai", "base_url": "http://a", "device": "cpu"}, "device is not for the engine openai"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelOptions(**options)


def test_addresses_are_checked_before_anything_is_sent() -> None:
    for address, model, message in (
        ("ftp://a/v1", "m", "must start with http:// or https://"),
        ("http://a/v1", None, "a server needs the model's name"),
    ):
        with pytest.raises(ValueError, match=message):
            load_engine(ModelOptions(model, "openai", base_url=address))
