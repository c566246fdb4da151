"""Qwen2-VL: temporal positions count temporal patches, whatever time they stand for."""

from zoomzero.models.base import CLIP_MEAN, CLIP_STD, Family

QWEN2_VL = Family("qwen2_vl", "Qwen2VLForConditionalGeneration", CLIP_MEAN, CLIP_STD)
