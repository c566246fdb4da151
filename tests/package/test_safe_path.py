"""Nothing is imported from the current folder by any process that the package starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Clips are rendered, videos decoded and rows loaded in processes of their own; the loader's is a fresh interpreter.
SCRIPT = """
import sys
import torch
from zoomzero.annotations import load_annotations
from zoomzero.cli import main
from zoomzero.synthetic import make_clips
from zoomzero.training.run import train, train_config

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")
    folder = sys.argv[1]
    make_clips(folder, 2, seed=3, workers=2)
    samples = load_annotations(folder + "/annotations.json")
    question = ["Which letter is on the red sign?", "--options", "A", "B", "C", "D"]
    assert main(["answer", samples[0].video, *question, "--max-new-tokens", "4"]) == 0
    config = train_config(folder + "/out", steps=1, prompts=2, num_generations=2, max_completion_length=8)
    config.dataloader_num_workers = 1
    train(None, samples, config)
    print("trained")
"""


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path) -> None:
    script, hostile, out = (tmp_path / name for name in ("script", "hostile", "out"))
    for folder in (script, hostile, out):
        folder.mkdir()
    (script / "run.py").write_text(SCRIPT)
    # Besides the large libraries, what an interpreter needs before it has taken over its parent's path.
    for name in ("av", "torch", "numpy", "transformers", "struct", "pickle", "tempfile", "selectors", "sitecustomize"):
        (hostile / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("PYTHONSAFEPATH", None)
    command = [sys.executable, str(script / "run.py"), str(out)]
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "trained" in done.stdout
    assert not (tmp_path / "executed").exists(), (tmp_path / "executed").read_text()
