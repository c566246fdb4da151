"""The policy loss with one importance ratio per sequence (GSPO).

Note [Sequence level]: the ratio of a sequence needs the log-probabilities of all its tokens before the gradient of any
of them is known, so the fused pass cannot be used: the rows are read a second time in the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoomzero_kernels.policy.options import GRPOLossOutput, PolicyOptions, PolicyTensors, loss_output
from zoomzero_kernels.policy.stored_gradient import with_stored_gradient
from zoomzero_kernels.policy.terms import policy_terms


def sequence_level_loss(
    op: str, logps: Tensor, entropy: Tensor, tensors: PolicyTensors, options: PolicyOptions
) -> GRPOLossOutput:
    """Loss of differentiable log-probabilities [B, T], whose log-ratio is the mean over the valid tokens."""
    valid = tensors.mask != 0
    current = logps.detach()

    def on_valid(values: Tensor) -> Tensor:
        return torch.where(valid, values.to(current.dtype), 0.0)

    num_valid = valid.sum(-1, keepdim=True).clamp(min=1)
    log_ratio = None
    if tensors.old_logps is not None:
        difference = on_valid(current - tensors.old_logps.to(current.dtype))
        log_ratio = (difference.sum(-1, keepdim=True) / num_valid).expand_as(current)
    ref_logps = None if tensors.ref_logps is None else on_valid(tensors.ref_logps)
    terms = policy_terms(current, log_ratio, on_valid(tensors.advantages), ref_logps, options)
    loss = (terms.loss * tensors.weights).sum()
    if logps.requires_grad:
        shared = (terms.ratio_slope * tensors.weights).sum(-1, keepdim=True) / num_valid
        grad = on_valid(shared + (terms.slope - terms.ratio_slope) * tensors.weights)
        loss = with_stored_gradient(op, loss, torch.ones_like(loss), (logps,), (grad,))
    kl, clipped = on_valid(terms.kl), on_valid(terms.clipped)
    return loss_output(loss, current, entropy.detach(), kl, clipped, tensors.mask)
