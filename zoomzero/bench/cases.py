"""All cases of `zoomzero bench` and of `benchmarks/gpu_proof.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from zoomzero.bench import packed_group as packed
from zoomzero.bench.case import Case, Place
from zoomzero.bench.losses import linear_cases, loss_cases, token_advantages_cases
from zoomzero.bench.resampling import frame_resample_cases, token_resample_cases
from zoomzero.bench.videos import video_cases


def shared_prefix_cases(place: Place) -> Iterator[Case]:
    """A group as published: 8 responses of 512 tokens to a prompt of 8192 visual tokens; the heads of a 3B model."""
    group = place.pick(
        tiny=packed.Group(64, 3, 16, 4, 2, 16),
        cpu=packed.Group(1024, 8, 64, 8, 2, 64),
        gpu=packed.Group(8192, 8, 512, 16, 2, 128),
    )
    dtype = torch.bfloat16 if place.scale == "gpu" else torch.float32
    inputs = packed.make_inputs(group, place.device, dtype)
    grad = torch.ones_like(inputs[0])
    ways: dict[str, Callable[..., Tensor]] = {
        "ours": partial(packed.ours, group),
        "dense mask": partial(packed.dense, packed.dense_mask(group, place.device)),
    }
    if place.scale == "gpu" and place.with_compile:  # torch has no backward pass of it for the CPU
        ways["FlexAttention"] = partial(packed.flex, group)
    steps = {name: partial(packed.step, attention, inputs, grad) for name, attention in ways.items()}
    heads = f"{group.heads}/{group.key_heads} heads of {group.size}"
    yield Case(
        "shared_prefix_attention, forward and backward",
        f"{group.prefix} + {group.num_branches} x {group.branch}, {heads}",
        steps,
        # Two products forward, five backward, each of 2 * size operations per score.
        operations=int(7 * 2 * group.size * group.heads * group.scores),
        dtype=dtype,
        tolerance=1e-3 if dtype is torch.float32 else 0.1,
        # The offsets are sent from pinned memory, which the host does not wait for.
        synchronisations=0,
    )


# Functions that make cases, and the ops they are of. An op more is a function more. Cases are made one after the other,
# so that the memory of one is free for the next.
OPS: dict[Callable[[Place], Iterator[Case]], tuple[str, ...]] = {
    loss_cases: ("grpo_loss", "selective_logps"),
    linear_cases: ("linear_grpo_loss", "linear_selective_logps"),
    token_resample_cases: ("token_resample",),
    frame_resample_cases: ("frame_resample",),
    token_advantages_cases: ("token_advantages",),
    shared_prefix_cases: ("shared_prefix_attention",),
}
WITH_VIDEO: dict[Callable[[Place], Iterator[Case]], tuple[str, ...]] = {
    video_cases: ("open_video and frames_at", "answer a question"),
}


def every_op_once(place: Place) -> int:
    """Ours alone, once each, for tools that watch memory; how many cases that were."""
    count = 0
    for cases in OPS:
        for case in cases(place):
            case.candidates["ours"]()
            count += 1
    if place.device != "cpu":
        torch.cuda.synchronize()
    return count
