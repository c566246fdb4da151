"""Answering questions about videos: one look at the whole video, then a second look at the spans that look named."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

from zoomzero.budget import FramePlan
from zoomzero.inputs import EncodedVideo, VideoInputs, load_processor, require_qwen2_5_inputs
from zoomzero.intervals import clip, merge
from zoomzero.limits import MAX_NEW_TOKENS
from zoomzero.models import load_model
from zoomzero.models.encoding import EncodedPrompt, encode_prompts
from zoomzero.models.forward import next_token_logps
from zoomzero.models.segment_attention import use_segment_attention
from zoomzero.prompts import OPTION_LETTERS
from zoomzero.responses import ANSWER, Response, parse, token_segments
from zoomzero.rollouts import SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.video import Video, VideoError, open_video
from zoomzero.video.cache import VideoCache

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLForConditionalGeneration

Span = tuple[float, float]

STRATEGIES = ("single", "coarse_to_fine")

# Videos an engine keeps open for the next question on them.
MAX_IDLE_VIDEOS = 4


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

    def as_dict(self) -> dict[str, Any]:
        """The answer in JSON's types, frames left out."""
        passes = [
            {
                "name": look.name,
                "num_frames": len(look.plan.timestamps),
                "size": list(look.plan.size),
                "num_tokens": look.plan.num_tokens,
                "text": look.text,
                "letter": look.letter,
                "confidence": look.confidence,
            }
            for look in self.passes
        ]
        result = {"letter": self.letter, "spans": [list(span) for span in self.spans], "confidence": self.confidence}
        return {**result, "passes": passes, "timings": self.timings}


@dataclasses.dataclass(frozen=True)
class Reading:
    """A video that is open and read for the coarse pass; all queries on it share it. Close it when they are answered.

    video: the open video; coarse: what the coarse pass sees; budget_tokens: visual tokens a pass (None: the
    checkpoint's own); seconds: what reading took; num_queries: how many queries share that time.
    """

    video: Video
    coarse: EncodedVideo
    budget_tokens: int | None
    seconds: float
    num_queries: int
    _resources: contextlib.ExitStack

    def close(self) -> None:
        """Give the video back to the cache it came from; one that was passed in open stays open."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.__exit__(kind, error, trace)


class ZoomZero:
    """A Qwen2.5-VL model with its processor, ready to answer; see `from_pretrained`.

    The last few videos asked about stay open, so that further questions on them read no frame table again.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, processor: VideoInputs) -> None:
        require_qwen2_5_inputs(processor)
        use_segment_attention(model)
        self.model = model
        self.processor = processor
        self._videos = VideoCache(open_video, MAX_IDLE_VIDEOS)

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
                synthetic clips of `zoomzero.synthetic`. Qwen3-VL checkpoints are refused: their model is not supported.
            device: CUDA if there is a GPU, else the CPU, unless told.
            dtype: the checkpoint's own on CUDA and float32 on the CPU, unless told.
        """
        if path is None:
            from zoomzero.synthetic import tiny_checkpoint

            path = tiny_checkpoint()
        processor = load_processor(path)
        require_qwen2_5_inputs(processor)
        model: Any = load_model(path, device, dtype)
        return cls(model, processor)

    def answer(
        self,
        video: Video | str | os.PathLike[str],
        question: str,
        options: Sequence[str],
        strategy: str = "coarse_to_fine",
        budget_tokens: int | None = None,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        keep_frames: bool = False,
    ) -> Answer:
        """Answer one multiple-choice question about a video.

        Args:
            video: path of a video, or an open `Video` (which stays open).
            question: the question's text.
            options: 2 to 8 option texts, without letters.
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
        max_new_tokens: int = MAX_NEW_TOKENS,
        keep_frames: bool = False,
    ) -> list[Answer]:
        """Answer several questions with one forward a pass for all of them; arguments as `answer`.

        A video that several of them ask about is opened and read for the coarse pass once.
        """
        _check_strategy(strategy)
        sources = [query.video if isinstance(query.video, Video) else os.fspath(query.video) for query in queries]
        with contextlib.ExitStack() as stack:
            readings = {
                source: stack.enter_context(self.read(source, budget_tokens, num_queries=sources.count(source)))
                for source in dict.fromkeys(sources)
            }
            asked = [(query, readings[source]) for query, source in zip(queries, sources, strict=True)]
            results = self.answer_readings(asked, strategy, max_new_tokens=max_new_tokens, keep_frames=keep_frames)
        answers = []
        for result in results:
            if isinstance(result, VideoError):
                raise result
            answers.append(result)
        return answers

    def read(
        self,
        video: Video | str | os.PathLike[str],
        budget_tokens: int | None = None,
        *,
        num_queries: int = 1,
        videos: VideoCache | None = None,
    ) -> Reading:
        """Open a video and read what the coarse pass sees of it. May be called in another thread, to read ahead.

        Args:
            video: path of a video, or an open one (which stays open).
            budget_tokens: visual tokens a pass; the checkpoint's own unless told.
            num_queries: queries that will share the reading; each is charged its share of the time.
            videos: where paths are opened and opened videos are kept; the engine's own unless told.

        Raises:
            VideoError: the video cannot be read.
        """
        if budget_tokens is not None and budget_tokens < 1:
            raise ValueError(
                f"answer: budget_tokens must be at least 1, got {budget_tokens}; leave it out for the default"
            )
        started = time.perf_counter()
        cache = self._videos if videos is None else videos
        with contextlib.ExitStack() as stack:
            opened = video if isinstance(video, Video) else stack.enter_context(cache.use(video))
            coarse = self.processor.encode(opened, self.processor.plan(opened, budget_tokens=budget_tokens))
            seconds = time.perf_counter() - started
            return Reading(opened, coarse, budget_tokens, seconds, num_queries, stack.pop_all())

    def answer_readings(
        self,
        asked: Sequence[tuple[Query, Reading]],
        strategy: str = "coarse_to_fine",
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        keep_frames: bool = False,
    ) -> list[Answer | VideoError]:
        """Answer queries whose videos are read already; arguments as `answer`, the queries' own videos are not opened.

        Returns:
            For each query its answer, or why the frames of its zoom pass cannot be read; the others do not suffer.
        """
        _check_strategy(strategy)
        work = [_Work(query, reading, self.processor, keep_frames) for query, reading in asked]
        if work:
            self._coarse_pass(work, max_new_tokens)
        if strategy == "coarse_to_fine":
            self._zoom_pass(work)
        return [item.result() for item in work]

    def _coarse_pass(self, work: Sequence[_Work], max_new_tokens: int) -> None:
        prompts = self._encode(work, [item.reading.coarse for item in work], zoomed=False)
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
        looks = [(item, video) for item in work if (video := item.zoom_look()) is not None]
        if not looks:
            return
        work = [item for item, _ in looks]
        prompts = self._encode(work, [video for _, video in looks], zoomed=True)
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

    def __init__(self, query: Query, reading: Reading, processor: VideoInputs, keep_frames: bool) -> None:
        self.query = query
        self.reading = reading
        share = reading.seconds / reading.num_queries
        self.timings: dict[str, float] = {"read": share, "encode": 0.0, "generate": 0.0}
        self.spans: tuple[Span, ...] = ()
        self._processor, self._keep_frames = processor, keep_frames
        self._passes: list[Pass] = []
        self._zoomed: tuple[FramePlan, torch.Tensor | None] | None = None
        self._error: VideoError | None = None

    def zoom_look(self) -> EncodedVideo | None:
        """Read the frames inside the spans; None if they cannot be read, which is then the result."""
        started = time.perf_counter()
        video = self.reading.video
        try:
            plan = self._processor.plan(video, self.spans, budget_tokens=self.reading.budget_tokens)
            encoded = self._processor.encode(video, plan)
        except VideoError as error:
            self._error = error
            return None
        finally:
            self.timings["read"] += time.perf_counter() - started
        self._zoomed = plan, self._frames(encoded)
        return encoded

    def finish_coarse(self, text: str, response: Response, confidence: float) -> None:
        letters = list(OPTION_LETTERS[: len(self.query.options)])
        letter = response.answer if response.answer in letters else None
        self.spans = tuple(merge(clip(response.spans, 0.0, self.reading.video.duration)))
        coarse = self.reading.coarse
        look = Pass("coarse", coarse.plan, text, letter, confidence if letter else 0.0, self._frames(coarse))
        self._passes.append(look)

    def finish_zoom(self, letter: str, confidence: float) -> None:
        if self._zoomed is not None:
            plan, frames = self._zoomed
            self._passes.append(Pass("zoom", plan, letter, letter, confidence, frames))

    def _frames(self, seen: EncodedVideo) -> torch.Tensor | None:
        return self._processor.seen_frames(seen) if self._keep_frames else None

    def result(self) -> Answer | VideoError:
        if self._error is not None:
            return self._error
        last = self._passes[-1]
        return Answer(last.letter, self.spans, last.confidence, self._passes, self.timings)


def _check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"answer: strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}; choose one")


def _share_time(work: Sequence[_Work], step: str, started: float) -> None:
    seconds = (time.perf_counter() - started) / len(work)
    for item in work:
        item.timings[step] += seconds


def _eos_ids(model: Qwen2_5_VLForConditionalGeneration) -> tuple[int, ...]:
    ids = model.generation_config.eos_token_id
    return tuple(ids) if isinstance(ids, list) else (ids,)
