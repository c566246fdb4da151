"""Every registered op is complete: fake, opcheck, reference, test file, public name, benchmark."""

from pathlib import Path

import pytest
import torch
from torch._library.simple_registry import singleton

import zoomzero_kernels
from zoomzero_kernels import reference


def registered_ops() -> list[str]:
    """Names of all ops in the zoomzero namespace, backward and in-place forms included."""
    return sorted(
        name.removeprefix("zoomzero::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("zoomzero::") and "." not in name
    )


def public_ops() -> list[str]:
    """The functions users call: a backward or in-place form belongs to the op whose name it extends."""
    return sorted({name.removesuffix("_backward").removesuffix("_") for name in registered_ops()})


def texts(folder: Path, pattern: str) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob(pattern)))


def test_there_are_ops() -> None:
    assert {"frame_resample", "token_advantages", "grpo_loss", "linear_grpo_loss"} <= set(public_ops())


@pytest.mark.parametrize("name", registered_ops())
def test_has_a_fake(name: str) -> None:
    assert singleton.find(f"zoomzero::{name}").fake_impl.kernel is not None


@pytest.mark.parametrize("name", registered_ops())
def test_is_opchecked(name: str, checkout: Path) -> None:
    stem = name.removesuffix("_backward").removesuffix("_")
    text = (checkout / "tests" / "kernels" / f"test_{stem}.py").read_text(encoding="utf-8")
    assert "opcheck(" in text, f"tests/kernels/test_{stem}.py calls no torch.library.opcheck"
    # backward and in-place forms are reached through the checks of the op that they belong to
    assert f"torch.ops.zoomzero.{stem}" in text


@pytest.mark.parametrize("name", public_ops())
def test_is_public_and_has_a_reference(name: str) -> None:
    assert name in zoomzero_kernels.__all__
    assert name in reference.__all__
    assert callable(getattr(zoomzero_kernels, name))
    assert callable(getattr(reference, name))


@pytest.mark.parametrize("name", public_ops())
def test_documents_shapes_and_errors(name: str) -> None:
    documentation = getattr(zoomzero_kernels, name).__doc__ or ""
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in documentation, f"{name}: docstring has no {section}"


@pytest.mark.parametrize("name", public_ops())
def test_has_a_benchmark(name: str, checkout: Path) -> None:
    # a log-probability op is timed inside the benchmark of the loss that it is the forward half of, attention inside
    # that of the models that use it
    stems = {
        "selective_logps": "grpo_loss",
        "linear_selective_logps": "linear_grpo_loss",
        "shared_prefix_attention": "shared_prefix",
    }
    stem = stems.get(name, name)
    assert (checkout / "benchmarks" / f"bench_{stem}.py").is_file()
