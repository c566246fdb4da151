"""When the values of tensors (token ids, masks, indices, segments) are checked, not only their shapes and dtypes."""

from __future__ import annotations

import os

from torch import Tensor

OPTION = "ZOOMZERO_CHECK_VALUES"


def values_are_checked(tensor: Tensor) -> bool:
    """Always on the CPU; on a GPU, where a look at a value waits for all work before it, if ZOOMZERO_CHECK_VALUES=1."""
    return tensor.device.type == "cpu" or os.environ.get(OPTION) == "1"
