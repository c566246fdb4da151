"""Teaching the tiny vision tower to read: labels for every visual token, from what the clip's spec says is there."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from zoomzero.inputs import VideoInputs
from zoomzero.models.encoding import video_features
from zoomzero.synthetic.clips import LETTERS, Clip
from zoomzero.synthetic.render import CANVAS, COLOURS, SIGN_SIDE, Sign
from zoomzero.video import open_video
from zoomzero_kernels import frame_resample

# Tokens with several truths (a boundary in time, a part of a sign) teach nothing.
IGNORED = -100
# Of 32 zoomed tokens two hold the letter: weigh "nothing" down so that it is not the answer to everything.
NOTHING_WEIGHT = 0.1
TOKEN_SIDE = 16  # canvas units of a zoomed token's side
NUM_ZOOM_FRAMES = 4


class WordHead(nn.Module):
    """Logits [tokens, 1 + words]: "nothing", then the words, by similarity with the words' own embeddings.

    So the tower's features lie where the language model keeps the words for what is seen.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, word_ids: Sequence[int]) -> None:
        super().__init__()
        embeddings = torch.as_tensor(model.get_input_embeddings().weight)
        self._words = embeddings.detach()[list(word_ids)].clone()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.nothing.expand(len(features), 1), features @ self._words.T], dim=1)


class ReadingLesson:
    """Stage 0: batches of coarse clips (colour a token) and zoomed signs (colour and letter a token)."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, processor: VideoInputs, clips: Sequence[Clip]
    ) -> None:
        self._model, self._processor, self._clips = model, processor, clips
        self._colour_head = self._head([f" {colour}" for colour in COLOURS])
        self._letter_head = self._head([f" {letter}" for letter in LETTERS])
        self._coarse: list[torch.Tensor] = []
        self._signs: list[tuple[Sign, torch.Tensor]] = []
        for clip in clips:
            with open_video(clip.path) as video:
                encoded = self._processor.read(video, self._processor.plan(video))
                self._coarse.append(encoded.pixel_values_videos.half())
                for sign in clip.spec.signs:
                    start, end = sign.intervals[0]
                    shown = [time for time in video.timestamps.tolist() if start <= time < end]
                    # Half of the frames are enough variety and halve the memory.
                    self._signs.append((sign, video.frames_at(shown[::2])[0]))
        self._coarse_grid, self._coarse_plan = encoded.video_grid_thw, encoded.plan

    def _head(self, words: Sequence[str]) -> WordHead:
        tokenizer = self._processor.tokenizer
        return WordHead(self._model, [tokenizer(word, add_special_tokens=False).input_ids[0] for word in words])

    def parameters(self) -> list[nn.Parameter]:
        return [
            *self._model.model.visual.parameters(),
            *self._colour_head.parameters(),
            *self._letter_head.parameters(),
        ]

    def loss(self, rng: random.Random, num_coarse: int, num_zoomed: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of a random batch, and the shares of letters and colours read rightly in it."""
        indices = rng.sample(range(len(self._clips)), num_coarse)
        coarse = self._features([(self._coarse[index].float(), self._coarse_grid) for index in indices])
        coarse_labels = torch.cat([self._coarse_labels(self._clips[index]) for index in indices])
        drawn = [self._zoomed_sign(rng) for _ in range(num_zoomed)]
        zoomed = self._features([(patches, grid) for patches, grid, _, _ in drawn])
        colours, letters = (torch.cat([item[place] for item in drawn]) for place in (2, 3))
        colour_logits, letter_logits = self._colour_head(coarse), self._letter_head(zoomed)
        weight = torch.tensor([NOTHING_WEIGHT] + [1.0] * len(LETTERS))
        loss = (
            functional.cross_entropy(colour_logits, coarse_labels, ignore_index=IGNORED)
            + functional.cross_entropy(self._colour_head(zoomed), colours, ignore_index=IGNORED)
            + functional.cross_entropy(letter_logits, letters, weight=weight)
        )
        seen, shown = coarse_labels > 0, letters > 0
        return loss, {
            "colours_read": _share(colour_logits[seen].argmax(-1) == coarse_labels[seen]),
            "letters_read": _share(letter_logits[shown].argmax(-1) == letters[shown]),
        }

    def _features(self, videos: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        return torch.cat(video_features(self._model, videos))

    def _coarse_labels(self, clip: Clip) -> torch.Tensor:
        """Colour a coarse token (0 is none), int64 [tokens]; a token whose frames disagree is ignored."""
        labels = []
        times = self._coarse_plan.timestamps
        for pair in zip(times[::2], times[1::2], strict=True):
            shown = {_colour_at(clip, time) for time in pair}
            labels.append(shown.pop() if len(shown) == 1 else IGNORED)
        return torch.tensor(labels)

    def _zoomed_sign(self, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Patches, grid, colour labels and letter labels of random frames of a random sign, moved to a random place.

        The frames are rolled as a whole, so that the tower sees every sign everywhere.
        """
        sign, frames = self._signs[rng.randrange(len(self._signs))]
        places = sorted(rng.choices(range(len(frames)), k=NUM_ZOOM_FRAMES))
        x, y = (rng.randint(1, CANVAS - SIGN_SIDE - 1) for _ in range(2))
        moved = torch.roll(frames[places], (y - sign.y, x - sign.x), dims=(1, 2))
        geometry = self._processor.geometry
        patches = frame_resample(
            moved,
            size=(CANVAS, CANVAS),
            mean=geometry.mean,
            std=geometry.std,
            patch_size=geometry.patch_size,
            merge_size=geometry.merge_size,
            temporal_patch_size=geometry.temporal_patch_size,
        )
        steps = NUM_ZOOM_FRAMES // geometry.temporal_patch_size
        grid = torch.tensor([[steps, CANVAS // geometry.patch_size, CANVAS // geometry.patch_size]])
        cells = CANVAS // TOKEN_SIDE
        row, column = (y + SIGN_SIDE // 2) // TOKEN_SIDE, (x + SIGN_SIDE // 2) // TOKEN_SIDE
        colours = torch.zeros(steps, cells, cells, dtype=torch.long)
        touched = (
            slice(y // TOKEN_SIDE, (y + SIGN_SIDE - 1) // TOKEN_SIDE + 1),
            slice(x // TOKEN_SIDE, (x + SIGN_SIDE - 1) // TOKEN_SIDE + 1),
        )
        colours[:, *touched] = IGNORED
        colours[:, row, column] = 1 + list(COLOURS).index(sign.colour)
        letters = torch.zeros(steps, cells, cells, dtype=torch.long)
        letters[:, row, column] = 1 + LETTERS.index(sign.letter)
        return patches, grid, colours.flatten(), letters.flatten()


def _colour_at(clip: Clip, seconds: float) -> int:
    for sign in clip.spec.signs:
        if any(start <= seconds < end for start, end in sign.intervals):
            return 1 + list(COLOURS).index(sign.colour)
    return 0


def _share(right: torch.Tensor) -> float:
    return round(float(right.float().mean()), 3)
