"""Answering questions about videos: the engine that runs strategies over a model.

The looks of all queries that are answered together share forwards: at most as many looks at a time as there are
queries, so that the caller, who chose how many queries to put together, has chosen the memory too.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

from zoomzero.answering.answer import Answer, AnswerOptions, MoreOptions, Pass, Query
from zoomzero.answering.backends import Backend
from zoomzero.answering.backends.local import LanguageModel, LocalBackend
from zoomzero.answering.passes import run_asks
from zoomzero.answering.scene import Ask, Scene
from zoomzero.answering.strategy_run import StrategyRun
from zoomzero.answering.subtitles import Subtitles, load_subtitles
from zoomzero.inputs import FramePlanner, VideoInputs, load_processor, require_inputs_of
from zoomzero.models import load_model
from zoomzero.models.loading import BUILT_IN
from zoomzero.models.segment_attention import use_segment_attention
from zoomzero.patches import VideoPatches
from zoomzero.prompts import Inquiry, Prompts
from zoomzero.video import Video, VideoError, open_video
from zoomzero.video.cache import VideoCache
from zoomzero.video.prefetch import Prefetcher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Videos an engine keeps open for the next question on them.
MAX_IDLE_VIDEOS = 4

# Called with a query's place in the call and a pass, as soon as it is there.
OnPass = Callable[[int, Pass], None]


@dataclasses.dataclass(frozen=True)
class Reading:
    """A video that is open and read for the coarse pass, for all queries on it. Close it when they are answered."""

    video: Video
    """The open video."""
    coarse: VideoPatches
    """What the coarse pass sees."""
    seconds: float
    """What reading took."""
    num_queries: int
    """How many queries share that time."""
    _resources: contextlib.ExitStack

    @property
    def seconds_each(self) -> float:
        """A query's share of the time."""
        return self.seconds / self.num_queries

    def close(self) -> None:
        """Give the video back to the cache it came from; one that was passed in open stays open."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.__exit__(kind, error, trace)


class Engine(abc.ABC):
    """Runs strategies over a model, wherever that runs; see `ZoomZero` and `zoomzero.answering.served`.

    The last few videos asked about stay open, so that further questions on them read no frame table again.
    """

    name = ""
    """Of the model, as a run's record names it."""
    can_keep_tokens = True
    """Whether the model takes tokens of an earlier pass beside the frames of another."""

    def __init__(self, planner: FramePlanner) -> None:
        self.planner = planner
        self._videos = VideoCache(open_video, MAX_IDLE_VIDEOS)

    @abc.abstractmethod
    def backend(self, num_decoders: int) -> Backend:
        """Where the looks of one call go; num_decoders: looks whose frames are read side by side."""

    def answer(
        self,
        video: Video | str | os.PathLike[str],
        question: str,
        options: Sequence[str] | None = None,
        strategy: str = "coarse_to_fine",
        budget_tokens: int | None = None,
        *,
        subtitles: Subtitles | str | os.PathLike[str] | None = None,
        **more: Unpack[MoreOptions],
    ) -> Answer:
        """Answer one question about a video.

        Args:
            video: path of a video, or an open `Video` (which stays open).
            question: the question's text.
            options: 2 to 8 option texts, without letters; None asks an open question, answered in words.
            strategy: "single" answers from the whole video alone; "coarse_to_fine" then looks again at the spans that
                the first pass named, and answers from those frames; see `zoomzero.answering.strategies` for all.
            budget_tokens: see `AnswerOptions`.
            subtitles: what is said in the video, or the path of an .srt file.
            more: the other fields of `AnswerOptions`: max_new_tokens, keep_frames, max_rounds, max_spans, chunk_frames,
                num_decoders.

        Raises:
            ValueError: question, options, strategy, budget or subtitles are not valid.
            VideoError: the video cannot be read.
        """
        query = Query(video, question, None if options is None else tuple(options), subtitles)
        chosen = AnswerOptions(strategy, budget_tokens, **more)
        return self.answer_batch([query], chosen)[0]

    def answer_batch(
        self, queries: Sequence[Query], options: AnswerOptions | None = None, on_pass: OnPass | None = None
    ) -> list[Answer]:
        """Answer several questions, their looks in shared forwards.

        A video that several of them ask about is opened and read for the coarse pass once.

        Args:
            queries: the questions.
            options: how to answer.
            on_pass: called as on_pass(place of the query, pass) when a pass is done.
        """
        options = options or AnswerOptions()
        sources = [query.video if isinstance(query.video, Video) else os.fspath(query.video) for query in queries]
        with contextlib.ExitStack() as stack:
            readings = self._read_all(sources, options, stack)
            asked = [(query, readings[source]) for query, source in zip(queries, sources, strict=True)]
            results = self.answer_readings(asked, options, on_pass)
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
            budget_tokens: visual tokens per pass; the checkpoint's own unless told.
            num_queries: queries that will share the reading; each is charged its share of the time.
            videos: where paths are opened and opened videos are kept; the engine's own unless told.

        Raises:
            VideoError: the video cannot be read.
        """
        started = time.perf_counter()
        cache = self._videos if videos is None else videos
        with contextlib.ExitStack() as stack:
            opened = video if isinstance(video, Video) else stack.enter_context(cache.use(video))
            coarse = self.planner.read(opened, self.planner.plan(opened, budget_tokens=budget_tokens))
            seconds = time.perf_counter() - started
            return Reading(opened, coarse, seconds, num_queries, stack.pop_all())

    def _read_all(
        self, sources: Sequence[Video | str], options: AnswerOptions, stack: contextlib.ExitStack
    ) -> dict[Video | str, Reading]:
        """What the coarse pass sees of each video, several read side by side; `stack` closes them."""

        def read(source: Video | str) -> Reading:
            return self.read(source, options.budget_tokens, num_queries=sources.count(source))

        ahead = Prefetcher(
            dict.fromkeys(sources),
            read,
            num_threads=options.num_decoders,
            ahead=options.num_decoders,
            discard=Reading.close,
        )
        readings = {}
        with contextlib.closing(iter(ahead)) as loaded:
            for source, reading in loaded:
                if isinstance(reading, VideoError):
                    raise reading
                readings[source] = stack.enter_context(reading)
        return readings

    def answer_readings(
        self,
        asked: Sequence[tuple[Query, Reading]],
        options: AnswerOptions | None = None,
        on_pass: OnPass | None = None,
    ) -> list[Answer | VideoError]:
        """Answer queries whose videos are read already; arguments as `answer_batch`, the queries' own videos are not
        opened.

        options.budget_tokens must be that of the readings, or their frames are read again.

        Returns:
            For each query its answer, or why the frames of a pass cannot be read; the others do not suffer.
        """
        options = options or AnswerOptions()
        with contextlib.closing(self.backend(options.num_decoders)) as backend:
            runs = []
            for query, reading in asked:
                backend.add(reading.video, reading.coarse)
                runs.append(StrategyRun(self._scene(query, reading, options), reading.seconds_each))
            while waiting := [(place, ask) for place, run in enumerate(runs) for ask in run.asks]:
                _run_round(backend, waiting, runs, on_pass)
        return [run.result() for run in runs]

    def _scene(self, query: Query, reading: Reading, options: AnswerOptions) -> Scene:
        subtitles = query.subtitles
        if subtitles is not None and not isinstance(subtitles, Subtitles):
            subtitles = load_subtitles(subtitles)
        duration = reading.video.duration
        said = "" if subtitles is None else subtitles.text(0.0, duration)
        inquiry = Inquiry(query.question, query.options, duration, said)
        return Scene(reading.video, inquiry, subtitles, options, self.planner, self.can_keep_tokens)


def _run_round(
    backend: Backend, waiting: Sequence[tuple[int, Ask]], runs: Sequence[StrategyRun], on_pass: OnPass | None
) -> None:
    """One forward after the other over what all running strategies ask for, then one step of each of them."""
    for writes in (True, False):
        kind = [(place, ask) for place, ask in waiting if ask.writes == writes]
        for start in range(0, len(kind), len(runs)):
            part = kind[start : start + len(runs)]
            said = run_asks(backend, [ask for _, ask in part], runs[0].scene.options)
            for (place, ask), one in zip(part, said, strict=True):
                made = runs[place].take(ask, one)
                if made is not None and on_pass is not None:
                    on_pass(place, made)
    for run in runs:
        run.advance()


class ZoomZero(Engine):
    """A model in this process with its processor, ready to answer; see `from_pretrained`.

    Args:
        model: of one of the supported families.
        processor: of the model.
        language_model: what takes the place of the model's own language model, e.g. vLLM; the model's own unless told.
    """

    def __init__(
        self, model: PreTrainedModel, processor: VideoInputs, language_model: LanguageModel | None = None
    ) -> None:
        use_segment_attention(model)
        require_inputs_of(model, processor)
        super().__init__(processor)
        self.model = model
        self.processor = processor
        self.name = str(getattr(model.config, "_name_or_path", ""))
        self.can_keep_tokens = language_model is None
        self._language_model = language_model

    def backend(self, num_decoders: int) -> Backend:
        """As `Engine`."""
        return LocalBackend(self.model, self.processor, self._language_model, num_decoders)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        prompts: Prompts | None = None,
    ) -> ZoomZero:
        """Load a checkpoint; `zoomzero.answering.loading` offers more ways.

        Args:
            path: checkpoint folder or hub name; None loads the tiny model that the package carries, which reads the
                synthetic clips of `zoomzero.synthetic` and nothing else.
            device: CUDA if there is a GPU, else the CPU, unless told.
            dtype: the checkpoint's own on CUDA and float32 on the CPU, unless told.
            prompts: templates instead of the checkpoint's own; see `zoomzero.settings.load_prompts`.
        """
        path = BUILT_IN if path is None else path
        processor = load_processor(path)
        if prompts is not None:
            processor.settings = dataclasses.replace(processor.settings, prompts=prompts)
        return cls(load_model(path, device, dtype), processor)
