"""Thousands of random calls of each op against its reference.

Every call has a seed of its own, the first by the clock. A failure names its seed; ZOOMZERO_FUZZ_SEED=<seed> runs that
call first.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoomzero_kernels import (
    frame_resample,
    grpo_loss,
    linear_grpo_loss,
    linear_selective_logps,
    reference,
    selective_logps,
    token_advantages,
    token_resample,
)
from zoomzero_kernels.policy.objectives import LOSS_TYPES
from zoomzero_kernels.triton_kernels.variants import NORMALIZATIONS

# Rounding of results, relative to the largest: the maths is float32 (float64 for float64), gradients have the dtype.
ROUNDING = {torch.float64: 1e-9, torch.float32: 5e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = list(ROUNDING)


def fuzz(count: int, call: Callable[[random.Random, torch.Generator], None]) -> None:
    """Make the calls of ``count`` seeds in a row."""
    first = int(os.environ.get("ZOOMZERO_FUZZ_SEED", time.time_ns() % 10**9))
    print(f"seeds from {first} on")
    for seed in range(first, first + count):
        try:
            call(random.Random(seed), torch.Generator().manual_seed(seed))
        except Exception as error:
            error.add_note(f"seed {seed}: ZOOMZERO_FUZZ_SEED={seed} makes this call first")
            raise


def strided(tensor: Tensor, rng: random.Random) -> Tensor:
    """The same values in another layout: contiguous, permuted, or a slice of something larger that holds NaN."""
    layout = rng.choice(["contiguous", "permuted", "slice"])
    if layout == "contiguous" or tensor.dim() == 0:
        return tensor.clone()
    if layout == "permuted":
        order = rng.sample(range(tensor.dim()), tensor.dim())
        back = [order.index(axis) for axis in range(tensor.dim())]
        return tensor.permute(order).contiguous().permute(back)
    wide = tensor.new_full([size + 3 for size in tensor.shape], math.nan)
    view = wide[tuple(slice(rng.choice([0, 1, 3]), None) for _ in tensor.shape)]
    return view[tuple(slice(size) for size in tensor.shape)].copy_(tensor)


def assert_close(
    ours: Tensor, plain: Tensor, truth: Tensor, rounding: float, what: str, moved: Tensor | None = None
) -> None:
    """Within twice the error of plain torch in the same dtype, rounding, and the way to ``moved``, as near as truth."""
    if truth.numel() == 0:
        assert ours.shape == truth.shape, what
        return
    budget = 2 * (plain.double() - truth).abs().max() + rounding * (1 + truth.abs().max())
    if moved is not None:
        budget += (moved - truth).abs().max()
    error = (ours.double() - truth).abs().max()
    assert error <= budget, f"{what}: error {error:.3e} over the budget {budget:.3e}"


def random_logits(rng: random.Random, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Logits [B, T, V] that fit every dtype, some of them -inf, and tokens that are not."""
    shape = (rng.randint(0, 3), rng.randint(0, 5), rng.choice([1, 2, 3, 7, 16, 17, 33, 100]))
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * rng.choice([0.1, 2.0, 30.0, 100.0])
    logits = logits.bfloat16().double()
    ids = torch.randint(0, shape[2], shape[:2], generator=generator)
    if rng.random() < 0.2:
        holes = torch.rand(shape, generator=generator) < 0.3
        logits[holes.scatter(-1, ids.unsqueeze(-1), False)] = -math.inf
    return logits, ids


def random_options(rng: random.Random, generator: torch.Generator, logps: Tensor) -> dict[str, Any]:
    """Options of the policy losses in any combination that is allowed."""

    def around(spread: float) -> Tensor:
        return (logps + spread * torch.randn(logps.shape, generator=generator)).float()

    num_items = rng.choice([None, 7.0, torch.tensor(11)])
    return {
        "old_logps": rng.choice([None, around(0.3), around(3.0)]),
        "ref_logps": (reference_logps := rng.choice([None, around(0.3), around(3.0)])),
        "beta": 0.0 if reference_logps is None else rng.choice([0.0, 0.1]),
        "clip_low": rng.choice([0.0, 0.2, 0.9]),
        "clip_high": rng.choice([0.0, 0.28, 5.0, math.inf]),
        "kl_clamp": rng.choice([None, 10.0, 0.5]),
        "unbiased_kl": rng.random() < 0.3,
        "delta": rng.choice([None, None, 0.5, 1.1, 4.0]),
        "sapo_temperature_pos": rng.choice([1.0, 0.3]),
        "sapo_temperature_neg": rng.choice([1.05, 4.0]),
        "loss_type": (loss_type := rng.choice(list(LOSS_TYPES))),
        "max_completion_length": rng.choice([None, 9]),
        "num_items": num_items,
        "importance_sampling_level": rng.choice(LOSS_TYPES[loss_type].levels),
        "token_weights": rng.choice([None, torch.rand(logps.shape, generator=generator).round(decimals=1) * 3]),
        "importance_sampling_ratio": rng.choice([None, None, torch.rand(logps.shape, generator=generator) * 3]),
        "entropy_mask": rng.choice([None, None, torch.rand(logps.shape, generator=generator) < 0.5]),
        "entropy_coef": rng.choice([0.0, 0.0, 0.2, torch.tensor(-0.1)]),
        "off_policy_threshold": (threshold := rng.choice([None, None, None, 0.1])),
        "sampling_logps": None if threshold is None else rng.choice([None, around(0.3)]),
        "ratio_cap": rng.choice([20.0, 1.5]),
        "vespo_k_pos": rng.choice([2.0, 0.5]),
        "vespo_lambda_neg": rng.choice([2.0, 0.3]),
        "dro_beta": rng.choice([1.0, 0.1]),
        "loss_scale": rng.choice([1.0, 0.5, torch.tensor(0.25)]),
    }


def is_near_an_edge(logps: Tensor, mask: Tensor, options: dict[str, Any]) -> bool:
    """Whether rounding may put a ratio or an estimate on either side of a bound, where the gradient jumps."""
    old = logps if options["old_logps"] is None else options["old_logps"].double()
    log_ratio = torch.where(mask, logps - old, 0.0)
    if options["importance_sampling_level"] == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    bounds = [1 - options["clip_low"], 1 + options["clip_high"], options["delta"] or math.inf, options["clip_high"]]
    bounds.append(options["ratio_cap"])
    edges = [(log_ratio - math.log(bound)).abs() for bound in bounds if 0 < bound < math.inf]
    if options["loss_type"] in ("geo_mean", "vespo"):
        edges += [(log_ratio - bound).abs() for bound in (-options["clip_low"], options["clip_high"], -20.0, 20.0)]
    if options["loss_type"].startswith("dppo"):
        p, q = logps.exp(), (logps - log_ratio).exp()
        kl = q * -log_ratio + (1 - q) * ((1 - q + 1e-8) / (1 - p + 1e-8)).log()
        moved = [(p - q).abs(), kl.abs()]
        edges += [(by - options[name]).abs() for by in moved for name in ("clip_low", "clip_high")]
    if options["off_policy_threshold"] is not None:
        sampled = old if options["sampling_logps"] is None else options["sampling_logps"].double()
        gap = torch.where(mask, sampled - logps, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)
        edges.append((gap - options["off_policy_threshold"]).abs())
    if options["ref_logps"] is not None and options["kl_clamp"] is not None:
        gap = torch.where(mask, options["ref_logps"].double() - logps, 0.0)
        edges.append((gap.expm1() - gap - options["kl_clamp"]).abs())
    return any(edge.numel() > 0 and bool(edge.min() < 1e-3) for edge in edges)


def random_tokens(rng: random.Random, generator: torch.Generator, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, advantages and mask; masked tokens hold ids outside the vocabulary and NaN."""
    mask = torch.rand(ids.shape, generator=generator) < rng.choice([0.0, 0.5, 0.9, 1.0])
    advantages = torch.randn(ids.shape, generator=generator) * (torch.rand(ids.shape, generator=generator) < 0.8)
    if rng.random() < 0.3:
        advantages = advantages[:, 0] if ids.shape[1] else torch.zeros(ids.shape[0])
    else:
        advantages = advantages.masked_fill(~mask, math.nan)
    return ids.masked_fill(~mask, -100), advantages, mask


def gradients(function: Any, leaves: list[Tensor], arguments: tuple[Any, ...], options: dict[str, Any]) -> list[Tensor]:
    """Outputs of a loss, then its gradients, each times a factor that is seldom 1."""
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    output = function(*leaves, *arguments, **options)
    return [*(value.detach() for value in output), *torch.autograd.grad(output.loss * 1.7, leaves)]


def fuzz_loss(rng: random.Random, generator: torch.Generator, make_leaves: Any, function: Any, truth_of: Any) -> None:
    logits, ids = random_logits(rng, generator)
    leaves = make_leaves(logits)
    dtype = rng.choice(DTYPES)
    temperature = rng.choice([1.0, 1.0, 0.6, 1.7])
    everything = (ids, torch.zeros(ids.shape), torch.ones(ids.shape, dtype=torch.bool))
    head = {"temperature": temperature, "logit_scale": rng.choice([1.0, 1.0, 0.5]), "logit_softcap": None}
    head["logit_softcap"] = rng.choice([None, None, 5.0])
    logps = truth_of(*leaves, *everything, **head).logps
    options = random_options(rng, generator, logps) | head
    tokens = random_tokens(rng, generator, ids)
    if is_near_an_edge(logps, tokens[2], options):
        return
    narrow = [leaf.to(dtype) for leaf in leaves]
    truth = gradients(truth_of, leaves, tokens, options)
    plain = gradients(truth_of, narrow, tokens, options)
    moved = truth
    if logps.numel() > 0:
        # What the rounding of log-probabilities, or of a head's logits, moves through exponentials of differences.
        # Two float32 roundings, of the logit and of the normaliser; half a unit of a head's own type for its logits.
        step = max(2 * torch.finfo(torch.float32).eps, torch.finfo(dtype).eps / 2 if len(leaves) > 1 else 0.0)
        nearby = {name: options[name] for name in ("old_logps", "ref_logps") if options[name] is not None}
        nearby = {name: value + step * logps.abs().max().clamp(min=1) for name, value in nearby.items()}
        moved = gradients(truth_of, leaves, tokens, options | nearby)
    for name in ("old_logps", "ref_logps", "token_weights", "importance_sampling_ratio", "sampling_logps"):
        if options[name] is not None:
            options[name] = options[name].masked_fill(~tokens[2], math.nan)
    dirty = [strided(leaf, rng) for leaf in narrow]
    dirty[0] = dirty[0].masked_fill(~tokens[2].unsqueeze(-1), math.nan) if rng.random() < 0.5 else dirty[0]
    ours = gradients(function, dirty, tokens, options)
    for index, (*values, near) in enumerate(zip(ours, plain, truth, moved, strict=True)):
        # Log-probabilities of a head in 16 bits are rounded as its logits are.
        coarse = index >= len(ours) - len(leaves) or len(leaves) > 1
        rounding = ROUNDING[dtype] if coarse else min(ROUNDING[dtype], ROUNDING[torch.float32])
        assert_close(*values, rounding, f"{dtype} {list(logits.shape)} value {index} of {options}", near)


def test_grpo_loss() -> None:
    def call(rng: random.Random, generator: torch.Generator) -> None:
        inplace = rng.random() < 0.3

        def ours(logits: Tensor, *tokens: Tensor, **options: Any) -> Any:
            # A tensor of its own, since its memory may be given up.
            return grpo_loss(logits * 1 if inplace else logits, *tokens, inplace=inplace, **options)

        fuzz_loss(rng, generator, lambda logits: [logits], ours, reference.grpo_loss)

    fuzz(1500, call)


def test_linear_grpo_loss() -> None:
    def call(rng: random.Random, generator: torch.Generator) -> None:
        width = rng.choice([1, 4, 9])

        def leaves(logits: Tensor) -> list[Tensor]:
            shapes = ((*logits.shape[:2], width), (logits.shape[2], width))
            return [torch.randn(shape, generator=generator).bfloat16().double() for shape in shapes]

        fuzz_loss(rng, generator, leaves, linear_grpo_loss, reference.linear_grpo_loss)

    fuzz(600, call)


def fuzz_logps(rng: random.Random, generator: torch.Generator, function: Any, truth_of: Any, leaves: Any) -> None:
    logits, ids = random_logits(rng, generator)
    wide, dtype, temperature = leaves(logits), rng.choice(DTYPES), rng.choice([1.0, 0.6, 1.7])
    factors = torch.randn(2, *ids.shape, generator=generator).double()
    results = []
    for which, of in (("truth", truth_of), ("plain", truth_of), ("ours", function)):
        tensors = wide if which == "truth" else [leaf.to(dtype) for leaf in wide]
        tensors = [strided(leaf, rng) if which == "ours" else leaf for leaf in tensors]
        tensors = [leaf.detach().requires_grad_() for leaf in tensors]
        logps, entropy = of(*tensors, ids, temperature=temperature, with_entropy=True)
        total = (logps * factors[0] + entropy * factors[1]).sum()
        results.append([logps.detach(), entropy.detach(), *torch.autograd.grad(total, tensors)])
    truth, plain, ours = results
    for index, values in enumerate(zip(ours, plain, truth, strict=True)):
        assert_close(*values, ROUNDING[dtype], f"{dtype} {list(logits.shape)} value {index}")
    assert ours[0].numel() == 0 or ours[0].max() <= 0


def test_selective_logps() -> None:
    fuzz(800, lambda rng, g: fuzz_logps(rng, g, selective_logps, reference.selective_logps, lambda logits: [logits]))


def test_linear_selective_logps() -> None:
    def call(rng: random.Random, generator: torch.Generator) -> None:
        def leaves(logits: Tensor) -> list[Tensor]:
            shapes = ((*logits.shape[:2], 5), (logits.shape[2], 5))
            return [torch.randn(shape, generator=generator).bfloat16().double() for shape in shapes]

        fuzz_logps(rng, generator, linear_selective_logps, reference.linear_selective_logps, leaves)

    fuzz(400, call)


def test_token_advantages() -> None:
    def call(rng: random.Random, generator: torch.Generator) -> None:
        batch, width = rng.randint(0, 12), rng.randint(0, 20)
        num_rewards, num_segments = rng.randint(1, 5), rng.randint(1, 9)
        rewards = torch.rand(batch, num_rewards, generator=generator).round(decimals=rng.choice([0, 1, 4]))
        rewards[torch.rand(batch, generator=generator) < rng.choice([0.0, 0.3])] = math.nan
        segments = torch.randint(0, num_segments, (batch, width), generator=generator).to(torch.uint8)
        mask = torch.rand(batch, width, generator=generator) < rng.choice([0.0, 0.5, 1.0])
        group_ids = torch.randint(0, rng.randint(1, 5), (batch,), generator=generator) * rng.choice([1, -(10**15)])
        credit = torch.randn(num_rewards, num_segments, generator=generator)
        options = {"normalize": rng.choice(NORMALIZATIONS), "eps": rng.choice([1e-6, 1e-4, 0.1]), "unscored": "skip"}
        truth = reference.token_advantages(rewards, segments, credit, group_ids, mask, **options)
        segments = segments.masked_fill(~mask, 255)
        ours = token_advantages(rewards, segments, credit, group_ids, mask, **options)
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=1e-5)

    fuzz(1000, call)


def test_frame_resample() -> None:
    def call(rng: random.Random, generator: torch.Generator) -> None:
        shape = (rng.randint(1, 3), rng.randint(1, 50), rng.randint(1, 50), 3)
        frames = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
        indices = torch.randint(0, shape[0], (rng.randint(0, 4),), generator=generator)
        patch, merge, temporal = rng.choice([1, 2, 7, 14]), rng.choice([1, 2]), rng.choice([1, 2, 3])
        options = {
            "size": (patch * merge * rng.randint(1, 3), patch * merge * rng.randint(1, 3)),
            "mean": (0.48, 0.46, 0.4),
            "std": (0.27, 0.26, 0.28),
            "layout": rng.choice(["patches", "tchw"]),
            "patch_size": patch,
            "merge_size": merge,
            "temporal_patch_size": temporal,
        }
        chosen = rng.choice([None, indices]) if shape[0] else None
        truth = reference.frame_resample(frames, chosen, **options)
        ours = frame_resample(strided(frames.float(), rng).nan_to_num().to(torch.uint8), chosen, **options)
        torch.testing.assert_close(ours, truth, rtol=1e-6, atol=1e-6)

    fuzz(400, call)


def test_token_resample() -> None:
    def call(rng: random.Random, generator: torch.Generator) -> None:
        sizes = [(rng.randint(1, 2), rng.randint(1, 8), rng.randint(1, 8)) for _ in range(rng.randint(1, 3))]
        grid = torch.tensor(sizes)
        target = torch.tensor([[rng.randint(1, 9), rng.randint(1, 9)] for _ in range(int(grid[:, 0].sum()))])
        tokens = torch.randn(int(grid.prod(1).sum()), rng.choice([1, 5, 32]), generator=generator)
        results = []
        for function, values in ((reference.token_resample, tokens.double()), (token_resample, strided(tokens, rng))):
            leaf = values.detach().requires_grad_()
            out = function(leaf, grid, target)
            (grad,) = torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), leaf)
            results.append((out.detach().double(), grad.double()))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(want, got, rtol=1e-5, atol=1e-5)

    fuzz(400, call)
