"""warm_up reaches every op that has kernels of its own."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoomzero_kernels import warm_up


class CalledOps(TorchDispatchMode):
    """Names of the ops of this package that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "zoomzero":
            self.names.add(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def test_every_op_with_kernels_runs() -> None:
    with CalledOps() as called:
        warm_up("cpu")
    ops = {
        name.removeprefix("zoomzero::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("zoomzero::") and "." not in name
    }
    # What overwrites the logits launches the kernels of the op whose name it extends.
    wanted = {name for name in ops if not name.startswith("shared_prefix") and not name.endswith("_")}
    assert wanted <= called.names, wanted - called.names
