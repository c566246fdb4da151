"""Train by a recipe: GRPO with the zoom reward, model, data and settings in one YAML file.

python examples/train_with_a_recipe.py                                      # clips and the tiny model, two steps
python examples/train_with_a_recipe.py configs/stage1.yaml learning_rate=2e-6 out=runs/mine
"""

import sys
import tempfile
from pathlib import Path

from zoomzero.synthetic import make_clips
from zoomzero.training.recipe import change, load_recipe
from zoomzero.training.run import train
from zoomzero.training.sources import load_sources

RECIPE = """
out: {folder}/out
data:
  - {{format: rows, root: {folder}/clips/annotations.json}}
steps: 2
prompts: 2
num_generations: 4
learning_rate: 3.0e-4
max_completion_length: 40
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        if len(sys.argv) > 1:
            path = Path(sys.argv[1])
        else:
            make_clips(Path(folder, "clips"), 2, seed=3)
            path.write_text(RECIPE.format(folder=folder), encoding="utf-8")
        recipe, config = load_recipe(path, dict(change(text) for text in sys.argv[2:]))
        rows = load_sources(recipe.data, config.seed)
        _, history = train(recipe.model, rows, config, peft_config=recipe.peft_config())
        for step, figures in enumerate(history, start=1):
            rewards = {name: round(value, 3) for name, value in figures.items() if name.startswith("rewards/")}
            print(f"step {step}: {rewards}")
        print(f"checkpoint: {config.output_dir}", [file.name for file in Path(config.output_dir).glob("*.safetensors")])


if __name__ == "__main__":
    main()
