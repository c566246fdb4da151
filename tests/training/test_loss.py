"""The loss through wrapped models: what a wrapper does around the forward does not keep gradients from arriving."""

import copy
import dataclasses
import math
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.tiny_qwen import COARSE, SHORT, ZOOM, prepared_prompts, random_inputs, random_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Qwen2_5_VLForConditionalGeneration as Model

from zoomzero.models.encoding import encode_prompts
from zoomzero.models.head import HeadProbe
from zoomzero.training import ZoomZeroConfig
from zoomzero.training.groups import GroupBatch
from zoomzero.training.loss import group_logps, group_loss
from zoomzero.training.packing import PackedForward


class Wrapper(nn.Module):
    """The least that a wrapper does: another module whose forward calls the model's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.module(*arguments, **options)


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    """A process group of this process alone, over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def config(tmp_path: Any) -> ZoomZeroConfig:
    return ZoomZeroConfig(output_dir=str(tmp_path), use_cpu=True, report_to=[], bf16=False, beta=0.1, temperature=0.8)


def _groups(model: Model, *, frozen_tower: bool) -> GroupBatch:
    """Three prompts of different lengths, three responses each (one is empty), off policy and with a KL term."""
    generator = torch.Generator().manual_seed(4)
    inputs = [random_inputs(shape, seed) for seed, shape in enumerate((COARSE, ZOOM, SHORT))]
    features = None
    if frozen_tower:
        with torch.no_grad():
            features = [prompt.features for prompt in encode_prompts(model, inputs)]
    prompts = prepared_prompts(model, inputs, features)
    lengths = torch.tensor([5, 1, 8, 0, 3, 8, 2, 2, 7])
    mask = torch.arange(8) < lengths[:, None]
    token_ids = torch.randint(2, 90, mask.shape, generator=generator) * mask
    noise = [torch.randn(mask.shape, generator=generator) for _ in range(3)]
    return GroupBatch(
        prompts=prompts,
        token_ids=token_ids,
        mask=mask,
        advantages=noise[0] * mask,
        old_logps=noise[1] - 4,
        ref_logps=noise[2] - 4,
        token_weights=None,
        num_items=int(mask.sum()),
    )


def _wrapped(kind: str, model: Model) -> nn.Module:
    if kind == "plain":
        return Wrapper(model)
    if kind == "twice":
        return Wrapper(Wrapper(model))
    return DistributedDataParallel(model, find_unused_parameters=kind == "ddp_unused")


def _gradients(model: Model) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("frozen_tower", [False, True])
@pytest.mark.parametrize("kind", ["plain", "twice", "ddp", "ddp_unused"])
def test_gradients_arrive_through_wrappers(
    one_process: None, config: ZoomZeroConfig, kind: str, frozen_tower: bool
) -> None:
    """Equal to the model's own, for every parameter, those of a trained vision tower among them."""
    model = random_model()
    model.model.visual.requires_grad_(not frozen_tower)
    groups = _groups(model, frozen_tower=frozen_tower)
    other = copy.deepcopy(model)
    expected = group_loss(PackedForward(model, model), groups, config, groups.num_items)
    expected.loss.backward()
    wrapped = _wrapped(kind, other)
    found = group_loss(PackedForward(wrapped, other), groups, config, groups.num_items)
    found.loss.backward()
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=0)
    assert torch.equal(found.logps, expected.logps)
    gradients = _gradients(model)
    assert set(gradients) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, gradient in gradients.items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(_gradients(other)[name], gradient, rtol=1e-6, atol=1e-8, msg=f"gradient of {name}")


def test_ddp_sees_the_loss_leave(one_process: None, config: ZoomZeroConfig) -> None:
    """DDP reduces buckets when gradients are ready; a loss that bypassed its forward would leave its hook uncalled."""
    model = random_model()
    wrapped, calls = DistributedDataParallel(model), []

    def hook(state: None, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
        calls.append(bucket.index())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer() * 2)
        return future

    wrapped.register_comm_hook(None, hook)
    groups = _groups(model, frozen_tower=False)
    other = copy.deepcopy(model)
    group_loss(PackedForward(wrapped, model), groups, config, groups.num_items).loss.backward()
    group_loss(PackedForward(other, other), groups, config, groups.num_items).loss.backward()
    assert calls
    for name, gradient in _gradients(other).items():
        torch.testing.assert_close(_gradients(model)[name], 2 * gradient, rtol=1e-6, atol=1e-8, msg=name)


def test_no_hook_stays_behind(config: ZoomZeroConfig) -> None:
    model = random_model()
    groups = _groups(model, frozen_tower=True)
    inputs = random_inputs(ZOOM)
    before = model(**inputs).logits
    group_logps(PackedForward(model, model), groups, 1.0)

    def fail(*_: Any) -> Tensor:
        raise RuntimeError("at the head")

    with pytest.raises(RuntimeError, match="at the head"):
        PackedForward(model, model)(groups.prompts, groups.token_ids, groups.mask, fail)
    assert torch.equal(model(**inputs).logits, before)


def test_a_probe_without_leaving_shows_the_last_logits() -> None:
    head = nn.Linear(4, 7)
    hidden = torch.randn(2, 3, 4)
    with HeadProbe(head, lambda _, states: states.sum()) as probe:
        logits = head(hidden)
    assert torch.equal(logits, head(hidden)[:, -1:])
    assert torch.equal(probe.output, hidden.sum())
    assert torch.equal(probe.last_logits, logits)
    with HeadProbe(head, lambda _, states: states.sum(), leaves=lambda total: total):
        assert torch.equal(head(hidden), hidden.sum())


def test_delta_bounds_the_loss_of_negative_advantages(one_process: None, config: ZoomZeroConfig) -> None:
    """Ratios of about e^4 under negative advantages: at most delta times the advantage per token, else far more."""
    model = random_model()
    groups = dataclasses.replace(_groups(model, frozen_tower=True), advantages=-torch.ones(9, 8), ref_logps=None)
    groups = dataclasses.replace(groups, old_logps=group_logps(PackedForward(model, model), groups, 0.8) - 4)
    losses = {}
    config.beta = 0.0
    for delta in (None, 5.0):
        config.delta = delta
        losses[delta] = float(group_loss(PackedForward(model, model), groups, config, groups.num_items).loss)
    assert losses[5.0] == pytest.approx(5.0)
    assert losses[None] == pytest.approx(math.exp(4), rel=1e-4)
