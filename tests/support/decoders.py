"""Decoding processes of guarded videos, stopped, slowed down and counted from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from zoomzero.video import Video
from zoomzero.video.decoders import Decoder


def process_of(video: Video) -> int:
    """Process id of the decoder a guarded video is open in."""
    decoder = video._decoder  # type: ignore[attr-defined]
    assert decoder is not None
    return decoder.process.pid


def handles_of(process: int) -> int:
    return len(os.listdir(f"/proc/{process}/fd"))


def stop_at(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """The decoder that is asked to open `path` hangs there; nobody else's frames are on their way just then."""
    send = Decoder._send

    def hanging(self: Decoder, message: dict[str, Any], limit: float) -> None:
        if message.get("path") == path:
            os.kill(self.process.pid, signal.SIGSTOP)
        send(self, message, limit)

    monkeypatch.setattr(Decoder, "_send", hanging)


@contextmanager
def slowed_down(process: int, pause_seconds: float, run_seconds: float = 0.01) -> Iterator[None]:
    """The process runs for `run_seconds` between pauses: it makes progress, but slowly."""
    ended = threading.Event()

    def pause() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not ended.is_set():
                os.kill(process, signal.SIGSTOP)
                ended.wait(pause_seconds)
                os.kill(process, signal.SIGCONT)
                time.sleep(run_seconds)

    thread = threading.Thread(target=pause)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
