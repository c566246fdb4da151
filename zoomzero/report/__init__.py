"""Runs as a page: `write_report` makes one self-contained HTML file of evaluations, trainings or a demo.

data.py says what the page is made of. page.html, page.css and script/*.js are inlined when it is written.
"""

from zoomzero.report.data import Report, read_report
from zoomzero.report.page import write_report

__all__ = ["Report", "read_report", "write_report"]
