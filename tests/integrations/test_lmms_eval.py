"""The engine inside lmms-eval, in an environment of its own (.ci/lmms_eval.sh): the same answers and figures."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zoomzero import ZoomZero
from zoomzero.annotations import load_benchmark
from zoomzero.evaluation import evaluate, official_metrics
from zoomzero.synthetic import make_clips

if os.environ.get("ZOOMZERO_REQUIRE_LMMS_EVAL") == "1":
    import lmms_eval.api.instance as instances
else:
    instances = pytest.importorskip("lmms_eval.api.instance", reason="needs lmms-eval; run .ci/lmms_eval.sh")

from zoomzero.integrations import lmms_tasks
from zoomzero.integrations.lmms_eval import ZoomZeroModel, split_prompt

QUESTION = "Which letter is on the red sign?"
OPTIONS = ("A", "B", "C", "D")


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NExT-GQA's folder, of three clips with two questions each."""
    folder = tmp_path_factory.mktemp("benchmarks")
    make_clips(folder / "nextgqa", 3, seed=5)
    return folder


@pytest.mark.parametrize(
    ("prompt", "question", "options"),
    [
        ("Who?\nA. cat\nB. dog\nAnswer with the letter.", "Who?", ("cat", "dog")),
        ("Who runs?\nAnd why?\n(A) cat\n(B) dog\n(C) fox", "Who runs?\nAnd why?", ("cat", "dog", "fox")),
        ("Who?\nA) cat \n B) dog\n\nOnly give the best option.\nBest option: (", "Who?", ("cat", "dog")),
        ("What is seen?", "What is seen?", None),
        ("A. Lincoln\nis who?", "A. Lincoln\nis who?", None),
        ("Who?\nA. cat\nC. dog", "Who?\nA. cat\nC. dog", None),
        ("Who?\n" + "\n".join(f"{c}. {c}{c}" for c in "ABCDEFGHA"), "Who?", tuple(c * 2 for c in "ABCDEFGH")),
        ("Who?\nA. Lincoln was first.\nThen:\nA. cat\nB. dog", "Who?\nA. Lincoln was first.\nThen:", ("cat", "dog")),
    ],
)
def test_prompts_are_taken_apart(prompt: str, question: str, options: tuple[str, ...] | None) -> None:
    assert split_prompt(prompt) == (question, options)


def _request(documents: list[dict[str, Any]], place: int, context: str, task: str = "some_task") -> Any:
    arguments = (context, {}, lambda document: document["visuals"], place, task, "test")
    return instances.Instance(
        request_type="generate_until",
        arguments=arguments,
        idx=0,
        metadata={"task": task, "doc_id": place, "repeats": 1},
    )


def test_answers_are_the_engines(benchmarks: Path, tmp_path: Path) -> None:
    videos = sorted(str(path) for path in (benchmarks / "nextgqa").glob("*.mp4"))
    broken = tmp_path / "broken.mp4"
    broken.write_text("not a video")
    documents = [{"visuals": [path]} for path in (videos[1], videos[0], str(broken), videos[1])]
    documents[3] = {"visuals": [videos[1]], "question": QUESTION, "options": list(OPTIONS)}
    context = "\n".join([QUESTION, *(f"{letter}. {letter}" for letter in OPTIONS), "Answer with the letter."])
    model = ZoomZeroModel(max_new_tokens=40, batch_size="2")
    model.task_dict = {"some_task": {"test": documents}, "zoomzero_x": {"test": documents}}
    requests = [_request(documents, place, context) for place in range(3)]
    answers = model.generate_until([*requests, _request(documents, 3, "unused", "zoomzero_x")])
    engine = ZoomZero.from_pretrained()
    wanted = [engine.answer(path, QUESTION, OPTIONS, max_new_tokens=40) for path in (videos[1], videos[0])]
    assert answers[:3] == [wanted[0].letter, wanted[1].letter, ""]
    spans = ", ".join(f"({start:.2f}, {end:.2f})" for start, end in wanted[0].spans)
    assert answers[3] == f"<answer>{wanted[0].letter}</answer>\n<glue>[{spans}]</glue>"
    documents[0]["visuals"] = []
    with pytest.raises(ValueError, match="a question must be about one video file, got 0 visuals in task some_task"):
        model.generate_until(requests[:1])
    with pytest.raises(NotImplementedError, match="tasks must be of type generate_until, got loglikelihood"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match=r"model_args must be pretrained, strategy, .* got modality; leave it out"):
        ZoomZeroModel(modality="video")


def test_the_command_gives_the_figures_of_our_own_evaluation(benchmarks: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lmms_eval", "--model", "zoomzero", "--model_args", "max_new_tokens=40"]
    command += ["--include_path", *lmms_tasks.__path__, "--tasks", "zoomzero_nextgqa", "--output_path", str(tmp_path)]
    environment = {**os.environ, "ZOOMZERO_BENCHMARKS": str(benchmarks), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = tmp_path.rglob("*results.json")
    figures = json.loads(results.read_text())["results"]["zoomzero_nextgqa"]
    samples = load_benchmark("nextgqa", benchmarks / "nextgqa")
    ours = evaluate(ZoomZero.from_pretrained(), samples, max_new_tokens=40)
    wanted = official_metrics("nextgqa", samples, ours.official_predictions)
    for name in ("Acc", "Acc@GQA", "mIoU", "mIoP", "IoU@0.5", "IoP@0.3"):
        # Times are written with two decimals on their way through lmms-eval.
        assert figures[f"{name},none"] == pytest.approx(wanted[name], abs=0.01), name
