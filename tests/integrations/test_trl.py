"""The fused loss inside TRL's GRPOTrainer equals TRL's own _compute_loss, in every loss type and level."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

import torch.distributed as dist
import transformers
from packaging.specifiers import SpecifierSet
from peft import LoraConfig
from support.tiny_qwen import END_TOKEN, PATCH_COLUMNS, START_TOKEN, random_model
from support.tiny_trl import VOCAB, make_trainer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Gemma2Config, Gemma2ForCausalLM
from trl import GRPOTrainer

from zoomzero.integrations.trl import FusedGRPOLossMixin
from zoomzero.integrations.trl_hooks import MIXINS_TRL, supported_trl


class FusedTrainer(FusedGRPOLossMixin, GRPOTrainer):
    pass


def make_inputs(per_token: bool, seed: int = 0) -> dict[str, Any]:
    """A micro-batch as TRL's generation leaves it, off-policy and with padded completions."""
    generator = torch.Generator().manual_seed(seed)
    completion = torch.randint(0, VOCAB - 2, (4, 6), generator=generator)
    mask = (torch.arange(6) < torch.tensor([6, 3, 5, 1]).unsqueeze(1)).long()
    shape = (4, 6) if per_token else (4,)
    return {
        "prompt_ids": torch.randint(0, VOCAB - 2, (4, 3), generator=generator),
        "prompt_mask": torch.ones(4, 3, dtype=torch.int64),
        "completion_ids": completion,
        "completion_mask": mask,
        "advantages": torch.randn(shape, generator=generator),
        "old_per_token_logps": -3.9 + 0.3 * torch.randn(4, 6, generator=generator),
        "ref_per_token_logps": -3.9 + 0.3 * torch.randn(4, 6, generator=generator),
        "num_items_in_batch": torch.tensor(31.0),
    }


def loss_and_gradient(trainer: GRPOTrainer, method: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, list[Any]]:
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    trainer.model.zero_grad()
    loss = method(trainer, trainer.model, copy.deepcopy(inputs))
    loss.backward()
    return loss.detach(), [x.grad.clone() for x in trainer.model.parameters() if x.requires_grad]


def assert_equals_trl(trainer: GRPOTrainer, inputs: dict[str, Any]) -> torch.Tensor:
    """Loss and gradients of all trained parameters, as TRL's own method gives them."""
    ours, our_grads = loss_and_gradient(trainer, FusedTrainer._compute_loss, inputs)
    theirs, their_grads = loss_and_gradient(trainer, GRPOTrainer._compute_loss, inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for mine, other in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    return ours


CLIP_RATIOS = [f"clip_ratio/{side}_mean" for side in ("low", "high", "region")]


# All loss types that the mixin takes; at both levels, with advantages (B,) and (B, T), with both forms of the KL term.
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("bias_correction", [False, True])
def test_equals_trl(loss_type: str, level: str, bias_correction: bool, tmp_path: Path) -> None:
    options = {"loss_type": loss_type, "importance_sampling_level": level, "temperature": 0.8}
    trainer = make_trainer(FusedTrainer, tmp_path, use_bias_correction_kl=bias_correction, **options)
    # Set late: with beta in the configuration TRL would load a reference model from a checkpoint.
    trainer.beta = 0.05
    for per_token in (False, True):
        assert_equals_trl(trainer, make_inputs(per_token))
        metrics = trainer._metrics["train"]
        clips = {"cispo": ["cispo_clip_ratio"], "sapo": [], "vespo": []}.get(loss_type, CLIP_RATIOS)
        # At the sequence level TRL counts sequences, and this the tokens in them.
        for name in ("kl", "entropy", *(clips if level == "token" else [])):
            assert metrics[name][-2] == pytest.approx(metrics[name][-1], abs=1e-5), name


# Bounds above the clip range, inside of it and below the ratios.
@pytest.mark.parametrize("delta", [1.4, 1.1, 0.5])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_equals_trl_with_two_sided_clipping(delta: float, level: str, tmp_path: Path) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path, beta=0.0, delta=delta, importance_sampling_level=level)
    inputs = make_inputs(True)
    inputs["old_per_token_logps"] -= 0.5
    unbounded = make_trainer(FusedTrainer, tmp_path, beta=0.0, importance_sampling_level=level)
    ours = assert_equals_trl(trainer, inputs)
    assert not torch.allclose(ours, loss_and_gradient(unbounded, FusedTrainer._compute_loss, inputs)[0])


@pytest.mark.parametrize("by_sequence", [False, True])
def test_equals_trl_with_the_correction_for_vllm(by_sequence: bool, tmp_path: Path) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path)
    # Set late: no vLLM is there.
    trainer.beta, trainer.use_vllm, trainer.vllm_importance_sampling_correction = 0.05, True, True
    inputs = make_inputs(True)
    ratios = torch.rand(4, 1 if by_sequence else 6, generator=torch.Generator().manual_seed(2))
    inputs["importance_sampling_ratio"] = ratios.masked_fill(ratios < 0.2, 0.0)
    assert_equals_trl(trainer, inputs)


# The entropy bonus, by itself, over the tokens of high entropy, and adaptive; the mask of sequences far off-policy.
@pytest.mark.parametrize(
    "options",
    [
        {"entropy_coef": 0.3},
        {"entropy_coef": 0.3, "loss_type": "grpo", "top_entropy_quantile": 0.5},
        {"top_entropy_quantile": 0.3},
        {"off_policy_mask_threshold": 0.0},
        {"off_policy_mask_threshold": 0.1, "loss_type": "cispo", "entropy_coef": 0.1},
    ],
    ids=str,
)
def test_equals_trl_with_entropies_and_off_policy_masks(options: dict[str, Any], tmp_path: Path) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path, beta=0.0, temperature=0.8, **options)
    for per_token in (False, True):
        inputs = make_inputs(per_token)
        inputs["sampling_per_token_logps"] = inputs["ref_per_token_logps"]
        assert_equals_trl(trainer, inputs)
    for name in ("policy_loss", "entropy_coef") if "entropy_coef" in options else ():
        values = trainer._metrics["train"][name]
        assert values[-2] == pytest.approx(values[-1], rel=1e-5, abs=1e-6), name


def test_equals_trl_with_an_adaptive_entropy_bonus(tmp_path: Path) -> None:
    settings = {"use_adaptive_entropy": True, "entropy_target": 9.0, "entropy_coef_delta": 0.1, "entropy_coef_max": 1.0}
    coefficients = []
    for method in (FusedTrainer._compute_loss, GRPOTrainer._compute_loss):
        trainer = make_trainer(FusedTrainer, tmp_path, beta=0.0, **settings)
        trainer._last_world_entropy = 1.0
        losses = [loss_and_gradient(trainer, method, make_inputs(True, seed))[0] for seed in (0, 1, 2)]
        coefficients.append((trainer.entropy_coef, *losses))
    for ours, theirs in zip(*coefficients, strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    assert coefficients[0][0] > 0.2


def test_equals_trl_when_tools_and_evaluation_change_the_tokens(tmp_path: Path) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path, beta=0.0)
    inputs = make_inputs(True)
    inputs["tool_mask"] = torch.ones_like(inputs["completion_mask"])
    inputs["tool_mask"][0, 2:4] = 0
    assert_equals_trl(trainer, inputs)
    del inputs["old_per_token_logps"]
    assert_equals_trl(trainer, inputs)
    trainer.model.eval()
    with torch.no_grad():
        ours = FusedTrainer._compute_loss(trainer, trainer.model, inputs)
        torch.testing.assert_close(ours, GRPOTrainer._compute_loss(trainer, trainer.model, inputs))


def test_the_head_sees_one_position_a_sequence(tmp_path: Path) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path, beta=0.0)
    shapes: list[torch.Size] = []
    trainer.model.lm_head.register_forward_hook(lambda module, arguments, output: shapes.append(output.shape))
    loss_and_gradient(trainer, FusedTrainer._compute_loss, make_inputs(True))
    assert shapes == [(4, 1, VOCAB)]
    assert not trainer.model.lm_head._forward_pre_hooks


def test_equals_trl_where_the_model_caps_its_logits(tmp_path: Path) -> None:
    """The head alone would give other logits: the model's own must be used, from the first batch on."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
        num_key_value_heads=2, pad_token_id=VOCAB - 2, final_logit_softcapping=0.5, initializer_range=0.3,
    )  # fmt: skip
    trainer = make_trainer(FusedTrainer, tmp_path, model=Gemma2ForCausalLM(config).float(), beta=0.0)
    for seed in (0, 1):
        assert_equals_trl(trainer, make_inputs(True, seed))
    trainer.args.cast_lm_head_to_fp32 = True
    with pytest.raises(ValueError, match="cast_lm_head_to_fp32 needs a plain linear head"):
        FusedTrainer._compute_loss(trainer, trainer.model, make_inputs(True))


def test_equals_trl_with_a_low_rank_adapter(tmp_path: Path) -> None:
    adapter = LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False)
    trainer = make_trainer(FusedTrainer, tmp_path, peft_config=adapter, beta=0.0)
    assert_equals_trl(trainer, make_inputs(True))


def test_equals_trl_where_an_adapter_replaces_the_head(tmp_path: Path) -> None:
    adapter = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], r=2, init_lora_weights=False)
    trainer = make_trainer(FusedTrainer, tmp_path, peft_config=adapter, beta=0.0)
    assert type(trainer.model.get_output_embeddings()) is not torch.nn.Linear
    assert_equals_trl(trainer, make_inputs(True))


@pytest.fixture
def process_group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# The hook of the head must see whole weights and hand its gradient to the wrapper; one process is enough for that.
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_wrapped_models(wrapper: str, tmp_path: Path, process_group: None) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path, beta=0.0)
    inputs = make_inputs(True)
    expected, expected_grads = loss_and_gradient(trainer, FusedTrainer._compute_loss, inputs)
    trainer.model.zero_grad(set_to_none=True)
    if wrapper == "ddp":
        wrapped: torch.nn.Module = DistributedDataParallel(trainer.model)
    else:
        mesh = init_device_mesh("cpu", (1,))
        fully_shard(trainer.model.model.layers[0], mesh=mesh)
        wrapped = fully_shard(trainer.model, mesh=mesh)
    loss = trainer._compute_loss(wrapped, inputs)
    loss.backward()
    torch.testing.assert_close(loss.detach(), expected)
    grads = [parameter.grad for parameter in trainer.model.parameters()]
    for mine, exact in zip(grads, expected_grads, strict=True):
        whole = mine.full_tensor() if wrapper == "fsdp2" else mine
        torch.testing.assert_close(whole, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("cast", [False, True])
def test_mixed_precision(cast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast the head multiplies in bfloat16, or in float32 where GRPOConfig asks for that."""
    trainer = make_trainer(FusedTrainer, tmp_path, beta=0.0, cast_lm_head_to_fp32=cast)
    monkeypatch.setattr(trainer.accelerator, "autocast", lambda: torch.autocast("cpu", torch.bfloat16))
    ours, our_grads = loss_and_gradient(trainer, FusedTrainer._compute_loss, make_inputs(True))
    theirs, their_grads = loss_and_gradient(trainer, GRPOTrainer._compute_loss, make_inputs(True))
    # bfloat16 keeps 8 bits; with the head in float32 only the layers below it, the same in both, are rounded.
    # TRL 1.14, which has no fused head, is a little farther off.
    exact = 5e-5 if version("trl").startswith("1.14.") else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=exact if cast else 5e-3, atol=1e-6)
    for mine, other in zip(our_grads, their_grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=5e-2, atol=5e-4)


def test_equals_trl_with_images(tmp_path: Path) -> None:
    """Two prompts with one image each of unequal size: positions of the text depend on what the image tokens are."""
    trainer = make_trainer(FusedTrainer, tmp_path, model=random_model().train(), beta=0.0)
    image_token = trainer.model.config.image_token_id
    grids = [(1, 4, 6), (1, 4, 4)]
    prompts = []
    for _, height, width in grids:
        image = [START_TOKEN, *[image_token] * (height * width // 4), END_TOKEN]
        prompts.append([0] * (8 - len(image)) + image + [7, 11])
    prompt_ids = torch.tensor(prompts)
    generator = torch.Generator().manual_seed(0)
    inputs = {key: value[:2] for key, value in make_inputs(True).items() if value.dim() == 2}
    types = torch.cat([(prompt_ids == image_token).long(), torch.zeros_like(inputs["completion_ids"])], dim=1)
    inputs |= {
        "prompt_ids": prompt_ids,
        "prompt_mask": (prompt_ids != 0).long(),
        "mm_token_type_ids": types,
        "pixel_values": torch.randn(sum(h * w for _, h, w in grids), PATCH_COLUMNS, generator=generator),
        "image_grid_thw": torch.tensor(grids),
        "num_images": [1, 1],
        "num_items_in_batch": torch.tensor(9.0),
    }
    ours = assert_equals_trl(trainer, inputs)
    blind, _ = loss_and_gradient(trainer, FusedTrainer._compute_loss, {**inputs, "mm_token_type_ids": None})
    assert not torch.allclose(blind, ours, rtol=1e-5, atol=1e-6)


def test_trains(tmp_path: Path) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path, beta=0.0)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aux_loss_enabled": True}, "the fused loss has no router_aux_loss_coef, since the router's logits do not"),
    ],
)
def test_refuses_options_it_would_ignore(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path)
    for name, value in options.items():
        setattr(trainer, name, value)
    with pytest.raises(ValueError, match=message):
        FusedTrainer._compute_loss(trainer, trainer.model, make_inputs(False))


def test_refuses_a_compiled_model(tmp_path: Path) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path)
    trainer.args.torch_compile = True
    with pytest.raises(ValueError, match="FusedGRPOLossMixin: torch_compile must be off"):
        FusedTrainer._compute_loss(trainer, trainer.model, make_inputs(False))


def test_refuses_a_place_where_it_would_do_nothing() -> None:
    with pytest.raises(TypeError, match=r"must stand before GRPOTrainer in the bases, got it after in Wrong"):

        class Wrong(GRPOTrainer, FusedGRPOLossMixin):
            pass

    with pytest.raises(
        TypeError,
        match=r"must have a method _compute_loss\(model, inputs\), got None in Trainer; use .* trl>=1.14,<1.17",
    ):

        class WrongTrainer(FusedGRPOLossMixin, transformers.Trainer):
            pass

    class Credit(FusedGRPOLossMixin):
        """A mixin of mixins needs no trainer yet."""

    class Right(Credit, GRPOTrainer):
        pass


def test_the_package_asks_for_releases_that_the_mixins_know() -> None:
    (asked, known) = (SpecifierSet(text.removeprefix("trl")) for text in (supported_trl(), MIXINS_TRL))
    releases = [f"1.{minor}.{patch}" for minor in range(30) for patch in range(3)]
    assert set(asked.filter(releases)) <= set(known.filter(releases))
    assert list(asked.filter(releases))


def test_refuses_inputs_that_would_be_dropped(tmp_path: Path) -> None:
    trainer = make_trainer(FusedTrainer, tmp_path)
    trainer.current_gradient_accumulation_steps = 1
    with pytest.raises(ValueError, match="inputs pixel_values_videos are not passed on"):
        FusedTrainer._compute_loss(trainer, trainer.model, {**make_inputs(False), "pixel_values_videos": torch.ones(1)})
