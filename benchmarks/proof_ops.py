"""What `gpu_proof.py` times: every op beside eager torch, torch.compile and rivals that are installed, with its bar.

Sizes are those of training on a GPU, and tiny ones on the CPU, where only the script itself is proved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import shared_prefix_group as packed
import torch
from torch import Tensor

from zoomzero_kernels import (
    frame_resample,
    grpo_loss,
    linear_grpo_loss,
    linear_selective_logps,
    selective_logps,
    token_advantages,
    token_resample,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Case:
    """One size of one op.

    candidates: what is timed, "ours" first; moved_bytes or operations: what must at least be done, for the share of the
    measured ceiling; bar: that share which is demanded of ours; synchronisations: how many of them ours may do, None
    for any number.
    """

    op: str
    size: str
    candidates: Mapping[str, Callable[[], object]]
    moved_bytes: int | None = None
    operations: int | None = None
    bar: float | None = None
    synchronisations: int | None = None


@dataclass(frozen=True)
class Place:
    """Where and how large."""

    device: str
    small: bool

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """torch.compile; on the CPU without a code generator, which would take longer than all the rest."""
        return torch.compile(function, backend="aot_eager" if self.small else "inductor")

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=dtype)


def _step(loss: Callable[..., Tensor], leaves: tuple[Tensor, ...], *rest: Any) -> None:
    """Forward and backward; gradients are dropped, so that every step allocates them anew."""
    for leaf in leaves:
        leaf.grad = None
    loss(*leaves, *rest).backward()


def _clipped_mean(logps: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    ratio = (logps - old).exp()
    token_loss = -torch.min(ratio * advantages, ratio.clamp(0.8, 1.28) * advantages)
    return (token_loss * mask).sum() / mask.sum().clamp(min=1.0)


def _eager_logps(logits: Tensor, ids: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _eager_loss(logits: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    return _clipped_mean(_eager_logps(logits, ids), advantages, mask, old)


def _eager_linear_loss(hidden: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    return _eager_loss(hidden @ weight.t(), *rest)


def _our_loss(logits: Tensor, ids: Tensor, advantages: Tensor, mask: Tensor, old: Tensor) -> Tensor:
    return grpo_loss(logits, ids, advantages, mask, old_logps=old).loss


def _our_linear_loss(hidden: Tensor, weight: Tensor, *rest: Tensor) -> Tensor:
    ids, advantages, mask, old = rest
    return linear_grpo_loss(hidden, weight, ids, advantages, mask, old_logps=old).loss


def _tokens(place: Place, batch: int, width: int, vocab: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, advantages, a full mask and old log-probabilities."""
    ids = torch.randint(0, vocab, (batch, width), device=place.device)
    mask = torch.ones(batch, width, dtype=torch.bool, device=place.device)
    return ids, place.randn(batch, width), mask, place.randn(batch, width) - 10


def loss_cases(place: Place) -> Iterator[Case]:
    batch, width, vocab = (2, 4, 512) if place.small else (8, 512, 151936)
    for dtype, bar in ((torch.bfloat16, 0.75), (torch.float16, 0.75), (torch.float32, 0.6)):
        logits = place.randn(batch, width, vocab, dtype=dtype).requires_grad_()
        tokens = _tokens(place, batch, width, vocab)
        size = f"[{batch}, {width}, {vocab}] {str(dtype).removeprefix('torch.')}"
        losses = {"ours": _our_loss, "eager": _eager_loss, "torch.compile": place.compiled(_eager_loss)}
        yield Case(
            "grpo_loss, forward and backward",
            size,
            {name: functools.partial(_step, loss, (logits,), *tokens) for name, loss in losses.items()},
            moved_bytes=2 * logits.nbytes,
            bar=bar,
            synchronisations=0,
        )
        values = logits.detach()
        logps = {"ours": selective_logps, "eager": _eager_logps, "torch.compile": place.compiled(_eager_logps)}
        yield Case(
            "selective_logps",
            size,
            {name: functools.partial(function, values, tokens[0]) for name, function in logps.items()},
            moved_bytes=logits.nbytes,
            bar=0.8,
            synchronisations=0,
        )


def linear_cases(place: Place) -> Iterator[Case]:
    batch, width, vocab = (2, 4, 512) if place.small else (8, 512, 151936)
    dtype = torch.float32 if place.small else torch.bfloat16
    for hidden_size in (32,) if place.small else (2048, 3584):
        hidden = place.randn(batch, width, hidden_size, dtype=dtype).requires_grad_()
        weight = (place.randn(vocab, hidden_size) * hidden_size**-0.5).to(dtype).requires_grad_()
        tokens = _tokens(place, batch, width, vocab)
        size = f"{batch * width} tokens, D {hidden_size}, V {vocab} {str(dtype).removeprefix('torch.')}"
        one_product = 2 * batch * width * hidden_size * vocab
        losses: dict[str, Callable[..., Tensor]] = {
            "ours": _our_linear_loss,
            "eager": _eager_linear_loss,
            "torch.compile": place.compiled(_eager_linear_loss),
            **_installed_heads(),
        }
        yield Case(
            "linear_grpo_loss, forward and backward",
            size,
            {name: functools.partial(_step, loss, (hidden, weight), *tokens) for name, loss in losses.items()},
            operations=3 * one_product,
            bar=0.6,
            synchronisations=1,
        )
        states, head = hidden.detach(), weight.detach()
        yield Case(
            "linear_selective_logps",
            size,
            {
                "ours": functools.partial(linear_selective_logps, states, head, tokens[0]),
                "eager": lambda states=states, head=head, ids=tokens[0]: _eager_logps(states @ head.t(), ids),
            },
            operations=one_product,
            bar=0.6,
            synchronisations=1,
        )


def _installed_heads() -> dict[str, Callable[..., Tensor]]:
    """TRL's fused head where TRL is installed."""
    try:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    except ImportError:
        return {}

    def trl_loss(hidden: Tensor, weight: Tensor, ids: Tensor, *rest: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        outputs = ("log_probs", "entropy")
        logps = ChunkedLogProbFunction.apply(rows, weight, None, ids.reshape(-1), 1.0, 32768, None, 1.0, outputs)[0]
        return _clipped_mean(logps.view(ids.shape), *rest)

    return {"TRL fused head": trl_loss}


def _pooling_loop(tokens: Tensor, height: int, width: int, target: tuple[int, int]) -> Tensor:
    """What one writes without a kernel: every slice as an image of D channels."""
    images = tokens.view(-1, height, width, tokens.shape[1]).permute(0, 3, 1, 2)
    return torch.nn.functional.adaptive_avg_pool2d(images, target).permute(0, 2, 3, 1).reshape(-1, tokens.shape[1])


def token_resample_cases(place: Place) -> Iterator[Case]:
    slices, height, width, dim = (2, 4, 6, 64) if place.small else (128, 26, 46, 3584)
    half = (height // 2, width // 2)
    for dtype in (torch.bfloat16, torch.float32):
        tokens = place.randn(slices * height * width, dim, dtype=dtype).requires_grad_()
        grids = torch.tensor([[slices, height, width]]), torch.tensor([half] * slices)
        out = token_resample(tokens, *grids)
        grad = torch.randn_like(out)
        size = f"{slices} x {height}x{width} to {half[0]}x{half[1]}, D {dim} {str(dtype).removeprefix('torch.')}"
        moved = tokens.nbytes + grad.nbytes
        values = tokens.detach()
        loop = functools.partial(_pooling_loop, height=height, width=width, target=half)
        yield Case(
            "token_resample",
            size,
            {
                "ours": functools.partial(token_resample, values, *grids),
                "eager": functools.partial(loop, values),
                "torch.compile": functools.partial(place.compiled(loop), values),
            },
            moved_bytes=moved,
            bar=0.7,
            synchronisations=0,
        )
        pooled = loop(tokens)
        yield Case(
            "token_resample, backward",
            size,
            {
                "ours": functools.partial(torch.autograd.grad, out, tokens, grad, retain_graph=True),
                "eager": functools.partial(torch.autograd.grad, pooled, tokens, grad, retain_graph=True),
            },
            moved_bytes=moved,
            bar=0.7,
            synchronisations=0,
        )


def _eager_patches(frames: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The shortest torch on a GPU: resize in float32 (not the CPU's numbers), normalise, patchify."""
    pixels = torch.nn.functional.interpolate(
        frames.permute(0, 3, 1, 2).float(), size, mode="bicubic", antialias=True, align_corners=False
    )
    scale = 1 / (255 * torch.tensor(STD, device=frames.device).view(3, 1, 1))
    shift = (torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1).to(frames.device)
    n, _, h, w = pixels.shape
    grid = (pixels.round().clamp(0, 255) * scale - shift).view(n // 2, 2, 3, h // 28, 2, 14, w // 28, 2, 14)
    return grid.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(n // 2 * h * w // 196, 3 * 392).to(dtype)


def frame_resample_cases(place: Place) -> Iterator[Case]:
    num_frames, height, width = (2, 60, 90) if place.small else (32, 720, 1280)
    frames = torch.randint(0, 256, (num_frames, height, width, 3), dtype=torch.uint8, device=place.device)
    for size in ((28, 56),) if place.small else ((336, 588), (672, 1176)):
        for dtype in (torch.bfloat16, torch.float32):
            arguments = {"size": size, "mean": MEAN, "std": STD, "dtype": dtype}
            yield Case(
                "frame_resample",
                f"{num_frames} x {width}x{height} to {size[1]}x{size[0]} {str(dtype).removeprefix('torch.')}",
                {
                    "ours": functools.partial(frame_resample, frames, **arguments),
                    "eager": functools.partial(_eager_patches, frames, size, dtype),
                    "torch.compile": functools.partial(place.compiled(_eager_patches), frames, size, dtype),
                },
                moved_bytes=frames.nbytes + num_frames * 3 * size[0] * size[1] * dtype.itemsize,
                bar=0.5,
                synchronisations=0,
            )


def token_advantages_cases(place: Place) -> Iterator[Case]:
    batch, width = (8, 16) if place.small else (512, 512)
    segments = torch.randint(0, 3, (batch, width), dtype=torch.uint8, device=place.device)
    groups = torch.arange(batch, device=place.device) // 8
    mask = torch.ones(batch, width, dtype=torch.bool, device=place.device)
    arguments = (place.randn(batch, 4), segments, place.randn(4, 3), groups, mask)
    ours = functools.partial(token_advantages, *arguments)
    yield Case("token_advantages", f"[{batch}, {width}], 4 rewards", {"ours": ours}, synchronisations=0)


def shared_prefix_cases(place: Place) -> Iterator[Case]:
    """A group as published: 8 responses of 512 tokens to a prompt of 8192 visual tokens; the heads of a 3B model."""
    group = packed.Group(64, 3, 16, 4, 2, 16) if place.small else packed.Group(8192, 8, 512, 16, 2, 128)
    inputs = packed.make_inputs(group, place.device, torch.float32 if place.small else torch.bfloat16)
    grad = torch.ones_like(inputs[0])
    ways: dict[str, Callable[..., Tensor]] = {
        "ours": functools.partial(packed.ours, group),
        "dense mask": functools.partial(packed.dense, packed.dense_mask(group, place.device)),
    }
    if not place.small:  # torch has no backward pass of it for the CPU
        ways["FlexAttention"] = functools.partial(packed.flex, group)
    steps = {name: functools.partial(packed.step, attention, inputs, grad) for name, attention in ways.items()}
    heads = f"{group.heads}/{group.key_heads} heads of {group.size}"
    # Two products forward, five backward, each of 2 * size operations per score.
    operations = int(7 * 2 * group.size * group.heads * group.scores)
    # The offsets are sent from pinned memory, which the host does not wait for.
    size = f"{group.prefix} + {group.num_branches} x {group.branch}, {heads}"
    yield Case("shared_prefix_attention", size, steps, operations=operations, synchronisations=0)


# An op more is a function more. Cases are made one after the other, so that the memory of one is free for the next.
CASES: tuple[Callable[[Place], Iterator[Case]], ...] = (
    loss_cases,
    linear_cases,
    token_resample_cases,
    frame_resample_cases,
    token_advantages_cases,
    shared_prefix_cases,
)


def every_op_once(place: Place) -> int:
    """Ours alone, once each, for tools that watch memory; how many cases that were."""
    count = 0
    for cases in CASES:
        for case in cases(place):
            case.candidates["ours"]()
            count += 1
    if place.device != "cpu":
        torch.cuda.synchronize()
    return count
