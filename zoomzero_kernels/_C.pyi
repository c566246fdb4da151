import enum
from collections.abc import Sequence

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
OPENMP: bool
EMBEDDED_KERNELS: tuple[tuple[str, int], ...]

class ElementType(enum.Enum):
    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2

class LogitRows:
    def __init__(
        self,
        logits: int,
        type: ElementType,
        shape: Sequence[int],
        strides: tuple[int, ...],
        token_ids: int,
        mask: int,
        inv_temperature: float,
    ) -> None: ...

class GradientRows:
    def __init__(self, data: int, strides: tuple[int, ...]) -> None: ...

def embedded_kernel_image(variant: str, architecture: int) -> bytes: ...
def packed_embedded_launch(
    variant: str, architecture: int, num_programs: int, arguments: tuple[Tensor | int | float, ...]
) -> tuple[int, int, int, list[bytes]]: ...
def launch_embedded_kernel(
    variant: str, architecture: int, num_programs: int, arguments: tuple[Tensor | int | float, ...], device: int
) -> None: ...
def cpu_capability() -> str: ...
def bicubic_axis(in_size: int, out_size: int, taps_multiple: int) -> Axis: ...
def frame_resample_cpu_taps_multiple() -> int: ...
def frame_resample(
    frames: Tensor, frame_indices: Tensor | None, out: Tensor, options: FrameResampleOptions
) -> None: ...
def frame_resample_launch(
    frames: Tensor, frame_indices: Tensor | None, out: Tensor, options: FrameResampleOptions, num_processors: int
) -> tuple[bytes, bytes, int, int]: ...
def policy_rows(
    rows: LogitRows,
    tokens: Sequence[int],
    options: tuple[float, ...],
    outputs: Sequence[int],
    grad: GradientRows,
    num_threads: int,
) -> None: ...
def logp_rows(rows: LogitRows, logps: int, entropy: int, normaliser: int, num_threads: int) -> None: ...
def logp_rows_backward(
    rows: LogitRows, statistics: tuple[int, int], slopes: tuple[int, int], grad: GradientRows, num_threads: int
) -> None: ...
def token_advantages(
    rewards: Tensor,
    segments: Tensor,
    credit: Tensor,
    group_ids: Tensor,
    mask: Tensor,
    normalization: int,
    eps: float,
    advantages: Tensor,
) -> int: ...
def token_resample(inputs: Tensor, out: Tensor, slices: Tensor, num_grid_rows: int, backward: bool) -> None: ...
def token_resample_launch(inputs: Tensor, out: Tensor, slices: Tensor, backward: bool) -> bytes: ...
