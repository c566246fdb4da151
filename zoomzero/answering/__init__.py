"""Answering questions about videos in two looks: `ZoomZero`, its queries and its answers."""

from zoomzero.answering.engine import Answer, Pass, Query, ZoomZero

__all__ = ["Answer", "Pass", "Query", "ZoomZero"]
