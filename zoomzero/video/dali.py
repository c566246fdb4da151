"""Frame reading with NVIDIA DALI: on the GPU every codec NVDEC knows, on the CPU VP8, VP9 and motion JPEG.

Decoded frames reach torch through DLPack without a copy and stay on their device; at most CHUNK_FRAMES of them exist
besides the result. When frames are shown comes from demuxing the container, as in the PyAV back end, since DALI answers
with frame numbers only. Three of its habits are guarded against:

- an index past the end gives a black frame unless pad_mode is "none", and with an edit list even then: indices come
  from the frame table alone, and opening checks that DALI reaches the table's last frame;
- rotation and mirroring are ignored: they are applied here;
- a codec it cannot decode is reported by the decoder's number: the name is added here.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zoomzero.video.base import Indices, Video
from zoomzero.video.errors import VideoError
from zoomzero.video.guarded import GuardedVideo
from zoomzero.video.pyav import PyAVVideo
from zoomzero.video.source import Source, local_path

# 32 frames of 1080p are 200 MB.
CHUNK_FRAMES = 32


def _load_dali() -> ModuleType:
    try:
        import nvidia.dali.experimental.dynamic as dali
    except ImportError as error:
        raise ImportError(
            "open_video: backend 'dali' needs nvidia-dali-cuda130, which is not installed; "
            "run `pip install 'zoomzero[gpu]'` or use backend='pyav'"
        ) from error
    return dali


class DaliVideo(Video):
    """Video decoded by DALI on one device. See `Video` for the interface; frames are on `device`.

    probe: the same file opened with PyAV, for its frame table and orientation; it stays the caller's.
    """

    backend = "dali"

    def __init__(self, source: Source, probe: PyAVVideo | GuardedVideo, device: torch.device) -> None:
        self._dali = _load_dali()
        self.device = device
        if probe.table.oddity:
            raise VideoError(
                probe.path, f"DALI does not read it as players do: {probe.table.oddity}; use backend 'pyav'"
            )
        super().__init__(probe.path, probe.table, probe.codec, probe.fps, (probe.height, probe.width))
        self._orientation = probe.orientation
        self._mapping: mmap.mmap | None = None
        self._encoded = self._dali.as_tensor(self._content(source))
        try:
            self._decode([self.num_frames - 1])
        except VideoError:
            self.close()
            raise

    def _content(self, source: Source) -> npt.NDArray[np.uint8]:
        """The file's bytes; a path is mapped, not read."""
        if isinstance(source, str | os.PathLike):
            with local_path(source).open("rb") as handle:
                self._mapping = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            return np.frombuffer(self._mapping, dtype=np.uint8)
        if isinstance(source, bytes | bytearray | memoryview):
            return np.frombuffer(source, dtype=np.uint8)
        source.seek(0)
        return np.frombuffer(source.read(), dtype=np.uint8)

    def _context(self) -> contextlib.AbstractContextManager[Any]:
        """DALI works on torch's current stream, so that torch sees finished frames without a synchronisation."""
        if self.device.type == "cpu":
            return contextlib.nullcontext()
        stream = torch.cuda.current_stream(self.device)
        return self._dali.EvalContext(device_id=stream.device.index, cuda_stream=stream)

    def _decode(self, indices: list[int]) -> torch.Tensor:
        target = "cpu" if self.device.type == "cpu" else "gpu"
        try:
            with self._context():
                # DALI looks at the calling line to tell constants from data: pad_mode must stand there as a literal.
                clip = self._dali.decoders.video(self._encoded, frames=indices, device=target, pad_mode="none")
                frames: torch.Tensor = clip.torch()
        except RuntimeError as error:
            cause = str(error).strip().splitlines()[-1]
            raise VideoError(self.path, f"DALI cannot decode {self.codec} on the {target}: {cause}") from error
        if len(frames) != len(indices):
            raise VideoError(self.path, f"DALI gave {len(frames)} frames for {len(indices)} asked for")
        return self._orientation.tensor(frames)

    def _allocate(self, count: int) -> torch.Tensor:
        return torch.empty((count, self.height, self.width, 3), dtype=torch.uint8, device=self.device)

    def _read(self, indices: Indices) -> Iterator[tuple[float, torch.Tensor]]:
        for first in range(0, len(indices), CHUNK_FRAMES):
            chunk = indices[first : first + CHUNK_FRAMES].tolist()
            for index, frame in zip(chunk, self._decode(chunk), strict=True):
                yield float(self.timestamps[index]), frame

    def _release(self) -> None:
        self._encoded = None
        if self._mapping is not None:
            # DALI may still hold the view that keeps the mapping alive; it then ends with that view.
            with contextlib.suppress(BufferError):
                self._mapping.close()
