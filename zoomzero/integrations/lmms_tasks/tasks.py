"""The task class behind this folder's YAML files: a published benchmark, counted as its authors count."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableTask

from zoomzero.annotations import Sample, load_benchmark
from zoomzero.evaluation import Prediction, official_metrics
from zoomzero.lenient import read_letter, read_spans
from zoomzero.prompts import OPTION_LETTERS

ROOT_VARIABLE = "ZOOMZERO_BENCHMARKS"

# Figures that each task reports, by the names of its official counting.
FIGURES = {
    "nextgqa": ("Acc@GQA", "mIoP", "IoP@0.3", "IoP@0.5", "mIoU", "IoU@0.3", "IoU@0.5", "Acc"),
    "rextime": ("mIoU", "R@1,IoU=0.3", "R@1,IoU=0.5", "R@1,IoU=0.7", "VQA", "VQA,mIoU@0.5"),
    "cgbench": ("long-acc", "mIoU", "rec@IoU", "acc@IoU"),
}


class GroundedTask(ConfigurableTask):
    """A benchmark of questions whose answers name their evidence; dataset_name in the YAML file says which."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the benchmark from disk; nothing is fetched."""
        root = os.environ.get(ROOT_VARIABLE)
        if not root:
            raise ValueError(
                f"{self.config.task}: {ROOT_VARIABLE} must name the folder that holds nextgqa, rextime and cgbench, "
                "got nothing; set it"
            )
        samples = load_benchmark(
            self.config.dataset_name, Path(root, self.config.dataset_name), **(dataset_kwargs or {})
        )
        documents = Dataset.from_list([dataclasses.asdict(sample) for sample in samples])
        self.dataset = DatasetDict({self.config.test_split: documents})
        self.dataset_no_image = self.dataset

    def doc_to_visual(self, doc: dict[str, Any]) -> list[str]:
        """The video's path."""
        return [doc["video"]]

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """A prompt for models other than zoomzero, which takes question and options themselves."""
        options = [f"({letter}) {text}" for letter, text in zip(OPTION_LETTERS, doc["options"], strict=False)]
        ask = (
            "Answer with the letter of the right option inside <answer></answer>, and with all spans that show it, in "
            "seconds, inside <glue></glue>: <answer>B</answer>\n<glue>[(20.3, 30.8)]</glue>"
        )
        return "\n".join([doc["question"], *options, ask])

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        """The right letter."""
        return doc["answer"]

    def process_results(self, doc: dict[str, Any], results: Sequence[Any], full_docs: Any = None) -> dict[str, Any]:
        """What every figure needs of one answer."""
        said = results[0][0] if isinstance(results[0], list) else results[0]
        letter, spans = read_letter(said or "", doc["options"]), tuple(read_spans(said or ""))
        return dict.fromkeys(FIGURES[self.config.dataset_name], (doc, letter, spans))

    def aggregation(self) -> dict[str, Callable[[list[Any]], float]]:
        """Each figure from all answers."""
        name = self.config.dataset_name
        return {figure: functools.partial(_figure, name, figure) for figure in FIGURES[name]}

    def higher_is_better(self) -> dict[str, bool]:
        """All of them."""
        return dict.fromkeys(FIGURES[self.config.dataset_name], True)


def _figure(name: str, figure: str, items: list[tuple[dict[str, Any], str | None, Any]]) -> float:
    samples = [_sample(doc) for doc, _, _ in items]
    predictions = [Prediction(letter, spans) if letter or spans else None for _, letter, spans in items]
    return official_metrics(name, samples, predictions).get(figure, 0.0)


def _sample(doc: dict[str, Any]) -> Sample:
    spans = tuple((start, end) for start, end in doc["spans"])
    return Sample(**{**doc, "options": tuple(doc["options"]), "spans": spans})
