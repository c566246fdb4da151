"""The options about the model, which `answer` and `eval` share, and the estimate before it is loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoomzero.answering.loading import ModelOptions
from zoomzero.answering.strategies import STRATEGIES
from zoomzero.cli.fields import add_fields, field_values
from zoomzero.limits import MAX_NEW_TOKENS, NUM_DECODERS

if TYPE_CHECKING:
    from zoomzero.answering.answer import AnswerOptions
    from zoomzero.answering.engine import Engine
    from zoomzero.prompts import Prompts


def add_model_options(command: Any) -> None:
    """Which model, where and how it runs, and how it answers."""
    add_fields(command, ModelOptions, {})
    command.add_argument("--strategy", choices=list(STRATEGIES), default="coarse_to_fine", help="(%(default)s)")
    command.add_argument("--budget-tokens", type=int, help="visual tokens per pass; the checkpoint's own unless told")
    command.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS, help="longest response (%(default)s)")
    command.add_argument("--max-rounds", type=int, default=3, help="of the strategy rounds (%(default)s)")
    command.add_argument("--max-spans", type=int, default=5, help="looked at together (%(default)s)")
    command.add_argument("--prompts", type=Path, metavar="FILE", help="templates: JSON as in a zoomzero.json")


def answer_options(options: argparse.Namespace, num_decoders: int = NUM_DECODERS) -> AnswerOptions:
    """How to answer; num_decoders: videos read side by side."""
    from zoomzero.answering.answer import AnswerOptions

    return AnswerOptions(
        options.strategy,
        options.budget_tokens,
        options.max_new_tokens,
        max_rounds=options.max_rounds,
        max_spans=options.max_spans,
        num_decoders=num_decoders,
    )


def model_options(options: argparse.Namespace) -> ModelOptions:
    """Which model, where and how it runs."""
    return ModelOptions(**field_values(options, ModelOptions))


def prompts_of(options: argparse.Namespace) -> Prompts | None:
    """The templates that were named, or None for the checkpoint's own."""
    from zoomzero.settings import load_prompts

    return None if options.prompts is None else load_prompts(options.prompts)


def load(
    options: argparse.Namespace, prompts: Prompts | None, *, num_questions: int, device: str | None = None
) -> Engine:
    """The engine; what its model will need is said before it is loaded, on standard error.

    num_questions: questions per forward. device: where the options name none.
    """
    from zoomzero.answering.loading import load_engine

    chosen = model_options(options)
    if chosen.model is not None and chosen.engine == "own" and chosen.device_map is None:
        print(f"memory: {_estimated(options, chosen, num_questions, device)}", file=sys.stderr)
    return load_engine(chosen, prompts, device=device)


def _estimated(options: argparse.Namespace, chosen: ModelOptions, num_questions: int, device: str | None) -> str:
    import torch

    from zoomzero.answering.memory import estimate_memory, free_bytes
    from zoomzero.devices import usable_device
    from zoomzero.inputs import load_processor

    path = str(chosen.model)
    where = usable_device(chosen.device or device)
    dtype = getattr(torch, chosen.dtype or ("bfloat16" if where.type == "cuda" else "float32"))
    needs = estimate_memory(path, dtype, max_new_tokens=options.max_new_tokens, load_in_4bit=chosen.load_in_4bit)
    budget = options.budget_tokens or load_processor(path).settings.coarse.budget_tokens
    return needs.said(free_bytes(where), budget, num_questions)
