"""Any server that speaks OpenAI's chat completions: frames in the request, confidence from its log-probabilities.

Frames go as images, each behind its time, or as one H.264 video. The server writes its own chat template and resizes as
it likes, so that tokens need not equal those of the model in this process.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoomzero.answering.backends import Chosen, Spent, Spoken, Written
from zoomzero.answering.backends.http import ServerError, post_json
from zoomzero.budget import FramePlan
from zoomzero.inputs import FramePlanner
from zoomzero.lenient import read_letter
from zoomzero.looks import frames_key
from zoomzero.looks.videos import OpenVideos
from zoomzero.video import Video, VideoError

if TYPE_CHECKING:
    from zoomzero.answering.scene import Ask
    from zoomzero.patches import VideoPatches

FRAMES_AS = ("images", "video")
# What the protocol allows at most.
NUM_TOP_LOGPS = 20
# Requests that are under way side by side.
NUM_REQUESTS = 8
# A letter with a bracket, a space or emphasis around it.
LETTER_TOKENS = 4


@dataclasses.dataclass(frozen=True)
class Server:
    """Where to ask, and how."""

    base_url: str
    """Address up to and with the version, e.g. http://127.0.0.1:8000/v1."""
    model: str
    """As the server names it."""
    key: str | None = dataclasses.field(default=None, repr=False)
    """Sent as a bearer token."""
    frames_as: str = "images"
    """"images", each behind its time, or one "video"."""
    timeout: float = 600.0
    """Seconds per request."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(
                f"answer: base_url must start with http:// or https://, got {self.base_url!r}; write the server's "
                "address up to /v1"
            )
        if not self.model:
            raise ValueError("answer: a server needs the model's name as it knows it, got none; name it with --model")
        if self.frames_as not in FRAMES_AS:
            raise ValueError(f"answer: frames_as must be one of {', '.join(FRAMES_AS)}, got {self.frames_as!r}")
        if not (math.isfinite(self.timeout) and self.timeout > 0):
            raise ValueError(f"answer: timeout must be a finite number above 0, got {self.timeout}; 600 is usual")


class OpenAIBackend:
    """A `Backend` that sends every look to a server, the frames of `num_decoders` looks read side by side."""

    def __init__(self, server: Server, planner: FramePlanner, num_decoders: int = 1) -> None:
        self._server = server
        self._planner = planner
        self._num_decoders = num_decoders
        self._videos = OpenVideos()

    def add(self, video: Video, patches: VideoPatches) -> None:
        """As `Backend`."""
        self._videos.add(video, patches)

    def frames(self, video: Video, plan: FramePlan) -> Tensor:
        """As `Backend`."""
        return self._planner.seen_frames(self._read(video, plan))

    def _read(self, video: Video, plan: FramePlan) -> VideoPatches:
        patches = self._videos.take_patches(frames_key(video, plan)) or self._planner.read(video, plan)
        self._videos.add(video, patches)
        return patches

    def speak(self, asks: Sequence[Ask], max_new_tokens: int) -> tuple[list[Spoken | VideoError], dict[str, float]]:
        """As `Backend`; one request per look, several side by side.

        Raises:
            ServerError: the server cannot be asked, or does not answer as the protocol says.
        """
        started = time.perf_counter()
        with ThreadPoolExecutor(self._num_decoders) as pool:
            read = list(pool.map(self._parts, asks))
        encoded = time.perf_counter()
        with ThreadPoolExecutor(NUM_REQUESTS) as pool:
            replies = [
                None if isinstance(parts, VideoError) else pool.submit(self._ask, ask, parts, max_new_tokens)
                for ask, parts in zip(asks, read, strict=True)
            ]
        spoken: list[Spoken | VideoError] = []
        for parts, reply in zip(read, replies, strict=True):
            if isinstance(parts, VideoError):
                spoken.append(parts)
            elif reply is not None:
                spoken.append(reply.result())
        ended = time.perf_counter()
        return spoken, {"read": encoded - started, "encode": 0.0, "generate": ended - encoded}

    def close(self) -> None:
        """As `Backend`: nothing outlives a call of `speak`."""

    def _parts(self, ask: Ask) -> list[dict[str, Any]] | VideoError:
        """The message, the prompt around the frames; or why those cannot be read."""
        plan = ask.look.plan
        try:
            frames = self.frames(ask.video, plan)
        except VideoError as error:
            return error
        before, after = self._planner.settings.prompts.around_video(ask.look.inquiry, zoomed=ask.look.zoomed)
        parts = [_text_part(before)] if before else []
        if self._server.frames_as == "video":
            address = "data:video/mp4;base64," + base64.b64encode(_mp4(frames, plan.sample_fps)).decode("ascii")
            parts.append({"type": "video_url", "video_url": {"url": address}})
        else:
            for seconds, frame in zip(plan.timestamps, frames, strict=True):
                # In the look's own time, as the spans of its answer are.
                parts.append(_text_part(f"<{seconds - ask.clock_start:.1f} seconds>"))
                address = "data:image/png;base64," + base64.b64encode(_png(frame)).decode("ascii")
                parts.append({"type": "image_url", "image_url": {"url": address}})
        return [*parts, _text_part(after)] if after else parts

    def _ask(self, ask: Ask, parts: list[dict[str, Any]], max_new_tokens: int) -> Spoken:
        body = {
            "model": self._server.model,
            "messages": [{"role": "user", "content": parts}],
            "temperature": 0,
            "max_tokens": max_new_tokens if ask.writes else LETTER_TOKENS,
            "logprobs": True,
            "top_logprobs": NUM_TOP_LOGPS,
        }
        url = self._server.base_url.rstrip("/") + "/chat/completions"
        reply = post_json(url, body, key=self._server.key, timeout=self._server.timeout)
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] or ""
            steps = (choice.get("logprobs") or {}).get("content") or []
            written = _written(text, steps)
            usage = reply.get("usage") or {}
            num_prompt, num_written = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion"))
            said = written if ask.writes else _chosen(ask, text, steps)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(
                f"{url}: the reply must be a chat completion, got {reply!r:.200} ({type(error).__name__}: {error})"
            ) from None
        visual = ask.look.plan.num_tokens
        return Spoken(said, Spent(visual, max(0, num_prompt - visual) + num_written, 0.0))


class _Pieces:
    """Decodes places in a response, of which the server says the bytes of every token."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    def decode(self, token_ids: Any, **_: Any) -> str:
        """The text of the tokens at these places."""
        return b"".join(self._pieces[place] for place in token_ids).decode("utf-8", "replace")


def _piece(step: dict[str, Any]) -> bytes:
    return bytes(step["bytes"]) if step.get("bytes") is not None else str(step["token"]).encode("utf-8", "replace")


def _written(text: str, steps: Sequence[dict[str, Any]]) -> Written:
    """A response; without log-probabilities where the server gives none, or none of this text."""
    pieces = [_piece(step) for step in steps]
    # The end token may be a step without a place in the text.
    counts = [len(pieces), len(pieces) - 1]
    count = next((n for n in counts if n > 0 and b"".join(pieces[:n]) == text.encode("utf-8", "replace")), 0)
    if not count:
        return Written(text, [0] if text else [], _Pieces([text.encode("utf-8", "replace")]), None, None)
    logps = torch.tensor([float(step["logprob"]) for step in steps[:count]])
    ranked = [
        sorted((float(other["logprob"]) for other in step["top_logprobs"]), reverse=True) for step in steps[:count]
    ]
    width = min(len(step) for step in ranked)
    top = torch.tensor([step[:width] for step in ranked]) if width else None
    return Written(text, list(range(count)), _Pieces(pieces), logps, top)


def _chosen(ask: Ask, text: str, steps: Sequence[dict[str, Any]]) -> Chosen:
    """The likeliest letter among the first token's alternatives; else the one that the text says."""
    inquiry = ask.look.inquiry
    found: dict[str, float] = {}
    for other in steps[0].get("top_logprobs") or [] if steps else []:
        letter = _piece(other).decode("utf-8", "replace").strip(" ()")
        if letter and letter in inquiry.letters:
            found[letter] = found.get(letter, 0.0) + math.exp(float(other["logprob"]))
    if found:
        best = max(found, key=lambda letter: found[letter])
        return Chosen(best, min(1.0, found[best]))
    return Chosen(read_letter(text, inquiry.options or ()), 0.0)


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _png(frame: Tensor) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame.cpu().numpy()).save(file, format="PNG")
    return file.getvalue()


def _mp4(frames: Tensor, fps: float) -> bytes:
    """The frames [n, h, w, 3] as an H.264 video of nearly their own quality."""
    import av

    file = io.BytesIO()
    rate = Fraction(fps).limit_denominator(1000) or Fraction(1, 1000)
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p" if frames.shape[1] % 2 or frames.shape[2] % 2 else "yuv420p"
        for frame in frames.cpu().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
