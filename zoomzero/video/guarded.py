"""Reading files one does not trust: decoding happens in other processes, which are killed when they stop answering.

A broken or hostile file can make a decoder loop for ever or crash. Here such a file ends in a `VideoError`: after
`time_limit` seconds without a sign of life (a decoder that makes progress gives one), or when it has crashed two
processes; the first may have been killed for another reason, such as memory. Then the next file gets a fresh process.
Guarded videos of this process share a few (`num_decoders`); a process starts when it is needed (about the time it takes
to import torch) and ends with the interpreter.
"""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import count
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from zoomzero.limits import NUM_DECODERS, TIME_LIMIT_SECONDS
from zoomzero.video.base import Indices, Video
from zoomzero.video.decoders import PIPE_BYTES, Answer, Decoder, DecoderDied, DecoderHung, NotServing, pool
from zoomzero.video.errors import VideoError
from zoomzero.video.orientation import Orientation
from zoomzero.video.source import FileState, OpenOptions, Source, check_source, source_name
from zoomzero.video.table import FrameTable

log = logging.getLogger(__name__)


Result = TypeVar("Result")

_numbers = count()


class GuardedVideo(Video):
    """A video decoded with PyAV in another process under a time limit. See `Video` for the interface."""

    backend = "pyav"

    def __init__(
        self, source: Source, options: OpenOptions, time_limit: float, num_decoders: int = NUM_DECODERS
    ) -> None:
        if not time_limit > 0:
            raise ValueError(
                f"open_video: time_limit must be positive seconds, got {time_limit}; {TIME_LIMIT_SECONDS:g} is usual"
            )
        if num_decoders < 1:
            raise ValueError(f"open_video: num_decoders must be at least 1, got {num_decoders}; leave the default")
        self.path = source_name(source)
        self._options = options
        self._limit = time_limit
        self._num_decoders = num_decoders
        self._number = next(_numbers)
        self._decoder: Decoder | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._sent_plan: Indices | None = None
        self._spooled: tempfile._TemporaryFileWrapper[bytes] | None = None
        self._file = self._local_file(source)
        self._state = FileState.of(self._file)
        header, table = self._retried(self._open)
        self.orientation = Orientation(**header["orientation"])
        size = header["height"], header["width"]
        super().__init__(self.path, table, header["codec"], header["fps"], size, is_hdr=header["is_hdr"])
        if table.damage:
            log.warning("%s: %s", self.path, table.damage)

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

    def _retried(self, action: Callable[[], Result]) -> Result:
        """What `action` gives; once more with a fresh process where its own died, which may not be the video's fault.

        Raises:
            VideoError: the decoder hung, or died twice.
        """
        deaths = 0
        while True:
            try:
                return action()
            except NotServing:
                # Another video cost us the process; this one is not to blame.
                self._leave()
            except DecoderHung as error:
                self._leave()
                raise VideoError(self.path, str(error)) from error
            except DecoderDied as error:
                self._leave()
                deaths += 1
                if deaths == 2:
                    raise VideoError(self.path, str(error)) from error
                log.info("%s: %s; trying once more with a fresh one", self.path, error)

    def _open(self) -> tuple[dict[str, Any], FrameTable]:
        """Open the file in a process; what is there must be what was there at first."""
        self._state.check(self.path, self._file)
        message = {
            "op": "open",
            "video": self._number,
            "path": self._file,
            "num_threads": self._options.num_threads,
            "max_pixels": self._options.max_pixels,
        }
        decoder = self._decoder = pool.assign(self._number, self._num_decoders)
        self._finalizer = weakref.finalize(self, decoder.drop, self._number, self._limit)
        self._finalizer.atexit = False
        with decoder.exchange(message, self._limit) as answer:
            header = answer.header(self.path)
            pts = answer.array((header["num_pts"],), np.int64)
            keys = answer.array((header["num_keys"],), np.int64)
        self._sent_plan = None
        table = FrameTable(
            pts,
            keys,
            Fraction(*header["time_base"]),
            header["end_pts"],
            header["damage"],
            header["untimed"],
            oddity=header["oddity"],
        )
        return header, table

    def _leave(self) -> None:
        """Forget the process this video was open in."""
        if self._finalizer is not None:
            self._finalizer.detach()
        self._decoder = self._finalizer = None

    def _read(self, indices: Indices) -> Iterator[tuple[float, npt.NDArray[np.uint8] | None]]:
        # All frames are taken from the channel at once, whatever the caller does with them.
        yield from self._retried(lambda: self._frames(indices))

    def _frames(self, indices: Indices) -> list[tuple[float, npt.NDArray[np.uint8] | None]]:
        if self._decoder is None or not self._decoder.is_running:
            self._leave()
            self._open()
        decoder = self._decoder
        assert decoder is not None  # opening has set it
        plan = None if self._plan is self._sent_plan else self._plan.tolist()
        message = {"op": "read", "video": self._number, "indices": indices.tolist(), "plan": plan}
        with decoder.exchange(message, self._limit) as answer:
            frames = [self._frame(answer) for _ in indices]
        self._sent_plan = self._plan
        return frames

    def _frame(self, answer: Answer) -> tuple[float, npt.NDArray[np.uint8] | None]:
        header = answer.header(self.path)
        if header["shape"] is None:
            return header["start"], None
        return header["start"], answer.array(tuple(header["shape"]), np.uint8)

    def _release(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._leave()
        if self._spooled is not None:
            self._spooled.close()
