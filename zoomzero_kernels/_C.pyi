from torch import Tensor

Axis = tuple[Tensor, Tensor, Tensor, int]

WITH_CUDA: bool

def cpu_capability() -> str: ...
def bicubic_axis(in_size: int, out_size: int, taps_multiple: int) -> Axis: ...
def frame_resample_cpu_taps_multiple() -> int: ...
def frame_resample(
    frames: Tensor,
    frame_indices: Tensor | None,
    out: Tensor,
    size: tuple[int, int],
    horizontal: Axis,
    vertical: Axis,
    scale: tuple[float, float, float],
    shift: tuple[float, float, float],
    patches: tuple[int, int, int],
) -> None: ...
