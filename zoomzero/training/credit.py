"""Which reward is credited to which tokens: the matrix that `token_advantages` takes."""

import torch
from torch import Tensor

from zoomzero.rewards import TOKEN_ADV_CREDIT

# Order of the reward columns and of the token sets, shared by the credit matrix, the scorer and the logs.
REWARDS = ("format", "zoom", "iou", "answer")
NUM_SEGMENTS = 3  # REST, ANSWER, SPAN

# Plain GRPO's total, ((answer + zoom)/2 + format + iou)/3, as a weight a reward in the order of REWARDS.
UNIFORM_WEIGHTS = (1 / 3, 1 / 6, 1 / 3, 1 / 6)
# The same total where nothing is zoomed: (answer + format + iou)/3.
UNIFORM_WEIGHTS_WITHOUT_ZOOM = (1 / 3, 0.0, 1 / 3, 1 / 3)


def credit_matrix(credit: str, *, zoom_reward: bool) -> Tensor:
    """float32 [rewards, segments] for `token_advantages`.

    credit: "token_adv" (the published sets) or "uniform" (every reward to every token, weighted as in plain GRPO);
    zoom_reward False leaves the zoom reward out of either.
    """
    if credit == "uniform":
        weights = UNIFORM_WEIGHTS if zoom_reward else UNIFORM_WEIGHTS_WITHOUT_ZOOM
        return torch.tensor(weights)[:, None].expand(-1, NUM_SEGMENTS).contiguous()
    matrix = torch.as_tensor(TOKEN_ADV_CREDIT, dtype=torch.float32).clone()
    if not zoom_reward:
        matrix[REWARDS.index("zoom")] = 0.0
    return matrix


def informative_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Which groups online filtering keeps, bool [P]: answers not all right or all wrong, or an IoU that varies.

    rewards float32 [P*G, 4] in the order of `REWARDS`, the G of a prompt next to each other.
    """
    grouped = rewards.view(-1, group_size, len(REWARDS))
    varied = [grouped[..., REWARDS.index(name)] for name in ("answer", "iou")]
    return torch.stack([column.amax(1) > column.amin(1) for column in varied]).any(0)
