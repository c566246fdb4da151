"""The parts of the trainer: settings, batches, caches, credit, and the check of TRL's private hooks."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zoomzero.looks.byte_bounded import ByteBoundedCache
from zoomzero.rewards import credit_matrix, informative_groups
from zoomzero.rollouts import Rollouts
from zoomzero.rollouts.vllm import VllmSampler
from zoomzero.synthetic import tiny_model
from zoomzero.training.config import UNSUPPORTED, UNSUPPORTED_OF_VLLM, ZoomZeroConfig
from zoomzero.training.groups import GroupBatch, group_rows, join_rollouts

OTHER_VALUES_OF_VLLM = {
    "vllm_mode": "server", "vllm_model_impl": "transformers", "vllm_tensor_parallel_size": 2,
    "vllm_structured_outputs_regex": ".*",
}  # fmt: skip
# A value other than the only supported one, for every setting of TRL that is refused.
OTHER_VALUES = {
    "use_transformers_continuous_batching": True, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
    "repetition_penalty": 1.1, "generation_kwargs": {"num_beams": 2}, "cache_implementation": "static",
    "multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "batch",
    "importance_sampling_level": "sequence", "top_entropy_quantile": 0.5, "entropy_coef": 0.1,
    "use_adaptive_entropy": True, "off_policy_mask_threshold": 0.5, "use_bias_correction_kl": True,
    "sync_ref_model": True, "router_aux_loss_coef": 0.1, "cast_lm_head_to_fp32": True, "use_liger_kernel": True,
    "load_best_model_at_end": True,
    "chat_template_kwargs": {"x": 1}, "pad_to_multiple_of": 8,
}  # fmt: skip


def _config(tmp_path: Path, **changes: object) -> ZoomZeroConfig:
    return ZoomZeroConfig(
        **{
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "num_generations": 4,
            "per_device_train_batch_size": 8,
            **changes,
        }
    )


def test_every_unsupported_setting_has_a_test_value() -> None:
    assert {name for name, _, _ in UNSUPPORTED} == set(OTHER_VALUES)
    assert {name for name, _, _ in UNSUPPORTED_OF_VLLM} == set(OTHER_VALUES_OF_VLLM)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_unsupported_settings_are_refused(tmp_path: Path, name: str) -> None:
    # transformers wants the two strategies to agree before it looks at load_best_model_at_end.
    others = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 500, name: OTHER_VALUES[name]}
    with pytest.raises(ValueError, match=f"{name} must stay .* got .*does not implement it"):
        _config(tmp_path, **others)


@pytest.mark.parametrize("name", OTHER_VALUES_OF_VLLM)
def test_unsupported_settings_of_vllm_are_refused_where_it_is_used(tmp_path: Path, name: str) -> None:
    value = {name: OTHER_VALUES_OF_VLLM[name]}
    _config(tmp_path, **value)
    with pytest.raises(ValueError, match=f"{name} must stay .* got .*does not implement it"):
        _config(tmp_path, use_vllm=True, **value)


def test_vllms_responses_are_weighed_by_the_ratio_to_what_it_sampled_from(tmp_path: Path) -> None:
    assert not _config(tmp_path).is_off_policy
    assert not _config(tmp_path, use_vllm=True).is_off_policy


def test_a_missing_vllm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"VllmSampler: vLLM must be installed, got: .*run without vLLM"):
        VllmSampler(tmp_path, tiny_model())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"credit": "all"}, "credit must be one of token_adv, span_adv, uniform, got 'all'"),
        ({"advantage_normalize": "group"}, "advantage_normalize must be one of tokens, segments, .*got 'group'"),
        ({"zoom_scorer": "judge"}, "zoom_scorer must be one of reference, policy, got 'judge'"),
        ({"loss_type": "ppo"}, "loss_type must be one of grpo, bnpo, dr_grpo, dapo, .* got 'ppo'"),
        ({"feature_cache_bytes": 0}, "feature_cache_bytes must be at least 1, got 0"),
        ({"forward_tokens": 0}, "forward_tokens must be at least 1, got 0"),
        ({"read_ahead_bytes": -1}, "read_ahead_bytes must be at least 0, got -1"),
        ({"video_time_limit": 0.0}, "video_time_limit must be positive seconds or None, got 0.0"),
        ({"max_skipped_fraction": 5}, r"max_skipped_fraction must be in \[0, 1\], got 5"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        (
            {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2},
            "multiple of num_generations.*got 6 and 4; use 8",
        ),
    ],
)
def test_settings_are_checked(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Mega"),
    ],
)
def test_other_plans_than_ddp_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    """accelerate ignores such a plan on a CPU without a word."""
    _config(tmp_path)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=f"several processes train by DDP or FSDP2, got {name}"):
        _config(tmp_path)


def test_processes_that_do_not_find_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would all train on all rows and write into one folder."""
    config = _config(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"must train together, got 2 processes and a world of 1; .*use_cpu=True"):
        config._check_launch()


def test_group_rows() -> None:
    rows = [{"question": name} for name in "aaabbb"]
    assert group_rows(rows, 3) == [{"question": "a"}, {"question": "b"}]
    with pytest.raises(ValueError, match="repeat each row 2 times in a run, got 6 rows"):
        group_rows(rows, 2)
    with pytest.raises(ValueError, match="repeat each row 3 times in a run, got 5 rows"):
        group_rows(rows[:5], 3)


def _groups(num_prompts: int) -> GroupBatch:
    rows = torch.arange(num_prompts * 2)[:, None]
    prompts = [SimpleNamespace(name=index) for index in range(num_prompts)]
    return GroupBatch(prompts, rows, rows > 0, rows.float(), None, rows.float(), None, num_items=7)


def test_split_keeps_groups_whole() -> None:
    first, second = _groups(4).split(2)
    assert [prompt.name for prompt in second.prompts] == [2, 3]
    assert second.token_ids.flatten().tolist() == [4, 5, 6, 7] == second.ref_logps.flatten().tolist()
    assert first.old_logps is None
    assert first.num_items == 7
    # What skipped groups leave is shared out as evenly as groups allow, a micro-batch may stay empty.
    assert [[prompt.name for prompt in part.prompts] for part in _groups(3).split(2)] == [[0, 1], [2]]
    assert [part.token_ids.flatten().tolist() for part in _groups(1).split(3)] == [[0, 1], [], []]
    assert [len(part.prompts) for part in GroupBatch.empty(torch.device("cpu")).split(2)] == [0, 0]


def test_joined_rollouts_are_padded_to_the_longest() -> None:
    def part(length: int) -> Rollouts:
        ones = torch.ones(2, length)
        return Rollouts(ones.long(), ones.bool(), -ones, torch.tensor([True, False]))

    joined = join_rollouts([part(2), part(3)], pad_token_id=9)
    assert joined.token_ids.tolist() == [[1, 1, 9], [1, 1, 9], [1, 1, 1], [1, 1, 1]]
    assert joined.mask.sum(1).tolist() == [2, 2, 3, 3]
    assert joined.logps[0].tolist() == [-1, -1, 0]
    assert joined.stopped.tolist() == [True, False, True, False]


def test_cache_drops_the_least_recently_used() -> None:
    dropped: list[str] = []
    cache: ByteBoundedCache[str] = ByteBoundedCache(6, len, dropped.append)
    for key in ("aa", "bb", "cc"):
        cache.put(key, key)
    assert cache.get("aa") == "aa"
    cache.put("dd", "dd")
    assert dropped == ["bb"]
    assert cache.get("bb") is None
    cache.put("large", "x" * 9)  # above the bound alone: kept for its use, the others go
    assert (len(cache), cache.num_bytes) == (1, 9)
    cache.put("large", "y")
    assert (cache.get("large"), cache.num_bytes) == ("y", 1)


@pytest.mark.parametrize("zoom_reward", [True, False])
def test_credit_matrices(zoom_reward: bool) -> None:
    published = credit_matrix("token_adv", zoom_reward=zoom_reward)
    third, zoom = 1 / 3, zoom_reward / 3
    expected = torch.tensor([[third] * 3, [zoom] * 3, [third, 0, third], [0, third, 0]])
    torch.testing.assert_close(published, expected)
    uniform = credit_matrix("uniform", zoom_reward=zoom_reward)
    assert uniform.shape == (4, 3)
    # format, zoom, iou, answer all 1: plain GRPO's total of 1 on every token, with or without zoom.
    torch.testing.assert_close(torch.ones(4) @ uniform, torch.ones(3))
    assert bool((uniform[1] == 0).all()) is not zoom_reward


def test_informative_groups() -> None:
    # Columns format, zoom, iou, answer. Kept: answers differ; IoU varies. Dropped: only format and zoom vary; none.
    groups = [
        [[1, 0, 0.5, 1], [1, 0, 0.5, 0]],
        [[1, 0, 0.5, 1], [1, 0, 0.6, 1]],
        [[1, 0, 0.5, 0], [0, 1, 0.5, 0]],
        [[1, 1, 0.9, 1], [1, 1, 0.9, 1]],
    ]
    rewards = torch.tensor(groups, dtype=torch.float32).flatten(0, 1)
    assert informative_groups(rewards, 2).tolist() == [True, True, False, False]
