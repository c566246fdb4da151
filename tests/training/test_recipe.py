"""Recipes: YAML files of model, data and settings, with changes on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support.places import TESTS

from zoomzero.annotations import load_annotations
from zoomzero.cli import main
from zoomzero.rewards import REWARDS, TOKEN_ADV_CREDIT, credit_matrix, format_reward, iou_reward
from zoomzero.synthetic import make_clips
from zoomzero.training.dataset import checked_dataset
from zoomzero.training.recipe import change, load_recipe
from zoomzero.training.scoring import taken_apart
from zoomzero.training.sources import DataSource, load_sources

CONFIGS = sorted((TESTS.parent / "configs").glob("*.yaml"))


def _write(folder: Path, **settings: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"out": str(folder / "out"), **settings}))
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    make_clips(folder, 3, seed=51)
    return folder


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path: Path) -> None:
    # Whatever needs a GPU to be allowed is left out here.
    changes = {"bf16": False, "use_vllm": False} if not torch.cuda.is_available() else {}
    recipe, config = load_recipe(path, changes)
    told = yaml.safe_load(path.read_text())
    assert recipe.data
    for name, value in told.items():
        if name not in (*changes, "data", "fsdp_config"):
            kept = getattr(recipe, name) if hasattr(recipe, name) else getattr(config, name)
            assert kept == value, name
    accumulated = told.get("gradient_accumulation_steps", 1)
    assert config.per_device_train_batch_size * accumulated == told["prompts"] * told["num_generations"]
    assert config.generation_batch_size == told["prompts"] * told["num_generations"]
    assert config.max_steps == told["steps"]


def test_values_are_turned_into_the_fields_types(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    # YAML 1.1 takes 1e-6 for a text.
    path.write_text(f"out: {tmp_path}\nlearning_rate: 1e-6\nbeta: 0\nsave_every: 0\nreport_to: [tensorboard]\n")
    recipe, config = load_recipe(path, dict([change("learning_rate=2e-6"), change("zoom_reward=false")]))
    assert (config.learning_rate, config.beta, config.zoom_reward) == (2e-6, 0.0, False)
    assert (recipe.save_every, config.save_strategy) == (0, "no")
    assert config.report_to == ["tensorboard"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lerning_rate": 1}, "'lerning_rate' must be a setting, got an unknown one; the nearest is 'learning_rate'"),
        ({"steps": "many"}, "steps: invalid int value: 'many'"),
        ({"steps": 1.5}, "steps: invalid int value: '1.5'"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"prompts": 3, "gradient_accumulation_steps": 2}, "got 3 and 2; a micro-batch holds whole groups"),
        ({"credit": "mine"}, "credit must be one of token_adv, span_adv, uniform"),
        ({"credit": [[1, 0, 0]]}, "credit must be 4 x 3 finite numbers"),
        ({"reward_weights": [1, 2]}, "reward_weights must be 4 finite numbers"),
        ({"data": [{"format": "rows"}]}, "a source must be a mapping of root, format"),
        ({"data": [{"root": "x", "format": "nextqa"}]}, "format must be one of rows, nextgqa"),
        ({"data": [{"root": "x", "share": 0}]}, "share must be above 0"),
        ({"out": ""}, "'out' must be the folder"),
        ({"lora": 16}, "'lora' must be a mapping"),
    ],
)  # fmt: skip
def test_wrong_recipes_are_told(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"(?s)") as told:
        load_recipe(_write(tmp_path, **settings))
    assert message in str(told.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "out: [", "\x00", "!!python/object/apply:os.system ['true']"])
def test_what_is_no_recipe_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="a recipe must be"):
        load_recipe(path)


def test_the_credit_matrix_and_weights_of_a_recipe(tmp_path: Path) -> None:
    matrix = [[1, 1, 1], [0.5, 0.5, 0.5], [0, 0, 1], [0, 1, 0]]
    _, config = load_recipe(_write(tmp_path, credit=matrix, reward_weights=[1, 2, 1, 0]))
    credited = credit_matrix(config.credit, zoom_reward=True, weights=config.reward_weights)
    assert credited.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert torch.equal(credit_matrix("token_adv", zoom_reward=True), TOKEN_ADV_CREDIT)
    assert not credit_matrix(matrix, zoom_reward=False)[REWARDS.index("zoom")].any()


def test_sources_give_their_shares(clips: Path) -> None:
    rows = load_annotations(clips / "annotations.json")
    half, twice = (
        DataSource(str(clips / "annotations.json"), share=0.5),
        DataSource(str(clips / "annotations.json"), share=2.5),
    )
    drawn = load_sources([half, twice], seed=3)
    assert len(drawn) == 3 + 15
    assert drawn == load_sources([half, twice], seed=3)
    assert {row.question for row in drawn} <= {row.question for row in rows}
    assert all(drawn[3:].count(row) >= 2 for row in rows)
    with pytest.raises(ValueError, match="a run needs rows, got none from 0 sources"):
        load_sources([], seed=0)


def test_train_as_a_recipe_says(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Questions with options and rows of spans alone in one run."""
    spans_only = tmp_path / "spans.json"
    rows = json.loads((clips / "annotations.json").read_text())
    alone = [{key: value for key, value in row.items() if key not in ("options", "answer")} for row in rows]
    spans_only.write_text(json.dumps(alone))
    recipe = _write(
        tmp_path,
        data=[str(clips / "annotations.json"), {"root": str(spans_only), "video_root": str(clips)}],
        steps=8, prompts=2, num_generations=2, max_completion_length=30, save_every=0,
    )  # fmt: skip
    assert main(["train", "--config", str(recipe), "steps=3", "learning_rate=1e-4", "prompts=4"]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "checkpoint: " in capsys.readouterr().out
    assert main(["train", "--config", str(recipe), "--steps", "3"]) == 1
    assert "write steps=3" in capsys.readouterr().err


def test_adapters_of_a_recipe(clips: Path, tmp_path: Path) -> None:
    settings = {"steps": 1, "prompts": 1, "num_generations": 2, "max_completion_length": 20, "save_every": 0}
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
    recipe = _write(tmp_path, data=[str(clips / "annotations.json")], lora=lora, **settings)
    assert main(["train", "--config", str(recipe)]) == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    wrong, _ = load_recipe(_write(tmp_path, lora={"rank": 2}))
    with pytest.raises(ValueError, match="'lora' must be fields of peft's LoraConfig"):
        wrong.peft_config()


def test_a_row_of_spans_alone_earns_format_and_iou() -> None:
    row = {"video": "clip.mp4", "question": "the red sign", "options": [], "answer": "", "spans": [(2.0, 6.0)]}
    checked_dataset([row], "train_dataset", [])
    response = "<answer>a red sign</answer>\n<glue>[(2.0, 4.0)]</glue>"
    taken = taken_apart(response, row, thinking=True)
    assert (format_reward(taken), iou_reward(taken, row["spans"])) == (1.0, 0.5)
    assert not taken_apart("<answer></answer>\n<glue>[(2.0, 4.0)]</glue>", row, thinking=True).well_formed
    assert not taken_apart(response, {**row, "options": ["a", "b"]}, thinking=False).well_formed
    for wrong in ({"spans": []}, {"answer": "A"}, {"options": ["one"]}):
        with pytest.raises(ValueError, match="row 0"):
            checked_dataset([{**row, **wrong}], "train_dataset", [])
