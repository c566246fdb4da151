"""The device that work runs on."""

from __future__ import annotations

import torch


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device, the GPU if there is one unless told; ValueError where this machine has none of that name."""
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"device must be one of torch's, got {device!r}; write cpu or cuda") from error
    number = torch.cuda.device_count()
    if target.type == "cuda" and (target.index or 0) >= number:
        raise ValueError(
            f"device must be one of this machine's {number} GPUs or the cpu, got {str(target)!r}; "
            "`zoomzero doctor` says what torch sees"
        )
    return target
