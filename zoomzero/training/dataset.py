"""The training data: what a row must hold."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

COLUMNS = ("video", "question", "options", "answer", "spans")

Rows = Sequence[Mapping[str, Any]]


def keywords(value: dict[str, Any] | str | None) -> dict[str, Any]:
    """model_init_kwargs as the configuration holds them: TRL also takes JSON text, and has parsed it by now."""
    return dict(value) if isinstance(value, dict) else {}


def checked_dataset(dataset: Dataset | Rows, name: str) -> Dataset:
    """A datasets.Dataset with the columns that training needs; lists of rows are converted."""
    if not isinstance(dataset, Dataset):
        if not isinstance(dataset, Sequence) or not dataset or not isinstance(dataset[0], Mapping):
            raise TypeError(
                f"ZoomZeroTrainer: {name} must be a datasets.Dataset or a non-empty list of rows, got "
                f"{type(dataset).__name__}; pass a list of dictionaries"
            )
        dataset = Dataset.from_list([dict(row) for row in dataset])
    missing = [column for column in COLUMNS if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"ZoomZeroTrainer: {name} must have the columns {', '.join(COLUMNS)}, got "
            f"{', '.join(dataset.column_names)}; add {', '.join(missing)}"
        )
    return dataset
