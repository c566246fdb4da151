"""The decoding processes of `zoomzero.video.guarded`: started when needed, shared, replaced when gone.

Note [One exchange at a time]
A request carries a number that every part of its answer repeats. The lock of a process is held from the request to the
last byte of its answer; whatever interrupts that (a signal, an exception of the caller) leaves bytes on the way that
nobody asks for any more, so it ends the process. The videos that were open there are opened again elsewhere.

Note [Fork]
A forked child inherits the channels but not the threads that use them, and locks that those threads hold for ever. It
starts with no process and new locks, and closes its copies of the channels: a process whose parent is gone must see
the end of its input.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoomzero.video.errors import VideoError

# Importing torch on a busy machine; not the file's fault, so apart from its limit.
START_LIMIT_SECONDS = 120.0
PIPE_BYTES = 1 << 20
# A process whose output has ended is about to end.
END_SECONDS = 10.0
# A sign of life is sent this many times within the limit.
SIGNS_PER_LIMIT = 8
# What is told of a dead process's standard error: its last lines, where the cause stands.
CAUSE_LINES, CAUSE_BYTES = 3, 2000
# Standard error of a process is cut when it has grown beyond this.
MOST_ERROR_BYTES = 1 << 20


class DecoderHung(Exception):
    """The decoding process gave no sign of life and was stopped."""


class DecoderDied(Exception):
    """The decoding process ended by itself or was killed from outside; says how, and what it printed last."""


class NotServing(Exception):
    """The decoding process was gone before anything was sent: another video's fault."""


def _search_path() -> list[str]:
    """Where a process finds what this one finds, without the current folder (but this package, last)."""
    here = Path.cwd() if Path(".").exists() else None
    entries = []
    for entry in sys.path:
        folder = Path(entry).absolute()
        if entry and not (here is not None and folder.exists() and folder.samefile(here)):
            entries.append(str(folder))
    own = str(Path(__file__).resolve().parents[2])
    return entries if own in entries else [*entries, own]


class Decoder:
    """A decoding process and the channel to it.

    Attributes:
        videos: numbers of the videos that are open there.
    """

    def __init__(self) -> None:
        self.videos: set[int] = set()
        self._lock = threading.Lock()
        self._requests = itertools.count()
        self._dropped: collections.deque[int] = collections.deque()
        self._ready = False
        self._stopped = False
        self._buffer = bytearray()
        self._errors = tempfile.TemporaryFile("a+b", buffering=0)  # noqa: SIM115 (lives as long as the process)
        environment = {
            # Decoders' threads come and go; with an arena each, glibc's heap grew by 100 MB in 1,500 videos.
            "MALLOC_ARENA_MAX": "2",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(_search_path()),
            "PYTHONSAFEPATH": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "zoomzero.video.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors, env=environment, cwd=os.sep, bufsize=0)  # fmt: skip
        assert self.process.stdout is not None  # both ends are pipes; narrows the types
        assert self.process.stdin is not None
        self._in, self._out = self.process.stdout.fileno(), self.process.stdin.fileno()
        os.set_blocking(self._out, False)

    # -- talking -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def exchange(self, message: dict[str, Any], limit: float) -> Iterator[Answer]:
        """Send a request and yield its answer, to be read to its end in the block. See Note [One exchange at a time].

        Raises:
            NotServing: the process was gone before; nothing was sent.
            DecoderHung: nothing came for `limit` seconds.
            DecoderDied: the process ended.
            VideoError: the process answers so (`Answer.header`); it goes on serving.
        """
        with self._lock:
            if self._stopped:
                raise NotServing
            try:
                if not self._ready:
                    self._start()
                self._send_dropped(limit)
                number = next(self._requests)
                self._send({**message, "request": number, "beat": limit / SIGNS_PER_LIMIT}, limit)
                yield Answer(self, number, limit)
                self._send_dropped(limit)
            except VideoError:
                raise
            except BaseException:
                self.stop()
                raise

    def _start(self) -> None:
        self.receive_header(None, START_LIMIT_SECONDS)
        self._ready = True

    def _send(self, message: dict[str, Any], limit: float) -> None:
        data = memoryview(json.dumps(message).encode() + b"\n")
        while data:
            self._wait(self._out, selectors.EVENT_WRITE, limit)
            try:
                data = data[os.write(self._out, data) :]
            except BrokenPipeError:
                raise self._death() from None

    def receive_header(self, number: int | None, limit: float) -> dict[str, Any]:
        """The next part of the answer to a request; signs of life are passed over."""
        while True:
            while (end := self._buffer.find(b"\n")) < 0:
                self._buffer += self._some(PIPE_BYTES, limit)
            header: dict[str, Any] = json.loads(self._buffer[:end])
            del self._buffer[: end + 1]
            if header["request"] != number:
                raise DecoderDied(f"the decoder answered request {header['request']} for {number}")
            if "alive" not in header:
                return header

    def receive_array(self, shape: tuple[int, ...], dtype: Any, limit: float) -> npt.NDArray[Any]:
        """The bytes that a header announced."""
        array = np.empty(shape, dtype=dtype)
        view = array.reshape(-1).view(np.uint8).data
        have = min(len(self._buffer), len(view))
        view[:have] = self._buffer[:have]
        del self._buffer[:have]
        while have < len(view):
            piece = self._some(min(len(view) - have, PIPE_BYTES), limit)
            view[have : have + len(piece)] = piece
            have += len(piece)
        return array

    def _some(self, at_most: int, limit: float) -> bytes:
        self._wait(self._in, selectors.EVENT_READ, limit)
        piece = os.read(self._in, at_most)
        if not piece:
            raise self._death()
        return piece

    def _wait(self, pipe: int, event: int, limit: float) -> None:
        # poll: select stops at 1024 descriptors, and epoll would need one of its own.
        with selectors.PollSelector() as selector:
            selector.register(pipe, event)
            begin = time.monotonic()
            while not selector.select(max(0.0, limit - (time.monotonic() - begin))):
                if time.monotonic() - begin >= limit:
                    raise DecoderHung(f"the decoder gave no sign of life for {limit:g} s and was stopped")

    # -- ending ------------------------------------------------------------------------------------------------------

    def _death(self) -> DecoderDied:
        try:
            code = self.process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            return DecoderDied("the decoder closed its channel")
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        cause = self._last_words()
        return DecoderDied(f"the decoder crashed ({how})" + (f": {cause}" if cause else ""))

    def _last_words(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - CAUSE_BYTES))
        lines = self._errors.read().decode("utf-8", "replace").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-CAUSE_LINES:])

    def drop(self, number: int, limit: float) -> None:
        """Close a video that nobody holds any more; at once where the process is idle, else with its next request.

        Called by the garbage collector too, at any point of any thread, so it never waits for the lock.
        """
        self.videos.discard(number)
        self._dropped.append(number)
        if not self._ready or not self._lock.acquire(blocking=False):
            return
        try:
            if not self._stopped:
                self._send_dropped(limit)
        except (DecoderHung, DecoderDied):
            self.stop()
        finally:
            self._lock.release()

    def _send_dropped(self, limit: float) -> None:
        # The collector may add to them meanwhile; each is taken once.
        while self._dropped:
            number = next(self._requests)
            self._send({"op": "close", "video": self._dropped.popleft(), "request": number, "beat": limit}, limit)
            self.receive_header(number, limit)
        if os.fstat(self._errors.fileno()).st_size > MOST_ERROR_BYTES:
            self._errors.truncate(0)

    @property
    def is_running(self) -> bool:
        """Whether the process can be asked something."""
        return not self._stopped and self.process.poll() is None

    def stop(self) -> None:
        """Kill the process. What waits for the lock gets `NotServing`."""
        self._stopped = True
        self.process.kill()
        self.process.wait()
        self._close()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's process without a word. See Note [Fork]."""
        self._stopped = True
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout, self._errors):
            if pipe is not None:
                pipe.close()


class Answer:
    """The answer to one request, read part by part."""

    def __init__(self, decoder: Decoder, number: int, limit: float) -> None:
        self._decoder = decoder
        self._number = number
        self._limit = limit

    def header(self, path: str) -> dict[str, Any]:
        """The next header; VideoError of `path` where it says that the video cannot be read."""
        header = self._decoder.receive_header(self._number, self._limit)
        if "error" in header:
            raise VideoError(path, header["error"])
        return header

    def array(self, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        """The bytes that the last header announced."""
        return self._decoder.receive_array(shape, dtype, self._limit)


class DecoderPool:
    """The decoding processes of this one. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._decoders: list[Decoder] = []

    @property
    def decoders(self) -> list[Decoder]:
        """Those that run."""
        return [decoder for decoder in self._decoders if decoder.is_running]

    def assign(self, video: int, num_decoders: int) -> Decoder:
        """The process with the fewest open videos; a new one while each has some and fewer than `num_decoders` run."""
        with self._lock:
            self._decoders = self.decoders
            decoder = min(self._decoders, key=lambda d: len(d.videos), default=None)
            if decoder is None or (decoder.videos and len(self._decoders) < num_decoders):
                decoder = Decoder()
                self._decoders.append(decoder)
            decoder.videos.add(video)
            return decoder

    def stop(self) -> None:
        """End all processes."""
        for decoder in self.decoders:
            decoder.stop()

    def after_fork(self) -> None:
        """See Note [Fork]."""
        self._lock = threading.Lock()
        decoders, self._decoders = self._decoders, []
        for decoder in decoders:
            decoder.abandon()


pool = DecoderPool()
atexit.register(pool.stop)
os.register_at_fork(after_in_child=pool.after_fork)
