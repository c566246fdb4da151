"""Shared-prefix packing: one row holds a prompt once and all completions of its group.

Problem: GRPO's log-probability and gradient passes run G full rows a prompt, so the prompt (nearly all tokens when it
holds a video) is computed G times, forward and backward. Packed, a row is [prompt | completion 0 | ... | completion
G-1 | pad] with a mask under which a token sees the prompt and its own completion only, and with every completion's
positions counted from the prompt's end, so each hidden state equals the one of the unpacked row. A completion's last
token predicts nothing and is left out. The first token of every completion is predicted from the prompt's last
position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zoomzero.looks import PreparedPrompt, through_tower
from zoomzero.models.encoding import language_inputs
from zoomzero.models.forward import additive_mask
from zoomzero.models.head import HeadProbe


class Prompt(Protocol):
    """What a packed row holds of a prompt: `PreparedPrompt` and `EncodedPrompt` both have it."""

    @property
    def input_ids(self) -> Tensor:
        """int64 [L], video placeholders included."""

    @property
    def position_ids(self) -> Tensor:
        """int64 [3, L]."""

    @property
    def next_position(self) -> int:
        """Position of a completion's first token."""


@dataclass(frozen=True)
class PackedGroups:
    """P packed rows of length L holding P * G completions of at most T tokens."""

    input_ids: Tensor
    """int64 [P, L]."""
    position_ids: Tensor
    """int64 [3, P, L]."""
    attention_mask: Tensor
    """bool [P, 1, L, L], true where a token sees another."""
    is_video: Tensor
    """bool [P, L]: the places of video features."""
    predictors: Tensor
    """int64 [P, G, T]: the place in the row whose hidden state predicts token t of completion g, 0 for padding."""

    @property
    def num_tokens(self) -> int:
        """Places computed, padding included."""
        return self.input_ids.numel()


def pack_groups(prompts: Sequence[Prompt], token_ids: Tensor, mask: Tensor, *, video_token_id: int) -> PackedGroups:
    """Pack P prompts and their completions, G consecutive rows of `token_ids` a prompt, into P rows.

    token_ids int64 [P*G, T]; mask bool [P*G, T]: true for a completion's tokens, which must come first in their row.
    ValueError if the rows do not divide into P groups or a mask has a gap.
    """
    num_groups, (num_rows, num_steps) = len(prompts), token_ids.shape
    if num_groups == 0 or num_rows % num_groups:
        raise ValueError(
            f"pack_groups: completions must come in equal groups, got {num_rows} completions for {num_groups} prompts; "
            "pass every completion of a prompt, next to each other"
        )
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError(
            "pack_groups: a completion's tokens must come before its padding, got a mask with a gap; "
            "right-pad the completions"
        )
    device = token_ids.device
    token_ids = token_ids.view(num_groups, -1, num_steps)
    kept = (mask.view(token_ids.shape).sum(-1) - 1).clamp(min=0)  # [P, G]: the last token predicts nothing
    prompt_lengths = torch.tensor([prompt.input_ids.numel() for prompt in prompts], device=device)
    offsets = prompt_lengths[:, None] + kept.cumsum(-1) - kept
    row_length = int((prompt_lengths + kept.sum(-1)).max())

    input_ids = torch.zeros(num_groups, row_length, dtype=torch.long, device=device)
    position_ids = torch.zeros(3, num_groups, row_length, dtype=torch.long, device=device)
    segments = torch.full((num_groups, row_length), -1, dtype=torch.long, device=device)  # 0 prompt, g + 1, -1 padding
    for row, prompt in enumerate(prompts):
        length = prompt.input_ids.numel()
        input_ids[row, :length] = prompt.input_ids
        position_ids[:, row, :length] = prompt.position_ids
        segments[row, :length] = 0
    is_video = (input_ids == video_token_id) & (segments == 0)

    group, rollout, step = (torch.arange(num_steps, device=device) < kept[..., None]).nonzero(as_tuple=True)
    place = offsets[group, rollout] + step
    input_ids[group, place] = token_ids[group, rollout, step]
    next_positions = torch.tensor([prompt.next_position for prompt in prompts], device=device)
    position_ids[:, group, place] = next_positions[group] + step
    segments[group, place] = rollout + 1
    return PackedGroups(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=_shared_prefix_mask(segments),
        is_video=is_video,
        predictors=_predictors(prompt_lengths, offsets, kept, num_steps),
    )


def _shared_prefix_mask(segments: Tensor) -> Tensor:
    """segments int64 [P, L] -> bool [P, 1, L, L]; padding sees itself alone, so that no softmax row is empty."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    key, query = segments[:, None, :], segments[:, :, None]
    visible = causal & ((key == 0) | (key == query)) & (query >= 0)
    return (visible | torch.eye(length, dtype=torch.bool, device=segments.device)).unsqueeze(1)


def _predictors(prompt_lengths: Tensor, offsets: Tensor, kept: Tensor, num_steps: int) -> Tensor:
    """int64 [P, G, T]: prompt's last place for the first token, the place of the token before for the others."""
    steps = torch.arange(num_steps, device=offsets.device)
    places = offsets[..., None] + steps - 1
    places[..., 0] = (prompt_lengths - 1)[:, None]
    return places.where(steps <= kept[..., None], 0)


# From the head and the hidden states [P*G, T, D] that predict the completions' tokens to what leaves the forward.
AtHead = Callable[[torch.nn.Linear, Tensor], Tensor]


@dataclass(frozen=True)
class PackedForward:
    """Packed rows through a model's own forward.

    Note [The wrapped forward]: what wraps a model (DDP, FSDP2, accelerate's autocast) does its work around the
    module's forward and looks at what comes out of it. So the whole way from token ids to the loss runs inside one
    call of the wrapped module: one hook puts the video features (from a trained vision tower, with its gradients) in
    their places where the forward begins, another takes the hidden states at the head, and what is computed there
    leaves the forward in place of the logits.
    """

    model: torch.nn.Module
    """What is called: `core`, or what wraps it."""
    core: PreTrainedModel
    """The model itself, inside."""

    def __call__(self, prompts: Sequence[PreparedPrompt], token_ids: Tensor, mask: Tensor, at_head: AtHead) -> Tensor:
        """What `at_head` makes of the head and of the hidden states [P*G, T, D], in the head's dtype.

        token_ids int64 [P*G, T], mask bool [P*G, T] as for `pack_groups`. lm_head of [:, t] gives token t's
        distribution; places of padding hold an unrelated hidden state, which the mask must cover. Gradients flow to
        the language model and, where `prompts` hold pixels, to the vision tower.
        """
        core = self.core
        packed = pack_groups(prompts, token_ids, mask, video_token_id=core.config.video_token_id)

        # Of the language model's inputs those that the model's own forward does not hand on; see
        # Note [Features of several depths].
        deeper: dict[str, Any] = {}

        def with_videos(_: torch.nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            features = [prompt.features for prompt in through_tower(core, prompts)]
            deeper.update(language_inputs(core, packed.input_ids, packed.is_video, features))
            return arguments, {**options, "input_ids": None, "inputs_embeds": deeper.pop("inputs_embeds")}

        def with_depths(_: torch.nn.Module, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return arguments, {**options, **deeper}

        def at_predictors(head: torch.nn.Linear, hidden: Tensor) -> Tensor:
            num_groups, num_rollouts, num_steps = packed.predictors.shape
            states = hidden.take_along_dim(packed.predictors.view(num_groups, -1, 1), dim=1)
            states = states.view(num_groups * num_rollouts, num_steps, -1)
            with torch.autocast(hidden.device.type, enabled=False):
                return at_head(head, states.to(head.weight.dtype))

        handles = [
            core.model.register_forward_pre_hook(with_videos, with_kwargs=True),
            core.model.language_model.register_forward_pre_hook(with_depths, with_kwargs=True),
        ]
        try:
            with HeadProbe(core.lm_head, at_predictors, leaves=lambda result: result):
                output = self.model(
                    input_ids=packed.input_ids,
                    position_ids=packed.position_ids,
                    attention_mask=additive_mask(core, packed.attention_mask),
                    use_cache=False,
                )
        finally:
            for handle in handles:
                handle.remove()
        return cast(Tensor, output.logits)
