"""Checkpoints load by hub name from the cache, offline, as they do from a folder."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from zoomzero.synthetic import tiny_checkpoint

_SCRIPT = """
import json, sys
from zoomzero import ZoomZero
from zoomzero.models import load_model
engine = ZoomZero.from_pretrained("someone/tiny", device="cpu")
processor = engine.processor
print(json.dumps({
    "parameters": sum(p.numel() for p in load_model("someone/tiny", "cpu").parameters()),
    "budget": processor.settings.coarse.budget_tokens,
    "mean": processor.geometry.mean,
    "template": processor.tokenizer.chat_template,
}))
"""


def test_a_hub_name_is_as_good_as_a_folder(tmp_path: Path) -> None:
    """The cache as huggingface_hub lays it out; settings, statistics and a legacy template come out of it too."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(tiny_checkpoint(), snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    template = (snapshot / "chat_template.jinja").read_text()
    (snapshot / "chat_template.jinja").unlink()
    (snapshot / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (snapshot / "processor_config.json").unlink(missing_ok=True)
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (snapshot / "preprocessor_config.json").write_text(json.dumps(statistics))

    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"parameters": found["parameters"], "budget": 32, "mean": [0.1, 0.2, 0.3], "template": template}
    assert found["parameters"] > 400_000
