"""Qwen2-VL: temporal positions count temporal patches, whatever time they stand for."""

from zoomzero.models.base import CLIP_MEAN, CLIP_STD, Family

QWEN2_VL = Family(
    "qwen2_vl",
    class_name="Qwen2VLForConditionalGeneration",
    processor_name="Qwen2VLProcessor",
    video_processor_name="Qwen2VLVideoProcessor",
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
