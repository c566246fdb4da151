"""Prompts of the two passes: the coarse pass asks for an answer and its spans, the zoom pass for a letter only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from string import Template

# Benchmarks have up to eight options.
OPTION_LETTERS = "ABCDEFGH"

_THINKING = """Question: $question
Options:
$options

Watch the whole video and find the moments that show the answer. First reason inside <think></think>, citing moments \
in seconds as <time>(start, end)</time>. Then write the letter of the right option inside <answer></answer>, and all \
spans that hold the evidence, in seconds, inside <glue></glue>. For example:
<think> The cup falls at <time>(20.3, 30.8)</time>, so ... </think>
<answer>B</answer>
<glue>[(20.3, 30.8), (41.0, 44.5)]</glue>"""

_DIRECT = """Question: $question
Options:
$options

Watch the whole video. Write the letter of the right option inside <answer></answer>, then all spans that hold the \
evidence, in seconds, inside <glue></glue>. For example:
<answer>B</answer>
<glue>[(20.3, 30.8), (41.0, 44.5)]</glue>"""

_ZOOM = """$question
$options
Answer with the letter of the right option only."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Templates with the placeholders $question, $options and, at most once, $video (the video comes first without it).

    coarse: asks for an answer and spans; thinking says whether its format has a <think> element; zoom: asks for the
    letter alone.
    """

    coarse: str = _THINKING
    zoom: str = _ZOOM
    thinking: bool = True

    @staticmethod
    def direct() -> Prompts:
        """The variant without reasoning: answer and spans at once."""
        return Prompts(coarse=_DIRECT, thinking=False)

    def coarse_text(self, question: str, options: Sequence[str]) -> tuple[str, str]:
        """The text before and after the video in the coarse pass."""
        return _fill(self.coarse, question, options)

    def zoom_text(self, question: str, options: Sequence[str]) -> tuple[str, str]:
        """The text before and after the video in the zoom pass."""
        return _fill(self.zoom, question, options)


def _fill(template: str, question: str, options: Sequence[str]) -> tuple[str, str]:
    """The template split at the video and filled.

    Split first, so that a question cannot move the video; Template, unlike str.format, gives a template from a
    checkpoint no access to attributes.
    """
    if not question.strip():
        raise ValueError("question must not be empty; write what is asked about the video")
    if not 2 <= len(options) <= len(OPTION_LETTERS):
        raise ValueError(
            f"options must be 2 to {len(OPTION_LETTERS)} texts, got {len(options)}; list the possible answers"
        )
    lines = [f"({letter}) {text}" for letter, text in zip(OPTION_LETTERS, options, strict=False)]
    before, found, after = template.partition("$video")
    values = {"question": question.strip(), "options": "\n".join(lines)}
    parts = (before, after) if found else ("", template)
    return Template(parts[0]).safe_substitute(values), Template(parts[1]).safe_substitute(values)
