"""The processors of transformers that ours are compared with."""

from __future__ import annotations


def without_cap(processor: type) -> dict[str, bool]:
    """The option of a video processor to keep the size of many frames; releases before it never shrank them."""
    known = processor.valid_kwargs.__annotations__  # type: ignore[attr-defined]
    return {"cap_pixels_per_frame": False} if "cap_pixels_per_frame" in known else {}
