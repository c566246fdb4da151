"""The parts of vLLM that the sampler stands on, checked before an engine is made; see contracts.py."""

from __future__ import annotations

from typing import Any

from zoomzero.contracts import Contract

_VLLM = Contract("VllmSampler", "vllm", "install vllm 0.31 or 0.32, the releases that it was tried with")

ENGINE_SETTINGS = (
    "model", "dtype", "max_model_len", "gpu_memory_utilization", "enforce_eager", "limit_mm_per_prompt",
    "skip_mm_profiling", "enable_mm_embeds", "enable_sleep_mode", "logprobs_mode", "distributed_executor_backend",
    "seed",
)  # fmt: skip
SAMPLING_SETTINGS = ("n", "temperature", "max_tokens", "stop_token_ids", "logprobs", "seed", "detokenize")


def require_vllm() -> None:
    """RuntimeError when a part of vLLM that is used is gone or takes other arguments."""
    from vllm import LLM, SamplingParams
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.worker import gpu_model_runner

    runner: Any = gpu_model_runner.GPUModelRunner
    _VLLM.fields(EngineArgs, ENGINE_SETTINGS)
    _VLLM.call(SamplingParams, "SamplingParams", SAMPLING_SETTINGS)
    _VLLM.call(getattr(LLM, "generate", None), "LLM.generate", ("prompts", "sampling_params", "use_tqdm"))
    _VLLM.call(getattr(LLM, "collective_rpc", None), "LLM.collective_rpc", ("method", "kwargs"))
    _VLLM.call(getattr(LLM, "reset_prefix_cache", None), "LLM.reset_prefix_cache", ())
    _VLLM.call(getattr(LLM, "sleep", None), "LLM.sleep", ("level",))
    _VLLM.call(getattr(LLM, "wake_up", None), "LLM.wake_up", ())
    _VLLM.call(getattr(LLMEngine, "reset_encoder_cache", None), "LLMEngine.reset_encoder_cache", ())
    _VLLM.call(getattr(runner, "reload_weights", None), "GPUModelRunner.reload_weights", ("weights_iterator",))
