"""What `zoomzero train --dry-run` estimates, beside the peak that a training of the 0.5B-shaped model takes on the CPU.

Two steps of a random model in float32, with all weights trained and with LoRA, with and without gradient checkpointing,
each in a process of its own: the growth of its resident memory from before the model is made to the highest point. The
bar: the estimate is within 15 % of it. --table prints the table of docs/training.md, which no GPU has measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import print_table, write_results
from peft import LoraConfig
from published_models import memory_table
from shaped_models import load, shaped_config, shaped_model

from zoomzero.bench.timing import peak_bytes_during
from zoomzero.inputs import VideoInputs
from zoomzero.synthetic import make_clips, tiny_processor
from zoomzero.training import ZoomZeroConfig, ZoomZeroTrainer
from zoomzero.training.memory import Launch, training_memory

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = [(lora, checkpointing) for checkpointing in (False, True) for lora in (False, True)]


def _settings(folder: str, shape: dict[str, Any], *, lora: bool, checkpointing: bool) -> ZoomZeroConfig:
    """One group per step. The reference of the full model, which would only be a second one beside it, is left out."""
    return ZoomZeroConfig(
        output_dir=folder, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no", max_steps=2,
        num_generations=4, per_device_train_batch_size=4, max_completion_length=shape["tokens"],
        gradient_checkpointing=checkpointing, beta=0.01 if lora else 0.0, zoom_reward=lora,
        feature_cache_bytes=1 << 25, frame_cache_bytes=1 << 25, num_decoders=1, read_ahead_bytes=0,
    )  # fmt: skip


def _processor(budget: int) -> VideoInputs:
    processor = tiny_processor()
    coarse = dataclasses.replace(processor.settings.coarse, budget_tokens=budget)
    processor.settings = dataclasses.replace(processor.settings, coarse=coarse)
    return processor


def work(case: dict[str, Any]) -> None:
    """In a process of its own: train, and write estimate and peak."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, target_modules=TARGETS) if case["lora"] else None
    with tempfile.TemporaryDirectory() as folder:
        (clip,) = make_clips(folder, 1, seed=3)
        rows = [
            {
                "video": str(clip.path), "question": question.question, "options": list(question.options),
                "answer": question.answer, "spans": [list(span) for span in question.spans],
            }
            for question in clip.questions
        ]  # fmt: skip
        settings = _settings(folder, case, lora=case["lora"], checkpointing=case["checkpointing"])
        processor, lengths = _processor(case["budget"]), []

        def train() -> None:
            trainer = ZoomZeroTrainer(
                shaped_model("0.5B"), settings, rows, processing_class=processor, peft_config=lora
            )
            trainer.train()
            lengths.append(trainer.encoder.prepare_coarse(rows[:1])[0])

        # What the first use of the libraries loads is no part of the model's memory.
        torch.nn.functional.linear(torch.randn(64, 64), torch.randn(64, 64))
        peak = peak_bytes_during(train)
    prompt = lengths[0]
    visual = int((prompt.input_ids == shaped_config("0.5B").video_token_id).sum())
    needs = training_memory(
        shaped_config("0.5B"),
        settings,
        Launch(device="cpu"),
        visual_tokens=visual,
        text_tokens=len(prompt.input_ids) - visual,
        peft_config=lora,
    )
    phases = needs.phases()
    found = {
        "lora": case["lora"], "checkpointing": case["checkpointing"], "prompt_tokens": len(prompt.input_ids),
        "response_tokens": 4 * case["tokens"], "estimate_megabytes": needs.total >> 20, "peak_megabytes": peak >> 20,
        "estimate_over_peak": round(needs.total / peak, 3), "phase": max(phases, key=phases.__getitem__),
        "load": load(),
    }  # fmt: skip
    Path(case["result"]).write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="print the table of docs/training.md, and end")
    parser.add_argument("--budget", type=int, default=512, help="visual tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of each of the four responses")
    options = parser.parse_args()
    if options.work:
        work(json.loads(options.work))
        return
    if options.table:
        print(memory_table())
        return
    rows = []
    for lora, checkpointing in CASES:
        with tempfile.NamedTemporaryFile() as result:
            case = {"lora": lora, "checkpointing": checkpointing, "budget": options.budget, "tokens": options.tokens}
            command = [sys.executable, __file__, "--work", json.dumps({**case, "result": result.name})]
            subprocess.run(command, check=True)
            rows.append(json.loads(Path(result.name).read_text()))
        print_table(rows)
        print(f"wrote {write_results('train_memory', rows)}")


if __name__ == "__main__":
    main()
