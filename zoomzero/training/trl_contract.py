"""The private parts of TRL's GRPOTrainer that ZoomZeroTrainer stands on, and the check that they are still there.

They are not public and have moved between releases; a silent mismatch would train on the wrong tensors. The check
runs at construction and as a test.
"""

import inspect

import trl
from trl import GRPOTrainer

from zoomzero.integrations.trl_hooks import supported_trl

REMEDY = f"install {supported_trl()}, the releases that this trainer was written for"

# Method and its parameters without self.
METHODS = {
    "_prepare_inputs": ("generation_batch",),
    "_generate_and_score_completions": ("inputs",),
    "_compute_loss": ("model", "inputs"),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "prediction_step": ("model", "inputs", "prediction_loss_only", "ignore_keys"),
    "log": ("logs", "start_time"),
}
# Set by GRPOTrainer.__init__ and used here.
ATTRIBUTES = ("_step", "_buffered_inputs", "_metrics", "_logs", "_tokenizer", "eos_token_ids", "num_generations_eval")


def require_hooks(trainer_class: type[GRPOTrainer] = GRPOTrainer) -> None:
    """RuntimeError when a method that is overridden or relied upon is gone or takes other arguments."""
    for name, expected in METHODS.items():
        method = getattr(trainer_class, name, None)
        found = tuple(inspect.signature(method).parameters)[1:] if method is not None else None
        if found != expected:
            raise RuntimeError(
                f"ZoomZeroTrainer: TRL's GRPOTrainer.{name} must take {expected}, got {found} in trl "
                f"{trl.__version__}; {REMEDY}"
            )


def require_attributes(trainer: GRPOTrainer) -> None:
    """RuntimeError when TRL's constructor did not set an attribute that is used here."""
    for name in ATTRIBUTES:
        if not hasattr(trainer, name):
            raise RuntimeError(
                f"ZoomZeroTrainer: TRL's GRPOTrainer must set the attribute {name}, got none in trl {trl.__version__}; "
                f"{REMEDY}"
            )
