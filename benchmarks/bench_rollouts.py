"""Rollouts by our own loop and by vLLM in this process: tokens per second and peak memory.

16 prompts of about 1k tokens, 8 responses of 128 tokens each, by a tiny and by a 0.5B-shaped random model in float32 on
the CPU; the videos' features are computed once and handed to both. --scale cuts the larger model's work, and the result
file says to what. vLLM takes part where it is installed (`make test-rollouts` builds an environment that has it).
That both write the same greedy tokens is checked first. Seconds on a shared machine are noise: the ratio is
the median of rounds in which both take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from harness import print_table, write_results
from shaped_models import SHAPES, Work, load, result_name, shaped_model, video_prompts

from zoomzero.bench.timing import interleave, peak_bytes_during, timing_row
from zoomzero.rollouts import Rollouts, SamplingOptions
from zoomzero.rollouts.shared_prompt import generate
from zoomzero.synthetic import tiny_processor
from zoomzero.training.config import ZoomZeroConfig
from zoomzero.training.sampler import vllm_sampler

FULL = Work(prompts=16, responses=8, tokens=128, prompt_tokens=1024)
HAS_VLLM = importlib.util.find_spec("vllm") is not None


def _same_start(ours: Rollouts, theirs: Rollouts) -> float:
    """Share of greedy responses whose first eight tokens are equal: later a rounding may turn a near tie."""
    return float((ours.token_ids == theirs.token_ids).all(-1).float().mean())


def measure(shape: str, work: Work, rounds: int) -> list[dict[str, Any]]:
    """Rows of one model."""
    model = shaped_model(shape)
    started = time.perf_counter()
    prompts = video_prompts(model, work)
    encoding = time.perf_counter() - started
    # No token ends a response: all have their full length.
    options = SamplingOptions(work.tokens, (model.config.image_token_id,), 0, num_generations=work.responses)
    samplers: dict[str, Callable[..., Rollouts]] = {"our loop": partial(generate, model)}
    if HAS_VLLM:
        config = ZoomZeroConfig(
            output_dir="/tmp", use_cpu=True, report_to=[], bf16=False, vllm_max_model_length=2 * work.prompt_tokens
        )
        samplers["vLLM"] = vllm_sampler(model, tiny_processor(), config)
    greedy = dataclasses.replace(options, num_generations=1, max_new_tokens=8, temperature=0.0)
    starts = [sampler(prompts, greedy) for sampler in samplers.values()]
    agreement = _same_start(*starts) if HAS_VLLM else None
    written = {name: sampler(prompts, options) for name, sampler in samplers.items()}
    if agreement is not None and agreement < 0.9:
        raise RuntimeError(f"bench_rollouts: both samplers must write the same tokens, {agreement:.0%} do")
    timings = interleave(
        {name: partial(sampler, prompts, options) for name, sampler in samplers.items()}, rounds=rounds, warmup=0
    )
    rows = []
    for name, timing in timings.items():
        tokens = int(written[name].mask.sum())
        rows.append(
            {
                "model": shape, "sampler": name, "prompts": work.prompts, "responses": work.responses,
                "tokens": work.tokens, "prompt_tokens": work.prompt_tokens,
                "tokens_per_second": round(tokens / timing.median_ms * 1e3, 1),
                "times_ours": round(timing.speedup_of(timings["our loop"]), 3),
                "peak_megabytes": peak_bytes_during(partial(samplers[name], prompts, options)) >> 20,
                "encoding_seconds": round(encoding, 3), "equal_starts": agreement, "load": load(),
                **timing_row(timing),
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the work of the 0.5B-shaped model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for shape in options.models:
        work = FULL if shape == "tiny" else FULL.scaled(options.scale) if options.scale < 1 else FULL
        rows += measure(shape, work, options.rounds)
        print_table(rows)
    print(f"wrote {write_results(result_name('rollouts', options.models), rows)}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
