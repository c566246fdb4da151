"""The process that decodes for `zoomzero.video.guarded`: a decoder that hangs or crashes takes only this process along.

Messages are a line of JSON, then the raw bytes it announces; nothing that comes from a video is ever unpickled.

    {"op": "open", "id": i, "path": p, "num_threads": n, "max_pixels": m}
        -> {"codec", "fps", "height", "width", "orientation", "time_base", "end_pts", "damage", "untimed", "num_pts",
           "num_keys"}, int64 pts, int64 key_pts
    {"op": "read", "id": i, "indices": [...], "plan": [...] or null for the plan of the last read}
        -> for each index {"start": seconds, "shape": [h, w, 3]} and the pixels
    {"op": "close", "id": i} -> {}

An answer {"error": reason} stands for a VideoError.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any, BinaryIO

import numpy as np

from zoomzero.video.errors import VideoError
from zoomzero.video.pyav import PyAVVideo
from zoomzero.video.source import OpenOptions


def _send(out: BinaryIO, header: dict[str, Any], *payload: np.ndarray) -> None:
    out.write(json.dumps(header).encode() + b"\n")
    for array in payload:
        out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    out.flush()


class _Server:
    """Opened videos by number, and what to do with each message."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.videos: dict[int, PyAVVideo] = {}
        self.plans: dict[int, np.ndarray] = {}

    def open(self, message: dict[str, Any]) -> None:
        video = PyAVVideo(message["path"], OpenOptions(message["num_threads"], message["max_pixels"]))
        self.videos[message["id"]] = video
        table = video.table
        header = {
            "codec": video.codec, "fps": video.fps, "height": video.height, "width": video.width,
            "orientation": dataclasses.asdict(video.orientation),
            "time_base": [table.time_base.numerator, table.time_base.denominator], "end_pts": table.end_pts,
            "damage": table.damage, "untimed": table.untimed, "num_pts": len(table.pts), "num_keys": len(table.key_pts),
        }  # fmt: skip
        _send(self.out, header, table.pts, table.key_pts)

    def read(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if message["plan"] is not None:
            self.plans[number] = np.array(message["plan"], dtype=np.int64)
        indices = np.array(message["indices"], dtype=np.int64)
        for start, pixels in self.videos[number].read_planned(indices, self.plans[number]):
            _send(self.out, {"start": start, "shape": pixels.shape}, pixels)

    def close(self, message: dict[str, Any]) -> None:
        self.plans.pop(message["id"], None)
        video = self.videos.pop(message["id"], None)
        if video is not None:
            video.close()
        _send(self.out, {})


def main() -> None:
    """Serve messages from standard input until it ends."""
    # Libraries may print; the channel must stay clean.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    server = _Server(out)
    _send(out, {"ready": True})
    for line in sys.stdin.buffer:
        message = json.loads(line)
        try:
            getattr(server, {"open": "open", "read": "read", "close": "close"}[message["op"]])(message)
        except VideoError as error:
            _send(out, {"error": error.reason})


if __name__ == "__main__":
    main()
