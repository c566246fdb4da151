from torch import Tensor

Axis = tuple[Tensor, Tensor, Tensor, int]

FrameResampleOptions = tuple[
    tuple[int, int],
    Axis,
    Axis,
    tuple[float, float, float],
    tuple[float, float, float],
    tuple[int, int, int],
]

WITH_CUDA: bool

def cpu_capability() -> str: ...
def bicubic_axis(in_size: int, out_size: int, taps_multiple: int) -> Axis: ...
def frame_resample_cpu_taps_multiple() -> int: ...
def frame_resample(
    frames: Tensor, frame_indices: Tensor | None, out: Tensor, options: FrameResampleOptions
) -> None: ...
def frame_resample_launch(
    frames: Tensor, frame_indices: Tensor | None, out: Tensor, options: FrameResampleOptions, num_processors: int
) -> tuple[bytes, bytes, int, int]: ...
