"""Prompts of dataset rows: the road from looks to prompts, with the next batch's videos read in the background."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoomzero.annotations.durations import DurationCheck
from zoomzero.inputs import VideoInputs
from zoomzero.limits import NUM_DECODERS
from zoomzero.looks import Look, PreparedPrompt
from zoomzero.looks.encoder import PromptEncoder
from zoomzero.looks.videos import BatchVideos
from zoomzero.prompts import Inquiry
from zoomzero.video import Video, VideoError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A dataset row: video (path), question, options (texts without letters; none for a question of spans alone), and what
# training adds.
Row = Mapping[str, Any]


class RowEncoder(PromptEncoder):
    """Turns dataset rows into prompts.

    Args:
        processor, model, freeze_vision, feature_bytes: as `PromptEncoder`.
        frame_bytes: bound of the decoded frames of small videos kept in memory.
        ahead_bytes: bound of what is read before its turn, 0 to read nothing ahead.
        time_limit: seconds after which a decoder without a sign of life is stopped, None to decode in this process.
        num_decoders: videos read side by side, each in a decoding process of its own where there is a time limit.
    """

    videos: BatchVideos

    def __init__(
        self,
        processor: VideoInputs,
        model: PreTrainedModel,
        *,
        freeze_vision: bool,
        feature_bytes: int,
        frame_bytes: int,
        ahead_bytes: int = 0,
        time_limit: float | None = None,
        num_decoders: int = NUM_DECODERS,
    ) -> None:
        videos = BatchVideos(
            processor,
            frame_bytes=frame_bytes,
            ahead_bytes=ahead_bytes,
            time_limit=time_limit,
            num_decoders=num_decoders,
        )
        super().__init__(
            processor,
            model,
            videos,
            freeze_vision=freeze_vision,
            feature_bytes=feature_bytes,
            num_decoders=num_decoders,
        )
        # Which frames the coarse pass of a path sees.
        self._coarse_keys: dict[str, Hashable] = {}
        self._durations = DurationCheck()

    def video(self, path: str) -> Video:
        """The open video, which stays the encoder's; VideoError if it cannot be read."""
        return self.videos.get(path)

    def coarse_look(self, row: Row) -> Look:
        """The first pass: the whole video under the coarse budget."""
        video = self.video(row["video"])
        self._durations.compare(row["video"], row.get("duration"), video.duration)
        look = Look(row["video"], _inquiry(row, video), self.processor.plan(video), zoomed=False)
        self._coarse_keys[row["video"]] = look.frames_key
        return look

    def zoom_look(self, row: Row, spans: Sequence[tuple[float, float]]) -> Look:
        """The zoom pass: frames inside the spans (seconds, inside the video); no span: evenly over the whole video."""
        video = self.video(row["video"])
        return Look(row["video"], _inquiry(row, video), self.processor.plan(video, spans), zoomed=True)

    def prepare_coarse(self, rows: Sequence[Row]) -> list[PreparedPrompt | VideoError]:
        """Prompts of the rows' coarse looks, or why a row's video cannot be read."""
        looks: list[Look | VideoError] = []
        for row in rows:
            try:
                looks.append(self.coarse_look(row))
            except VideoError as error:
                looks.append(error)
        prepared = iter(self.prepare([look for look in looks if isinstance(look, Look)]))
        return [next(prepared) if isinstance(look, Look) else look for look in looks]

    def read_ahead(self, rows: Iterable[Row]) -> None:
        """Start reading, in the background, the videos of rows whose turn comes later."""
        paths = dict.fromkeys(row["video"] for row in rows)
        self.videos.read_ahead({path: self._coarse_keys.get(path) not in self._frames for path in paths})

    def end_batch(self, rows: Iterable[Row]) -> None:
        """Drop what was read ahead for a batch that is done, as far as it was not needed."""
        self._reads.clear()
        self.videos.end_batch({row["video"] for row in rows})

    def stop_reading_ahead(self) -> None:
        """End the background threads; a later `read_ahead` starts them anew."""
        self._reads.close()
        self.videos.stop()


def _inquiry(row: Row, video: Video) -> Inquiry:
    return Inquiry(row["question"], tuple(row["options"]) or None, video.duration)
