"""Qwen3-VL: each temporal patch is a vision block of its own, behind a label that says its time."""

from zoomzero.models.base import HALVES, Family

QWEN3_VL = Family("qwen3_vl", "Qwen3VLForConditionalGeneration", HALVES, HALVES, times_in_prompt=True)
