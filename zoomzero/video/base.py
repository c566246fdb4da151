"""What every back end offers: metadata, the frames shown at given times, and a stream of them in bounded memory."""

from __future__ import annotations

import abc
import logging
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from zoomzero.closable import Closable
from zoomzero.video.errors import VideoError
from zoomzero.video.table import FrameTable

log = logging.getLogger(__name__)

# Times are often computed as index / fps. A microsecond absorbs their own rounding; half a tick that of the container
# (Matroska stores 2/30 s as 67 ms). Containers whose ticks are as long as frames store such times exactly.
TIME_TOLERANCE_SECONDS = 1e-6
LONGEST_ROUNDING_TICK_SECONDS = 1e-3

# A frame that cannot be decoded is replaced by the one a player would keep showing, but not by one older than this.
MAX_STALE_SECONDS = 1.0

Indices = npt.NDArray[np.int64]
Pixels = torch.Tensor | npt.NDArray[np.uint8]
Times = Sequence[float] | npt.NDArray[np.floating] | torch.Tensor


class Video(Closable):
    """An opened video. Use as a context manager or call `close`; calls from several threads take turns.

    Attributes:
        path: the file, or "<bytes>" / "<file object>".
        backend: "pyav" or "dali".
        codec: name of the codec, e.g. "h264".
        fps: average frames per second.
        num_frames: number of shown frames.
        height, width: pixels as shown: turned as the file says, with square pixels.
        duration: seconds from the first frame to the end of the last.
        timestamps: float64 [num_frames], seconds from the first frame, exact.
        is_hdr: the file is PQ or HLG; frames are brought into the range of an ordinary display by the curve of ITU-R
            BT.2390 (`zoomzero.video.tone_mapping`).
    """

    backend: str

    def __init__(
        self, path: str, table: FrameTable, codec: str, fps: float, size: tuple[int, int], *, is_hdr: bool = False
    ) -> None:
        self.path = path
        self.codec = codec
        self.fps = fps
        self.table = table
        self.num_frames = len(table.pts)
        self.height, self.width = size
        self.duration = table.duration
        self.timestamps = table.timestamps
        self.is_hdr = is_hdr
        self._undecoded: set[int] = set()
        self._missing: set[int] = set()
        tick = float(table.time_base)
        half_tick = tick / 2 if tick <= LONGEST_ROUNDING_TICK_SECONDS else 0.0
        self._tolerance = max(TIME_TOLERANCE_SECONDS, half_tick)
        self._plan: Indices = np.empty(0, dtype=np.int64)
        self._lock, self._lock_owner = threading.RLock(), os.getpid()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def damage(self) -> str | None:
        """What is missing from a damaged file, in words, or None.

        Frames lost at its start, an early end, places the container could not be read at, where its clock restarts,
        gaps of more than a minute; and, once they have been asked for, frames that do not decode.
        """
        words = [self.table.damage] if self.table.damage else []
        if self._undecoded:
            first = self.timestamps[min(self._undecoded)]
            words.append(f"of the frames asked for, {len(self._undecoded)} do not decode, the first at {first:.3f} s")
        return "; ".join(words) or None

    def frames_at(self, seconds: Times, frame_choice: str = "exact") -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
        """The frames a player shows at the given times: for each the latest frame that starts at or before it.

        A time is compared after rounding to the container's ticks where those are a millisecond or shorter. For a frame
        that does not decode stands the one that a player keeps showing: one of the last second, else the nearest of the
        others asked for, as the returned timestamps say.

        Args:
            seconds: [n] times in [0, duration), any order, repeats allowed.
            frame_choice: "exact", or "keyframes" for the last key frame at or before each time instead: fast and
                inexact, and the returned timestamps say which frames they are.

        Returns:
            frames: uint8 [n, H, W, 3] RGB on the CPU (back end "dali" on its own device), in the order asked for.
            timestamps: float64 [n], when each returned frame starts.

        Raises:
            ValueError: a time outside the video, a closed video, an unknown `frame_choice`.
            TypeError: `seconds` is not a sequence of numbers.
            VideoError: none of the frames can be decoded, or the file was changed on disk since it was opened.
        """
        indices = self._indices(seconds, frame_choice)
        return self._serve(indices, np.unique(indices))

    def _serve(self, indices: Indices, plan: Indices) -> tuple[torch.Tensor, npt.NDArray[np.float64]]:
        unique, positions = np.unique(indices, return_inverse=True)
        frames = self._allocate(len(indices))
        starts = np.empty(len(indices), dtype=np.float64)
        with self._own_lock():
            self._check_open()
            self._plan = plan
            missing = []
            for rank, (start, pixels) in enumerate(self._read(unique)):
                if pixels is None:
                    missing.append(rank)
                    continue
                self._note(int(unique[rank]), start)
                self._put(frames, starts, positions == rank, start, pixels)
            for rank in missing:
                self._put(frames, starts, positions == rank, *self._stand_in(int(unique[rank]), plan))
        return frames, starts

    @staticmethod
    def _put(
        frames: torch.Tensor,
        starts: npt.NDArray[np.float64],
        where: npt.NDArray[np.bool_],
        start: float,
        pixels: Pixels,
    ) -> None:
        for position in np.flatnonzero(where):
            starts[position] = start
            if isinstance(pixels, np.ndarray):
                # numpy copies a frame in a third of a millisecond; torch wakes its threads for it.
                frames[position].numpy()[...] = pixels
            else:
                frames[position] = pixels

    def _note(self, index: int, start: float) -> None:
        """Keep count of frames that do not decode."""
        if start == self.timestamps[index]:
            return
        if not self._undecoded:
            log.warning(
                "%s: the frame at %.3f s does not decode; showing the one at %.3f s (said once a file)",
                self.path,
                self.timestamps[index],
                start,
            )
        self._undecoded.add(index)

    def _stand_in(self, index: int, plan: Indices) -> tuple[float, Pixels]:
        """What a player shows instead of a missing frame: of the plan's other frames the nearest before, or after."""
        self._missing.add(index)
        place = int(np.searchsorted(plan, index))
        for other in [*plan[:place][::-1].tolist(), *plan[place + 1 :].tolist()]:
            if other in self._missing:
                continue
            start, pixels = next(iter(self._read(np.array([other], dtype=np.int64))))
            if pixels is not None:
                self._note(index, start)
                return start, pixels
            self._missing.add(other)
        others = " nor can any other of those asked for" if len(plan) > 1 else ""
        raise VideoError(
            self.path,
            f"the frame at {self.timestamps[index]:.3f} s cannot be decoded, nor any in the {MAX_STALE_SECONDS:g} s "
            f"before it{others}",
        )

    def _own_lock(self) -> threading.RLock:
        """This video's lock. One that a thread held at a fork is held for ever in the child, which takes another."""
        if self._lock_owner != os.getpid():
            self._lock, self._lock_owner = threading.RLock(), os.getpid()
        return self._lock

    def snapped_to_keyframes(self, seconds: Times, within: float) -> npt.NDArray[np.float64]:
        """Times at which reading is fast: each time moved to the nearest key frame where one lies near enough.

        A key frame is decoded alone, a frame between two of them with all before it. Times that fall on one frame
        become one.

        Args:
            seconds: [n] times in [0, duration).
            within: seconds a time may be moved by.

        Returns:
            float64 [m], m <= n, rising: when the frames start, exactly.
        """
        indices = self._indices(seconds, "exact")
        shown = self.timestamps[indices]
        keys = self.timestamps[np.isin(self.table.pts, self.table.key_pts)]
        if not len(keys):
            return np.unique(shown)
        after = np.minimum(np.searchsorted(keys, shown), len(keys) - 1)
        before = np.maximum(after - 1, 0)
        nearest = np.where(shown - keys[before] <= keys[after] - shown, keys[before], keys[after])
        return np.unique(np.where(np.abs(nearest - shown) <= within, nearest, shown))

    def stream(
        self, seconds: Times, chunk: int = 32, frame_choice: str = "exact"
    ) -> Iterator[tuple[torch.Tensor, npt.NDArray[np.float64]]]:
        """`frames_at` in chunks of at most `chunk` times, so that memory does not grow with the number of times.

        Rising times are decoded in one pass over the file. Arguments are checked before the first chunk is read.
        """
        if chunk < 1:
            raise ValueError(f"stream: chunk must be at least 1, got {chunk}; 32 is a good start")
        indices = self._indices(seconds, frame_choice)
        plan = np.unique(indices)
        return (self._serve(indices[i : i + chunk], plan) for i in range(0, len(indices), chunk))

    def close(self) -> None:
        """Release the file and the decoder. Closing twice does no harm."""
        with self._own_lock():
            if not self._closed:
                self._closed = True
                self._release()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self.path!r} {self.codec} {self.width}x{self.height} {self.duration:.2f} s "
            f"{self.num_frames} frames>"
        )

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"frames_at: the video must be open, got a closed one ({self.path}); open it again")

    def _indices(self, seconds: Times, frame_choice: str) -> Indices:
        self._check_open()
        if frame_choice not in ("exact", "keyframes"):
            raise ValueError(
                f"frames_at: frame_choice must be 'exact' or 'keyframes', got {frame_choice!r}; leave it 'exact'"
            )
        times = _as_times(seconds)
        outside = times[~((times >= 0) & (times < self.duration))]
        if len(outside):
            raise ValueError(
                f"frames_at: seconds must be in [0, {self.duration:.6g}), got {outside[0]:.6g} for "
                f"{self.path}; clip the times to the video"
            )
        indices = np.searchsorted(self.timestamps, times + self._tolerance, side="right") - 1
        if frame_choice == "keyframes":
            keys = np.array([self.table.key_before(int(self.table.pts[i])) for i in indices], dtype=np.int64)
            indices = np.maximum(np.searchsorted(self.table.pts, keys, side="right") - 1, 0)
        return indices.astype(np.int64)

    def _allocate(self, count: int) -> torch.Tensor:
        return torch.empty((count, self.height, self.width, 3), dtype=torch.uint8)

    @abc.abstractmethod
    def _read(self, indices: Indices) -> Iterator[tuple[float, Pixels | None]]:
        """For each of the rising, distinct frame indices: when the frame starts and its pixels, uint8 [H, W, 3].

        Where a frame does not decode, an older one of the last MAX_STALE_SECONDS, or None.
        `self._plan` holds all frames this and the following calls will ask for, rising and distinct: a back end may
        prepare for them, and must still serve frames outside it later.
        """

    @abc.abstractmethod
    def _release(self) -> None:
        """Free what the back end holds."""


def _as_times(seconds: Times) -> npt.NDArray[np.float64]:
    if isinstance(seconds, torch.Tensor):
        seconds = seconds.detach().cpu().numpy()
    try:
        times = np.asarray(seconds, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"frames_at: seconds must be numbers, got {type(seconds).__name__}; pass a list of floats"
        ) from error
    if times.ndim != 1:
        raise TypeError(
            f"frames_at: seconds must be a list of times, got {times.ndim} dimensions; wrap one time in a list"
        )
    return times
