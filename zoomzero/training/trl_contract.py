"""The private parts of TRL's GRPOTrainer, and of transformers' Trainer below it, that ZoomZeroTrainer stands on.

The check runs at construction and as a test; see contracts.py.
"""

from transformers import Trainer
from trl import GRPOTrainer

from zoomzero.contracts import Contract
from zoomzero.integrations.trl_hooks import supported_trl

REMEDY = f"install {supported_trl()}, the releases that this trainer was written for"
_TRL = Contract("ZoomZeroTrainer", "trl", REMEDY)
_TRANSFORMERS = Contract(
    "ZoomZeroTrainer",
    "transformers",
    "install transformers>=5.18,<5.24, the releases that this trainer was written for",
)

# Method and its parameters without self.
METHODS = {
    "_prepare_inputs": ("generation_batch",),
    "_generate_and_score_completions": ("inputs",),
    "_compute_loss": ("model", "inputs"),
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "prediction_step": ("model", "inputs", "prediction_loss_only", "ignore_keys"),
    "log": ("logs", "start_time"),
    "_get_train_sampler": ("dataset",),
    "_save_checkpoint": ("model", "trial"),
}
TRAINER_METHODS = {
    "_get_output_dir": ("trial",),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_save_optimizer_and_scheduler": ("output_dir",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_save": ("output_dir", "state_dict"),
    "create_accelerator_and_postprocess": (),
}
# Set by GRPOTrainer.__init__ and used here.
ATTRIBUTES = ("_step", "_buffered_inputs", "_metrics", "_logs", "_tokenizer", "eos_token_ids", "num_generations_eval")


def require_hooks(trainer_class: type[GRPOTrainer] = GRPOTrainer, base_class: type[Trainer] = Trainer) -> None:
    """RuntimeError when a method that is overridden or relied upon is gone or takes other arguments."""
    for name, expected in METHODS.items():
        _TRL.method(trainer_class, name, expected, shown="TRL's GRPOTrainer")
    for name, expected in TRAINER_METHODS.items():
        _TRANSFORMERS.method(base_class, name, expected, shown="transformers' Trainer")


def require_attributes(trainer: GRPOTrainer) -> None:
    """RuntimeError when TRL's constructor did not set an attribute that is used here."""
    for name in ATTRIBUTES:
        _TRL.attribute(trainer, name, f"the attribute {name} that TRL's GRPOTrainer sets")
