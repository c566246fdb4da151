"""Qwen3-VL: each temporal patch is a vision block of its own, behind a label that says its time."""

from zoomzero.models.base import HALVES, Family

QWEN3_VL = Family(
    "qwen3_vl",
    class_name="Qwen3VLForConditionalGeneration",
    processor_name="Qwen3VLProcessor",
    video_processor_name="Qwen3VLVideoProcessor",
    mean=HALVES,
    std=HALVES,
    times_in_prompt=True,
)
