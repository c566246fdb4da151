"""The frozen start model that lies in the host's memory while it is not used."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from zoomzero.training import ZoomZeroTrainer
from zoomzero.training.reference import frozen_copy, start_reference

Build = Callable[..., ZoomZeroTrainer]
CPU = torch.device("cpu")


@pytest.mark.parametrize("shares_vision", [True, False])
def test_weights_go_to_the_device_for_the_block_alone(model: Any, shares_vision: bool) -> None:
    # To this device too every use makes a copy, so that what would happen on another one shows.
    start = frozen_copy(model, share_vision=shares_vision)
    reference = start_reference(start, CPU, None, is_offloaded=True, shares_vision=shares_vision)
    resting = {name: parameter.data_ptr() for name, parameter in start.named_parameters()}
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with reference.use() as used:
        assert used is start
        moved = {name for name, parameter in used.named_parameters() if parameter.data_ptr() != resting[name]}
        for name, parameter in used.named_parameters():
            assert torch.equal(parameter, expected[name]), name
        on_device = [weakref.ref(parameter.untyped_storage()) for parameter in used.parameters()]
        on_device = [ref for ref, name in zip(on_device, resting, strict=True) if name in moved]
        # A head that is tied to the embeddings stays so.
        assert used.lm_head.weight.data_ptr() == used.model.language_model.embed_tokens.weight.data_ptr()
    assert moved == {name for name in resting if not (shares_vision and name.startswith("model.visual."))}
    assert {name: parameter.data_ptr() for name, parameter in start.named_parameters()} == resting
    gc.collect()
    assert on_device
    assert not any(ref() for ref in on_device)


def test_an_error_brings_the_weights_back_too(model: Any) -> None:
    reference = start_reference(frozen_copy(model, share_vision=True), CPU, None, is_offloaded=True, shares_vision=True)
    resting = reference.model.lm_head.weight.data_ptr()

    def fail() -> None:
        with reference.use() as used:
            assert used.lm_head.weight.data_ptr() != resting
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert reference.model.lm_head.weight.data_ptr() == resting


def test_training_is_the_same(build: Build, model: Any, varied_rewards: None) -> None:
    start = frozen_copy(model, share_vision=False)
    losses = []
    for offloads in (False, True):
        trainer = build(
            model=frozen_copy(start, share_vision=False), beta=0.05, offload_reference=offloads, max_steps=2
        )
        trainer.model.requires_grad_(True)
        trainer.model.model.visual.requires_grad_(False)
        trainer.train()
        losses.append([(entry["loss"], entry["kl"]) for entry in trainer.state.log_history if "kl" in entry])
        assert bool(trainer.reference._offloaded) is offloads
    assert losses[0] == losses[1]
    assert losses[0][1][1] > 0
