"""Registration of ops with torch.library, without the Python layers that custom_op puts around every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def op(name: str, *, differentiable: bool) -> Callable[[Callable[..., Any]], Any]:
    """Define ``zoomzero::name`` by a function: its annotations are the schema, it is the implementation on any device.

    Like ``torch.library.custom_op`` with ``mutates_args=()``, at a third of the time a call: custom_op also looks in
    every call whether results share memory with arguments, which opcheck does in the tests, and keeps Dynamo from
    tracing the implementation, which it does not do under compiled graphs anyway. Ops that write to their arguments
    need custom_op, which tells autograd.

    Args:
        name: without the namespace.
        differentiable: the caller registers the gradient with ``torch.library.register_autograd``; otherwise results
            need no gradient, whatever the arguments.

    Returns:
        The op in place of the function.
    """

    def register(implementation: Callable[..., Any]) -> Any:
        qualified = f"zoomzero::{name}"
        torch.library.define(qualified, torch.library.infer_schema(implementation, mutates_args=()))
        torch.library.impl(qualified, "CompositeExplicitAutograd")(implementation)
        if not differentiable:
            torch.library.impl(qualified, "Autograd")(torch.library.fallthrough_kernel)
        return getattr(torch.ops.zoomzero, name).default

    return register
