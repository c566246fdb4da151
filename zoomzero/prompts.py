"""Prompts of the two passes: the coarse pass asks for an answer and its spans, the zoom pass for the answer alone."""

from __future__ import annotations

import dataclasses
from string import Template

from zoomzero.limits import MAX_QUESTION_CHARACTERS
from zoomzero.text import escaped

OPTION_LETTERS = "ABCDEFGH"

# A template is a page of instructions at most; a file with more is not one.
MAX_TEMPLATE_CHARACTERS = 20_000

_THINKING = """Question: $question
Options:
$options

The video lasts $duration seconds. Watch the whole video and find the moments that show the answer. First reason \
inside <think></think>, citing moments in seconds as <time>(start, end)</time>. Then write the letter of the right \
option inside <answer></answer>, and all spans that hold the evidence, in seconds, inside <glue></glue>. For example:
<think> The cup falls at <time>(20.3, 30.8)</time>, so ... </think>
<answer>B</answer>
<glue>[(20.3, 30.8), (41.0, 44.5)]</glue>"""

_DIRECT = """Question: $question
Options:
$options

The video lasts $duration seconds. Watch the whole video. Write the letter of the right option inside \
<answer></answer>, then all spans that hold the evidence, in seconds, inside <glue></glue>. For example:
<answer>B</answer>
<glue>[(20.3, 30.8), (41.0, 44.5)]</glue>"""

_ZOOM = """$question
$options
Answer with the letter of the right option only."""

_OPEN = """Question: $question

The video lasts $duration seconds. Watch the whole video and find the moments that show the answer. Write the answer \
in a few words inside <answer></answer>, then all spans that hold the evidence, in seconds, inside <glue></glue>. For \
example:
<answer>a red cup</answer>
<glue>[(20.3, 30.8), (41.0, 44.5)]</glue>"""

_OPEN_ZOOM = """$question
Answer in a few words."""


@dataclasses.dataclass(frozen=True)
class Inquiry:
    """What is asked about a video, or about a part of it."""

    question: str
    """The question's text."""
    options: tuple[str, ...] | None
    """2 to 8 bare option texts; None for an open question, which is answered in words."""
    duration: float
    """Seconds of what is asked about: the video, or the part that a chunk of it shows."""
    subtitles: str = ""
    """What is said in it, one line per cue."""

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError("question must not be empty; write what is asked about the video")
        for text in (self.question, *(self.options or ())):
            if len(text) > MAX_QUESTION_CHARACTERS:
                raise ValueError(
                    f"a question, and each option, must have at most {MAX_QUESTION_CHARACTERS} characters, got "
                    f"{len(text)}: {text!r:.40}...; shorten it"
                )
        if self.options is not None and not 2 <= len(self.options) <= len(OPTION_LETTERS):
            raise ValueError(
                f"options must be 2 to {len(OPTION_LETTERS)} texts, got {len(self.options)}; list the possible "
                "answers, or leave them out to ask an open question"
            )

    @property
    def letters(self) -> str:
        """Letters of the options; none for an open question."""
        return OPTION_LETTERS[: len(self.options or ())]

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts that the prompt takes from outside."""
        return (self.question, *(self.options or ()), self.subtitles)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Templates of the passes. Placeholders: $question, $options, $duration (the video's length in seconds) and, at
    most once, $video (without it the video comes first)."""

    coarse: str = _THINKING
    """Asks for an answer and the spans that show it."""
    zoom: str = _ZOOM
    """Asks for the letter alone."""
    thinking: bool = True
    """Whether the coarse format has a <think> element."""
    open_coarse: str = _OPEN
    """Asks an open question: for words and the spans that show them."""
    open_zoom: str = _OPEN_ZOOM
    """Asks an open question for words alone."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "thinking":
                if not isinstance(value, bool):
                    raise ValueError(f"prompts.thinking must be true or false, got {value!r}; write one of them")
            else:
                _check_template(field.name, value)

    @staticmethod
    def direct() -> Prompts:
        """The variant without reasoning: answer and spans at once."""
        return Prompts(coarse=_DIRECT, thinking=False)

    def around_video(self, inquiry: Inquiry, *, zoomed: bool) -> tuple[str, str]:
        """The text before and after the video in the coarse or the zoom pass."""
        if inquiry.options is None:
            return _fill(self.open_zoom if zoomed else self.open_coarse, inquiry)
        return _fill(self.zoom if zoomed else self.coarse, inquiry)


def _check_template(name: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"prompts.{name} must be a text, got {value!r:.80}; write a template with $question in it")
    if len(value) > MAX_TEMPLATE_CHARACTERS:
        raise ValueError(
            f"prompts.{name} must have at most {MAX_TEMPLATE_CHARACTERS} characters, got {len(value)}; shorten it"
        )
    identifiers = Template(value).get_identifiers()
    if "question" not in identifiers:
        raise ValueError(f"prompts.{name} must hold $question, got {value!r:.80}; say where the question goes")
    if value.count("$video") > 1:
        raise ValueError(f"prompts.{name} must hold $video at most once, got {value.count('$video')}; keep one")
    if value != value.encode("utf-8", "replace").decode("utf-8"):
        raise ValueError(f"prompts.{name} must be valid Unicode, got a lone surrogate in {value!r:.80}; remove it")


def _fill(template: str, inquiry: Inquiry) -> tuple[str, str]:
    """The template split at the video and filled.

    Split first, so that a question cannot move the video; Template, unlike str.format, gives a template from a
    checkpoint no access to attributes.
    """
    lines = [f"({letter}) {text}" for letter, text in zip(inquiry.letters, inquiry.options or (), strict=True)]
    question = inquiry.question.strip()
    if inquiry.subtitles:
        question = f"Subtitles of the video:\n{inquiry.subtitles}\n\n{question}"
    # Tokenizers take valid text only, which a question from a JSON file need not be.
    values = {"question": escaped(question), "options": escaped("\n".join(lines))}
    values["duration"] = f"{inquiry.duration:.1f}"
    before, found, after = template.partition("$video")
    parts = (before, after) if found else ("", template)
    return Template(parts[0]).safe_substitute(values), Template(parts[1]).safe_substitute(values)
