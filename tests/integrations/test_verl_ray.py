"""The launch of verl on Ray: its configuration, and our two parts through verl's and its queue's own functions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.rival_libraries import import_rival
from torch import Tensor

transfer_queue = import_rival("transfer_queue")
verl_ray = import_rival("zoomzero.integrations.verl_ray")

from tensordict import NonTensorStack, TensorDict  # noqa: E402  # these imports need verl
from verl import DataProto  # noqa: E402
from verl.trainer.ppo.reward import load_reward_manager, resolve_reward_manager_cls  # noqa: E402

from zoomzero.responses import parse, token_segments  # noqa: E402
from zoomzero.rewards import REWARDS, credit_matrix  # noqa: E402
from zoomzero.synthetic import tiny_processor  # noqa: E402
from zoomzero_kernels import reference  # noqa: E402

BATCH_SIZES = (
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.rollout.name=vllm",
    "data.train_batch_size=2",
    "trainer.n_gpus_per_node=1",
)
TRUTH = {"spans": [[1.0, 3.0]], "answer": "A", "duration": 32.0}
TEXTS = [
    "<think>red at <time>(1, 2)</time></think>\n<answer>A</answer>\n<glue>[(1.0, 3.0)]</glue>",
    "<think>red at <time>(2, 3)</time></think>\n<answer>B</answer>\n<glue>[(2.0, 4.0)]</glue>",
    "<answer>A</answer>",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_processor().tokenizer


def _ids(tokenizer: Any, text: str) -> Tensor:
    return torch.tensor([*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id])


def test_the_launch_composes_verls_configuration() -> None:
    config = verl_ray.launch_config([*BATCH_SIZES, "algorithm.zoomzero.normalize=tokens", "data.train_files=x"])
    assert (config.trainer.v1.trainer_mode, config.data.train_files) == ("sync", "x")
    assert dict(config.algorithm.zoomzero) == {"credit": "token_adv", "normalize": "tokens"}
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "zoomzero"
    assert resolve_reward_manager_cls(config) is verl_ray.ZoomZeroRewardManager
    with pytest.raises(Exception, match=r"Could not override .trainer\.no_such_setting"):
        verl_ray.launch_config(["trainer.no_such_setting=1"])


def test_the_reward_manager_scores_texts(tokenizer: Any) -> None:
    config = verl_ray.launch_config(BATCH_SIZES)
    manager = load_reward_manager(config, tokenizer)
    ids = _ids(tokenizer, TEXTS[1])
    # As verl's agent loop hands a response over: padding behind it.
    responses = torch.cat([ids, torch.full((4,), tokenizer.pad_token_id)])[None]
    attended = torch.cat([torch.ones(3 + len(ids)), torch.zeros(4)]).long()[None]
    data = DataProto.from_dict(
        tensors={"responses": responses, "attention_mask": attended},
        non_tensors={
            "reward_model": np.array([{"ground_truth": TRUTH}], dtype=object),
            "data_source": np.array(["zoomzero"], dtype=object),
        },
    )
    found = asyncio.new_event_loop().run_until_complete(manager.run_single(data))
    assert found["reward_extra_info"] == {"format": 1.0, "zoom": 0.0, "iou": pytest.approx(1 / 3), "answer": 0.0}
    assert found["reward_score"] == pytest.approx(4 / 3)


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """verl's queue on a Ray cluster of this test."""
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
    config = verl_ray.launch_config(BATCH_SIZES).transfer_queue
    config.enable, config.backend.SimpleStorage.num_data_storage_units = True, 1
    verl_ray.ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    transfer_queue.init(config)
    yield transfer_queue
    transfer_queue.close()
    verl_ray.ray.shutdown()


def test_the_trainer_writes_advantages_by_segment(tokenizer: Any, queue: Any) -> None:
    """The hook on batches in verl's own queue, against the reference in plain torch."""
    ids = [_ids(tokenizer, text) for text in TEXTS]
    parsed = [parse(text) for text in TEXTS]
    rewards = [verl_ray.rewards_of(response, TRUTH) for response in parsed]
    keys = [f"a_{row}_0" for row in range(3)]
    jagged = {
        "responses": torch.nested.as_nested_tensor(ids, layout=torch.jagged),
        "response_mask": torch.nested.as_nested_tensor([torch.ones_like(row) for row in ids], layout=torch.jagged),
        "rm_scores": torch.nested.as_nested_tensor([torch.zeros(len(row)) for row in ids], layout=torch.jagged),
    }
    told = {
        "uid": NonTensorStack(*["a"] * 3),
        "extra_fields": NonTensorStack(*({"reward_extra_info": each} for each in rewards)),
        "reward_model": NonTensorStack(*[{"ground_truth": TRUTH}] * 3),
    }
    tags = [{"status": "success"}] * 3
    batch = queue.kv_batch_put(keys, "train", TensorDict({**jagged, **told}, batch_size=3), tags)

    trainer = object.__new__(verl_ray.SegmentCreditTrainer)
    trainer.config, trainer.tokenizer = verl_ray.launch_config([*BATCH_SIZES]), tokenizer
    trainer._compute_advantage(batch, {})

    length = max(map(len, ids))
    segments, mask = torch.zeros(3, length, dtype=torch.uint8), torch.zeros(3, length, dtype=torch.bool)
    for row, (tokens, response) in enumerate(zip(ids, parsed, strict=True)):
        mask[row, : len(tokens)] = True
        segments[row, : len(tokens) - 1] = token_segments(tokens[:-1].tolist(), tokenizer, response)
    matrix = credit_matrix("token_adv", zoom_reward=False)
    columns = torch.tensor([[each[name] for name in REWARDS] for each in rewards])
    expected = reference.token_advantages(columns, segments, matrix, torch.zeros(3).long(), mask, normalize="segments")
    written = queue.kv_batch_get(keys, "train", ["advantages", "returns"])
    for name in ("advantages", "returns"):
        found = written[name].to_padded_tensor(0.0)
        torch.testing.assert_close(found, expected.masked_fill(~mask, 0.0), rtol=1e-4, atol=1e-5)
    assert float(expected.abs().max()) > 0.1
    assert Path(verl_ray.__file__).name == "verl_ray.py"
