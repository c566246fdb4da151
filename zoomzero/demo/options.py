"""Sizes of the demo."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class DemoOptions:
    """Sizes of the demo, and where it works."""

    out: Path = field(default=Path("runs/demo"), metadata={"help": "Folder of the results."})
    clips: Path = field(default=Path(".cache/demo"), metadata={"help": "Folder of the clips."})
    steps: int = field(default=80, metadata={"help": "Training steps."})
    num_prompts: int = field(default=16, metadata={"help": "Prompts per step."})
    num_rollouts: int = field(default=8, metadata={"help": "Responses per prompt."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Step size of AdamW."})
    num_test: int = field(default=300, metadata={"help": "Held-out questions."})

    def __post_init__(self) -> None:
        for name in ("steps", "num_prompts", "num_rollouts", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"demo: {name} must be at least 1, got {getattr(self, name)}; raise it")
