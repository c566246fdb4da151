"""Tokens of an earlier look beside those of another: how many, what they are, and at which times they stand."""

import dataclasses
from pathlib import Path

import pytest
import torch

from zoomzero.looks import Context, PreparedPrompt
from zoomzero.looks.encoder import context_grid
from zoomzero.looks.rows import RowEncoder
from zoomzero.synthetic import make_clips, tiny_model, tiny_processor


# Space is averaged first, down to one token per slice, then time; a budget above the grid keeps all.
@pytest.mark.parametrize(
    ("grid", "max_tokens", "kept"),
    [
        ((4, 6, 8), 1000, (4, (6, 8))),
        ((4, 6, 8), 48, (4, (3, 4))),
        ((4, 6, 8), 47, (4, (2, 4))),
        ((32, 1, 1), 3, (3, (1, 1))),
        ((4, 1, 16), 8, (4, (1, 2))),
        ((4, 16, 1), 8, (4, (2, 1))),
        ((4, 6, 8), 1, (1, (1, 1))),
    ],
)
def test_grids_stay_under_the_number_of_tokens(
    grid: tuple[int, int, int], max_tokens: int, kept: tuple[int, tuple[int, int]]
) -> None:
    found = context_grid(grid, max_tokens)
    assert found[0] * found[1][0] * found[1][1] <= max_tokens
    assert found == kept


def test_no_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens must be at least 1, got 0"):
        context_grid((4, 6, 8), 0)


def test_context_is_the_mean_of_the_earlier_looks_features(tmp_path: Path) -> None:
    clip = make_clips(tmp_path, 1, seed=41)[0]
    processor = tiny_processor()
    model = tiny_model()
    encoder = RowEncoder(processor, model, freeze_vision=True, feature_bytes=1 << 24, frame_bytes=1 << 24)
    row = {"video": str(clip.path), "question": "Which letter?", "options": ["A", "B"]}
    coarse, zoom = encoder.coarse_look(row), encoder.zoom_look(row, [(4.0, 9.0)])
    both = dataclasses.replace(zoom, context=Context(coarse, 4))
    first, alone, joined = encoder.prepare([coarse, zoom, both])
    assert isinstance(first, PreparedPrompt)
    assert isinstance(alone, PreparedPrompt)
    assert isinstance(joined, PreparedPrompt)
    # 32 slices of one token: four means of eight slices each.
    torch.testing.assert_close(joined.visual[:4], first.visual.view(4, 8, -1).mean(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(joined.visual[4:], alone.visual)
    assert joined.grid_thw.tolist() == [[4, 2, 2], [2, 8, 8]]
    is_video = joined.input_ids == processor.video_token_id
    assert int(is_video.sum()) == 4 + len(alone.visual)
    # Eight slices of two frames each at two frames per second: a position per second, eight seconds apart.
    times = joined.position_ids[0][is_video][:4]
    assert times.diff().tolist() == [8, 8, 8]


def test_context_needs_features(tmp_path: Path) -> None:
    clip = make_clips(tmp_path, 1, seed=41)[0]
    processor = tiny_processor()
    model = tiny_model()
    encoder = RowEncoder(processor, model, freeze_vision=False, feature_bytes=1 << 24, frame_bytes=1 << 24)
    row = {"video": str(clip.path), "question": "Which letter?", "options": ["A", "B"]}
    coarse = encoder.coarse_look(row)
    with pytest.raises(ValueError, match="context needs features of a frozen vision tower, got pixels"):
        encoder.prepare([dataclasses.replace(encoder.zoom_look(row, []), context=Context(coarse, 4))])
