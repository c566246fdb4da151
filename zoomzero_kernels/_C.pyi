import enum
from collections.abc import Sequence

Address = int

WITH_CUDA: bool
OPENMP: bool
CUDA_KERNELS: tuple[str, ...]
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
    variant: str, architecture: int, num_programs: int, arguments: tuple[int | float, ...]
) -> tuple[int, int, int, list[bytes]]: ...
def launch_embedded_kernel(
    variant: str, architecture: int, num_programs: int, arguments: tuple[int | float, ...], device: int, stream: Address
) -> None: ...

class KernelLaunch:
    @property
    def kernel(self) -> str: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def shared_bytes(self) -> int: ...
    @property
    def parameters(self) -> tuple[bytes, ...]: ...

def launch_cuda_kernel(launch: KernelLaunch, device: int, stream: Address) -> None: ...
def cpu_capability() -> str: ...

class AxisView:
    def __init__(self, starts: Address, sizes: Address, weights: Address, taps: int, precision: int) -> None: ...

class FrameArray:
    def __init__(self, data: Address, shape: Sequence[int], strides: Sequence[int]) -> None: ...

class FrameResampleParams:
    def __init__(
        self,
        frames: FrameArray,
        indices: Address,
        num_frames: int,
        axes: tuple[AxisView, AxisView],
        size: tuple[int, int],
        normalisation: tuple[Sequence[float], Sequence[float]],
        patches: tuple[int, int, int],
        output: tuple[Address, ElementType],
    ) -> None: ...

def bicubic_axis(in_size: int, out_size: int, taps_multiple: int) -> tuple[bytes, bytes, bytes, int, int]: ...
def frame_resample_cpu_taps_multiple() -> int: ...
def frame_resample_cpu(params: FrameResampleParams, num_threads: int) -> None: ...
def frame_resample_launch(params: FrameResampleParams, num_processors: int) -> KernelLaunch: ...
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
def token_advantages_cpu(
    inputs: tuple[Address, Address, Address, Address, Address],
    shape: tuple[int, int, int, int],
    normalization: int,
    eps: float,
    advantages: Address,
    num_threads: int,
) -> int: ...

class TokenResampleParams:
    def __init__(
        self,
        source: Address,
        out: Address,
        tables: tuple[Address, Address],
        counts: tuple[int, int, int, int],
        type: ElementType,
        backward: bool,
    ) -> None: ...

def token_resample_cpu(params: TokenResampleParams, num_threads: int) -> None: ...
def token_resample_launch(params: TokenResampleParams) -> KernelLaunch: ...
