"""Text from outside: lone surrogates, which UTF-8 cannot hold, are written out where text must be valid."""

from __future__ import annotations


def escaped(text: str) -> str:
    r"""The text with each lone surrogate written as \udXXX, so that it can be encoded, tokenised and shown.

    JSON files may hold such escapes, and Python reads file names that are not UTF-8 as them.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
