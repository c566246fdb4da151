"""Truth of token_resample."""

import torch
from torch import Tensor


def token_resample(tokens: Tensor, grid_thw: Tensor, target_hw: Tensor) -> Tensor:
    """tokens [sum(t*h*w), D] -> [sum(h'*w'), D]: each target cell averages the source area that it covers.

    For a slice x [h, w, D] and a target (h', w'), with ``A(n', n)[i, j]`` the length that target cell
    [i n/n', (i+1) n/n') and source cell [j, j+1) share, divided by n/n':

        out = einsum("ih,jw,hwd->ijd", A(h', h), A(w', w), x)

    Where h and w are multiples of h' and w' this is ``adaptive_avg_pool2d``. Computed in float32 for half types, and
    differentiable by autograd.
    """
    dtype = tokens.dtype if tokens.dtype == torch.float64 else torch.float32
    pieces, first, target = [], 0, 0
    for t, h, w in grid_thw.tolist():
        for _ in range(t):
            new_h, new_w = (int(side) for side in target_hw[target])
            x = tokens[first : first + h * w].to(dtype).view(h, w, -1)
            rows = area_weights(new_h, h).to(x)
            columns = area_weights(new_w, w).to(x)
            pieces.append(torch.einsum("ih,jw,hwd->ijd", rows, columns, x).reshape(new_h * new_w, -1))
            first, target = first + h * w, target + 1
    if not pieces:
        return tokens.new_empty(0, tokens.shape[1])
    return torch.cat(pieces).to(tokens.dtype)


def area_weights(num_targets: int, num_sources: int) -> Tensor:
    """float64 [num_targets, num_sources], rows summing to 1: the share of a target cell that lies in a source cell."""
    target = torch.arange(num_targets, dtype=torch.float64)[:, None] * num_sources
    source = torch.arange(num_sources, dtype=torch.float64)[None, :] * num_targets
    shared = torch.minimum(target + num_sources, source + num_targets) - torch.maximum(target, source)
    return shared.clamp(min=0) / num_sources
