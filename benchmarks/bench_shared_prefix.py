"""shared_prefix_attention, forward and backward, against torch's attention with the dense mask of a packed row.

The bars, for one row of a prefix of 8192 and 8 branches of 256, 16 heads of 64, float32, two threads: at least 1.8
times faster than the dense mask, and at most a quarter of its peak memory above inputs, output and gradients. Beside
each ratio stands its limit: the scores that a dense mask computes over those that are needed. FlexAttention, with a
block mask, is timed forward only: torch has no backward of it for the CPU.

Then log-probabilities and gradients of a text model of Qwen2.5-0.5B's shape (random, gradient checkpointing on), all
rows of a group in one forward: as TRL holds them, packed under a dense mask, and inside `zoomzero.shared_prefix`. The
layers are alike, so fewer of them leave the ratios as they are, but for the head's part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import cast

import torch
from harness import interleave, peak_bytes, peak_bytes_during, print_table, serve_memory, timing_row, write_results
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import Qwen2Config, Qwen2ForCausalLM

import zoomzero
from zoomzero_kernels import linear_selective_logps, reference, shared_prefix_attention


@dataclass(frozen=True)
class Group:
    """A packed row: prefix and branch lengths in tokens, branches, heads of query and of key, head size."""

    prefix: int
    num_branches: int
    branch: int
    heads: int = 16
    key_heads: int = 16
    size: int = 64

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return self.prefix + self.num_branches * self.branch

    @property
    def limit(self) -> float:
        """Scores of the dense mask over scores needed: no way of computing the latter can be more times faster."""
        branches = self.num_branches * self.branch
        return self.length**2 / (self.prefix**2 / 2 + branches * self.prefix + branches * self.branch / 2)


GROUPS = {
    "the bar": Group(8192, 8, 256),
    "grouped heads": Group(8192, 8, 256, key_heads=2),
    "short prompt": Group(1024, 8, 256),
    "16 responses": Group(4096, 16, 128),
}


def make_inputs(group: Group) -> list[Tensor]:
    """query, key and value of one row, as a model hands them over, requiring gradients."""
    generator = torch.Generator().manual_seed(0)
    counts = (group.heads, group.key_heads, group.key_heads)
    return [
        torch.randn(1, group.length, count, group.size, generator=generator).transpose(1, 2).requires_grad_()
        for count in counts
    ]


def visible(group: Group, query: Tensor, key: Tensor) -> Tensor:
    """Whether place `query` sees place `key`."""
    branch = (query - group.prefix).div(group.branch, rounding_mode="floor")
    own = (key - group.prefix).div(group.branch, rounding_mode="floor")
    return (key <= query) & ((key < group.prefix) | (branch == own))


def dense_mask(group: Group) -> Tensor:
    """bool [1, 1, L, L], made once per step and used by every layer of a model."""
    places = torch.arange(group.length)
    return visible(group, places[:, None], places)[None, None]


@cache
def block_mask(group: Group) -> BlockMask:
    return create_block_mask(
        lambda _, __, query, key: visible(group, query, key), None, None, group.length, group.length, device="cpu"
    )


def ours(group: Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return shared_prefix_attention(query, key, value, [group.prefix], [[group.branch] * group.num_branches])


def dense(mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=key.shape[1] < query.shape[1])


def flex(group: Group, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (tensor.detach() for tensor in (query, key, value))
    return compiled_flex(query, key, value, block_mask=block_mask(group), enable_gqa=group.key_heads < group.heads)


compiled_flex = torch.compile(flex_attention)


def step(attention: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> None:
    """Forward and backward; gradients are dropped, so that every step allocates them anew."""
    torch.autograd.grad(attention(*inputs), inputs, grad)


def measure_memory(case: str) -> int:
    """Peak memory of "<candidate>|<group>", forward and backward, above inputs, output and gradients."""
    torch.set_num_threads(2)
    if "|model|" in case:
        name, shape = case.split("|model|")
        return measure_model_memory(name, Rows.of(shape))
    name, group = case.split("|")[0], GROUPS[case.split("|")[1]]
    small, inputs = Group(64, 2, 16), make_inputs(group)
    step(partial(ours, small), make_inputs(small), torch.ones(1, 16, small.length, 64))
    grad = torch.ones_like(inputs[0])

    def run() -> None:
        step(partial(ours, group) if name == "ours" else partial(dense, dense_mask(group)), inputs, grad)

    return peak_bytes_during(run) - inputs[0].nbytes - sum(tensor.nbytes for tensor in inputs)


def check(group: Group) -> None:
    """All candidates agree with float64 truth in output and gradients before any is timed."""
    inputs = make_inputs(group)
    leaves = [tensor.detach().double().requires_grad_() for tensor in inputs]
    truth = reference.shared_prefix_attention(*leaves, [group.prefix], [[group.branch] * group.num_branches])
    wanted = torch.autograd.grad(truth.sum(), leaves)
    for attention in (partial(ours, group), partial(dense, dense_mask(group))):
        out = attention(*inputs)
        torch.testing.assert_close(out.double(), truth, rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(torch.autograd.grad(out.sum(), inputs), wanted, strict=True):
            torch.testing.assert_close(mine.double(), theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flex(group, *inputs).double(), truth.detach(), rtol=1e-4, atol=1e-5)


def rows_of(name: str, group: Group, rounds: int) -> list[dict[str, object]]:
    """The table's rows of one group: forward and backward, then forward alone."""
    inputs = make_inputs(group)
    mask, grad = dense_mask(group), torch.ones_like(inputs[0])
    ways = {"ours": partial(ours, group), "dense mask": partial(dense, mask)}
    both = {way: partial(step, attention, inputs, grad) for way, attention in ways.items()}
    ways["FlexAttention"] = partial(flex, group)
    with torch.no_grad():
        forward = {way: partial(attention, *inputs) for way, attention in ways.items()}
        timings = {"forward": interleave(forward, rounds=rounds)}
    timings["forward + backward"] = interleave(both, rounds=rounds)
    extra = {way: peak_bytes(__file__, f"{way}|{name}") for way in both}
    return [
        {
            "group": name,
            "prefix": group.prefix,
            "branches": f"{group.num_branches} x {group.branch}",
            "heads": f"{group.heads}/{group.key_heads}",
            "pass": what,
            "candidate": way,
            **timing_row(timing),
            "times_ours": round(timing.speedup_of(of_pass["ours"]), 2),
            "limit": round(group.limit, 2),
            "extra_peak_mb": round(extra[way] / 1e6, 1) if what != "forward" else None,
        }
        for what, of_pass in timings.items()
        for way, timing in of_pass.items()
    ]


@dataclass(frozen=True)
class Rows:
    """Prompt and completion lengths in tokens, completions, layers of the model."""

    prompt: int
    num_completions: int
    completion: int
    layers: int

    @property
    def limit(self) -> float:
        """Tokens of the rows over tokens of the packed row: the limit where attention is a small part."""
        return self.num_completions * (self.prompt + self.completion) / self.packed

    @property
    def packed(self) -> int:
        """Tokens of the packed row."""
        return self.prompt + self.num_completions * self.completion

    @classmethod
    def of(cls, text: str) -> Rows:
        """From "prompt,completions,completion,layers"."""
        return cls(*map(int, text.split(",")))


def make_model(rows: Rows) -> Qwen2ForCausalLM:
    """Qwen2.5-0.5B's layers under a small vocabulary, random, in float32, with gradient checkpointing."""
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=8192, num_hidden_layers=rows.layers, **sizes)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).train()
    model.gradient_checkpointing_enable()
    return model


def make_tokens(rows: Rows) -> tuple[Tensor, Tensor]:
    """Prompt [prompt] and completions [G, completion]."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 8192, (rows.packed,), generator=generator)
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
    group = Group(len(prompt), *completions.shape)
    steps = torch.arange(len(prompt), len(prompt) + completions.shape[1])
    positions = torch.cat((torch.arange(len(prompt)), steps.repeat(len(completions))))
    ids = torch.cat((prompt, completions.flatten()))
    hidden = model.model(
        ids[None], attention_mask=dense_mask(group), position_ids=positions[None], use_cache=False
    ).last_hidden_state[0]
    places = torch.arange(len(prompt), len(ids)).view_as(completions) - 1
    places[:, 0] = len(prompt) - 1
    return head_logps(model, hidden[places], completions)


PASSES = {"ours": logps_in_context, "dense mask": logps_under_mask, "rows": logps_of_rows}


def model_step(logps: Callable[..., Tensor], model: Qwen2ForCausalLM, tokens: tuple[Tensor, Tensor]) -> None:
    model.zero_grad(set_to_none=False)
    logps(model, *tokens).sum().backward()


def measure_model_memory(name: str, rows: Rows) -> int:
    """Peak memory above weights and gradients."""
    model, small = make_model(rows), make_tokens(Rows(16, 2, 4, 1))
    model_step(PASSES[name], model, small)
    tokens = make_tokens(rows)
    return peak_bytes_during(lambda: model_step(PASSES[name], model, tokens))


def check_model() -> None:
    """All ways agree in log-probabilities and gradients before any is timed."""
    rows = Rows(60, 3, 9, 2)
    model, tokens = make_model(rows), make_tokens(rows)
    results = []
    for logps in PASSES.values():
        model.zero_grad()
        values = logps(model, *tokens)
        values.sum().backward()
        results.append([values.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    for ours, other, truth in zip(*results, strict=True):
        for candidate in (ours, other):
            torch.testing.assert_close(candidate, truth, rtol=0, atol=2e-5 * float(truth.abs().max()))


def model_rows(rows: Rows, rounds: int) -> list[dict[str, object]]:
    """The table's rows of a model: log-probabilities and gradients."""
    model, tokens = make_model(rows), make_tokens(rows)
    timings = interleave(
        {name: partial(model_step, logps, model, tokens) for name, logps in PASSES.items()}, rounds=rounds, warmup=0
    )
    shape = f"{rows.prompt},{rows.num_completions},{rows.completion},{rows.layers}"
    return [
        {
            "model": f"{rows.layers} layers of 896",
            "prompt": rows.prompt,
            "completions": f"{rows.num_completions} x {rows.completion}",
            "candidate": name,
            **timing_row(timing),
            "times_ours": round(timing.speedup_of(timings["ours"]), 2),
            "limit": round(rows.limit, 2),
            "extra_peak_mb": round(peak_bytes(__file__, f"{name}|model|{shape}") / 1e6, 1),
        }
        for name, timing in timings.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS))
    parser.add_argument(
        "--layers", type=int, default=4, help="layers of the model, 24 as Qwen2.5-0.5B has; 0 leaves it out"
    )
    parser.add_argument("--model-rounds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    check(Group(300, 3, 40, 4, 2, 32))
    check_model()
    rows = [row for name in arguments.groups for row in rows_of(name, GROUPS[name], arguments.rounds)]
    print_table(rows)
    of_model = model_rows(Rows(2048, 8, 128, arguments.layers), arguments.model_rounds) if arguments.layers else []
    print_table(of_model)
    print(f"written to {write_results('shared_prefix', rows + of_model)}")


if __name__ == "__main__" and not serve_memory(measure_memory):
    main()
