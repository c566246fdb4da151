"""frame_resample against transformers' processor, eager torch and torchvision's bare resize: 32 frames of 1280x720.

The bars: at least 5x faster than the processor with at most 5 % of its extra memory; at least 2x faster than the
shortest eager version; at most 1.3x the time of torchvision's uint8 resize, which neither normalises nor patchifies.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import torch
from harness import peak_bytes, print_table, serve_memory, write_results
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize
from transformers import Qwen2VLVideoProcessor

from zoomzero.bench.timing import copy_gigabytes_per_second, interleave, peak_bytes_during, timing_row
from zoomzero_kernels import frame_resample, reference

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
NUM_FRAMES, HEIGHT, WIDTH = 32, 720, 1280
# What the processor chooses for 32 frames of 720p under 4096 and 16384 visual tokens of 28x28 pixels x 2 frames.
SIZES = {4096: (336, 588), 16384: (672, 1176)}


def bare_resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, H, W, 3] -> uint8 [n, 3, out_h, out_w]; torchvision's fastest way in, which is this channels-last view."""
    return resize(frames.permute(0, 3, 1, 2), list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def eager(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """The shortest correct torch: resize, normalise by a table of 256 values a channel folded into two ops, "
    "patchify."""
    pixels = bare_resize(frames, size).float()
    scale = torch.tensor(STD).mul(255).reciprocal().view(3, 1, 1)
    shift = -(torch.tensor(MEAN) / torch.tensor(STD)).view(3, 1, 1)
    return reference_patchify(pixels.mul_(scale).add_(shift))


def reference_patchify(pixels: Tensor) -> Tensor:
    n, c, h, w = pixels.shape
    grid = pixels.view(n // 2, 2, c, h // 28, 2, 14, w // 28, 2, 14)
    return grid.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(n // 2 * h * w // 196, c * 392)


def ours(frames: Tensor, size: tuple[int, int]) -> Tensor:
    return frame_resample(frames, size=size, mean=MEAN, std=STD)


@functools.cache
def processor(size: tuple[int, int]) -> Qwen2VLVideoProcessor:
    # Rounding keeps the sides just inside a limit a little above the wanted area.
    limits = {"shortest_edge": 28 * 28, "longest_edge": size[0] * size[1] * 51 // 50}
    return Qwen2VLVideoProcessor(
        size=limits, image_mean=MEAN, image_std=STD, do_sample_frames=False, cap_pixels_per_frame=False
    )


def transformers_processor(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """The processor on the decoder's frames, channels first as it wants them (a view)."""
    output = processor(size)(videos=[frames.permute(0, 3, 1, 2)], return_tensors="pt", do_resize=True)
    return output["pixel_values_videos"]


CANDIDATES: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "ours": ours,
    "transformers processor": transformers_processor,
    "eager torch": eager,
    "torchvision resize only": bare_resize,
}


def make_frames(num_frames: int) -> Tensor:
    """Smooth images with noise, since real frames are neither flat nor white noise; speed depends on neither."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_frames, 3, 9, 16, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")
    noise = torch.rand(num_frames, 3, HEIGHT, WIDTH, generator=generator).mul_(0.1)
    return smooth.mul_(0.9).add_(noise).mul_(255).byte().permute(0, 2, 3, 1).contiguous()


def output_bytes(name: str, size: tuple[int, int]) -> int:
    return NUM_FRAMES * 3 * size[0] * size[1] * (1 if name == "torchvision resize only" else 4)


def measure_memory(case: str) -> int:
    """Peak memory of "<candidate>|<budget>" above the frames and the result."""
    torch.set_num_threads(2)
    name, budget = case.split("|")
    size = SIZES[int(budget)]
    run = CANDIDATES[name]
    run(make_frames(2), size)  # libraries and tables that are loaded once
    frames = make_frames(NUM_FRAMES)
    return peak_bytes_during(lambda: run(frames, size)) - output_bytes(name, size)


def check(frames: Tensor, size: tuple[int, int]) -> None:
    """All candidates agree before any is timed."""
    truth = reference.frame_resample(frames[:4], size=size, mean=MEAN, std=STD)
    for name in ("ours", "eager torch", "transformers processor"):
        torch.testing.assert_close(CANDIDATES[name](frames[:4], size), truth, atol=1e-5, rtol=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    frames = make_frames(NUM_FRAMES)
    bandwidth = copy_gigabytes_per_second()
    print(f"torch copies {bandwidth:.1f} GB/s (read + written)")
    rows = []
    for budget, size in SIZES.items():
        check(frames, size)
        timings = interleave(
            {name: functools.partial(run, frames, size) for name, run in CANDIDATES.items()}, rounds=rounds, repeats=2
        )
        for name, timing in timings.items():
            moved = frames.nbytes + output_bytes(name, size)
            rows.append(
                {
                    "case": f"{NUM_FRAMES} x {WIDTH}x{HEIGHT} to {budget} tokens ({size[1]}x{size[0]})",
                    "candidate": name,
                    **timing_row(timing),
                    "times_ours": round(timing.speedup_of(timings["ours"]), 3),
                    "gigabytes_per_second": round(moved / timing.median_ms / 1e6, 2),
                    "copy_gigabytes_per_second": round(bandwidth, 2),
                    "extra_peak_megabytes": round(peak_bytes(__file__, f"{name}|{budget}") / 1e6, 2),
                }
            )
    print_table(rows)
    print(f"written to {write_results('frame_resample', rows)}")


if __name__ == "__main__" and not serve_memory(measure_memory):
    main()
