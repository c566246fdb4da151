"""Sampling by vLLM in this process: the policy's weights are copied into its engine, features are handed over.

A video is encoded once, here; vLLM gets its features in place of pixels, expands the prompt's one placeholder (and, for
Qwen3-VL, writes the labels with times) and computes the published positions itself. Log-probabilities come back of the
distribution that was sampled from, temperature included.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoomzero.models.adapters import merged_weights
from zoomzero.models.encoding import EncodedPrompt
from zoomzero.models.families import family_of
from zoomzero.rollouts import Rollouts, SamplingOptions
from zoomzero.rollouts.vllm_contract import require_vllm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class VllmSampler:
    """A `Sampler` that runs vLLM beside the policy, on the same device.

    Args:
        folder: a complete checkpoint of the policy, which vLLM loads; it is not needed afterwards.
        model: the policy, whose config says how prompts are laid out.
        max_length: longest prompt and response together, in tokens; the model's own bound unless told.
        memory_fraction: share of the GPU's memory that the engine may take, its weights included.
        sleeps: give that memory back between rollouts, its weights to the host's. Needs a GPU; written against vLLM's
            classes, not run.

    Raises:
        ImportError: vLLM is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: PreTrainedModel,
        *,
        max_length: int | None = None,
        memory_fraction: float = 0.3,
        sleeps: bool = False,
    ) -> None:
        # Weights are handed over as tensors, which another process could not take.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(
                f"VllmSampler: vLLM must be installed, got: {error}; install it, or run without vLLM"
            ) from error

        require_vllm()
        self._sleeps, self._is_asleep = sleeps, False
        self._config = model.config
        self._device = model.device
        self._times_in_prompt = family_of(model.config).times_in_prompt
        self._seconds_in_positions = family_of(model.config).seconds_in_positions
        is_launched = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        with _same_random_numbers():
            self._engine = LLM(
                model=os.fspath(folder),
                dtype=str(model.dtype).removeprefix("torch."),
                max_model_len=max_length,
                gpu_memory_utilization=memory_fraction,
                enforce_eager=self._device.type == "cpu",
                limit_mm_per_prompt={"video": 1, "image": 0},
                skip_mm_profiling=True,
                enable_mm_embeds=True,
                enable_sleep_mode=sleeps,
                # One engine per process of a launch, in the process group that is there.
                distributed_executor_backend="external_launcher" if is_launched else None,
                seed=torch.distributed.get_rank() if is_launched else 0,
                # Of the distribution that is sampled from, not of the one before the temperature.
                logprobs_mode="processed_logprobs",
            )

    @torch.no_grad()
    def load(self, model: PreTrainedModel) -> None:
        """Copy the policy's present weights into the engine, and drop what it computed with earlier ones."""
        self._wake()
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": published_weights(model)})
        self._engine.reset_prefix_cache()
        # reload_weights empties the worker's cache of features; the scheduler must not count on it any more.
        self._engine.llm_engine.reset_encoder_cache()

    def __call__(
        self, prompts: Sequence[EncodedPrompt], options: SamplingOptions, generator: torch.Generator | None = None
    ) -> Rollouts:
        """As `Sampler`; `generator` seeds every prompt's random numbers.

        On the CPU vLLM fails on seeded prompts that it prefills in parts: more than its max_num_batched_tokens at once.

        Raises:
            ValueError: there is no prompt, or one without its videos' grids.
        """
        from vllm import SamplingParams

        if not prompts:
            raise ValueError("VllmSampler: needs at least one prompt, got none; skip the call for an empty batch")
        seeds: list[int | None] = [None] * len(prompts)
        if generator is not None:
            seeds = torch.randint(1 << 31, (len(prompts),), generator=generator, device=generator.device).tolist()
        sampling = [
            SamplingParams(
                n=options.num_generations,
                temperature=options.temperature,
                max_tokens=options.max_new_tokens,
                stop_token_ids=list(options.eos_token_ids),
                logprobs=options.num_top_logps,
                seed=seed,
                detokenize=False,
            )
            for seed in seeds
        ]
        self._wake()
        outputs = self._engine.generate([self._request(prompt) for prompt in prompts], sampling, use_tqdm=False)
        if self._sleeps:
            # Level 1 keeps the weights, in the host's memory: an evaluation samples again without a `load`.
            self._engine.sleep(level=1)
            self._is_asleep = True
        responses = [response for output in outputs for response in output.outputs]
        return _rollouts(responses, options, self._device)

    def next_token_logps(self, prompts: Sequence[EncodedPrompt], token_ids: Sequence[int]) -> Tensor:
        """Log-probabilities float32 [P, n] of the tokens `token_ids` [n] behind each prompt, without any temperature.

        Raises:
            ValueError: there is no prompt, or one without its videos' grids.
        """
        from vllm import SamplingParams

        if not prompts:
            raise ValueError("VllmSampler: needs at least one prompt, got none; skip the call for an empty batch")
        ids = list(token_ids)
        sampling = SamplingParams(
            temperature=0.0, max_tokens=1, logprobs=len(ids), logprob_token_ids=ids, detokenize=False
        )
        outputs = self._engine.generate([self._request(prompt) for prompt in prompts], sampling, use_tqdm=False)
        first = [output.outputs[0].logprobs[0] for output in outputs]
        return torch.tensor([[step[token].logprob for token in ids] for step in first], device=self._device)

    def _wake(self) -> None:
        if self._is_asleep:
            self._engine.wake_up()
            self._is_asleep = False

    def _request(self, prompt: EncodedPrompt) -> dict[str, Any]:
        """A prompt as vLLM takes it."""
        if len(prompt.videos) != 1:
            raise ValueError(
                f"VllmSampler: a prompt must have one video with its grid, got {len(prompt.videos)}; use prompts that "
                "the trainer prepared"
            )
        (video,) = prompt.videos
        data: dict[str, Any] = {
            "video_embeds": prompt.features.detach(),
            "video_grid_thw": torch.tensor([video.grid]),
        }
        if self._seconds_in_positions:
            data["second_per_grid_ts"] = torch.tensor([video.seconds])
        if self._times_in_prompt:
            data["timestamps"] = [list(video.times)]
        return {"prompt_token_ids": self._with_one_placeholder(prompt), "multi_modal_data": {"video": data}}

    def _with_one_placeholder(self, prompt: EncodedPrompt) -> list[int]:
        """The prompt's ids with one placeholder in place of all that the processor wrote for the video."""
        ids: list[int] = prompt.input_ids.tolist()
        first, last = _span(ids, self._config.video_token_id, self._config.video_token_id)
        if self._times_in_prompt:
            # Within the template's own pair of vision tokens, which stays around all frames.
            first, last = _span(ids, self._config.vision_start_token_id, self._config.vision_end_token_id)
            first, last = first + 1, last - 1
        return [*ids[:first], self._config.video_token_id, *ids[last + 1 :]]


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Keep this process's random state: an engine that is made seeds it anew."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _span(ids: list[int], first: int, last: int) -> tuple[int, int]:
    """Places of the first token `first` and of the last token `last`."""
    return ids.index(first), len(ids) - 1 - ids[::-1].index(last)


def published_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights, adapters merged, under the names of published checkpoints, which vLLM knows."""
    from transformers.core_model_loading import revert_weight_conversion

    yield from revert_weight_conversion(model, merged_weights(model)).items()


def _rollouts(responses: Sequence[Any], options: SamplingOptions, device: torch.device) -> Rollouts:
    """vLLM's completions as padded tensors."""
    length, count = max(len(response.token_ids) for response in responses), len(responses)
    token_ids = torch.full((count, length), options.pad_token_id)
    mask = torch.zeros(count, length, dtype=torch.bool)
    logps = torch.zeros(count, length)
    top = torch.zeros(count, length, options.num_top_logps) if options.num_top_logps else None
    for row, response in enumerate(responses):
        ids = list(response.token_ids)
        token_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
        logps[row, : len(ids)] = torch.tensor(
            [step[token].logprob for token, step in zip(ids, response.logprobs, strict=True)]
        )
        if top is not None:
            for place, step in enumerate(response.logprobs):
                ranked = sorted((entry.logprob for entry in step.values()), reverse=True)
                top[row, place] = torch.tensor(ranked[: options.num_top_logps])
    stopped = torch.tensor([response.finish_reason == "stop" for response in responses])
    return Rollouts(
        token_ids.to(device),
        mask.to(device),
        logps.to(device),
        stopped.to(device),
        None if top is None else top.to(device),
    )
