"""The sampler that the settings ask for."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from transformers import PreTrainedModel

from zoomzero.inputs import VideoInputs
from zoomzero.models.families import family_of
from zoomzero.rollouts.vllm import VllmSampler, published_weights
from zoomzero.training.config import ZoomZeroConfig


def vllm_sampler(model: PreTrainedModel, processor: VideoInputs, config: ZoomZeroConfig) -> VllmSampler:
    """vLLM beside the policy, which it gets as a checkpoint in a folder that is gone afterwards.

    Raises:
        ImportError: vLLM is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Not save_pretrained, which only the first process of a launch obeys.
        weights = {name: value.cpu().contiguous().clone() for name, value in published_weights(model)}
        save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})
        saved = copy.deepcopy(model.config)
        saved.architectures = [family_of(saved).class_name]
        (Path(folder) / "config.json").write_text(saved.to_json_string(), encoding="utf-8")
        processor.save_pretrained(folder)
        return VllmSampler(
            folder,
            model,
            max_length=config.vllm_max_model_length,
            memory_fraction=config.vllm_gpu_memory_utilization,
            sleeps=config.vllm_enable_sleep_mode,
        )
