"""Make the tiny checkpoints from nothing: `python -m zoomzero.demo.train_tiny` (or `make tiny`).

Three stages, about a quarter of an hour on one CPU core:

0. The vision tower learns to read, with one linear head a question: which colour is in this token, which letter.
1. The language model learns both passes by imitation, on cached features of the frozen tower: coarse frames -> answer
   and span, zoomed frames -> letter. This is the checkpoint "tight".
2. A few more steps on spans padded by up to four seconds per side: the checkpoint "start". It names spans that are too
   wide on purpose, which is what reinforcement learning can then mend. The package carries it.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration

from zoomzero.annotations import load_annotations
from zoomzero.answering.engine import ZoomZero
from zoomzero.demo.reading import ReadingLesson
from zoomzero.evaluation import evaluate
from zoomzero.inputs import VideoInputs
from zoomzero.looks.rows import RowEncoder
from zoomzero.models.encoding import language_inputs
from zoomzero.models.segment_attention import use_segment_attention
from zoomzero.synthetic.clips import ANNOTATION_FILE, Clip, Question, make_clips
from zoomzero.synthetic.render import COLOURS
from zoomzero.synthetic.tiny_model import tiny_checkpoint, tiny_model, tiny_processor
from zoomzero.video import VideoError

TRAIN_SEED, TEST_SEED = 100, 200
MAX_PADDING_SECONDS = 4.0
# A clip's questions follow each other: what was read of the clips before it need not be kept.
FEATURE_BYTES, FRAME_BYTES = 1 << 24, 1 << 26


class AnsweringLesson:
    """Stages 1 and 2: prompts, cached features and target responses of every question of the clips."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, processor: VideoInputs, clips: Sequence[Clip]
    ) -> None:
        self._model, self._processor = model, processor
        self._clips = clips
        # Says of a frame's hidden state whether the frame shows the evidence; see `loss`.
        self.marker = torch.nn.Linear(model.config.get_text_config().hidden_size, 1)
        self.questions = [(index, question) for index, clip in enumerate(clips) for question in clip.questions]
        self._first_question = list(itertools.accumulate((len(clip.questions) for clip in clips), initial=0))
        self._inputs: dict[bool, list[dict[str, torch.Tensor]]] = {False: [], True: []}
        self._features: dict[bool, list[torch.Tensor]] = {False: [], True: []}
        self._encode_all()

    def _encode_all(self) -> None:
        encoder = RowEncoder(
            self._processor, self._model, freeze_vision=True, feature_bytes=FEATURE_BYTES, frame_bytes=FRAME_BYTES
        )
        for clip in tqdm(self._clips, desc="features", unit="clip"):
            for question in clip.questions:
                row = {"video": str(clip.path), "question": question.question, "options": question.options}
                looks = [encoder.coarse_look(row), encoder.zoom_look(row, question.spans)]
                for look, prompt in zip(looks, encoder.prepare(looks), strict=True):
                    if isinstance(prompt, VideoError):
                        raise prompt
                    inputs = {"ids": prompt.input_ids, "positions": prompt.position_ids}
                    self._inputs[look.zoomed].append(inputs | {"marks": _marks(question, look.plan.timestamps)})
                    self._features[look.zoomed].append(prompt.visual)

    def loss(self, rng: random.Random, count: int, *, zoomed: bool, padded: bool = False) -> torch.Tensor:
        """Cross-entropy of the responses to `count` random prompts of one pass, mean over response tokens.

        The coarse pass adds the loss of marking the frames that show the evidence, from the hidden states after the
        second layer: without it the model learns to find signs, but for a thousand steps not to mind which one is asked
        for.
        """
        chosen = self._draw(rng, count)
        tokenizer = self._processor.tokenizer
        rows = []
        for number in chosen:
            clip_index, question = self.questions[number]
            spans = _padded(question.spans, self._clips[clip_index].duration, rng) if padded else question.spans
            text = question.answer if zoomed else response_text(question, spans)
            response = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
            rows.append((self._inputs[zoomed][number], torch.tensor(response)))
        return self._rows_loss(rows, [self._features[zoomed][number] for number in chosen], marked=not zoomed)

    def _draw(self, rng: random.Random, count: int) -> list[int]:
        """Numbers of `count` questions, those of a clip together: the same frames with another question, so that the
        model cannot but learn to mind the question."""
        numbers: list[int] = []
        for clip_index in rng.sample(range(len(self._clips)), len(self._clips)):
            first = self._first_question[clip_index]
            numbers += range(first, first + len(self._clips[clip_index].questions))
            if len(numbers) >= count:
                break
        return numbers[:count]

    def _rows_loss(
        self,
        rows: Sequence[tuple[dict[str, torch.Tensor], torch.Tensor]],
        features: Sequence[torch.Tensor],
        *,
        marked: bool,
    ) -> torch.Tensor:
        """rows: (prompt, response ids); right-padded, so causal attention needs no mask."""
        length = max(len(prompt["ids"]) + len(response) for prompt, response in rows)
        ids = torch.full((len(rows), length), self._processor.tokenizer.pad_token_id)
        positions = torch.zeros(3, len(rows), length, dtype=torch.long)
        targets = torch.full((len(rows), length), -100)
        for row, (prompt, response) in enumerate(rows):
            start, end = len(prompt["ids"]), len(prompt["ids"]) + len(response)
            ids[row, :end] = torch.cat([prompt["ids"], response])
            positions[:, row, :start] = prompt["positions"]
            positions[:, row, start:end] = prompt["positions"].max() + 1 + torch.arange(len(response))
            targets[row, start:end] = response
        is_video = torch.eq(ids, self._processor.video_token_id)
        outputs = self._model.model.language_model(
            **language_inputs(self._model, ids, is_video, features),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=marked,
        )
        keep = targets[:, 1:] >= 0
        loss = functional.cross_entropy(
            self._model.lm_head(outputs.last_hidden_state[:, :-1][keep]), targets[:, 1:][keep]
        )
        if not marked:
            return loss
        marks = torch.cat([prompt["marks"] for prompt, _ in rows])
        clear = marks >= 0
        logits = self.marker(outputs.hidden_states[2][is_video])[:, 0]
        return loss + functional.binary_cross_entropy_with_logits(logits[clear], marks[clear])


def _marks(question: Question, times: Sequence[float]) -> torch.Tensor:
    """For each coarse token (two frames) 1 where both show the evidence, 0 where none does, -1 where they differ."""
    shown = [any(start <= time < end for start, end in question.spans) for time in times]
    return torch.tensor([float(a) if a == b else -1.0 for a, b in zip(shown[::2], shown[1::2], strict=True)])


def response_text(question: Question, spans: Sequence[tuple[float, float]]) -> str:
    """The response of the coarse pass: whole seconds, as the coarse pass cannot see more.

    Its thinking is the colour asked for and the times: without naming the colour first, the model long takes either
    sign for the right one.
    """
    listed = ", ".join(f"({round(start)}, {round(end)})" for start, end in spans)
    colour = next(colour for colour in COLOURS if f" {colour} " in question.question)
    thinking = f"<think> {colour} <time>{listed}</time></think>"
    return f"{thinking}\n<answer>{question.answer}</answer>\n<glue>[{listed}]</glue>"


def _padded(spans: Sequence[tuple[float, float]], duration: float, rng: random.Random) -> list[tuple[float, float]]:
    return [
        (
            max(0.0, start - rng.uniform(0, MAX_PADDING_SECONDS)),
            min(duration, end + rng.uniform(0, MAX_PADDING_SECONDS)),
        )
        for start, end in spans
    ]


def learn_to_read(lesson: ReadingLesson, rng: random.Random, steps: int) -> dict[str, float]:
    """Stage 0. Returns the shares of letters and colours read rightly in the last training batch."""
    optimizer, schedule = _optimizer(lesson.parameters(), steps, 6e-3, weight_decay=0.0)
    bar = tqdm(range(steps), desc="reading", unit="step")
    for _ in bar:
        loss, figures = lesson.loss(rng, num_coarse=8, num_zoomed=64)
        _step(loss, lesson.parameters(), optimizer, schedule)
        bar.set_postfix({name: f"{value:.2f}" for name, value in figures.items()})
    return figures


def learn_to_answer(
    model: Qwen2_5_VLForConditionalGeneration,
    lesson: AnsweringLesson,
    rng: random.Random,
    steps: int,
    lr: float,
    *,
    padded: bool,
) -> None:
    """Stages 1 (exact spans) and 2 (padded spans); the vision tower stays as it is."""
    trained = [value for name, value in model.named_parameters() if ".visual." not in name]
    trained += lesson.marker.parameters()
    optimizer, schedule = _optimizer(trained, steps, lr, weight_decay=0.01)
    model.train()
    bar = tqdm(range(steps), desc="padded spans" if padded else "answering", unit="step")
    for _ in bar:
        coarse = lesson.loss(rng, 64, zoomed=False, padded=padded)
        zoomed = lesson.loss(rng, 16, zoomed=True)
        _step(coarse + zoomed, trained, optimizer, schedule)
        bar.set_postfix(coarse=f"{coarse.item():.3f}", zoomed=f"{zoomed.item():.3f}")
    model.eval()


def _optimizer(
    parameters: Sequence[torch.nn.Parameter], steps: int, lr: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98))
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)


def _step(
    loss: torch.Tensor,
    parameters: Sequence[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


def measure(model: Qwen2_5_VLForConditionalGeneration, processor: VideoInputs, folder: Path) -> dict[str, float]:
    """Figures on held-out clips: spans, and answers from both passes."""
    samples = load_annotations(folder / ANNOTATION_FILE)
    result = evaluate(ZoomZero(model, processor), samples, batch_size=32, max_new_tokens=40)
    return {
        "miou": round(result.metrics["mIoU"], 3),
        "coarse_accuracy": round(result.coarse_accuracy, 3),
        "zoom_accuracy": round(result.metrics["Acc"], 3),
    }


def save(
    model: Qwen2_5_VLForConditionalGeneration, processor: VideoInputs, folder: Path, figures: dict[str, object]
) -> None:
    """Write a checkpoint as any other: bfloat16 weights, tokenizer, settings, and its figures beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).bfloat16().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tiny checkpoints from nothing.")
    parser.add_argument("--clips", type=Path, default=Path(".cache/tiny"), help="folder for the clips")
    parser.add_argument("--start", type=Path, default=tiny_checkpoint(), help="folder of the start checkpoint")
    parser.add_argument("--tight", type=Path, default=Path("runs/tiny/tight"), help="folder of the tight checkpoint")
    parser.add_argument("--num-clips", type=int, default=2000)
    parser.add_argument("--reading-steps", type=int, default=600)
    parser.add_argument("--answering-steps", type=int, default=700)
    parser.add_argument("--padded-steps", type=int, default=150)
    parser.add_argument("--vision", type=Path, help="take the vision tower of this checkpoint instead of stage 0")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of what a batch holds")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    reading_rng, answering_rng, padding_rng = (random.Random(3 * options.seed + stage) for stage in range(3))
    torch.set_num_threads(1)
    clips = make_clips(options.clips / "train", options.num_clips, seed=TRAIN_SEED)
    make_clips(options.clips / "test", 300, seed=TEST_SEED)
    model, processor = tiny_model(), tiny_processor()
    use_segment_attention(model)
    started = time.process_time()
    if options.vision is None:
        reading = learn_to_read(ReadingLesson(model, processor, clips), reading_rng, options.reading_steps)
    else:
        reading = {}
        other = Qwen2_5_VLForConditionalGeneration.from_pretrained(options.vision, dtype=torch.float32)
        model.model.visual.load_state_dict(other.model.visual.state_dict())
    lesson = AnsweringLesson(model, processor, clips)
    learn_to_answer(model, lesson, answering_rng, options.answering_steps, 2e-3, padded=False)
    cost = {"cpu_seconds": round(time.process_time() - started)}
    figures = {**reading, **measure(model, processor, options.clips / "test")}
    save(model, processor, options.tight, {**figures, **cost})
    print("tight", figures, cost)
    learn_to_answer(model, lesson, padding_rng, options.padded_steps, 1e-3, padded=True)
    cost = {"cpu_seconds": round(time.process_time() - started)}
    figures = {**reading, **measure(model, processor, options.clips / "test")}
    save(model, processor, options.start, {**figures, **cost})
    print("start", figures, cost)


if __name__ == "__main__":
    main()
