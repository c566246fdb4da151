"""TRL's GRPOTrainer with packed passes gives TRL's own losses, log-probabilities, gradients and trained weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import trl.trainer.utils
from peft import LoraConfig
from support.shared_prefix_models import IMAGE, VOCAB, assert_close, numbers, text_model, vision_model
from support.tiny_trl import make_trainer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from trl import GRPOTrainer

from zoomzero.integrations.trl import FusedGRPOLossMixin
from zoomzero.integrations.trl_shared_prefix import SharedPrefixMixin, regrouped
from zoomzero.models.shared_prefix import SharedPrefix


class Packed(SharedPrefixMixin, GRPOTrainer):
    pass


class PackedAndFused(SharedPrefixMixin, FusedGRPOLossMixin, GRPOTrainer):
    pass


def padded(rows: list[list[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(width - len(row), None) if left else slice(len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    return ids, mask


def make_inputs(prompts: list[list[int]], seed: int = 0) -> dict[str, Any]:
    """A micro-batch as TRL's generation leaves it, off-policy: rows of two prompts in mixed order."""
    generator = torch.Generator().manual_seed(seed)
    prompt_ids, prompt_mask = padded(prompts, left=True)
    completions = [numbers(5 - row % 4, 20 + row) for row in range(len(prompts))]
    completion_ids, completion_mask = padded(completions, left=False)
    shape = completion_ids.shape
    return {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": torch.randn(len(prompts), generator=generator),
        "old_per_token_logps": -4.0 + 0.5 * torch.randn(shape, generator=generator),
        "ref_per_token_logps": -4.0 + 0.5 * torch.randn(shape, generator=generator),
        "num_items_in_batch": torch.tensor(19.0),
    }


def text_inputs() -> dict[str, Any]:
    first, second = [3, 3, *numbers(20, 0)], [3, 3, *numbers(13, 1)]
    return make_inputs([second, first, first, second, first])


def image_inputs() -> dict[str, Any]:
    """Two questions in the same words about two images of 4 x 6 patches, and one of them about both."""
    generator = torch.Generator().manual_seed(3)
    pixels = [torch.randn(24, 3 * 2 * 64, generator=generator) for _ in range(2)]
    image = [94, *[IMAGE] * 6, 95]
    one, both = [5, *image, *numbers(9, 3)], [5, *image, *image, *numbers(9, 4)]
    inputs = make_inputs([one, one, one, both, one, both])
    shown = [[0], [1], [0], [0, 1], [1], [0, 1]]
    ids = torch.cat((inputs["prompt_ids"], inputs["completion_ids"]), dim=1)
    return {
        **inputs,
        "pixel_values": torch.cat([pixels[number] for row in shown for number in row]),
        "image_grid_thw": torch.tensor([[1, 4, 6]]).expand(8, 3),
        "num_images": [len(row) for row in shown],
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


CASES = {
    "text": (lambda: text_model("llama"), text_inputs),
    "images": (lambda: vision_model("qwen3_vl"), image_inputs),
    "images of Qwen2.5-VL": (lambda: vision_model("qwen2_5_vl"), image_inputs),
}


def loss_and_gradients(trainer: GRPOTrainer, inputs: dict[str, Any]) -> dict[str, Tensor]:
    trainer.beta = 0.05  # set late: otherwise TRL would load a reference model from a checkpoint
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, copy.deepcopy(inputs))
    loss.backward()
    grads = {name: each.grad.clone() for name, each in trainer.model.named_parameters() if each.grad is not None}
    return {"loss": loss.detach(), **grads}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("trainer_class", [Packed, PackedAndFused])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients(case: str, trainer_class: Any, checkpointing: bool, tmp_path: Path) -> None:
    make_model, inputs = CASES[case][0], CASES[case][1]()
    options = {"temperature": 0.8, "gradient_checkpointing": checkpointing, "loss_type": "dapo"}
    plain, trainer = (
        make_trainer(kind, tmp_path, model=make_model(), **options) for kind in (GRPOTrainer, trainer_class)
    )
    assert_close(loss_and_gradients(trainer, inputs), loss_and_gradients(plain, inputs))
    (gain,) = trainer._metrics["train"]["shared_prefix/times_fewer_tokens"]
    assert gain > 1.5


def test_the_head_sees_what_it_is_to_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU TRL's fused head scores whatever it gets: the prompts' tokens are not to be among it."""
    if not hasattr(trl.trainer.utils, "add_fused_lm_head"):
        pytest.skip("TRL 1.14 asks the model for the last positions' logits")
    trainer, inputs = make_trainer(Packed, tmp_path, model=text_model("llama")), text_inputs()
    shapes: list[tuple[int, ...]] = []
    real = SharedPrefix.after

    def watch(*arguments: Any) -> Any:
        output = real(*arguments)
        shapes.append(tuple(output.last_hidden_state.shape[:2]))
        return output

    monkeypatch.setattr(SharedPrefix, "after", watch)
    loss_and_gradients(trainer, inputs)
    assert shapes == [tuple(inputs["completion_ids"].shape)]


@pytest.mark.parametrize("case", CASES)
def test_old_log_probabilities(case: str, tmp_path: Path) -> None:
    """Without gradients, three rows at a time; the mixin takes as many as need no more tokens."""
    make_model, inputs = CASES[case][0], CASES[case][1]()
    plain, trainer = (make_trainer(kind, tmp_path, model=make_model().train()) for kind in (GRPOTrainer, Packed))
    ids, mask = (torch.cat((inputs[f"prompt_{name}"], inputs[f"completion_{name}"]), dim=1) for name in ("ids", "mask"))
    visual = {name: inputs[name] for name in inputs if name.endswith(("_values", "_thw", "_images", "type_ids"))}
    arguments = (ids, mask, inputs["completion_ids"].shape[1])
    with torch.no_grad():
        ours, truth = (
            each._get_per_token_logps_and_entropies(each.model, *arguments, batch_size=3, **visual)[0]
            for each in (trainer, plain)
        )
    real = inputs["completion_mask"].bool()
    torch.testing.assert_close(ours[real], truth[real], rtol=1e-5, atol=1e-5)
    assert trainer._metrics["train"]["shared_prefix/times_fewer_tokens"]


# As many tokens as three rows of 100: a group of 4 whose packed row holds 90 + 4 * 10 twice; a group that is too large.
@pytest.mark.parametrize(
    ("group", "batch_size", "prompt", "expected"), [(4, 3, 90, 8), (40, 3, 90, 3), (2, 4, 0, 4), (3, 3, 0, 3)]
)
def test_as_many_rows_as_need_no_more_tokens(
    group: int, batch_size: int, prompt: int, expected: int, tmp_path: Path
) -> None:
    trainer = make_trainer(Packed, tmp_path)
    trainer.num_generations = group
    trainer.model.train()
    assert trainer._rows_at_once(batch_size, prompt, 10) == expected


def words(trainer: GRPOTrainer) -> list[list[list[int]]]:
    """The prompts of each micro-batch."""
    return [batch["prompt_ids"].tolist() for batch in trainer._buffered_inputs]


# On policy; with old log-probabilities; with LoRA, whose reference is the model without it.
@pytest.mark.parametrize("variant", ["plain", "two iterations", "lora"])
@pytest.mark.parametrize("trainer_class", [Packed, PackedAndFused])
def test_trains_as_without(variant: str, trainer_class: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "max_steps": 2, "num_generations": 4, "loss_type": "dapo",
        "num_iterations": 2 if variant == "two iterations" else 1, "learning_rate": 1e-4,
    }  # fmt: skip
    if variant == "lora":
        options |= {"beta": 0.05, "peft_config": LoraConfig(target_modules=["q_proj", "v_proj"])}
    trained: list[dict[str, Tensor]] = []
    for kind in (GRPOTrainer, trainer_class):
        trainer = make_trainer(kind, tmp_path / kind.__name__, seed=0, **options)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        trained.append({"losses": torch.tensor(losses), **{k: p.detach() for k, p in trainer.model.named_parameters()}})
    torch.testing.assert_close(trained[1]["losses"], trained[0]["losses"], rtol=1e-4, atol=1e-6)
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert all(len({tuple(row) for row in batch}) == 1 for batch in words(trainer))  # a group each
    assert any("shared_prefix/times_fewer_tokens" in entry for entry in trainer.state.log_history)


def test_rows_are_dealt_anew_with_all_that_belongs_to_them() -> None:
    """Two micro-batches of three rows; rows of one prompt come together, each with its own image."""
    inputs = image_inputs()
    inputs["texts"] = [f"row {number}" for number in range(6)]
    inputs["nothing"] = None
    batches = []
    for part, images in ((slice(3), slice(3)), (slice(3, 6), slice(3, 8))):
        rows = {name: value[part] for name, value in inputs.items() if isinstance(value, list) or _by_row(name, value)}
        patches = slice(24 * images.start if images.start else 0, 24 * images.stop)
        visual = {"pixel_values": inputs["pixel_values"][patches], "image_grid_thw": inputs["image_grid_thw"][images]}
        batches.append({**rows, **visual, "num_items_in_batch": inputs["num_items_in_batch"], "nothing": None})
    dealt = regrouped(vision_model("qwen3_vl").config, batches)
    names = [name for batch in dealt for name in batch["texts"]]
    assert sorted(names) == inputs["texts"]
    starts = [0, 24, 48, 72, 120, 144, 192]
    for batch in dealt:
        first = 0
        for row, name in enumerate(batch["texts"]):
            number = int(name[-1])
            assert torch.equal(batch["completion_ids"][row], inputs["completion_ids"][number])
            size = 24 * batch["num_images"][row]
            mine = batch["pixel_values"][first : first + size]
            assert torch.equal(mine, inputs["pixel_values"][starts[number] : starts[number + 1]])
            first += size
        assert batch["num_items_in_batch"] == 19
        assert batch["nothing"] is None
    assert {tuple(sorted(names[start : start + 2])) for start in (0, 2, 4)} == {
        ("row 0", "row 2"), ("row 1", "row 4"), ("row 3", "row 5"),
    }  # fmt: skip


def _by_row(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and name not in ("pixel_values", "image_grid_thw")


def test_a_model_of_another_family_is_refused_at_once(tmp_path: Path) -> None:
    model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=VOCAB))
    with pytest.raises(ValueError, match="shared_prefix: the model must be a decoder with a head, of a family among"):
        make_trainer(Packed, tmp_path, model=model)


def test_a_compiled_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="SharedPrefixMixin: torch_compile must be off"):
        make_trainer(Packed, tmp_path, torch_compile=True)


def test_a_place_where_it_would_do_nothing_is_refused() -> None:
    with pytest.raises(TypeError, match="SharedPrefixMixin: the mixin must stand before GRPOTrainer in the bases"):
        type("Behind", (GRPOTrainer, SharedPrefixMixin), {})

    class OtherTrainer:
        def training_step(self) -> None: ...

        def _compute_loss(self, model: Any, inputs: Any) -> None: ...

        def _prepare_inputs(self, generation_batch: Any) -> None: ...

    with pytest.raises(TypeError, match=r"a method _get_per_token_logps_and_entropies\(model\), got None in Other"):
        type("Other", (SharedPrefixMixin, OtherTrainer), {})
