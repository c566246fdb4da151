"""Log-probabilities and gradients of a group through a model of Qwen2.5-0.5B's shape: packed, under a mask, as rows.

The model is random, with gradient checkpointing on, and every candidate takes all rows of the group in one forward. The
TRL candidates are the loss pass of `GRPOTrainer` on the same rollouts, as it is, with packed passes, and with the fused
head too. On the CPU TRL's own head scores the prompts' tokens as well, which the limit leaves out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from harness import peak_bytes
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

import zoomzero
from zoomzero.bench.packed_group import Group, dense_mask
from zoomzero.bench.timing import Timing, interleave, peak_bytes_during, timing_row
from zoomzero.integrations.trl import FusedGRPOLossMixin
from zoomzero.integrations.trl_shared_prefix import SharedPrefixMixin
from zoomzero_kernels import linear_selective_logps

VOCAB = 8192
HIDDEN, INTERMEDIATE, HEADS, KEY_HEADS = 896, 4864, 14, 2
# Multiply-adds of a layer's matrix products for one token: query and output, key and value, gate, up and down.
LAYER = HIDDEN * (2 * HIDDEN + 2 * HIDDEN * KEY_HEADS // HEADS + 3 * INTERMEDIATE)


@dataclass(frozen=True)
class Rows:
    """Prompt and completion lengths in tokens, completions, layers of the model, and its dtype."""

    prompt: int
    num_completions: int
    completion: int
    layers: int
    dtype: str = "float32"

    @property
    def packed(self) -> int:
        """Tokens of the packed row."""
        return self.prompt + self.num_completions * self.completion

    @classmethod
    def of(cls, text: str) -> Rows:
        """From "prompt,completions,completion,layers,dtype"."""
        *numbers, dtype = text.split(",")
        return cls(*map(int, numbers), dtype)

    def __str__(self) -> str:
        return f"{self.prompt},{self.num_completions},{self.completion},{self.layers},{self.dtype}"

    def flops(self, candidate: str) -> float:
        """Floating-point operations that a pass needs: forward, forward again (checkpointing), backward.

        The matrix products cost as much again twice in the backward pass, a flash attention's 2.5 times.
        """
        width = self.prompt + self.completion
        branches = self.num_completions * self.completion
        needed = Group(self.prompt, self.num_completions, self.completion).scores
        tokens, scores = {
            "ours": (self.packed, needed),
            "TRL, SharedPrefixMixin": (self.packed, needed),
            "TRL, both mixins": (self.packed, needed),
            "dense mask": (self.packed, self.packed**2),
        }.get(candidate, (self.num_completions * width, self.num_completions * width**2 / 2))
        per_layer = 4 * 2 * LAYER * tokens + 4.5 * 4 * HIDDEN * scores
        return self.layers * per_layer + 3 * 2 * HIDDEN * VOCAB * branches


def make_model(rows: Rows) -> Qwen2ForCausalLM:
    """Qwen2.5-0.5B's layers under a small vocabulary."""
    config = Qwen2Config(
        vocab_size=VOCAB,
        num_hidden_layers=rows.layers,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(getattr(torch, rows.dtype)).train()
    model.gradient_checkpointing_enable()
    return model


def make_tokens(rows: Rows) -> tuple[Tensor, Tensor]:
    """Prompt [prompt] and completions [G, completion]."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCAB, (rows.packed,), generator=generator)
    return tokens[: rows.prompt], tokens[rows.prompt :].view(rows.num_completions, -1)


def head_logps(model: Qwen2ForCausalLM, hidden: Tensor, completions: Tensor) -> Tensor:
    """From the hidden states [G, R, D] that predict the completions."""
    return cast(Tensor, linear_selective_logps(hidden, model.lm_head.weight, completions))


def logps_of_rows(model: Qwen2ForCausalLM, prompt: Tensor, completions: Tensor) -> Tensor:
    ids = torch.cat((prompt.expand(len(completions), -1), completions), dim=1)
    hidden = model.model(ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
    return head_logps(model, hidden[:, len(prompt) - 1 : -1], completions)


def logps_in_context(model: Qwen2ForCausalLM, prompt: Tensor, completions: Tensor) -> Tensor:
    with zoomzero.shared_prefix(model):
        return logps_of_rows(model, prompt, completions)


def logps_under_mask(model: Qwen2ForCausalLM, prompt: Tensor, completions: Tensor) -> Tensor:
    length, (num_branches, branch) = len(prompt), completions.shape
    steps = torch.arange(length, length + branch)
    positions = torch.cat((torch.arange(length), steps.repeat(num_branches)))
    ids = torch.cat((prompt, completions.flatten()))
    hidden = model.model(
        ids[None],
        attention_mask=dense_mask(Group(length, num_branches, branch)),
        position_ids=positions[None],
        use_cache=False,
    ).last_hidden_state[0]
    places = torch.arange(length, len(ids)).view_as(completions) - 1
    places[:, 0] = length - 1
    return head_logps(model, hidden[places], completions)


PASSES = {"ours": logps_in_context, "dense mask": logps_under_mask, "rows": logps_of_rows}


class PackedTrainer(SharedPrefixMixin, GRPOTrainer):
    """TRL's trainer with packed passes."""


class FusedTrainer(SharedPrefixMixin, FusedGRPOLossMixin, GRPOTrainer):
    """With packed passes and the fused head."""


TRAINERS = {"TRL": GRPOTrainer, "TRL, SharedPrefixMixin": PackedTrainer, "TRL, both mixins": FusedTrainer}
# What each candidate is compared with.
BASES = dict.fromkeys(PASSES, "ours") | dict.fromkeys(TRAINERS, "TRL, both mixins")


def model_step(logps: Callable[..., Tensor], model: Qwen2ForCausalLM, tokens: tuple[Tensor, Tensor]) -> None:
    model.zero_grad(set_to_none=False)
    logps(model, *tokens).sum().backward()


def make_trainer(trainer: type[GRPOTrainer], model: Qwen2ForCausalLM, folder: str) -> GRPOTrainer:
    """TRL's trainer of the model; its data set and its reward are not used."""
    tokenizer = Tokenizer(models.WordLevel({"word": 0, "end": 1}, unk_token="word"))
    options = {"use_cpu": True, "bf16": False, "report_to": [], "per_device_train_batch_size": 2, "num_generations": 2}
    made = trainer(
        model=model,
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=GRPOConfig(output_dir=folder, **options),
        train_dataset=Dataset.from_list([{"prompt": "word"}] * 2),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="end", eos_token="end"),
    )
    made.current_gradient_accumulation_steps = 1
    return made


def rollouts(tokens: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The rows as TRL's generation leaves them."""
    prompt, completions = tokens
    prompts = prompt.expand(len(completions), -1)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.linspace(-1, 1, len(completions)),
        "num_items_in_batch": torch.tensor(completions.numel()),
    }


def trainer_step(trainer: GRPOTrainer, inputs: dict[str, Any]) -> Tensor:
    trainer.model.zero_grad(set_to_none=False)
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return cast(Tensor, loss.detach())


def measure_memory(name: str, rows: Rows) -> int:
    """Peak memory above weights and gradients."""
    model, small = make_model(rows), make_tokens(Rows(16, 2, 4, 1))
    model_step(PASSES[name], model, small)
    tokens = make_tokens(rows)
    return peak_bytes_during(lambda: model_step(PASSES[name], model, tokens))


def check(folder: str) -> None:
    """All ways agree in log-probabilities or loss, and in gradients, before any is timed."""
    rows = Rows(60, 3, 9, 2)
    tokens = make_tokens(rows)
    of_passes, of_trainers = [], []
    for logps in PASSES.values():
        model = make_model(rows)
        values = logps(model, *tokens)
        values.sum().backward()
        of_passes.append([values.detach(), *(parameter.grad for parameter in model.parameters())])
    for trainer in TRAINERS.values():
        model = make_model(rows)
        loss = trainer_step(make_trainer(trainer, model, folder), rollouts(tokens))
        of_trainers.append([loss, *(parameter.grad for parameter in model.parameters())])
    for first, *others in (*zip(*of_passes, strict=True), *zip(*of_trainers, strict=True)):
        for other in others:
            torch.testing.assert_close(other, first, rtol=0, atol=2e-5 * float(first.abs().max()))


def timed(rows: Rows, candidates: list[str], rounds: int, folder: str) -> dict[str, Timing]:
    model, tokens = make_model(rows), make_tokens(rows)
    runs: dict[str, Callable[[], object]] = {
        name: partial(model_step, PASSES[name], model, tokens) for name in candidates if name in PASSES
    }
    for name in candidates:
        if name in TRAINERS:
            # Weights of its own: TRL puts its fused head into the model.
            runs[name] = partial(trainer_step, make_trainer(TRAINERS[name], make_model(rows), folder), rollouts(tokens))
    return interleave(runs, rounds=rounds, warmup=0)


def measure(rows: Rows, candidates: list[str], rounds: int, *, with_memory: bool) -> list[dict[str, object]]:
    """The table's rows of one shape, the limit by floating-point operations beside each ratio."""
    with tempfile.TemporaryDirectory() as folder:
        timings = timed(rows, candidates, rounds, folder)
    memory = {
        name: round(
            peak_bytes(str(Path(__file__).with_name("bench_shared_prefix.py")), f"{name}|model|{rows}") / 1e6, 1
        )
        for name in (PASSES if with_memory else ())
        if name in candidates
    }
    return [
        {
            "layers": rows.layers,
            "dtype": rows.dtype,
            "prompt": rows.prompt,
            "completions": f"{rows.num_completions} x {rows.completion}",
            "candidate": name,
            **timing_row(timing),
            "times_packed": round(timing.speedup_of(timings[BASES[name]]), 2),
            "times_packed_cpu": round(timing.cpu_speedup_of(timings[BASES[name]]), 2),
            "limit": round(rows.flops(name) / rows.flops("ours"), 2),
            "extra_peak_mb": memory.get(name),
        }
        for name, timing in timings.items()
        if BASES[name] in timings
    ]
