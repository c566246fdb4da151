"""Reading files one does not trust: decoding happens in another process, which is killed when it stops answering.

A broken or hostile file can make a decoder loop for ever or crash. Here such a file ends in a `VideoError`, at the
latest after `time_limit` seconds without a sign of life, and the next file gets a fresh process. One process serves all
guarded videos of this one; it starts with the first (about the time it takes to import torch) and ends with the
interpreter.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from zoomzero.limits import TIME_LIMIT_SECONDS
from zoomzero.video.base import Indices, Video
from zoomzero.video.errors import VideoError
from zoomzero.video.orientation import Orientation
from zoomzero.video.source import OpenOptions, Source, check_source, source_name
from zoomzero.video.table import FrameTable

# Importing torch on a busy machine; not the file's fault, so apart from its limit.
START_LIMIT_SECONDS = 120.0
PIPE_BYTES = 1 << 20


class WorkerGone(Exception):
    """The decoding process hung and was killed, or died by itself; says which."""


class _Worker:
    """A decoding process and the channel to it."""

    def __init__(self) -> None:
        # PYTHONPATH lets the child find this very package however the parent found it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zoomzero.video.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=environment, bufsize=0)  # fmt: skip
        assert self.process.stdout is not None  # both ends are pipes; narrows the types
        assert self.process.stdin is not None
        self._in, self._out = self.process.stdout.fileno(), self.process.stdin.fileno()
        os.set_blocking(self._out, False)
        self._buffer = bytearray()
        self.receive_header(START_LIMIT_SECONDS)

    def send(self, message: dict[str, Any], limit: float) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        deadline = time.monotonic() + limit
        while data:
            if not select.select([], [self._out], [], max(0.0, deadline - time.monotonic()))[1]:
                raise self._kill(limit)
            try:
                data = data[os.write(self._out, data) :]
            except BrokenPipeError:
                raise self._death() from None

    def receive_header(self, limit: float) -> dict[str, Any]:
        deadline = time.monotonic() + limit
        while (end := self._buffer.find(b"\n")) < 0:
            self._buffer += self._some(deadline, limit)
        header: dict[str, Any] = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        return header

    def receive_array(self, shape: tuple[int, ...], dtype: Any, limit: float) -> npt.NDArray[Any]:
        array = np.empty(shape, dtype=dtype)
        view = array.reshape(-1).view(np.uint8).data
        have = min(len(self._buffer), len(view))
        view[:have] = self._buffer[:have]
        del self._buffer[:have]
        deadline = time.monotonic() + limit
        while have < len(view):
            piece = self._some(deadline, limit, len(view) - have)
            view[have : have + len(piece)] = piece
            have += len(piece)
        return array

    def _some(self, deadline: float, limit: float, at_most: int = PIPE_BYTES) -> bytes:
        if not select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise self._kill(limit)
        piece = os.read(self._in, min(at_most, PIPE_BYTES))
        if not piece:
            raise self._death()
        return piece

    def _kill(self, limit: float) -> WorkerGone:
        self.stop()
        return WorkerGone(f"the decoder gave no sign of life for {limit:g} s and was stopped")

    def _death(self) -> WorkerGone:
        code = self.process.wait()
        self.stop()
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return WorkerGone(f"the decoder crashed ({how})")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class _Pool:
    """The one decoding process, started when needed and replaced when gone."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.generation = 0
        self._worker: _Worker | None = None
        self._owner = os.getpid()

    def worker(self) -> _Worker:
        # A forked child must not speak on its parent's channel.
        if self._worker is None or self._owner != os.getpid():
            self._worker, self._owner = _Worker(), os.getpid()
            self.generation += 1
        return self._worker

    def serves(self, generation: int) -> bool:
        """Whether the process of that generation is still the one in use."""
        return self._worker is not None and self._owner == os.getpid() and self.generation == generation

    def forget(self) -> None:
        self._worker = None

    def stop(self) -> None:
        if self._worker is not None and self._owner == os.getpid():
            self._worker.stop()
        self._worker = None


_pool = _Pool()
_numbers = itertools.count()
atexit.register(_pool.stop)


class GuardedVideo(Video):
    """A video decoded with PyAV in another process under a time limit. See `Video` for the interface."""

    backend = "pyav"

    def __init__(self, source: Source, options: OpenOptions, time_limit: float) -> None:
        if not time_limit > 0:
            raise ValueError(
                f"open_video: time_limit must be positive seconds, got {time_limit}; {TIME_LIMIT_SECONDS:g} is usual"
            )
        self.path = source_name(source)
        self._options = options
        self._limit = time_limit
        self._number = next(_numbers)
        self._generation = -1
        self._sent_plan: Indices | None = None
        self._spooled: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._file = self._local_file(source)
        header, table = self._open()
        self.orientation = Orientation(**header["orientation"])
        super().__init__(self.path, table, header["codec"], header["fps"], (header["height"], header["width"]))

    def _local_file(self, source: Source) -> str:
        """A path the other process can open; bytes and file objects are spooled to a temporary file."""
        target = check_source(source)
        if isinstance(target, str):
            return target
        self._spooled = tempfile.NamedTemporaryFile(prefix="zoomzero-")  # noqa: SIM115 (lives as long as the video)
        while piece := target.read(PIPE_BYTES):
            self._spooled.write(piece)
        self._spooled.flush()
        return self._spooled.name

    def _open(self) -> tuple[dict[str, Any], FrameTable]:
        message = {
            "op": "open",
            "id": self._number,
            "path": self._file,
            "num_threads": self._options.num_threads,
            "max_pixels": self._options.max_pixels,
        }
        with _pool.lock:
            try:
                worker = _pool.worker()
                worker.send(message, self._limit)
                header = self._answer(worker)
                pts = worker.receive_array((header["num_pts"],), np.int64, self._limit)
                keys = worker.receive_array((header["num_keys"],), np.int64, self._limit)
            except WorkerGone as error:
                _pool.forget()
                raise VideoError(self.path, str(error)) from error
            self._generation = _pool.generation
        self._sent_plan = None
        time_base = Fraction(*header["time_base"])
        return header, FrameTable(pts, keys, time_base, header["end_pts"], header["damage"], header["untimed"])

    def _answer(self, worker: _Worker) -> dict[str, Any]:
        header = worker.receive_header(self._limit)
        if "error" in header:
            raise VideoError(self.path, header["error"])
        return header

    def _read(self, indices: Indices) -> Iterator[tuple[float, npt.NDArray[np.uint8]]]:
        with _pool.lock:
            # Another video may have cost us the process; this one is not to blame.
            if not _pool.serves(self._generation):
                self._open()
            # All frames are taken from the channel before the lock is given back, whatever the caller does with them.
            yield from self._frames(indices)

    def _frames(self, indices: Indices) -> list[tuple[float, npt.NDArray[np.uint8]]]:
        plan = None if self._plan is self._sent_plan else self._plan.tolist()
        frames = []
        try:
            worker = _pool.worker()
            worker.send({"op": "read", "id": self._number, "indices": indices.tolist(), "plan": plan}, self._limit)
            self._sent_plan = self._plan
            for _ in range(len(indices)):
                header = self._answer(worker)
                frames.append((header["start"], worker.receive_array(tuple(header["shape"]), np.uint8, self._limit)))
        except WorkerGone as error:
            _pool.forget()
            raise VideoError(self.path, str(error)) from error
        return frames

    def _release(self) -> None:
        with _pool.lock:
            if _pool.serves(self._generation):
                try:
                    worker = _pool.worker()
                    worker.send({"op": "close", "id": self._number}, self._limit)
                    worker.receive_header(self._limit)
                except WorkerGone:
                    _pool.forget()
        if self._spooled is not None:
            self._spooled.close()
