"""verl's trainer on Ray with credit by segment, launched by one command:

    python -m zoomzero.integrations.verl_ray data.train_files=train.parquet actor_rollout_ref.model.path=FOLDER ...

Arguments are verl's own (Hydra's). A reward manager "zoomzero" scores each response, and verl's synchronous trainer
gets advantages made token by token from these rewards and the segments of the responses. A row's
`reward_model.ground_truth` is a mapping: `spans` (pairs of seconds), `answer` (the letter, none for a question of spans
alone) and, where they are known, `duration` (seconds) and `thinking` (whether the prompt asks for it). The zoom reward
needs another look at the video; a reward function of yours (verl's reward.custom_reward_function) may return it as
{"zoom": ...}, else it is 0.

verl's workers import this module too, because the launch names it in VERL_USE_EXTERNAL_MODULES. Written for verl 0.9.1.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue
from hydra import compose, initialize_config_module
from tensordict import TensorDict
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import PPOTrainerSync, trainer_base
from verl.utils.config import validate_config
from verl.workers.utils.padding import response_to_nested

from zoomzero.integrations.verl import write_advantages
from zoomzero.responses import Response, parse, token_segments
from zoomzero.rewards import REWARDS, answer_reward, credit_matrix, format_reward, iou_reward

MODULE = "zoomzero.integrations.verl_ray"
EXTERNAL_MODULES = "VERL_USE_EXTERNAL_MODULES"
# What a launch sets of verl's configuration, before the command line.
DEFAULTS = (
    "trainer.use_v1=True",
    "trainer.v1.trainer_mode=sync",
    "reward.reward_manager.name=zoomzero",
    "algorithm.adv_estimator=token_adv",
    "actor_rollout_ref.actor.policy_loss.loss_mode=zoomzero",
    # Of `credit_matrix` and `token_advantages`.
    "+algorithm.zoomzero.credit=token_adv",
    "+algorithm.zoomzero.normalize=segments",
)


def rewards_of(response: Response, truth: Mapping[str, Any], zoom: float = 0.0) -> dict[str, float]:
    """The rewards of a response by name, in the order of `REWARDS`.

    Args:
        response: parsed as `parsed_response` does.
        truth: see the file header.
        zoom: the zoom reward.
    """
    spans = [(float(start), float(end)) for start, end in truth["spans"]]
    found = {
        "format": format_reward(response),
        "zoom": zoom,
        "iou": iou_reward(response, spans, duration=truth.get("duration")),
        "answer": answer_reward(response, truth["answer"]) if truth.get("answer") else 0.0,
    }
    return {name: found[name] for name in REWARDS}


def parsed_response(text: str, truth: Mapping[str, Any]) -> Response:
    """A response taken apart as its row asked for it."""
    if not truth.get("answer"):
        return parse(text, thinking=False, num_options=0)
    return parse(text, thinking=bool(truth.get("thinking", True)))


def text_and_places(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """The text of a response without end and padding tokens, and the places of the tokens that it was decoded from."""
    left_out = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    places = [place for place, token in enumerate(ids) if token not in left_out]
    kept = [ids[place] for place in places]
    return str(tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)), places


@register("zoomzero")
class ZoomZeroRewardManager(RewardManagerBase):
    """Scores one response by its text; the separate rewards travel as reward_extra_info."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **_: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        # Without a function of the user's own verl passes one that knows none of our data.
        self._zoom = compute_score if config.reward.custom_reward_function.path else None

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """verl's hook: the sum of the rewards and each of them, of the batch's last response."""
        item = data[-1:][0]
        responses, attended = item.batch["responses"], item.batch["attention_mask"]
        length = int(attended[-responses.shape[-1] :].sum())
        text, _ = text_and_places(responses[:length].tolist(), self.tokenizer)
        truth = item.non_tensor_batch["reward_model"]["ground_truth"]
        rewards = rewards_of(parsed_response(text, truth), truth, await self._zoomed(item, text, truth))
        return {"reward_score": sum(rewards.values()), "reward_extra_info": rewards}

    async def _zoomed(self, item: Any, text: str, truth: Mapping[str, Any]) -> float:
        if self._zoom is None:
            return 0.0
        row = item.non_tensor_batch
        found = self._zoom(
            data_source=row["data_source"],
            solution_str=text,
            ground_truth=truth,
            extra_info=row.get("extra_info", {}),
        )
        found = await found if inspect.isawaitable(found) else found
        return float(found["zoom"])


class SegmentCreditTrainer(PPOTrainerSync):
    """verl's synchronous trainer, whose advantages come from the separate rewards and the segments of the responses."""

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        fields = ["uid", "response_mask", "responses", "extra_fields", "reward_model"]
        stored = transfer_queue.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        settings = self.config.algorithm.zoomzero
        advantages = segment_advantages(stored, self.tokenizer, settings.credit, settings.normalize)
        nested = response_to_nested(advantages, stored["response_mask"])
        written = TensorDict({"advantages": nested, "returns": nested}, batch_size=len(batch))
        return transfer_queue.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=written)


def segment_advantages(
    stored: TensorDict, tokenizer: PreTrainedTokenizerBase, credit: str | Sequence[Sequence[float]], normalize: str
) -> Tensor:
    """Advantages float32 [B, T] of a batch as verl's queue stores it.

    Args:
        stored: uid, response_mask and responses (nested, [B, j]), extra_fields (with reward_extra_info), reward_model.
        tokenizer: that wrote the responses.
        credit, normalize: of `credit_matrix` and `token_advantages`.
    """
    mask = stored["response_mask"].to_padded_tensor(0)
    segments = torch.zeros(mask.shape, dtype=torch.uint8)
    truths = [model["ground_truth"] for model in stored.get("reward_model").tolist()]
    for row, (ids, truth) in enumerate(zip(stored["responses"].unbind(), truths, strict=True)):
        text, places = text_and_places(ids.tolist(), tokenizer)
        kept = [int(ids[place]) for place in places]
        segments[row, places] = token_segments(kept, tokenizer, parsed_response(text, truth))
    rewards = [extra["reward_extra_info"] for extra in stored.get("extra_fields").tolist()]
    columns = {name: np.array([each[name] for each in rewards]) for name in REWARDS}
    data = DataProto.from_dict(
        tensors={"segments": segments, "response_mask": mask},
        non_tensors={**columns, "uid": np.array(stored.get("uid").tolist(), dtype=object)},
    )
    matrix = credit_matrix(credit, zoom_reward=bool(columns["zoom"].any()))
    write_advantages(data, list(REWARDS), matrix, normalize=normalize)
    advantages: Tensor = data.batch["advantages"]
    return advantages


@ray.remote(num_cpus=1)
class SegmentCreditRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner, which makes our trainer where its own would be made."""

    def run(self, config: Any) -> None:
        """Train; verl compares the mode's name in many places, so the trainer takes the place of that name."""
        trainer_base.TRAINER_REGISTRY["sync"] = SegmentCreditTrainer
        super().run(config)


def launch_config(arguments: Sequence[str]) -> Any:
    """verl's configuration with ours, and with the command line's after both.

    Raises:
        hydra.errors.HydraException: an argument that verl's configuration does not know.
    """
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*DEFAULTS, *arguments])


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on the Ray cluster that is there, or on a local one."""
    config = launch_config(sys.argv[1:] if arguments is None else arguments)
    others = [name for name in os.environ.get(EXTERNAL_MODULES, "").split(",") if name and name != MODULE]
    os.environ[EXTERNAL_MODULES] = ",".join([*others, MODULE])
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    run_ppo(config, task_runner_class=SegmentCreditRunner)


if __name__ == "__main__":
    main()
