"""ZoomZeroTrainer on real clips and a random tiny model: the loss, whole steps, refusals."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.plain_rows import full_row_logits
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from trl import GRPOConfig

from zoomzero import responses
from zoomzero.inputs import VideoInputs
from zoomzero.responses import Response
from zoomzero.synthetic import tiny_model, tiny_processor
from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer, collect, scoring
from zoomzero.training import trainer as trainer_module
from zoomzero.training.groups import GroupBatch
from zoomzero.training.loss import group_logps
from zoomzero.training.packing import PackedForward
from zoomzero_kernels.reference import grpo_loss

Row = dict[str, Any]
Build = Callable[..., ZoomZeroTrainer]


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "bnpo", "dr_grpo"])
def test_loss_and_gradients_equal_plain_rows(build: Build, varied_rewards: None, loss_type: str) -> None:
    """The whole path against transformers' forward with the video and the plain-torch loss, gradients included."""
    trainer = build(loss_type=loss_type, beta=0.1, freeze_vision=False, num_iterations=2, temperature=0.8)
    policy = trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs([row for row in trainer.train_dataset.select([0, 3]) for _ in range(4)])
    groups: GroupBatch = batch["groups"]
    # Move the policy away from the one that generated, so that ratios and KL are not trivial.
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter) * parameter.std().nan_to_num(0.0))
    loss = trainer.compute_loss(policy, batch)
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()

    logits = torch.zeros(*groups.token_ids.shape, policy.config.text_config.vocab_size)
    for index, (ids, keep) in enumerate(zip(groups.token_ids, groups.mask, strict=True)):
        row = trainer.train_dataset[(0, 3)[index // 4]]
        inputs = trainer.encoder.processor(row["video"], row["question"], row["options"])
        logits[index, : int(keep.sum())] = full_row_logits(policy, inputs, ids[keep])
    expected = grpo_loss(
        logits, groups.token_ids, groups.advantages, groups.mask, old_logps=groups.old_logps,
        ref_logps=groups.ref_logps, temperature=0.8, beta=0.1, clip_low=0.2, clip_high=0.28, loss_type=loss_type,
        max_completion_length=6, num_items=groups.num_items,
    ).loss  # fmt: skip
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    assert groups.old_logps is not None
    assert float(groups.advantages.abs().max()) > 0.1
    expected.backward()
    for name, parameter in policy.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(ours[name], parameter.grad, rtol=0, atol=1e-3 * scale, msg=f"gradient of {name}")


def test_the_loss_sees_the_policy_that_generated(build: Build, varied_rewards: None) -> None:
    """log-probabilities of the loss = those of sampling; with the video dropped they would differ."""
    trainer = build(num_iterations=2, beta=0.05)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs([row for row in trainer.train_dataset.select([0, 2]) for _ in range(4)])
    groups = batch["groups"]
    logps = group_logps(PackedForward(trainer.model, trainer.model), groups, trainer.temperature).detach()
    gap = ((logps - groups.old_logps) * groups.mask).abs().max()
    assert float(gap) < 2e-5
    # The reference is the start model, which the policy still is.
    assert float(((groups.ref_logps - groups.old_logps) * groups.mask).abs().max()) < 2e-5


# -- whole steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze_vision", [True, False])
def test_a_step_trains_what_it_should(build: Build, varied_rewards: None, freeze_vision: bool) -> None:
    trainer = build(freeze_vision=freeze_vision, max_steps=2)
    before = _weights(trainer.model)
    reference = _weights(trainer.reference.model)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        frozen = freeze_vision and name.startswith("model.visual.")
        assert torch.equal(parameter, before[name]) is frozen, name
    for name, parameter in trainer.reference.model.named_parameters():
        assert torch.equal(parameter, reference[name]), name
    logs = trainer.state.log_history[0]
    for name in (
        "loss", "reward", "rewards/format/mean", "rewards/zoom/mean", "rewards/iou/mean", "rewards/answer/mean", "miou",
        "zoom_accuracy", "zoom_prompts", "fraction_without_span", "clip_ratio/region_mean", "kl", "entropy",
        "seconds/frames", "seconds/waited_for_frames", "seconds/generation", "seconds/rewards", "seconds/reference",
        "seconds/loss", "step_time",
        "completions/mean_length", "completions/clipped_ratio",
    ):  # fmt: skip
        assert name in logs, name
    assert logs["grad_norm"] > 0


def test_gradient_accumulation_equals_one_batch(build: Build, varied_rewards: None, processor: VideoInputs) -> None:
    """The same four groups in one micro-batch or in two, dapo: the same step."""
    weights = []
    for settings in ({"per_device_train_batch_size": 16}, {"gradient_accumulation_steps": 2}):
        trainer = build(model=tiny_model(processor.tokenizer), **settings)
        trainer.train()
        weights.append(_weights(trainer.model))
    for name, value in weights[0].items():
        # Adam divides by the gradient's size, so a rounding of tiny gradients shows in the weights.
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4, msg=f"{name} differs")


def test_gradient_checkpointing_gives_the_same_step(build: Build, varied_rewards: None, processor: VideoInputs) -> None:
    weights = []
    for checkpointing in (False, True):
        trainer = build(
            model=tiny_model(processor.tokenizer), gradient_checkpointing=checkpointing, freeze_vision=False
        )
        trainer.train()
        weights.append(_weights(trainer.model))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-3, atol=1e-4, msg=f"{name} differs")


def test_mixed_precision_trains(build: Build, varied_rewards: None) -> None:
    trainer = build(bf16=True, num_iterations=2, max_steps=2)
    before = _weights(trainer.model)
    trainer.train()
    assert trainer.model.dtype == torch.float32
    assert not torch.equal(trainer.model.lm_head.weight, before["model.language_model.embed_tokens.weight"])
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    # bfloat16 keeps eight bits: sampling and loss agree to a few per cent, so no ratio of an unchanged policy clips.
    assert trainer.state.log_history[0]["clip_ratio/region_mean"] == 0


def test_prompts_generated_apart_are_joined(build: Build) -> None:
    trainer = build(forward_tokens=1)
    trainer.model.train()
    groups = trainer._generate_and_score_completions(
        [row for row in trainer.train_dataset.select([0, 1, 2]) for _ in range(4)]
    )["groups"]
    assert len(groups.prompts) == 3
    assert groups.token_ids.shape[0] == groups.advantages.shape[0] == 12


def test_training_raises_the_reward(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that any policy can learn, the share of capitals, with a second column that says nothing."""
    means: list[float] = []

    def capitals(encoder: Any, scorer: Any, rows: list[Row], responses: list[Response], size: int) -> scoring.Scores:
        texts = [response.text for response in responses]
        share = torch.tensor([sum(char.isupper() for char in text) / max(1, len(text)) for text in texts])
        means.append(float(share.mean()))
        rewards = torch.stack((share, torch.rand(len(texts)), share, share), dim=1)
        return scoring.Scores(rewards, [[] for _ in texts], 0)

    monkeypatch.setattr(collect, "score", capitals)
    trainer = build(max_steps=30, num_generations=8, per_device_train_batch_size=32, learning_rate=2e-3, beta=0.0)
    trainer.train()
    start, end = sum(means[:3]) / 3, sum(means[-3:]) / 3
    assert end > start + 0.3, (start, end)


def test_iterations_reuse_the_rollouts(build: Build, varied_rewards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = collect.generate
    monkeypatch.setattr(collect, "generate", lambda *a: calls.append(1) or real(*a))
    trainer = build(num_iterations=3, max_steps=6)
    trainer.train()
    assert len(calls) == 2


def test_without_zoom_reward_and_kl_there_is_no_reference(build: Build, varied_rewards: None) -> None:
    trainer = build(zoom_reward=False, beta=0.0, credit="uniform", advantage_normalize="sequence")
    assert trainer.reference is None
    trainer.train()
    assert "zoom_accuracy" not in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["kl"] == 0.0


def test_the_policy_can_score_its_own_zoom(build: Build) -> None:
    trainer = build(zoom_scorer="policy", beta=0.0)
    assert trainer.reference is None
    with trainer._collector._zoom_scorer(trainer.model) as scorer:
        assert scorer is trainer.model
    other = build(zoom_scorer="reference")
    assert other.reference is not None
    with other._collector._zoom_scorer(other.model) as scorer:
        assert scorer is other.reference.model


def test_truncated_responses_leave_the_loss_when_asked(build: Build) -> None:
    trainer = build(mask_truncated_completions=True)
    trainer.model.train()
    rows = [row for row in trainer.train_dataset.select([0]) for _ in range(4)]
    groups = trainer._generate_and_score_completions(rows)["groups"]
    stopped = torch.tensor([trainer._tokenizer.eos_token_id in ids for ids in groups.token_ids.tolist()])
    assert groups.mask.any(-1).tolist() == stopped.tolist()
    assert groups.num_items == int(groups.mask.sum())


def test_a_batch_parses_each_response_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards, spans to zoom into and token segments all take the parsed response."""
    parsed: list[str] = []
    real = responses._is_well_formed  # what `parse` does once, at its end
    monkeypatch.setattr(responses, "_is_well_formed", lambda text, *rest: parsed.append(text) or real(text, *rest))
    trainer = build(zoom_reward=False)
    trainer.model.train()
    trainer._generate_and_score_completions([row for row in trainer.train_dataset.select([0, 1]) for _ in range(4)])
    assert len(parsed) == 8


def test_uninformative_groups_leave_the_loss_when_asked(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build(online_filter=True)
    trainer.model.train()
    rewards = torch.tensor([[0, 0, 0, 1.0]] * 4 + [[0, 0, 0, 1.0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    monkeypatch.setattr(collect, "score", lambda *a, **k: scoring.Scores(rewards, [[]] * 8, 0))
    groups = trainer._generate_and_score_completions(
        [row for row in trainer.train_dataset.select([0, 1]) for _ in range(4)]
    )["groups"]
    assert groups.mask.any(-1).tolist() == [False] * 4 + [True] * 4
    assert groups.num_items == int(groups.mask[4:].sum())
    assert bool((groups.advantages[:4] == 0).all())
    assert trainer._metrics["train"]["filtered_fraction"] == [0.5]


def test_a_resumed_run_equals_an_uninterrupted_one(
    build: Build, varied_rewards: None, processor: VideoInputs, tmp_path: Path
) -> None:
    start = tiny_model(processor.tokenizer)
    folder = tmp_path / "resumed"
    whole = build(model=copy.deepcopy(start), max_steps=2, output_dir=str(folder), save_strategy="steps", save_steps=1)
    whole.train()
    saved = folder / "checkpoint-1"
    assert (saved / "zoomzero.json").is_file()
    resumed = build(model=copy.deepcopy(start), max_steps=2, output_dir=str(tmp_path / "again"))
    resumed.train(resume_from_checkpoint=str(saved))
    assert resumed.state.global_step == 2
    for name, value in _weights(whole.model).items():
        torch.testing.assert_close(value, resumed.model.get_parameter(name), rtol=0, atol=1e-6, msg=f"{name} differs")


def test_a_path_is_loaded_with_its_processor_in_float32(
    build: Build, model: Qwen2_5_VLForConditionalGeneration, processor: VideoInputs, rows: list[Row], tmp_path: Path
) -> None:
    folder = tmp_path / "start"
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    config = ZoomZeroConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], num_generations=4)
    trainer = ZoomZeroTrainer(str(folder), config, rows)
    assert trainer.model.dtype == torch.float32
    assert trainer.encoder.processor.settings == processor.settings
    torch.testing.assert_close(trainer.model.lm_head.weight, model.lm_head.weight.float())


def test_evaluation_logs_the_same_metrics(build: Build, rows: list[Row]) -> None:
    trainer = build(eval_dataset=rows[:2], per_device_eval_batch_size=8)
    metrics = trainer.evaluate()
    assert {"eval_miou", "eval_zoom_accuracy", "eval_loss"} <= set(trainer.state.log_history[-1]) | set(metrics)


def test_completions_can_be_logged(build: Build, varied_rewards: None, tmp_path: Path) -> None:
    trainer = build(log_completions=True)
    trainer.train()
    assert len(trainer._logs["completion"]) == 8
    assert len(list((tmp_path / "run" / "completions").glob("*.parquet"))) == 1


@pytest.mark.cuda
def test_a_step_runs_on_the_gpu(build: Build, varied_rewards: None) -> None:
    trainer = build(use_cpu=False, max_steps=2, num_iterations=2)
    trainer.train()
    assert trainer.model.device.type == "cuda"
    assert trainer.state.log_history[0]["clip_ratio/region_mean"] == 0  # first iteration: ratios of 1


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_wrong_arguments_are_refused(
    build: Build, model: Qwen2_5_VLForConditionalGeneration, processor: VideoInputs, rows: list[Row], tmp_path: Path
) -> None:
    config = ZoomZeroConfig(output_dir=str(tmp_path), use_cpu=True, num_generations=4)
    with pytest.raises(TypeError, match="args must be a ZoomZeroConfig, got GRPOConfig"):
        ZoomZeroTrainer(model, GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False), rows, None, processor)
    with pytest.raises(TypeError, match="processing_class must be a VideoInputs, got NoneType"):
        ZoomZeroTrainer(model, config, rows)
    with pytest.raises(
        TypeError, match=r"must be one of transformers' .*Qwen2_5_VLForConditionalGeneration.* got Linear"
    ):
        ZoomZeroTrainer(torch.nn.Linear(1, 1), config, rows, None, processor)
    with pytest.raises(
        TypeError, match=r"train_dataset must be a datasets.Dataset or a non-empty list of rows, got list"
    ):
        build(train_dataset=[])
    with pytest.raises(ValueError, match=r"train_dataset must have the columns .*add answer"):
        build(train_dataset=[{key: value for key, value in rows[0].items() if key != "answer"}])


def test_trls_reward_hook_is_never_called() -> None:
    with pytest.raises(RuntimeError, match="rewards are computed with the batch"):
        trainer_module._rewards_of_a_batch(prompts=[], completions=[])


def test_rows_are_checked_at_construction(build: Build, rows: list[Row]) -> None:
    token = tiny_processor().tokenizer.all_special_tokens[0]
    with pytest.raises(ValueError, match=r"train_dataset, row 1: a text must not hold the special token"):
        build(train_dataset=[rows[0], {**rows[1], "question": f"Which {token}?"}])
    with pytest.raises(ValueError, match=r"eval_dataset, row 0: 'answer' must be a letter"):
        build(eval_dataset=[{**rows[1], "answer": "?"}])


# The last needs six: two micro-batches of three groups are generated together.
@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"per_device_train_batch_size": 20}, 5),
        ({"gradient_accumulation_steps": 3}, 6),
        ({"per_device_train_batch_size": 12, "steps_per_generation": 2}, 6),
    ],
)
def test_fewer_rows_than_a_step_needs_are_refused(build: Build, changes: dict[str, Any], needed: int) -> None:
    with pytest.raises(ValueError, match=rf"a step needs {needed} rows, one per group, got 4 in train_dataset"):
        build(**changes)
