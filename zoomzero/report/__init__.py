"""A self-contained HTML page about a run: figures before and after, training curves, and what the model saw."""

from zoomzero.report.page import Example, Report, write_page

__all__ = ["Example", "Report", "write_page"]
