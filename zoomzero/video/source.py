"""Opening a container safely: every way a file can be unreadable becomes a VideoError that names the cause.

Only demuxers of real video containers are let near a file: playlists and concatenation scripts can name other files and
addresses, and a text file must not be read as one.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import av.logging
from av.stream import Discard, Disposition

from zoomzero.video.appended import top_level_boxes
from zoomzero.video.errors import VideoError

Source = str | os.PathLike[str] | bytes | BinaryIO

ALLOWED_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,mpegvideo,avi,flv,live_flv,ogg,asf,h264,hevc,vvc,"
    "m4v,obu,av1,ivf,gif,yuv4mpegpipe,nut,mxf,rm,wtv,dv,swf,apng"
)

# Decoders that give out transparency, by the codec.
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# How files begin that hold a picture; an animated GIF or PNG is a video.
PICTURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff.*", re.DOTALL),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n.*", re.DOTALL),
    "WebP": re.compile(rb"RIFF....WEBP.*", re.DOTALL),
    "TIFF": re.compile(rb"(II\*\0|MM\0\*).*", re.DOTALL),
    "BMP": re.compile(rb"BM....\0\0\0\0.*", re.DOTALL),
}
# Of a file that cannot be opened, so many boxes are looked at.
MOST_LISTED_BOXES = 64


@dataclass(frozen=True)
class OpenOptions:
    """How to open and decode.

    Attributes:
        num_threads: decoder threads; 0 lets FFmpeg choose.
        max_pixels: largest width * height a file may claim.
    """

    num_threads: int = 0
    max_pixels: int = 8192 * 8192


@dataclass(frozen=True)
class FileState:
    """What tells a file from one that replaced it.

    Attributes:
        size: bytes.
        changed_ns: time of the last change, nanoseconds.
    """

    size: int
    changed_ns: int

    @staticmethod
    def of(path: str) -> FileState:
        """State of the file now."""
        status = Path(path).stat()
        return FileState(status.st_size, status.st_mtime_ns)

    def check(self, name: str, path: str) -> None:
        """See that the file is still the one it was; a file that is gone is left to whoever opens it.

        Raises:
            VideoError: it was replaced or written to; names it as `name`.
        """
        try:
            now = FileState.of(path)
        except FileNotFoundError:
            return
        if now != self:
            raise VideoError(
                name,
                f"changed on disk since it was opened ({self.size} bytes then, {now.size} now, last written "
                f"{(now.changed_ns - self.changed_ns) / 1e9:+.3f} s later); open it again",
            )


def local_path(source: str | os.PathLike[str]) -> Path:
    """The file a path or a `file://` address names; other addresses are taken for paths.

    Raises:
        VideoError: the address names a file on another machine.
    """
    name = os.fspath(source)
    if name[:7].lower() != "file://":
        return Path(name)
    host, slash, rest = name[7:].partition("/")
    if host.lower() not in ("", "localhost"):
        raise VideoError(name, f"names a file on the machine {host!r}, not on this one; copy it here")
    return Path(urllib.parse.unquote(slash + rest))


def source_name(source: Source) -> str:
    """What error messages call the source."""
    if isinstance(source, bytes | bytearray | memoryview):
        return "<bytes>"
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", "<file object>"))


def check_source(source: Source) -> str | BinaryIO:
    """What FFmpeg is given: the absolute path of a readable, non-empty regular file, or a binary file at its start.

    Raises:
        VideoError: the file is missing, empty, a directory or unreadable.
        TypeError: `source` is no path, bytes or seekable binary file.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise VideoError("<bytes>", "empty: 0 bytes")
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        path, name = local_path(source), source_name(source)
        try:
            if path.is_dir():
                raise VideoError(name, "is a directory, not a video file")
            if not path.exists():
                raise VideoError(name, "no such file")
            if not path.is_file():
                raise VideoError(name, "not a regular file")
            if path.stat().st_size == 0:
                raise VideoError(name, "empty file: 0 bytes")
            with path.open("rb"):
                pass
        except PermissionError as error:
            raise VideoError(name, "permission denied") from error
        except (OSError, ValueError) as error:
            raise VideoError(name, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
        # An absolute path is never taken for a protocol ("concat:", "http:").
        return str(path.absolute())
    if hasattr(source, "read") and hasattr(source, "seek"):
        source.seek(0)
        return source
    raise TypeError(
        f"open_video: source must be a path, bytes or a seekable binary file, got {type(source).__name__}; pass a path"
    )


def open_container(source: Source, options: OpenOptions) -> av.container.InputContainer:
    """Open a path, bytes or seekable binary file for demuxing.

    Raises:
        VideoError: the file is missing, empty, unreadable or no video container.
        TypeError: `source` is none of these kinds.
    """
    _keep_python_out_of_logging()
    target = check_source(source)
    limits = {"protocol_whitelist": "file", "format_whitelist": ALLOWED_FORMATS, "max_pixels": str(options.max_pixels)}
    try:
        return av.open(target, mode="r", options=limits, metadata_errors="replace")
    except (av.FFmpegError, ValueError, EOFError, UnicodeError) as error:
        raise VideoError(source_name(source), _why_unreadable(source, error)) from error


def _keep_python_out_of_logging() -> None:
    """Take back PyAV's logging through Python, which torchvision 0.24 turns on when it is imported.

    A decoder's thread that logs then waits for the interpreter, which whoever closes the decoder holds while waiting
    for that thread: neither ever goes on.
    """
    if av.logging.get_level() is not None:
        av.logging.set_level(None)


def _why_unreadable(source: Source, error: Exception) -> str:
    """A reason in words. An mp4 whose recording was cut short has its data but not the index at its end."""
    with opened_bytes(source) as file:
        boxes = [name for name, _, _ in top_level_boxes(file, MOST_LISTED_BOXES)]
        file.seek(0)
        head = file.read(16)
    if "ftyp" in boxes and "moov" not in boxes:
        return "no index (moov box): the recording or download was cut off before it was finished"
    for name, magic in PICTURES.items():
        if magic.fullmatch(head):
            return f"a picture ({name}), not a video"
    if isinstance(error, EOFError):
        return "ends before the first frame"
    if isinstance(error, av.InvalidDataError):
        return "not a video file, or damaged beyond recognition"
    return f"cannot be read as video: {error}"


@contextlib.contextmanager
def opened_bytes(source: Source) -> Iterator[BinaryIO]:
    """The source's bytes, to be read from any place; a file object of the caller's is put back where it was."""
    position = source.tell() if hasattr(source, "tell") else 0
    target = check_source(source)
    if isinstance(target, str):
        with open(target, "rb") as file:
            yield file
    else:
        yield target
        target.seek(position)


def video_stream(container: av.container.InputContainer, path: str, options: OpenOptions) -> av.VideoStream:
    """The stream that players choose (`av_find_best_stream`), ready for decoding; other streams are not read.

    Raises:
        VideoError: there is no video stream, no decoder for it, or its dimensions are absurd.
    """
    candidates = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not candidates:
        kinds = ", ".join(sorted({str(s.type) for s in container.streams})) or "no stream at all"
        raise VideoError(path, f"no video stream (found {kinds})")
    best = container.streams.best("video")
    # A cover picture may be marked as the default; it is no film.
    stream = next((s for s in candidates if best is not None and s.index == best.index), candidates[0])
    if stream.codec_context is None:
        raise VideoError(path, "no decoder for its video codec")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > options.max_pixels:
        raise VideoError(path, f"{width} x {height} pixels are more than max_pixels={options.max_pixels}")
    for other in container.streams:
        if other.index != stream.index:
            other.discard = Discard.all
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = options.num_threads
    stream.codec_context.options = {"max_pixels": str(options.max_pixels)}
    return stream


def alpha_decoder(stream: av.VideoStream, options: OpenOptions) -> av.VideoCodecContext | None:
    """What decodes VP8 and VP9 with their alpha channel, which lies beside the packets; None for other streams.

    FFmpeg's own decoders pass over it; those of libvpx do not.
    """
    name = ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    if name is None or stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return None
    decoder = av.CodecContext.create(name, "r")
    assert isinstance(decoder, av.VideoCodecContext)  # of a video codec
    decoder.width, decoder.height = stream.codec_context.width, stream.codec_context.height
    decoder.thread_count = options.num_threads
    decoder.options = {"max_pixels": str(options.max_pixels)}
    return decoder
