"""A training step by phase, and what the method's own parts add to a step of TRL's GRPOTrainer.

Phases: seconds of frames, generation, rewards, reference, loss and optimizer, of steps of the tiny and of a 0.5B-shaped
random model in float32 on the CPU, by one process and by two over gloo, with our own loop and with vLLM where it is
installed. A row is the median of the steps after the first.

Overhead: on the same text rollouts, TRL's loss with its backward pass and optimizer step (SDPA, unpacked rows), and
beside it what Zoom-Zero does between generation and loss without the zoom pass: decoding and parsing the responses,
rewards, token segments, advantages, figures. The bar: at most 10 % of TRL's step, in processor time.

--scale cuts the larger model's prompts and responses, and the result file says to what.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from datasets import Dataset
from harness import print_table, write_results
from shaped_models import HALF_BILLION, SHAPES, load, result_name, shaped_model
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

from zoomzero.bench.timing import interleave, timing_row
from zoomzero.rollouts import Rollouts
from zoomzero.synthetic import make_clips, tiny_processor
from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer
from zoomzero.training.metrics import RolloutTable, Share, joined_metrics
from zoomzero.training.scoring import score

HAS_VLLM = importlib.util.find_spec("vllm") is not None
STEPS = 4
TEXT = "<think>{words}</think>\n<answer>{letter}</answer>\n<glue>[({start}.0, {end}.0)]</glue>"


def clip_rows(folder: str, count: int) -> list[dict[str, Any]]:
    """Rows of synthetic clips, two questions each."""
    return [
        {
            "video": str(clip.path), "question": question.question, "options": list(question.options),
            "answer": question.answer, "spans": [list(span) for span in question.spans],
        }
        for clip in make_clips(folder, count, seed=3)
        for question in clip.questions
    ]  # fmt: skip


def trainer_of(shape: str, folder: str, rows: list[dict[str, Any]], **settings: Any) -> ZoomZeroTrainer:
    """The trainer of a random model."""
    common = {
        "output_dir": folder, "use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1,
        "save_strategy": "no", "max_steps": STEPS, "num_generations": 4, "learning_rate": 1e-4,
        "vllm_max_model_length": 1024, **settings,
    }  # fmt: skip
    config = ZoomZeroConfig(**common)
    return ZoomZeroTrainer(shaped_model(shape), config, rows, processing_class=tiny_processor())


def work(case: dict[str, Any]) -> None:
    """In a process of its own: train, and write the logged figures."""
    with tempfile.TemporaryDirectory() as folder:
        rows = clip_rows(case["clips"], case["rows"] // 2)
        settings = {"use_vllm": case["vllm"], "max_completion_length": case["tokens"]}
        batch = 4 * case["groups"] // case["processes"]
        trainer = trainer_of(case["model"], folder, rows, per_device_train_batch_size=batch, **settings)
        trainer.train()
        if trainer.is_world_process_zero():
            logs = [entry for entry in trainer.state.log_history if "loss" in entry]
            Path(case["result"]).write_text(json.dumps(logs))
        trainer.accelerator.wait_for_everyone()


def phases(shape: str, processes: int, vllm: bool, scale: float) -> dict[str, Any]:
    """A row: seconds of each phase of a step."""
    groups, tokens = (8, 64) if shape == "tiny" else (2, max(8, round(64 * scale)))
    with tempfile.TemporaryDirectory() as folder:
        case = {
            "model": shape, "processes": processes, "vllm": vllm, "groups": groups, "tokens": tokens,
            "rows": max(4, groups), "clips": folder, "result": f"{folder}/logs",
        }  # fmt: skip
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        done = subprocess.run(
            [*command, __file__, "--work", json.dumps(case)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"bench_train_step: {case} must train, got {done.stderr[-3000:]}")
        logs = json.loads(Path(case["result"]).read_text())[1:]
    names = sorted({name for entry in logs for name in entry if name.startswith("seconds/") or name == "step_time"})
    seconds = {name: round(statistics.median(entry.get(name, 0.0) for entry in logs), 4) for name in names}
    found = {"model": shape, "processes": processes, "sampler": "vLLM" if vllm else "our loop"}
    return {"kind": "phases", **found, "groups": groups, "responses": 4, "tokens": tokens, **seconds, "load": load()}


def fixed_rollouts(processor: Any, rows: list[dict[str, Any]], per_row: int) -> Rollouts:
    """Well-formed responses of the tiny tokenizer, of different lengths."""
    texts = [
        TEXT.format(words="the red square is shown at the end " * (2 + n % 4), letter=row["answer"], start=n, end=n + 3)
        for row in rows
        for n in range(per_row)
    ]
    ids = [processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    length = max(map(len, ids)) + 1
    end = processor.tokenizer.eos_token_id
    token_ids = torch.tensor([[*row, end, *[0] * (length - len(row) - 1)] for row in ids])
    mask = torch.arange(length) < torch.tensor([[len(row) + 1] for row in ids])
    return Rollouts(token_ids, mask, torch.full(mask.shape, -1.0), torch.ones(len(ids), dtype=torch.bool))


def zoom_zero_parts(trainer: ZoomZeroTrainer, rows: list[dict[str, Any]], rollouts: Rollouts) -> dict[str, float]:
    """What the method does between generation and loss, without the zoom pass."""
    collector, group_size = trainer._collector, len(rollouts.token_ids) // len(rows)
    repeated = [row for row in rows for _ in range(group_size)]
    responses = collector._responses(rollouts)
    scores = score(trainer.encoder, None, repeated, responses, 1)
    share = Share(num_rows=len(rows), num_groups=len(rows))
    mask = collector._trained_tokens(rollouts, scores, group_size, share)
    collector._advantages(scores, responses, rollouts, mask, group_size)
    share.table = RolloutTable.of(rollouts, scores)
    return joined_metrics([share], zoom_reward=False, online_filter=False)


def trl_trainer(shape: str, folder: str, layers: int) -> GRPOTrainer:
    """TRL's trainer of a text model of the same shape; its data set and its reward are not used."""
    processor = tiny_processor()
    sizes: dict[str, Any] = dict(HALF_BILLION) if shape != "tiny" else {}
    sizes.pop("rope_parameters", None)
    tiny = {
        "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 3,
        "num_key_value_heads": 3, "vocab_size": len(processor.tokenizer),
    }  # fmt: skip
    config = Qwen2Config(**{**tiny, **sizes, "num_hidden_layers": layers, "pad_token_id": 0})
    torch.manual_seed(0)
    settings = {"use_cpu": True, "bf16": False, "report_to": [], "per_device_train_batch_size": 2, "num_generations": 2}
    trainer = GRPOTrainer(
        model=Qwen2ForCausalLM(config).float(),
        reward_funcs=[lambda completions, **_: [0.0] * len(completions)],
        args=GRPOConfig(output_dir=folder, **settings),
        train_dataset=Dataset.from_list([{"prompt": "which"}] * 2),
        processing_class=processor.tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer()
    return trainer


def trl_step(trainer: GRPOTrainer, rollouts: Rollouts, prompt_tokens: int) -> None:
    """Loss, backward pass and optimizer step on rollouts as TRL's generation leaves them."""
    rows = len(rollouts.token_ids)
    prompts = torch.randint(20, 200, (rows, prompt_tokens), generator=torch.Generator().manual_seed(0))
    inputs = {
        "prompt_ids": prompts, "prompt_mask": torch.ones_like(prompts), "completion_ids": rollouts.token_ids,
        "completion_mask": rollouts.mask.long(), "advantages": torch.linspace(-1, 1, rows),
        "num_items_in_batch": rollouts.mask.sum(),
    }  # fmt: skip
    trainer.optimizer.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()
    trainer.optimizer.step()


def overhead(shape: str, scale: float, rounds: int) -> dict[str, Any]:
    """A row: the parts' time over TRL's step."""
    layers = 3 if shape == "tiny" else max(1, round(24 * scale))
    num_rows, per_row = (8, 8) if shape == "tiny" else (2, 4)
    with tempfile.TemporaryDirectory() as folder:
        rows = clip_rows(folder, num_rows // 2)
        ours = trainer_of("tiny", folder, rows, per_device_train_batch_size=4, zoom_reward=False, beta=0.0)
        rollouts = fixed_rollouts(ours.encoder.processor, rows, per_row)
        trl = trl_trainer(shape, folder, layers)
        timings = interleave(
            {"TRL": partial(trl_step, trl, rollouts, 256), "parts": partial(zoom_zero_parts, ours, rows, rollouts)},
            rounds=rounds,
        )
        ours.encoder.stop_reading_ahead()
    share = timings["parts"].cpu_speedup_of(timings["TRL"])
    row: dict[str, Any] = {
        "kind": "overhead", "model": shape, "layers": layers, "responses": len(rollouts.token_ids),
        "tokens": int(rollouts.mask.sum()), "prompt_tokens": 256, "overhead": round(share, 4), "load": load(),
    }  # fmt: skip
    return row | {
        f"{name}_{key}": value for name, timing in timings.items() for key, value in timing_row(timing).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the 0.5B-shaped model's work")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2], help="two of the 0.5B-shaped take 24 GB")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options = parser.parse_args()
    if options.work:
        work(json.loads(options.work))
        return
    rows: list[dict[str, Any]] = []
    for shape in options.models:
        rows.append(overhead(shape, options.scale, options.rounds))
        print(f"{shape}: the method's parts take {rows[-1]['overhead']:.1%} of TRL's step (bar: 10 %)")
    steps = []
    for shape in options.models:
        for vllm in (False, True) if HAS_VLLM else (False,):
            for processes in options.processes:
                steps.append(phases(shape, processes, vllm, options.scale))
                print_table(steps[-1:])
    print(f"wrote {write_results(result_name('train_step', options.models), [*rows, *steps])}")


if __name__ == "__main__":
    main()
