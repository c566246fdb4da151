"""Loading and compiling all kernels ahead of time, which must not happen while a CUDA graph is captured."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zoomzero_kernels.frame_resample import frame_resample
from zoomzero_kernels.grpo_loss import grpo_loss
from zoomzero_kernels.linear_grpo_loss import linear_grpo_loss
from zoomzero_kernels.linear_selective_logps import linear_selective_logps
from zoomzero_kernels.selective_logps import selective_logps
from zoomzero_kernels.token_advantages import token_advantages
from zoomzero_kernels.token_resample import token_resample

# Rows of logits that the kernels read 16 bytes at a time, and one that they read one by one.
_VOCABULARIES = (16, 17)
_NORMALIZATIONS = ("tokens", "segments", "rewards", "sequence", "none")


def _backward(logps: Tensor | tuple[Tensor, Tensor]) -> None:
    (logps if isinstance(logps, Tensor) else logps[0]).sum().backward()


def warm_up(
    device: torch.device | str = "cuda",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16),
) -> None:
    """Run every op, forward and backward, on tiny inputs, so that all its kernels are compiled and loaded on a device.

    Call it before capturing a CUDA graph: a kernel's first launch loads its machine code, and Triton's "jit" launches
    compile it, neither of which a capture allows. Tables that belong to a shape (those of ``frame_resample`` and
    ``token_resample``) are not made here: call these two once with the shapes of the graph. Waits for the device. On
    the CPU it runs the same and changes nothing. ``shared_prefix_attention`` has no kernels of its own.

    Args:
        device: where kernels will run; its current stream is used.
        dtypes: of logits, tokens and patches.

    Raises:
        ValueError: the device or its build has no such kernels, as the ops themselves say.
    """
    place = torch.device(device)
    ids = torch.tensor([[1, 5]], device=place)
    ones, mask = torch.ones(1, 2, device=place), torch.ones(1, 2, dtype=torch.bool, device=place)
    frames = torch.zeros(1, 28, 28, 3, dtype=torch.uint8, device=place)
    grids = torch.tensor([[1, 2, 2]]), torch.tensor([[1, 1]])
    for dtype in dtypes:
        for vocabulary in _VOCABULARIES:
            logits = torch.zeros(1, 2, vocabulary, dtype=dtype, device=place, requires_grad=True)
            grpo_loss(logits, ids, ones, mask).loss.backward()
            grpo_loss(logits.detach(), ids, ones, mask)
            _backward(selective_logps(logits, ids))
            hidden = torch.zeros(1, 2, 16, dtype=dtype, device=place, requires_grad=True)
            weight = torch.zeros(vocabulary, 16, dtype=dtype, device=place, requires_grad=True)
            linear_grpo_loss(hidden, weight, ids, ones, mask).loss.backward()
            _backward(linear_selective_logps(hidden, weight, ids))
        for channels in (16, 17):
            tokens = torch.zeros(4, channels, dtype=dtype, device=place, requires_grad=True)
            token_resample(tokens, *grids).sum().backward()
        frame_resample(frames, size=(28, 28), mean=(0.5,) * 3, std=(0.5,) * 3, dtype=dtype)
    segments = torch.zeros(1, 2, dtype=torch.uint8, device=place)
    for normalize in _NORMALIZATIONS:
        credit, groups = torch.ones(1, 1, device=place), torch.zeros(1, dtype=torch.int64, device=place)
        token_advantages(ones[:, :1], segments, credit, groups, mask, normalize=normalize)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
