"""Fixtures of the trainer's tests: clips, a random tiny model, a trainer of short runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.zoom_clips import clip_rows
from transformers import Qwen2_5_VLForConditionalGeneration

from zoomzero.inputs import VideoInputs
from zoomzero.synthetic import tiny_model, tiny_processor
from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer, collect, scoring

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return clip_rows(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def processor() -> VideoInputs:
    return tiny_processor()


@pytest.fixture
def model(processor: VideoInputs) -> Qwen2_5_VLForConditionalGeneration:
    return tiny_model(processor.tokenizer)


@pytest.fixture
def build(
    model: Qwen2_5_VLForConditionalGeneration, processor: VideoInputs, rows: list[Row], tmp_path: Path
) -> Callable[..., ZoomZeroTrainer]:
    """A trainer of two groups of four short rollouts per step; keyword arguments change the settings."""

    def make(**changes: Any) -> ZoomZeroTrainer:
        settings = {
            "output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 1,
            "num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 6, "max_steps": 1,
            "learning_rate": 1e-3, "logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant",
            **changes,
        }  # fmt: skip
        start = settings.pop("model", model)
        data = settings.pop("train_dataset", rows)
        evaluation = settings.pop("eval_dataset", None)
        lora = settings.pop("peft_config", None)
        return ZoomZeroTrainer(start, ZoomZeroConfig(**settings), data, evaluation, processor, peft_config=lora)

    return make


@pytest.fixture
def varied_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards that differ within a group: a random model earns none, and equal rewards train nothing."""
    real = scoring.score

    def varied(*args: Any, **options: Any) -> scoring.Scores:
        scores = real(*args, **options)
        generator = torch.Generator().manual_seed(3)
        return scoring.Scores(
            torch.rand(scores.rewards.shape, generator=generator), scores.spans, scores.num_zoom_prompts
        )

    monkeypatch.setattr(collect, "score", varied)
