"""What makes the host wait for a device, seen on the CPU: ops, and methods of tensors that no op shows."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# Whatever they are called for.
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "unique2", "_unique2", "masked_select", "equal"}
# They read a CPU tensor's memory without an op.
HIDDEN_WAITS = {"tolist", "cpu", "numpy"}


def is_sent(name: str, options: dict[str, Any] | None) -> bool:
    """Whether an op makes a tensor from numbers on the host, which a device would have to be sent."""
    return name == "lift_fresh" or (name == "_to_copy" and "device" in (options or {}))


class HiddenWaits(TorchFunctionMode):
    """Counts calls of `HIDDEN_WAITS` while `counting` is true."""

    def __init__(self) -> None:
        super().__init__()
        self.counting = False
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if self.counting and name in HIDDEN_WAITS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Counts ops while `counting` is true, and lists those that make the host wait or send something."""

    def __init__(self) -> None:
        super().__init__()
        self.counting = False
        self.found: list[str] = []
        self.ops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if self.counting:
            self.ops += 1
            if name in WAITS or is_sent(name, kwargs):
                self.found.append(name)
        return func(*args, **(kwargs or {}))
