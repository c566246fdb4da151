"""Exact frame reading on the CPU with PyAV (FFmpeg): `frame_reader` decodes, `segments` where that is faster."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from zoomzero.video.base import Indices, Video
from zoomzero.video.errors import VideoError
from zoomzero.video.frame_reader import FrameReader, Timed
from zoomzero.video.packets import Progress, no_progress
from zoomzero.video.picture import Picture
from zoomzero.video.probe import probe
from zoomzero.video.segments import SegmentReader, num_decoders, segments_of
from zoomzero.video.source import OpenOptions, Source
from zoomzero.video.table import average_fps

log = logging.getLogger(__name__)


class PyAVVideo(Video):
    """Video read with PyAV. See `Video` for the interface.

    progress: called whenever a packet was read or decoded, for whoever watches that the decoder lives.
    """

    backend = "pyav"

    def __init__(self, source: Source, options: OpenOptions, progress: Progress = no_progress) -> None:
        reader = self._reader = FrameReader(source, options, progress)
        self._segments: SegmentReader | None = None
        self._prepared: Indices | None = None
        try:
            first = probe(reader)
            fps = average_fps(reader.table, reader.stream)
            self._picture = Picture(first, reader.stream.sample_aspect_ratio)
            height, width = size = self._picture.height, self._picture.width
            if height * width > options.max_pixels:
                raise VideoError(
                    reader.path, f"{width} x {height} pixels as shown are more than max_pixels={options.max_pixels}"
                )
        except BaseException:
            reader.close()
            raise
        if reader.table.damage:
            log.warning("%s: %s", reader.path, reader.table.damage)
        reader.table = replace(reader.table, oddity=reader.table.oddity or self._picture.oddity)
        self.orientation = self._picture.orientation
        super().__init__(reader.path, reader.table, reader.codec, fps, size, is_hdr=self._picture.is_hdr)

    def _prepare(self) -> None:
        """Get ready for a new plan."""
        self._prepared = self._plan
        self._reader.prepare(self._plan)
        self._end_segments()
        segments = segments_of(self._reader, self._plan)
        number = num_decoders(self._reader, segments, self.height * self.width) if segments else 0
        if number > 1:
            self._segments = SegmentReader(self._reader, segments, number)

    def _end_segments(self) -> None:
        if self._segments is not None:
            self._segments.close()
            self._segments = None

    def _frame(self, index: int) -> Timed | None:
        pts = int(self.table.pts[index])
        if self._segments is not None:
            frame = self._segments.take(pts)
            if index == self._plan[-1]:
                self._end_segments()
            if frame is not None:
                return pts, frame
        later = self._plan[np.searchsorted(self._plan, index, side="right") :]
        found = self._reader.frame(index, int(later[0]) if len(later) else None)
        self.table = self._reader.table
        return found

    def _read(self, indices: Indices) -> Iterator[tuple[float, npt.NDArray[np.uint8] | None]]:
        if self._reader.is_inherited:
            self._reader.leave_to_parent(self._segments, self._picture.leave())
            self._segments = self._prepared = None
        self._reader.check_unchanged()
        if self._plan is not self._prepared:
            self._prepare()
        for index in indices.tolist():
            frame = self._frame(index)
            if frame is None:
                yield float(self.timestamps[index]), None
            else:
                origin = int(self.table.pts[0])
                yield float((frame[0] - origin) * self.table.time_base), self._picture.pixels(frame[1])

    def read_planned(self, indices: Indices, plan: Indices) -> Iterator[tuple[float, npt.NDArray[np.uint8] | None]]:
        """Starts and pixels [H, W, 3] of rising, distinct frames, one at a time, for the process of `guarded`."""
        self._plan = plan
        return self._read(indices)

    def _release(self) -> None:
        self._end_segments()
        self._reader.close()
