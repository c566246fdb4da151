"""Answering questions about videos: one look at the whole video, then a second look at the spans that look named."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from zoomzero.budget import FramePlan
from zoomzero.generation import SamplingOptions, generate, next_token_logps
from zoomzero.inputs import EncodedVideo, VideoInputs, load_processor
from zoomzero.intervals import clip, merge
from zoomzero.modeling import EncodedPrompt, encode_prompts, use_segment_attention
from zoomzero.prompts import OPTION_LETTERS
from zoomzero.responses import ANSWER, Response, parse, token_segments
from zoomzero.video import Video, open_video

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

Span = tuple[float, float]

STRATEGIES = ("single", "coarse_to_fine")


@dataclasses.dataclass(frozen=True)
class Query:
    """A multiple-choice question about a video: path (or open video), question, bare option texts."""

    video: Video | str | os.PathLike[str]
    question: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pass:
    """One look at the video.

    name: "coarse" or "zoom"; plan: the frames seen; text: what the model wrote; letter: its answer, None if it gave
    none; confidence: probability of the letter's token (0 without one); frames: uint8 [n, h, w, 3] as the model saw
    them, where they were asked for.
    """

    name: str
    plan: FramePlan
    text: str
    letter: str | None
    confidence: float
    frames: torch.Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer to one query.

    letter: the option letter, None if no pass gave one; spans: evidence in seconds, merged and inside the video;
    confidence: probability of the letter in the pass it comes from; passes: in order; timings: seconds by step ("read",
    "encode", "generate"; in a batch each query's share).
    """

    letter: str | None
    spans: tuple[Span, ...]
    confidence: float
    passes: list[Pass]
    timings: dict[str, float]


class ZoomZero:
    """A Qwen2.5-VL model with its processor, ready to answer; see `from_pretrained`."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: VideoInputs) -> None:
        use_segment_attention(model)
        self.model = model
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> ZoomZero:
        """Load a Qwen2.5-VL checkpoint.

        Args:
            path: checkpoint folder or hub name; None loads the tiny model that the package carries, which reads the
                synthetic clips of `zoomzero.synthetic`.
            device: CUDA if there is a GPU, else the CPU, unless told.
            dtype: the checkpoint's own on CUDA and float32 on the CPU, unless told.
        """
        from transformers import Qwen2_5_VLForConditionalGeneration

        if path is None:
            from zoomzero.synthetic import tiny_checkpoint

            path = tiny_checkpoint()
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        chosen = dtype or ("auto" if target.type == "cuda" else torch.float32)
        model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=chosen)
        return cls(model.to(target).eval(), load_processor(path))

    def answer(
        self,
        video: Video | str | os.PathLike[str],
        question: str,
        options: Sequence[str],
        strategy: str = "coarse_to_fine",
        budget_tokens: int | None = None,
        *,
        max_new_tokens: int = 512,
        keep_frames: bool = False,
    ) -> Answer:
        """Answer one multiple-choice question about a video.

        Args:
            video: path of a video, or an open `Video` (which stays open).
            question: the question's text.
            options: 2 to 6 option texts, without letters.
            strategy: "single" answers from the whole video alone; "coarse_to_fine" then looks again at the spans that
                the first pass named, and answers from those frames.
            budget_tokens: visual tokens a pass; the checkpoint's own unless told.
            max_new_tokens: longest response of the first pass.
            keep_frames: also return the frames as the model saw them, in each pass.

        Raises:
            ValueError: question, options, strategy or budget are not valid.
            VideoError: the video cannot be read.
        """
        query = Query(video, question, tuple(options))
        return self.answer_batch(
            [query], strategy, budget_tokens, max_new_tokens=max_new_tokens, keep_frames=keep_frames
        )[0]

    def answer_batch(
        self,
        queries: Sequence[Query],
        strategy: str = "coarse_to_fine",
        budget_tokens: int | None = None,
        *,
        max_new_tokens: int = 512,
        keep_frames: bool = False,
    ) -> list[Answer]:
        """Answer several questions with one forward a pass for all of them; arguments as `answer`."""
        if strategy not in STRATEGIES:
            raise ValueError(f"answer: strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}; choose one")
        if budget_tokens is not None and budget_tokens < 1:
            raise ValueError(
                f"answer: budget_tokens must be at least 1, got {budget_tokens}; leave it out for the default"
            )
        work = [_Work(query, self.processor, budget_tokens, keep_frames) for query in queries]
        try:
            self._coarse_pass(work, max_new_tokens)
            if strategy == "coarse_to_fine":
                self._zoom_pass(work)
        finally:
            for item in work:
                item.close()
        return [item.answer() for item in work]

    def _coarse_pass(self, work: Sequence[_Work], max_new_tokens: int) -> None:
        prompts = self._encode(work, [item.look(None) for item in work], zoomed=False)
        tokenizer = self.processor.tokenizer
        options = SamplingOptions(
            max_new_tokens=max_new_tokens,
            eos_token_ids=_eos_ids(self.model),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            temperature=0.0,
        )
        started = time.perf_counter()
        rollouts = generate(self.model, prompts, options)
        _share_time(work, "generate", started)
        for row, (item, text) in enumerate(zip(work, rollouts.texts(tokenizer), strict=True)):
            ids = rollouts.token_ids[row][rollouts.mask[row]].tolist()
            response = parse(text)
            confidence = 0.0
            if response.answer is not None:
                place = self._letter_place(ids, response.answer)
                confidence = float(rollouts.logps[row, place].exp()) if place is not None else 0.0
            item.finish_coarse(text, response, confidence)

    def _zoom_pass(self, work: Sequence[_Work]) -> None:
        prompts = self._encode(work, [item.look(item.spans) for item in work], zoomed=True)
        started = time.perf_counter()
        logps = next_token_logps(self.model, prompts)
        _share_time(work, "generate", started)
        tokenizer = self.processor.tokenizer
        letters = [tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in OPTION_LETTERS]
        for item, row in zip(work, logps, strict=True):
            choices = row[letters[: len(item.query.options)]]
            best = int(choices.argmax())
            item.finish_zoom(OPTION_LETTERS[best], float(choices[best].exp()))

    def _letter_place(self, token_ids: Sequence[int], letter: str) -> int | None:
        """Index of the token that holds the answer's letter: tags are lower case, so the first in the element."""
        segments = token_segments(token_ids, self.processor.tokenizer)
        for place in (segments == ANSWER).nonzero().flatten().tolist():
            if letter in self.processor.tokenizer.decode([token_ids[place]]):
                return place
        return None

    @torch.no_grad()
    def _encode(self, work: Sequence[_Work], videos: Sequence[EncodedVideo], *, zoomed: bool) -> list[EncodedPrompt]:
        started = time.perf_counter()
        inputs = [
            self.processor.assemble(video, item.query.question, item.query.options, zoomed=zoomed)
            for item, video in zip(work, videos, strict=True)
        ]
        prompts = encode_prompts(self.model, inputs)
        _share_time(work, "encode", started)
        return prompts


class _Work:
    """State of one query while it is answered."""

    def __init__(self, query: Query, processor: VideoInputs, budget_tokens: int | None, keep_frames: bool) -> None:
        self.query = query
        self.timings: dict[str, float] = {"read": 0.0, "encode": 0.0, "generate": 0.0}
        self.spans: tuple[Span, ...] = ()
        self._processor, self._budget_tokens, self._keep_frames = processor, budget_tokens, keep_frames
        self._video = query.video if isinstance(query.video, Video) else open_video(query.video)
        self._passes: list[Pass] = []
        self._plan: FramePlan | None = None
        self._frames: torch.Tensor | None = None

    def look(self, spans: tuple[Span, ...] | None) -> EncodedVideo:
        """Read the frames of a pass: of the whole video for None, else inside the spans."""
        started = time.perf_counter()
        plan = self._processor.plan(self._video, spans, budget_tokens=self._budget_tokens)
        encoded = self._processor.encode(self._video, plan)
        self._plan = plan
        self._frames = self._processor.seen_frames(encoded) if self._keep_frames else None
        self.timings["read"] += time.perf_counter() - started
        return encoded

    def finish_coarse(self, text: str, response: Response, confidence: float) -> None:
        letters = list(OPTION_LETTERS[: len(self.query.options)])
        letter = response.answer if response.answer in letters else None
        self.spans = tuple(merge(clip(response.spans, 0.0, self._video.duration)))
        self._finish("coarse", text, letter, confidence if letter else 0.0)

    def finish_zoom(self, letter: str, confidence: float) -> None:
        self._finish("zoom", letter, letter, confidence)

    def _finish(self, name: str, text: str, letter: str | None, confidence: float) -> None:
        if self._plan is not None:
            self._passes.append(Pass(name, self._plan, text, letter, confidence, self._frames))

    def answer(self) -> Answer:
        last = self._passes[-1]
        return Answer(last.letter, self.spans, last.confidence, self._passes, self.timings)

    def close(self) -> None:
        if self._video is not self.query.video:
            self._video.close()


def _share_time(work: Sequence[_Work], step: str, started: float) -> None:
    seconds = (time.perf_counter() - started) / len(work)
    for item in work:
        item.timings[step] += seconds


def _eos_ids(model: Qwen2_5_VLForConditionalGeneration) -> tuple[int, ...]:
    ids = model.generation_config.eos_token_id
    return tuple(ids) if isinstance(ids, list) else (ids,)
