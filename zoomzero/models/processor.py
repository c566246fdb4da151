"""transformers' processor files of a checkpoint: read for pixel statistics, written so that others can load it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoomzero.models.base import Family, VisionGeometry
from zoomzero.models.loading import checkpoint_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def pixel_statistics(path: str | os.PathLike[str]) -> Statistics | None:
    """Mean and standard deviation from a checkpoint's processor files, those for video first; None where none say.

    path: checkpoint folder or hub name.
    """
    for name, part in (
        ("processor_config.json", "video_processor"),
        ("video_preprocessor_config.json", None),
        ("preprocessor_config.json", None),
    ):
        file = checkpoint_file(path, name)
        if file is None:
            continue
        data = json.loads(file.read_text(encoding="utf-8"))
        data = data if part is None else data.get(part, {})
        if "image_mean" in data and "image_std" in data:
            return tuple(data["image_mean"]), tuple(data["image_std"])
    return None


def save_processor(
    family: Family,
    tokenizer: PreTrainedTokenizerBase,
    geometry: VisionGeometry,
    folder: str | os.PathLike[str],
) -> None:
    """Write the files from which transformers (`AutoProcessor`), vLLM and others load the family's processor.

    Patch layout and pixel statistics are the geometry's, all else the defaults of the family's classes. The tokenizer
    and its chat template are part of it.
    """
    import transformers

    layout: dict[str, Any] = {
        "patch_size": geometry.patch_size,
        "merge_size": geometry.merge_size,
        "temporal_patch_size": geometry.temporal_patch_size,
        "image_mean": list(geometry.mean),
        "image_std": list(geometry.std),
    }
    processor = getattr(transformers, family.processor_name)(
        image_processor=transformers.Qwen2VLImageProcessor(**layout),
        tokenizer=tokenizer,
        video_processor=getattr(transformers, family.video_processor_name)(**layout),
        chat_template=tokenizer.chat_template,
    )
    processor.save_pretrained(Path(folder))
