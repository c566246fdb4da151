"""Qwen2.5-VL: temporal positions count time, from the seconds between temporal patches."""

from zoomzero.models.base import CLIP_MEAN, CLIP_STD, Family

QWEN2_5_VL = Family(
    "qwen2_5_vl",
    class_name="Qwen2_5_VLForConditionalGeneration",
    processor_name="Qwen2_5_VLProcessor",
    video_processor_name="Qwen2VLVideoProcessor",
    mean=CLIP_MEAN,
    std=CLIP_STD,
    seconds_in_positions=True,
)
