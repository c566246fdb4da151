"""A few training steps with vLLM's rollouts, for several processes under `python -m torch.distributed.run`.

Usage: vllm_steps.py <settings as JSON>. The first process writes its logged figures to `result`.
"""

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import support.vllm_engine  # noqa: F401  # its settings of vLLM's environment

from zoomzero import ZoomZeroConfig, ZoomZeroTrainer
from zoomzero.annotations import load_annotations
from zoomzero.synthetic import tiny_checkpoint

settings = json.loads(sys.argv[1])
result, annotations = settings.pop("result"), settings.pop("annotations")
rows = [dataclasses.asdict(sample) for sample in load_annotations(annotations)]
trainer = ZoomZeroTrainer(str(tiny_checkpoint()), ZoomZeroConfig(**settings), rows)
trainer.train()
if trainer.is_world_process_zero():
    Path(result).write_text(json.dumps([entry for entry in trainer.state.log_history if "loss" in entry]))
trainer.accelerator.wait_for_everyone()
