"""A canary that fails with one sentence when a release of vLLM moves what the sampler stands on; shown to fail."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from support.vllm_engine import import_vllm

from zoomzero.rollouts import vllm_contract
from zoomzero.rollouts.vllm import VllmSampler
from zoomzero.rollouts.vllm_contract import ENGINE_SETTINGS, SAMPLING_SETTINGS, require_vllm
from zoomzero.synthetic import tiny_checkpoint, tiny_model

vllm: Any = import_vllm()

from vllm.engine import arg_utils  # noqa: E402
from vllm.v1.engine.llm_engine import LLMEngine  # noqa: E402
from vllm.v1.worker import gpu_model_runner  # noqa: E402

REMEDY = "; install vllm 0.31 or 0.32, the releases that it was tried with$"


def test_vllm_is_what_the_sampler_was_written_for() -> None:
    require_vllm()


@pytest.mark.parametrize("gone", ENGINE_SETTINGS)
def test_a_setting_that_is_gone_is_named(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [(field.name, Any, None) for field in dataclasses.fields(arg_utils.EngineArgs) if field.name != gone]
    monkeypatch.setattr(arg_utils, "EngineArgs", dataclasses.make_dataclass("EngineArgs", fields))
    with pytest.raises(RuntimeError, match=f"VllmSampler: EngineArgs must have {gone}, got none in .*{REMEDY}"):
        require_vllm()


@pytest.mark.parametrize("gone", SAMPLING_SETTINGS)
def test_a_sampling_setting_that_is_gone_is_named(gone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [(name, Any, None) for name in SAMPLING_SETTINGS if name != gone]
    monkeypatch.setattr(vllm, "SamplingParams", dataclasses.make_dataclass("SamplingParams", fields))
    with pytest.raises(RuntimeError, match=f"VllmSampler: SamplingParams must take {gone}, got .*{REMEDY}"):
        require_vllm()


@pytest.mark.parametrize(
    ("owner", "name", "words"),
    [
        (vllm.LLM, "generate", "LLM.generate must take prompts, sampling_params"),
        (vllm.LLM, "collective_rpc", "LLM.collective_rpc must take method, kwargs"),
        (vllm.LLM, "sleep", "LLM.sleep must take level"),
        (gpu_model_runner.GPUModelRunner, "reload_weights", "reload_weights must take weights_iterator"),
    ],
)
def test_a_call_that_moved_is_named(owner: type, name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, lambda self, somewhere: None)
    with pytest.raises(RuntimeError, match=f"{words}.*, got .*{REMEDY}"):
        require_vllm()


@pytest.mark.parametrize(("owner", "name"), [(vllm.LLM, "reset_prefix_cache"), (LLMEngine, "reset_encoder_cache")])
def test_a_call_that_is_gone_is_named(owner: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, name, None)
    with pytest.raises(RuntimeError, match=f"{name} must be there, got none in .*{REMEDY}"):
        require_vllm()


def test_no_engine_is_made_of_another_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm.LLM, "collective_rpc", None)
    with pytest.raises(RuntimeError, match=r"LLM\.collective_rpc must be there"):
        VllmSampler(tiny_checkpoint(), tiny_model())
    assert vllm_contract._VLLM.who == "VllmSampler"
