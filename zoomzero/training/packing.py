"""Shared-prefix packing: one row holds every prompt once, each followed by all completions of its group.

Problem: GRPO's log-probability and gradient passes run G full rows per prompt, so the prompt (nearly all tokens when it
holds a video) is computed G times, forward and backward. Packed, the groups [prompt | completion 0 | ... | completion
G-1] of a batch lie in one row without padding; a token sees its prompt and its own completion only, and every
completion's positions count from its prompt's end, so each hidden state equals the one of the unpacked row. A
completion's last token predicts nothing and is left out. The first token of every completion is predicted from the
prompt's last position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zoomzero.looks import PreparedPrompt, through_tower
from zoomzero.models.encoding import language_inputs
from zoomzero.models.head import HeadProbe
from zoomzero.models.packed_attention import PackedLengths, packed_arguments, use_packed_attention


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
    """A row of N tokens that holds P prompts and their P * G completions of at most T tokens."""

    input_ids: Tensor
    """int64 [1, N]."""
    position_ids: Tensor
    """int64 [3, 1, N]."""
    lengths: PackedLengths
    """Of the prompts and their completions in the row."""
    is_video: Tensor
    """bool [1, N]: the places of video features."""
    predictors: Tensor
    """int64 [P*G, T]: the place in the row whose hidden state predicts token t of a completion, 0 for padding."""

    @property
    def num_tokens(self) -> int:
        """Tokens computed."""
        return self.input_ids.numel()


def pack_groups(prompts: Sequence[Prompt], token_ids: Tensor, mask: Tensor, *, video_token_id: int) -> PackedGroups:
    """Pack P prompts and their completions, G consecutive rows of `token_ids` per prompt, into one row.

    token_ids int64 [P*G, T]; mask bool [P*G, T]: true for a completion's tokens, which must come first in their row.
    ValueError if the rows do not divide into P groups or a mask has a gap.
    """
    num_groups, (num_rows, num_steps) = len(prompts), token_ids.shape
    if num_groups == 0 or num_rows % num_groups:
        raise ValueError(
            f"pack_groups: completions must come in equal groups, got {num_rows} completions for {num_groups} prompts; "
            "pass every completion of a prompt, next to each other"
        )
    real = mask.cpu()
    if bool((real[:, 1:] & ~real[:, :-1]).any()):
        raise ValueError(
            "pack_groups: a completion's tokens must come before its padding, got a mask with a gap; "
            "right-pad the completions"
        )
    kept = (real.view(num_groups, -1, num_steps).sum(-1) - 1).clamp(min=0).tolist()  # the last token predicts nothing
    steps = torch.arange(num_steps, device=token_ids.device).expand(3, -1)
    input_ids, position_ids, is_video = [], [], []
    for prompt, completions, lengths in zip(prompts, token_ids.view(num_groups, -1, num_steps), kept, strict=True):
        is_video += [prompt.input_ids == video_token_id, steps.new_zeros(sum(lengths), dtype=torch.bool)]
        input_ids += [prompt.input_ids, *(row[:length] for row, length in zip(completions, lengths, strict=True))]
        position_ids += [prompt.position_ids, *(prompt.next_position + steps[:, :length] for length in lengths)]
    lengths_of_all = PackedLengths([prompt.input_ids.numel() for prompt in prompts], kept)
    return PackedGroups(
        input_ids=torch.cat(input_ids)[None],
        position_ids=torch.cat(position_ids, dim=1)[:, None],
        lengths=lengths_of_all,
        is_video=torch.cat(is_video)[None],
        predictors=_predictors(lengths_of_all, num_steps).to(token_ids.device),
    )


def _predictors(lengths: PackedLengths, num_steps: int) -> Tensor:
    """int64 [P*G, T]: prompt's last place for the first token, the place of the token before for the others."""
    rows: list[Tensor] = []
    place = 0
    for prompt, completions in zip(*lengths, strict=True):
        place += prompt
        prompt_end = place - 1
        for length in completions:
            row = torch.zeros(num_steps, dtype=torch.long)
            row[0] = prompt_end
            row[1 : length + 1] = torch.arange(place, place + length)
            rows.append(row)
            place += length
    return torch.stack(rows)


# From the head and the hidden states [P*G, T, D] that predict the completions' tokens to what leaves the forward.
AtHead = Callable[[torch.nn.Linear, Tensor], Tensor]


@dataclass(frozen=True)
class PackedForward:
    """Packed groups through a model's own forward.

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
        use_packed_attention(core)

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
            states = hidden[0][packed.predictors]
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
                    **packed_arguments(packed.lengths, packed.input_ids.device),
                )
        finally:
            for handle in handles:
                handle.remove()
        return cast(Tensor, output.logits)
