"""ZoomZero inside lmms-eval (0.7.3): `lmms-eval --model zoomzero --model_args pretrained=CHECKPOINT,strategy=rounds`.

Found through the entry point in the group "lmms_eval.models". For tasks of lmms-eval the prompt's question and labelled
options are taken apart and the letter is given back (words for a prompt without options); for the project's own tasks
(`zoomzero.integrations.lmms_tasks`) the response has the letter and the evidence.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Sequence
from typing import Any

from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from zoomzero.answering.answer import Answer, AnswerOptions, Query
from zoomzero.answering.engine import ZoomZero
from zoomzero.limits import MAX_NEW_TOKENS
from zoomzero.prompts import OPTION_LETTERS
from zoomzero.video import VideoError

logger = logging.getLogger("zoomzero.integrations.lmms_eval")

# Names of the project's own tasks start so; they ask for evidence beside the answer.
GROUNDED_PREFIX = "zoomzero_"

_LABELLED = re.compile(r"\s*(?:\(([A-H])\)|([A-H])[.):])\s*(.*\S)\s*")


def manifest() -> ModelManifest:
    """What lmms-eval registers: the model "zoomzero"."""
    return ModelManifest("zoomzero", simple_class_path=f"{__name__}.ZoomZeroModel")


def split_prompt(prompt: str) -> tuple[str, tuple[str, ...] | None]:
    """Question and options of a task's prompt: lines labelled A, B, ... in a run; without two of them no options.

    What stands behind the last option (how to answer) is left out; the question is what stands before the first.
    """
    lines = prompt.split("\n")
    labelled = [(number, match) for number, line in enumerate(lines) if (match := _LABELLED.fullmatch(line))]
    for start, (first, _) in enumerate(labelled):
        options: list[str] = []
        for number, match in labelled[start:]:
            expected = OPTION_LETTERS[len(options) : len(options) + 1]
            if number != first + len(options) or (match[1] or match[2]) != expected:
                break
            options.append(match[3])
        question = "\n".join(lines[:first]).strip()
        if len(options) >= 2 and question:
            return question, tuple(options)
    return prompt.strip(), None


class ZoomZeroModel(lmms):
    """The engine behind lmms-eval's interface.

    Args:
        pretrained: checkpoint; the tiny model of the package unless told.
        strategy, budget_tokens, max_new_tokens: as `zoomzero.ZoomZero.answer`.
        batch_size: questions on one video per forward.
        device: cpu, cuda, ...; with several processes each one's own GPU.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        strategy: str = AnswerOptions.strategy,
        budget_tokens: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int | str = 1,
        device: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        # lmms-eval passes this one to every model.
        unknown.pop("max_batch_size", None)
        if unknown:
            raise ValueError(
                f"zoomzero: model_args must be pretrained, strategy, budget_tokens, max_new_tokens, batch_size or "
                f"device, got {', '.join(unknown)}; leave it out"
            )
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
            device = str(self.accelerator.device)
        self._options = AnswerOptions(strategy, budget_tokens, max_new_tokens)
        self._batch_size = int(batch_size)
        self._engine = ZoomZero.from_pretrained(pretrained, device)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers in the order of the requests; "" where the video cannot be read, which every task counts as wrong."""
        answers = [""] * len(requests)
        asked = [(place, *self._query(request)) for place, request in enumerate(requests)]
        asked.sort(key=lambda item: (str(item[1].video), item[0]))
        for _, group in itertools.groupby(asked, key=lambda item: item[1].video):
            for place, text in self._answer_group(list(group)):
                answers[place] = text
        return answers

    def _query(self, request: Instance) -> tuple[Query, bool]:
        """What is asked, and whether the answer is to name its evidence."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        document = self.task_dict[task][split][doc_id]
        visuals = doc_to_visual(document)
        if len(visuals) != 1 or not isinstance(visuals[0], str):
            raise ValueError(
                f"zoomzero: a question must be about one video file, got {len(visuals)} visuals in task {task}; choose "
                "tasks on videos"
            )
        is_grounded = task.startswith(GROUNDED_PREFIX)
        question, options = (document["question"], tuple(document["options"])) if is_grounded else split_prompt(context)
        return Query(visuals[0], question, options), is_grounded

    def _answer_group(self, group: Sequence[tuple[int, Query, bool]]) -> list[tuple[int, str]]:
        """(place, text) of questions on one video, which is read once."""
        found: list[tuple[int, str]] = []
        try:
            with self._engine.read(group[0][1].video, self._options.budget_tokens, num_queries=len(group)) as reading:
                for start in range(0, len(group), self._batch_size):
                    part = group[start : start + self._batch_size]
                    asked = [(query, reading) for _, query, _ in part]
                    results = self._engine.answer_readings(asked, self._options)
                    for (place, _, is_grounded), result in zip(part, results, strict=True):
                        if isinstance(result, VideoError):
                            raise result
                        found.append((place, _text(result, is_grounded)))
        except VideoError as error:
            logger.warning("skipped: %s", error)
        return found

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: strategies answer, they do not score given texts."""
        raise NotImplementedError("zoomzero: tasks must be of type generate_until, got loglikelihood; choose others")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: every question stands alone."""
        raise NotImplementedError("zoomzero: tasks must have one round per question, got several; choose others")


def _text(answer: Answer, is_grounded: bool) -> str:
    said = answer.letter or answer.text or ""
    if not is_grounded:
        return said
    spans = ", ".join(f"({start:.2f}, {end:.2f})" for start, end in answer.spans)
    return f"<answer>{said}</answer>\n<glue>[{spans}]</glue>"
