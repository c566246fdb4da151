"""The tiny checkpoint taught clips of five minutes with several spans, by imitation.

It starts from the package's own checkpoint, whose vision tower stays as it is, and learns both passes on other clips
than those that are measured (stage 1 of `zoomzero.demo.train_tiny`). The same machine writes the same bytes.

    python benchmarks/train_long_checkpoint.py [--out runs/long_checkpoint] [--clips .cache/strategies]
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch

from zoomzero.demo.train_tiny import AnsweringLesson, learn_to_answer, save
from zoomzero.inputs import load_processor
from zoomzero.models import load_model
from zoomzero.models.segment_attention import use_segment_attention
from zoomzero.synthetic import make_clips, tiny_checkpoint

SEED, NUM_CLIPS = 700, 240
STEPS, LEARNING_RATE = 600, 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description="Teach the tiny checkpoint clips of five minutes.")
    parser.add_argument("--out", type=Path, default=Path("runs/long_checkpoint"))
    parser.add_argument("--clips", type=Path, default=Path(".cache/strategies"), help="folder of the clips")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    clips = make_clips(options.clips / "train", NUM_CLIPS, seed=SEED, duration=300.0, appearances=(2, 3), workers=1)
    model, processor = load_model(tiny_checkpoint(), "cpu", torch.float32), load_processor(tiny_checkpoint())
    use_segment_attention(model)
    learn_to_answer(model, AnsweringLesson(model, processor, clips), STEPS, LEARNING_RATE, padded=False)
    save(model, processor, options.out, {"clips": NUM_CLIPS, "seed": SEED, "steps": STEPS})
    digest = hashlib.sha256((options.out / "model.safetensors").read_bytes()).hexdigest()
    print(f"{options.out / 'model.safetensors'}: sha256 {digest}")


if __name__ == "__main__":
    main()
