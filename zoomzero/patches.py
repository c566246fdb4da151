"""Frames of a plan to the patches that a vision tower takes, and back to the frames as the model sees them."""

from __future__ import annotations

import dataclasses

import torch

from zoomzero.budget import FramePlan
from zoomzero.models.base import VisionGeometry
from zoomzero.video import Video, VideoError
from zoomzero_kernels import frame_resample
from zoomzero_kernels.frame_resample_arguments import default_dtype

# What a chunk of full-size frames and its patches may take beside the result. On the CPU frames are decoded one by one,
# so that more would only cost memory: these are 4 frames of 720p. DALI decodes a chunk at a time: 80 of them.
CHUNK_BYTES = 16 << 20
DALI_CHUNK_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class VideoPatches:
    """The frames of a plan as patches, before any vision tower."""

    pixel_values_videos: torch.Tensor
    """[t*h*w, 3*tp*ps*ps], normalised pixels on the device the back end decodes to."""
    video_grid_thw: torch.Tensor
    """int64 [1, 3], in patches."""
    second_per_grid_ts: torch.Tensor
    """float32 [1], seconds from one temporal patch to the next."""
    times: tuple[float, ...]
    """For each temporal patch the mean of the times at which its first and its last frame start, in seconds."""
    plan: FramePlan
    """Which frames, and in which size."""


def patch_bytes(plan: FramePlan, geometry: VisionGeometry, dtype: torch.dtype | None) -> int:
    """Bytes of the patches that `read_patches` makes for the plan, at most."""
    dtype = dtype or torch.float32
    tokens = geometry.merge_size**2 * plan.num_tokens
    return tokens * 3 * geometry.temporal_patch_size * geometry.patch_size**2 * dtype.itemsize


def read_patches(video: Video, plan: FramePlan, geometry: VisionGeometry, dtype: torch.dtype | None) -> VideoPatches:
    """Read the plan's frames and turn them into patches, chunk by chunk into one preallocated tensor.

    dtype: of the patches; None for bfloat16 where the frames are decoded on a GPU, and float32 elsewhere.

    Raises:
        VideoError: the frames cannot be decoded.
    """
    step = geometry.temporal_patch_size
    num_steps = -(-len(plan.timestamps) // step)
    grid_h, grid_w = (side // geometry.patch_size for side in plan.size)
    shape = num_steps * grid_h * grid_w, 3 * step * geometry.patch_size**2
    patches: torch.Tensor | None = None
    filled = 0
    starts: list[float] = []
    for frames, shown in video.stream(plan.timestamps, chunk=_frames_per_chunk(video, plan, geometry, dtype)):
        if patches is None:
            patches = frames.new_empty(shape, dtype=dtype or default_dtype(frames.device))
        end = filled + -(-len(frames) // step) * grid_h * grid_w
        frame_resample(
            frames,
            size=plan.size,
            mean=geometry.mean,
            std=geometry.std,
            patch_size=geometry.patch_size,
            merge_size=geometry.merge_size,
            temporal_patch_size=step,
            out=patches[filled:end],
        )
        starts += shown.tolist()
        filled = end
        # Not still held while the next chunk is read.
        del frames
    if patches is None or filled != shape[0]:
        raise VideoError(video.path, f"gave {filled} patches where the plan needs {shape[0]}")
    grid = torch.tensor([[num_steps, grid_h, grid_w]])
    starts += starts[-1:] * (num_steps * step - len(starts))
    times = tuple((starts[i] + starts[i + step - 1]) / 2 for i in range(0, len(starts), step))
    return VideoPatches(patches, grid, torch.tensor([step / plan.sample_fps]), times, plan)


def _frames_per_chunk(video: Video, plan: FramePlan, geometry: VisionGeometry, dtype: torch.dtype | None) -> int:
    """Whole temporal patches of frames, at least one."""
    step = geometry.temporal_patch_size
    num_steps = -(-len(plan.timestamps) // step)
    step_bytes = video.height * video.width * 3 * step + patch_bytes(plan, geometry, dtype) // num_steps
    return max(1, (DALI_CHUNK_BYTES if video.backend == "dali" else CHUNK_BYTES) // step_bytes) * step


def seen_frames(patches: VideoPatches, geometry: VisionGeometry) -> torch.Tensor:
    """The frames as the model sees them, uint8 [n, height, width, 3]: the patches put back."""
    plan = patches.plan
    step, patch, merge = geometry.temporal_patch_size, geometry.patch_size, geometry.merge_size
    t, grid_h, grid_w = patches.video_grid_thw[0].tolist()
    cells = patches.pixel_values_videos.float().view(
        t, grid_h // merge, grid_w // merge, merge, merge, 3, step, patch, patch
    )
    # Patch order is (t, rows, columns, row in token, column in token, channel, frame, y, x).
    pixels = cells.permute(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(t * step, *plan.size, 3)[: len(plan.timestamps)]
    mean, std = pixels.new_tensor(geometry.mean), pixels.new_tensor(geometry.std)
    return ((pixels * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
