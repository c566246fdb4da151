"""The process that decodes for `zoomzero.video.guarded`: a decoder that hangs or crashes takes only this process along.

Messages are a line of JSON, then the raw bytes it announces; nothing that comes from a video is ever unpickled. Every
request has a number, "request", that all parts of its answer repeat, and says how often, "beat" in seconds, it wants a
sign of life: {"alive": true}, sent between packets, so that a decoder that hangs sends none.

    {"op": "open", "video": i, "path": p, "num_threads": n, "max_pixels": m}
        -> {"codec", "fps", "height", "width", "is_hdr", "orientation", "time_base", "end_pts", "damage", "untimed",
           "oddity", "num_pts", "num_keys"}, int64 pts, int64 key_pts
    {"op": "read", "video": i, "indices": [...], "plan": [...] or null for the plan of the last read}
        -> for each index {"start": seconds, "shape": [h, w, 3]} and the pixels, or "shape": null where it is missing
    {"op": "close", "video": i} -> {}

An answer {"error": reason} stands for a VideoError. Before the first request: {"request": null, "ready": true}.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import Any, BinaryIO

import numpy as np

from zoomzero.video.errors import VideoError
from zoomzero.video.pyav import PyAVVideo
from zoomzero.video.source import OpenOptions


class _Server:
    """Opened videos by number, and what to do with each request."""

    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.videos: dict[int, PyAVVideo] = {}
        self.plans: dict[int, np.ndarray] = {}
        self.request: int | None = None
        self.beat = 0.0
        self.last_sign = 0.0

    def send(self, header: dict[str, Any], *payload: np.ndarray) -> None:
        self.out.write(json.dumps({**header, "request": self.request}).encode() + b"\n")
        for array in payload:
            self.out.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self.out.flush()
        self.last_sign = time.monotonic()

    def progress(self) -> None:
        if time.monotonic() - self.last_sign >= self.beat:
            self.send({"alive": True})

    def serve(self, message: dict[str, Any]) -> None:
        """Answer one request."""
        self.request, self.beat, self.last_sign = message["request"], message["beat"], time.monotonic()
        try:
            {"open": self.open, "read": self.read, "close": self.close}[message["op"]](message)
        except VideoError as error:
            self.send({"error": error.reason})

    def open(self, message: dict[str, Any]) -> None:
        options = OpenOptions(message["num_threads"], message["max_pixels"])
        video = self.videos[message["video"]] = PyAVVideo(message["path"], options, self.progress)
        table = video.table
        header = {
            "codec": video.codec, "fps": video.fps, "height": video.height, "width": video.width,
            "is_hdr": video.is_hdr, "orientation": dataclasses.asdict(video.orientation),
            "time_base": [table.time_base.numerator, table.time_base.denominator], "end_pts": table.end_pts,
            "damage": table.damage, "untimed": table.untimed, "oddity": table.oddity,
            "num_pts": len(table.pts), "num_keys": len(table.key_pts),
        }  # fmt: skip
        self.send(header, table.pts, table.key_pts)

    def read(self, message: dict[str, Any]) -> None:
        number = message["video"]
        if message["plan"] is not None:
            self.plans[number] = np.array(message["plan"], dtype=np.int64)
        indices = np.array(message["indices"], dtype=np.int64)
        for start, pixels in self.videos[number].read_planned(indices, self.plans[number]):
            if pixels is None:
                self.send({"start": start, "shape": None})
            else:
                self.send({"start": start, "shape": pixels.shape}, pixels)

    def close(self, message: dict[str, Any]) -> None:
        self.plans.pop(message["video"], None)
        video = self.videos.pop(message["video"], None)
        if video is not None:
            video.close()
        self.send({})


def main() -> None:
    """Serve messages from standard input until it ends."""
    # Libraries may print; the channel must stay clean.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    server = _Server(out)
    server.send({"ready": True})
    for line in sys.stdin.buffer:
        server.serve(json.loads(line))


if __name__ == "__main__":
    main()
