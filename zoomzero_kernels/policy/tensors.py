"""What the policy losses share beside their options: inputs and outputs by token, and the checks of the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoomzero_kernels.host.checks import check_device, check_mask, check_token_ids, check_token_tensor, describe
from zoomzero_kernels.policy.objectives import check_loss_type
from zoomzero_kernels.policy.options import LossOptions
from zoomzero_kernels.policy.weights import entropy_weights, policy_factors, token_weights

LOGITS_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class GRPOLossOutput(NamedTuple):
    """Loss and its by-products; only ``loss`` is differentiable.

    loss: scalar, normalised as ``loss_type`` says.
    logps, entropy: [B, T] of the policy at ``temperature``, detached, 0 on masked tokens.
    kl: scalar, mean over valid tokens of the KL estimate, 0 without ``ref_logps``.
    clip_fraction: scalar, share of the valid tokens whose ratio was clipped, on the side of their advantage.
    clip_low_fraction, clip_high_fraction: scalars, its parts: clipped from below under a negative advantage, from above
        under a positive one.
    clipped: [B, T], -1 where that happened from below, 1 from above, else 0.
    """

    loss: Tensor
    logps: Tensor
    entropy: Tensor
    kl: Tensor
    clip_fraction: Tensor
    clip_low_fraction: Tensor
    clip_high_fraction: Tensor
    clipped: Tensor


class PolicyTensors(NamedTuple):
    """What a policy loss knows of each token, all [B, T], detached.

    token_ids: int64 or int32.
    mask: bool or integer 0/1; masked tokens may hold anything in the other tensors.
    advantages: floating point.
    weights: share of each token in the loss, 0 on masked tokens.
    old_logps: of the policy that sampled, None where that is the present one.
    ref_logps: of the reference model, None without a KL estimate.
    factors: of the policy term, >= 0, None for 1.
    entropy_weights: what of each entropy is taken from the loss, None for nothing.
    """

    token_ids: Tensor
    mask: Tensor
    advantages: Tensor
    weights: Tensor
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    factors: Tensor | None = None
    entropy_weights: Tensor | None = None

    def at(self, place: Any) -> PolicyTensors:
        """The same of some tokens: each tensor indexed by ``place``."""
        required = (tensor[place] for tensor in self[:4])
        return PolicyTensors(*required, *(None if tensor is None else tensor[place] for tensor in self[4:]))

    def divided_by(self, scale: Tensor) -> PolicyTensors:
        """The same with all weights in the loss divided by a number."""
        bonus = self.entropy_weights
        return self._replace(weights=self.weights / scale, entropy_weights=None if bonus is None else bonus / scale)

    def total(self, losses: Tensor, entropy: Tensor) -> Tensor:
        """The loss, 0-d, of token losses and entropies [B, T] that are 0 on masked tokens."""
        loss = (losses * self.weights).sum()
        return loss if self.entropy_weights is None else loss - (entropy * self.entropy_weights).sum()


class RowOutputs(NamedTuple):
    """Per-token results [B, T], float32 (float64 for float64 logits), 0 on masked tokens.

    clipped: -1 where the ratio was clipped from below, 1 from above, else 0.
    """

    loss: Tensor
    logps: Tensor
    entropy: Tensor
    kl: Tensor
    clipped: Tensor

    @classmethod
    def zeros(cls, shape: Sequence[int], like: Tensor) -> RowOutputs:
        """For tokens [B, T] of logits or hidden states like these."""
        dtype = compute_dtype(like)
        return cls(*(torch.zeros(shape, dtype=dtype, device=like.device) for _ in cls._fields))


class LogpOutputs(NamedTuple):
    """Results of the pass for log-probabilities, of the dtype that RowOutputs has, 0 on masked tokens.

    logps, entropy: [B, T].
    normaliser: [B, T, 2], the largest logit m and ``log(sum(exp((logits - m) / temperature)))``: as one number, the
        log-sum-exp, they would lose the second's digits under large logits.
    """

    logps: Tensor
    entropy: Tensor
    normaliser: Tensor

    @classmethod
    def zeros(cls, shape: Sequence[int], like: Tensor) -> LogpOutputs:
        """For tokens [B, T] of logits or hidden states like these."""
        dtype = compute_dtype(like)
        logps, entropy = (torch.zeros(shape, dtype=dtype, device=like.device) for _ in range(2))
        return cls(logps, entropy, torch.zeros((*shape, 2), dtype=dtype, device=like.device))


class LogpStatistics(NamedTuple):
    """What the backward pass needs of LogpOutputs, under the same names."""

    entropy: Tensor
    normaliser: Tensor


class LogpSlopes(NamedTuple):
    """Gradients [B, T] of a loss in the log-probabilities and, unless None, in the entropies."""

    logps: Tensor
    entropy: Tensor | None


def loss_output(loss: Tensor, results: RowOutputs, mask: Tensor) -> GRPOLossOutput:
    """The loss with the results of its tokens: means over the valid ones."""
    clipped = results.clipped
    valid = mask if mask.dtype == torch.bool else mask.ne(0)
    num_valid = valid.sum(dtype=clipped.dtype).clamp_(min=1)
    low, high = (clipped < 0).sum() / num_valid, (clipped > 0).sum() / num_valid
    kl = results.kl.sum() / num_valid
    return GRPOLossOutput(loss, results.logps, results.entropy, kl, low + high, low, high, clipped)


def policy_tensors(
    op: str, like: Tensor, token_ids: Tensor, advantages: Tensor, mask: Tensor, options: LossOptions
) -> PolicyTensors:
    """Check the tensors of a policy loss against ``like``, logits or hidden states [B, T, ...], and pack them."""
    check_loss_type(op, options)
    shape, dtype = (like.shape[0], like.shape[1]), compute_dtype(like)
    check_token_ids(op, token_ids, shape, like)
    check_mask(op, mask, shape, like)
    if tuple(advantages.shape) not in (shape, shape[:1]):
        raise ValueError(
            f"{op}: advantages must be [B, T] = {list(shape)} or [B] = {[shape[0]]}, got {describe(advantages)}; "
            "give one advantage a token or one a sequence"
        )
    if not advantages.dtype.is_floating_point:
        raise TypeError(f"{op}: advantages must be floating point, got {describe(advantages)}; convert with .float()")
    check_device(op, "advantages", advantages, like)
    for name in ("old_logps", "ref_logps", "sampling_logps"):
        tensor: Tensor | None = options[name]
        if tensor is None:
            continue
        check_token_tensor(op, name, tensor, shape, like)
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{op}: {name} must be floating point, got {describe(tensor)}; pass log-probabilities")
    old_logps, ref_logps = options["old_logps"], options["ref_logps"]
    if options["beta"] > 0 and ref_logps is None:
        raise ValueError(
            f"{op}: beta > 0 needs ref_logps, got beta={options['beta']} and no ref_logps; pass them or set beta=0.0"
        )
    return PolicyTensors(
        token_ids=token_ids,
        mask=mask,
        advantages=(advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand(shape)).detach(),
        weights=token_weights(mask, options, dtype),
        old_logps=None if old_logps is None else old_logps.detach(),
        ref_logps=None if ref_logps is None else ref_logps.detach(),
        factors=policy_factors(op, mask, options, dtype),
        entropy_weights=entropy_weights(mask, options, dtype),
    )


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of the maths and of the per-token results for logits or hidden states of this dtype."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
