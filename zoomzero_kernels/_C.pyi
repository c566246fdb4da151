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
EMBEDDED_KERNELS: tuple[tuple[str, int], ...]

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
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor,
    weights: Tensor,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    temperature: float,
    numbers: tuple[float, float, float, float, float],
    outputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    grad: Tensor | None,
) -> None: ...
def logp_rows(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    logps: Tensor,
    entropy: Tensor,
    normaliser: Tensor,
) -> None: ...
def logp_rows_backward(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    entropy: Tensor,
    normaliser: Tensor,
    grad_logps: Tensor,
    grad_entropy: Tensor | None,
    grad: Tensor,
) -> None: ...
def policy_rows_cpu_capability() -> str: ...
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
