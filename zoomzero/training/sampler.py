"""The sampler that the settings ask for."""

from __future__ import annotations

import tempfile

from transformers import PreTrainedModel

from zoomzero.inputs import VideoInputs
from zoomzero.models.adapters import merged_weights
from zoomzero.rollouts.vllm import VllmSampler
from zoomzero.training.config import ZoomZeroConfig


def vllm_sampler(model: PreTrainedModel, processor: VideoInputs, config: ZoomZeroConfig) -> VllmSampler:
    """vLLM beside the policy, which it gets as a checkpoint in a folder that is gone afterwards.

    Raises:
        ImportError: vLLM is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=merged_weights(model))
        processor.save_pretrained(folder)
        return VllmSampler(
            folder,
            model,
            max_length=config.vllm_max_model_length,
            memory_fraction=config.vllm_gpu_memory_utilization,
        )
