"""A page on this machine to ask questions about videos: `build_page` makes it, `zoomzero serve` shows it."""

from zoomzero.serve.app import ServeLimits, build_page

__all__ = ["ServeLimits", "build_page"]
