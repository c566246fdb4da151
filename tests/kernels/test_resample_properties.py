"""Properties of the resampling ops over random shapes, strides, indices and budgets, and parity with transformers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.transformers_processors import without_cap
from torch import Tensor

from zoomzero.budget import plan_frames
from zoomzero_kernels import frame_resample, reference, token_resample

transformers = pytest.importorskip("transformers")

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
# Timing says nothing on a shared machine; the example counts keep the file near ten seconds.
PROFILE = settings(max_examples=60, deadline=None)


@st.composite
def clips(draw: st.DrawFn) -> Tensor:
    """uint8 frames [n, h, w, 3] of a few pixels to a few dozen, packed or as some view of a larger buffer."""
    n, h, w = draw(st.integers(1, 4)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def noise(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    kind = draw(st.sampled_from(["packed", "channels first", "pitch", "cropped", "stepped", "flipped"]))
    if kind == "channels first":
        return noise(n, 3, h, w).permute(0, 2, 3, 1)
    if kind == "pitch":
        return noise(n, h, w + draw(st.integers(1, 9)), 3)[:, :, :w]
    if kind == "cropped":
        return noise(n, h + 3, w + 5, 4)[:, 2 : 2 + h, 1 : 1 + w, 1:]
    if kind == "stepped":
        return noise(2 * n, 2 * h, 3 * w, 3)[::2, ::2, ::3]
    if kind == "flipped":
        return noise(n, w, h, 3).transpose(1, 2)
    return noise(n, h, w, 3)


@PROFILE
@given(clips(), st.data())
def test_frame_resample_equals_reference(frames: Tensor, data: st.DataObject) -> None:
    picks = data.draw(st.none() | st.lists(st.integers(0, frames.shape[0] - 1), max_size=5))
    indices = None if picks is None else torch.tensor(picks, dtype=torch.int64)
    patch_size, merge_size = data.draw(st.sampled_from([(14, 2), (16, 2), (7, 1), (4, 3)]))
    unit = patch_size * merge_size
    options: dict[str, Any] = {
        "size": (unit * data.draw(st.integers(1, 4)), unit * data.draw(st.integers(1, 4))),
        "layout": data.draw(st.sampled_from(["patches", "tchw"])),
        "patch_size": patch_size,
        "merge_size": merge_size,
        "temporal_patch_size": data.draw(st.integers(1, 3)),
        "mean": MEAN,
        "std": STD,
    }
    ours = frame_resample(frames, indices, **options)
    if indices is not None and indices.numel() == 0:
        assert ours.shape[0] == 0
        return
    truth = reference.frame_resample(frames, indices, **options)
    torch.testing.assert_close(ours, truth, atol=2e-6, rtol=0)


@PROFILE
@given(st.data())
def test_token_resample_equals_reference(data: st.DataObject) -> None:
    sides = st.tuples(st.integers(1, 9), st.integers(1, 9))
    grid = data.draw(
        st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)
    )
    num_slices = sum(t for t, _, _ in grid)
    target = data.draw(st.lists(sides, min_size=num_slices, max_size=num_slices))
    grid_thw, target_hw = torch.tensor(grid), torch.tensor(target)
    width = data.draw(st.integers(1, 40))
    values = torch.randn(int(grid_thw.prod(1).sum()), width, dtype=torch.float64)
    truth_in, ours_in = values.clone().requires_grad_(), values.float().requires_grad_()
    truth = reference.token_resample(truth_in, grid_thw, target_hw)
    ours = token_resample(ours_in, grid_thw, target_hw)
    torch.testing.assert_close(ours.double(), truth, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(truth)
    (truth_grad,) = torch.autograd.grad(truth, truth_in, weights)
    (ours_grad,) = torch.autograd.grad(ours, ours_in, weights.float())
    torch.testing.assert_close(ours_grad.double(), truth_grad, atol=1e-5, rtol=1e-5)


@PROFILE
@given(st.integers(120, 1080), st.integers(120, 1920), st.integers(64, 2048), st.integers(1, 12))
def test_planned_sizes_are_accepted(height: int, width: int, budget_tokens: int, num_frames: int) -> None:
    plan = plan_frames(num_frames / 2, height, width, budget_tokens=budget_tokens)
    frames = torch.zeros(1, 1, 1, 3, dtype=torch.uint8).expand(2, height, width, 3)
    patches = frame_resample(frames, size=plan.size, mean=MEAN, std=STD)
    assert patches.shape == (plan.size[0] * plan.size[1] // 196, 1176)
    assert patches.shape[0] // 4 <= budget_tokens


def pixel_levels(values: Tensor) -> Tensor:
    """Normalised patches back to levels of 0 to 255."""
    mean = torch.tensor(MEAN).repeat_interleave(values.shape[1] // 3)
    std = torch.tensor(STD).repeat_interleave(values.shape[1] // 3)
    return (values * std + mean) * 255


# (source, wanted area): sides from 28 pixels to 1080p, up and down.
PARITY_SIZES = [
    ((28, 28), (112, 112)),
    ((240, 426), (224, 448)),
    ((720, 1280), (336, 560)),
    ((1080, 1920), (112, 224)),
    ((360, 640), (1120, 1904)),
    ((1080, 1920), (1120, 1904)),
]


@pytest.mark.parametrize(("source", "target"), PARITY_SIZES)
@pytest.mark.parametrize("family", ["Qwen2VL", "Qwen3VL"])
def test_matches_transformers_processor(family: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    """Same shape and order; at most one level apart, and equal for at least 99 % of values."""
    patch_size = 14 if family == "Qwen2VL" else 16
    frames = torch.randint(0, 256, (3, *source, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    # The processor chooses the size itself, near this area; Qwen3-VL counts the pixels of all frames, padding included.
    area = target[0] * target[1] * (1 if family == "Qwen2VL" else 4)
    processor = getattr(transformers, f"{family}VideoProcessor")
    if min(source) < 2 * patch_size and not without_cap(processor):
        pytest.skip("this release of transformers refuses frames smaller than a token")
    output = processor()(
        videos=[frames.permute(0, 3, 1, 2)],
        size={"shortest_edge": area * 8 // 10, "longest_edge": area * 12 // 10},
        image_mean=MEAN,
        image_std=STD,
        do_sample_frames=False,
        **without_cap(processor),
        return_tensors="pt",
    )
    theirs = output["pixel_values_videos"]
    ((_, grid_h, grid_w),) = output["video_grid_thw"].tolist()
    size = (grid_h * patch_size, grid_w * patch_size)
    assert 0.5 < size[0] * size[1] / (target[0] * target[1]) < 1.5
    ours = frame_resample(frames, size=size, mean=MEAN, std=STD, patch_size=patch_size)
    assert ours.shape == theirs.shape
    difference = (pixel_levels(ours) - pixel_levels(theirs)).abs()
    assert difference.max() <= 1.01
    assert (difference < 0.5).double().mean() >= 0.99
