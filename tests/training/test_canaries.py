"""Canaries: each fails with one sentence when a release of TRL or transformers moves what this package stands on.

Each is shown to fail against a class that was changed as a release would change it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AttentionInterface, Trainer, core_model_loading
from transformers.cache_utils import CacheLayerMixin
from trl import GRPOTrainer

from zoomzero.contracts import Contract
from zoomzero.models.transformers_contract import CACHE_METHODS, require_transformers
from zoomzero.training.trl_contract import (
    ATTRIBUTES,
    METHODS,
    TRAINER_METHODS,
    require_attributes,
    require_hooks,
)


def test_trl_and_transformers_are_what_the_package_was_written_for() -> None:
    require_hooks()
    require_transformers()


def _moved(self: Any, somewhere: Any, else_: Any) -> None:
    pass


@pytest.mark.parametrize("name", METHODS)
def test_a_hook_of_trl_that_moved_is_named(name: str) -> None:
    moved = type("Moved", (GRPOTrainer,), {name: _moved})
    with pytest.raises(
        RuntimeError,
        match=rf"^ZoomZeroTrainer: TRL's GRPOTrainer.{name} must take \(.*\), got \('somewhere', 'else_'\) in trl 1.*; "
        r"install trl<1\.17,>=1\.16, the releases that this trainer was written for$",
    ):
        require_hooks(moved)


@pytest.mark.parametrize("name", TRAINER_METHODS)
def test_a_hook_of_transformers_that_moved_is_named(name: str) -> None:
    moved = type("Moved", (Trainer,), {name: _moved})
    with pytest.raises(
        RuntimeError,
        match=rf"^ZoomZeroTrainer: transformers' Trainer.{name} must take .* in transformers 5.*; install transf",
    ):
        require_hooks(base_class=moved)


def test_a_hook_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(GRPOTrainer, "_compute_loss")
    with pytest.raises(RuntimeError, match=r"_compute_loss must take \('model', 'inputs'\), got None in trl"):
        require_hooks()


@pytest.mark.parametrize("gone", ATTRIBUTES)
def test_an_attribute_that_is_gone_is_named(gone: str) -> None:
    trainer: Any = SimpleNamespace(**dict.fromkeys(ATTRIBUTES, 1))
    require_attributes(trainer)
    delattr(trainer, gone)
    with pytest.raises(RuntimeError, match=f"the attribute {gone} that TRL's GRPOTrainer sets must be there, got none"):
        require_attributes(trainer)


@pytest.mark.parametrize("name", CACHE_METHODS)
def test_a_method_of_the_cache_that_moved_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheLayerMixin, name, _moved)
    with pytest.raises(RuntimeError, match=rf"^zoomzero: CacheLayerMixin.{name} must take .*; install transformers"):
        require_transformers()


def test_another_method_that_a_cache_must_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheLayerMixin, "__abstractmethods__", frozenset({"update", "offload_soon"}))
    with pytest.raises(RuntimeError, match=r"must demand no method that is not known here, got \['offload_soon'\]"):
        require_transformers()


def test_functions_of_transformers_that_moved_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(core_model_loading, "revert_weight_conversion")
        with pytest.raises(RuntimeError, match="revert_weight_conversion must be there, got none in transformers"):
            require_transformers()
    with monkeypatch.context() as patch:
        patch.setattr(AttentionInterface, "register", lambda name: None)
        with pytest.raises(RuntimeError, match=r"AttentionInterface.register must take key, value, got \('name',\)"):
            require_transformers()


def test_fields_that_are_gone_are_named() -> None:
    contract = Contract("tests", "no-such-package", "write another")
    with pytest.raises(RuntimeError, match="tests: Contract must have speed, got none in no-such-package of unknown"):
        contract.fields(Contract, ("who", "speed"))
