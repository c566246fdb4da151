"""Reading video: every requested time gives the right frame, and every bad file a clear error."""

from __future__ import annotations

import io
import os
import random
import threading
from pathlib import Path

import av
import av.logging
import numpy as np
import pytest
import torch
from support.video_files import ClipSpec, numbers_in, write_clip

from zoomzero.video import Video, open_video

VP9 = {"deadline": "realtime", "cpu-used": "8"}
# A key frame nowhere but at the end of a group.
NO_CUTS = {"x264-params": "scenecut=0"}
HIDDEN_REFERENCES = {"auto-alt-ref": "1", "lag-in-frames": "16"}

# One clip per way a container or codec can mislead a reader: constant and variable rate, short and long GOP, reordered
# frames, late start, frames cut away by an edit list, rotation, references that are never shown, packets without times.
CLIPS = [
    ClipSpec("constant.mp4"),
    ClipSpec("long_gop.mp4", gop=250, num_frames=300),
    ClipSpec("intra.mp4", gop=1),
    ClipSpec("reordered.mp4", b_frames=3),
    ClipSpec("reordered.mkv", b_frames=3),
    ClipSpec("reordered.ts", b_frames=3),
    ClipSpec("reordered.mov", b_frames=3),
    ClipSpec("open_gop.mp4", b_frames=3, options={"x264-params": "open-gop=1"}),
    ClipSpec("variable.mp4", vfr=True, b_frames=2),
    ClipSpec("variable.mkv", vfr=True, b_frames=2),
    ClipSpec("variable.ts", vfr=True),
    ClipSpec("late.mp4", start=5, b_frames=2),
    ClipSpec("late.mkv", start=5, b_frames=2),
    ClipSpec("late.ts", start=5, b_frames=2),
    ClipSpec("cut.mp4", preroll=17, b_frames=2),
    ClipSpec("cut_long_gop.mov", preroll=7, gop=250),
    ClipSpec("turned_left.mp4", rotation=90, b_frames=2),
    ClipSpec("turned_right.mp4", rotation=-90),
    ClipSpec("upside_down.mp4", rotation=180),
    ClipSpec("vp9.webm", codec="libvpx-vp9", options=VP9),
    ClipSpec("vp9_hidden.webm", codec="libvpx-vp9", options=HIDDEN_REFERENCES),
    ClipSpec("vp8_hidden.webm", codec="libvpx", options=HIDDEN_REFERENCES),
    ClipSpec("av1.mp4", codec="libsvtav1"),
    ClipSpec("av1.webm", codec="libsvtav1"),
    ClipSpec("hevc.mp4", codec="libx265", b_frames=3, options={"x265-params": "log-level=none"}),
    ClipSpec("hevc.ts", codec="libx265", b_frames=3, options={"x265-params": "log-level=none"}),
    ClipSpec("mpeg2.mpg", codec="mpeg2video", b_frames=2, ticks_per_frame=1),
    ClipSpec("mpeg4.avi", codec="mpeg4", ticks_per_frame=1),
    ClipSpec("reordered.avi", b_frames=3, ticks_per_frame=1),
    ClipSpec("motion_jpeg.avi", codec="mjpeg", ticks_per_frame=1),
    # No container at all; FFmpeg takes it for 25 frames a second.
    ClipSpec("raw.h264", b_frames=2, rate=25, ticks_per_frame=1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module", params=CLIPS, ids=lambda spec: spec.name)
def clip(request: pytest.FixtureRequest, folder: Path) -> tuple[ClipSpec, Path]:
    return request.param, write_clip(folder, request.param)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return write_clip(folder, ClipSpec("plain.mp4", b_frames=2, num_frames=120))


def read_numbers(video: Video, spec: ClipSpec, seconds: list[float]) -> tuple[list[int], list[float]]:
    frames, starts = video.frames_at(seconds)
    assert frames.dtype == torch.uint8
    assert frames.shape == (len(seconds), video.height, video.width, 3)
    return numbers_in(torch.rot90(frames, -spec.rotation // 90, (1, 2))), starts.tolist()


def test_metadata(clip: tuple[ClipSpec, Path]) -> None:
    spec, path = clip
    with open_video(path) as video:
        times = spec.times()
        assert video.num_frames == len(times)
        # Matroska and FLV round to milliseconds.
        np.testing.assert_allclose(video.timestamps, times, atol=6e-4)
        assert video.timestamps[0] == 0.0
        assert (video.height, video.width) == ((128, 64) if spec.rotation in (90, -90) else (64, 128))
        assert times[-1] < video.duration <= times[-1] + 3.1 / spec.rate
        expected_fps = (len(times) - 1) / times[-1]
        assert video.fps == pytest.approx(expected_fps, rel=0.02)
        assert video.damage is None
        assert video.backend == "pyav"


def test_every_frame_in_order_is_the_right_one(clip: tuple[ClipSpec, Path]) -> None:
    spec, path = clip
    with open_video(path) as video:
        numbers, starts = read_numbers(video, spec, video.timestamps.tolist())
        assert numbers == list(range(spec.preroll, spec.num_frames))
        assert starts == video.timestamps.tolist()


def test_random_times_in_random_order_give_the_frame_on_show(clip: tuple[ClipSpec, Path]) -> None:
    spec, path = clip
    rng = random.Random(3)
    with open_video(path) as video:
        ends = [*video.timestamps[1:], video.duration]
        for batch in (1, 1, 1, 1, 7, 7, 30):
            wanted = [rng.randrange(video.num_frames) for _ in range(batch)]
            seconds = [video.timestamps[i] + rng.uniform(0, 0.98) * (ends[i] - video.timestamps[i]) for i in wanted]
            numbers, starts = read_numbers(video, spec, seconds)
            assert numbers == [spec.preroll + i for i in wanted]
            assert starts == [video.timestamps[i] for i in wanted]


def test_codec_names(folder: Path) -> None:
    for name, codec in (("vp9.webm", "vp9"), ("av1.mp4", "av1"), ("hevc.mp4", "hevc"), ("constant.mp4", "h264")):
        spec = next(spec for spec in CLIPS if spec.name == name)
        with open_video(write_clip(folder, spec)) as video:
            assert video.codec == codec


def test_stream_equals_frames_at_and_keeps_to_its_chunk(plain: Path) -> None:
    with open_video(plain) as video:
        seconds = np.arange(0, video.duration, 0.21)
        frames, starts = video.frames_at(seconds)
        chunks = list(video.stream(seconds, chunk=4))
        assert [len(c) for c, _ in chunks] == [4] * (len(seconds) // 4) + [len(seconds) % 4] * bool(len(seconds) % 4)
        assert torch.equal(torch.cat([c for c, _ in chunks]), frames)
        assert np.concatenate([t for _, t in chunks]).tolist() == starts.tolist()


@pytest.mark.parametrize(
    "spec", [spec for spec in CLIPS if spec.b_frames and spec.rotation == 0], ids=lambda spec: spec.name
)
def test_streams_that_take_turns_still_get_their_own_frames(folder: Path, spec: ClipSpec) -> None:
    """Frames that nobody asked for are dropped undecoded, and a later request asks for them after all."""
    rng = random.Random(5)
    with open_video(write_clip(folder, spec)) as video:
        plans = [sorted(rng.sample(range(video.num_frames), 20)) for _ in range(3)]
        streams = [video.stream(video.timestamps[plan], chunk=rng.choice([1, 3])) for plan in plans]
        seen: list[list[int]] = [[], [], []]
        order = [0, 1, 2] * 20
        rng.shuffle(order)
        for which in order:
            chunk = next(iter(streams[which]), None)
            seen[which] += [] if chunk is None else numbers_in(chunk[0])
        for which, plan in enumerate(plans):
            assert seen[which] == [spec.preroll + i for i in plan][: len(seen[which])]
            assert len(seen[which]) >= 15


@pytest.fixture
def packets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A one for every packet that is decoded."""
    from zoomzero.video.frame_reader import FrameReader

    seen: list[int] = []
    original = FrameReader._decoded

    def counted(self: FrameReader, packet: av.Packet | None) -> list[av.VideoFrame]:
        seen.append(1)
        return original(self, packet)

    monkeypatch.setattr(FrameReader, "_decoded", counted)
    return seen


def test_streaming_decodes_each_packet_once(plain: Path, packets: list[int]) -> None:
    with open_video(plain) as video:
        for _ in video.stream(np.arange(0, video.duration, 0.1), chunk=3):
            pass
        assert len(packets) <= video.num_frames + 1


def test_sparse_times_jump_from_key_frame_to_key_frame(folder: Path, packets: list[int]) -> None:
    path = write_clip(folder, ClipSpec("sparse.mp4", num_frames=600, gop=30))
    with open_video(path, num_threads=1) as video:
        frames, _ = video.frames_at([0.1, 5.1, 10.1, 15.1])
        assert numbers_in(frames) == [3, 153, 303, 453]
        assert len(packets) < 60


def test_a_request_between_the_frames_of_a_sparse_stream(folder: Path) -> None:
    """Before a jump the decoder is emptied; what is asked for in between must not come from what it showed last."""
    path = write_clip(folder, ClipSpec("sparse_between.mp4", num_frames=600, gop=30, b_frames=2))
    with open_video(path) as video:
        stream = video.stream([0.1, 10.1, 15.1], chunk=1)
        assert numbers_in(next(stream)[0]) == [3]
        assert numbers_in(video.frames_at([0.1, 0.2, 0.3])[0]) == [3, 6, 9]
        assert numbers_in(next(stream)[0]) == [303]
        assert numbers_in(video.frames_at([10.2])[0]) == [306]


def test_vp8_frames_that_are_never_shown_are_no_frames(folder: Path, tmp_path: Path) -> None:
    """Clearing bit 4 of a VP8 packet's first byte makes its frame a reference that is decoded and not shown."""
    hidden = {7, 20, 21}
    path = tmp_path / "hidden.webm"
    with (
        av.open(str(write_clip(folder, ClipSpec("shown.webm", codec="libvpx")))) as source,
        av.open(str(path), "w") as container,
    ):
        stream = container.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            data = bytearray(bytes(packet))
            if number in hidden:
                data[0] &= ~0x10
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            container.mux(copy)
    shown = [number for number in range(90) if number not in hidden]
    with open_video(path) as video:
        assert video.num_frames == len(shown)
        assert numbers_in(video.frames_at(video.timestamps)[0]) == shown
        frames, starts = video.frames_at([7.5 / 30, 21.5 / 30])
        assert numbers_in(frames) == [6, 19]
        assert starts.tolist() == pytest.approx([6 / 30, 19 / 30], abs=1e-3)


def test_times_that_repeat_and_an_empty_request(plain: Path) -> None:
    with open_video(plain) as video:
        frames, starts = video.frames_at([1.0, 0.5, 1.0, 1.01])
        assert numbers_in(frames) == [30, 15, 30, 30]
        assert starts.tolist() == [1.0, 0.5, 1.0, 1.0]
        empty, none = video.frames_at([])
        assert empty.shape == (0, 64, 128, 3)
        assert len(none) == 0


def test_a_time_computed_as_index_over_rate_gives_that_index(clip: tuple[ClipSpec, Path]) -> None:
    spec, path = clip
    with open_video(path) as video:
        numbers, _ = read_numbers(video, spec, spec.times())
        assert numbers == list(range(spec.preroll, spec.num_frames))


def test_times_may_be_tensors_and_arrays(plain: Path) -> None:
    with open_video(plain) as video:
        for seconds in (torch.tensor([0.5, 1.5], dtype=torch.float64), np.array([0.5, 1.5]), (0.5, 1.5)):
            assert numbers_in(video.frames_at(seconds)[0]) == [15, 45]


def test_key_frames_only_says_which_frames_it_gives(plain: Path) -> None:
    with open_video(plain) as video:
        frames, starts = video.frames_at([0.9, 1.9, 3.5], frame_choice="keyframes")
        assert numbers_in(frames) == [0, 30, 90]
        assert starts.tolist() == [0.0, 1.0, 3.0]


def test_times_near_key_frames_are_moved_to_them(folder: Path) -> None:
    with open_video(
        write_clip(folder, ClipSpec("snapped.mp4", num_frames=300, gop=50, b_frames=2, options=NO_CUTS))
    ) as video:
        keys = [50 * i / 30 for i in range(6)]
        # Within the distance the nearest key frame, once; farther away the frame that is on show, when it starts.
        near = video.snapped_to_keyframes([0.1, 0.4, 1.2, 1.7, 2.44, 9.9], within=0.5)
        assert near.tolist() == pytest.approx([0.0, keys[1], 73 / 30, 297 / 30])
        everywhere = video.snapped_to_keyframes(np.arange(0, 9.3, 0.3), within=1.0)
        assert everywhere.tolist() == pytest.approx(keys)
        assert numbers_in(video.frames_at(everywhere)[0]) == [0, 50, 100, 150, 200, 250]
        assert video.snapped_to_keyframes([], within=1.0).tolist() == []


def test_bytes_and_file_objects(plain: Path) -> None:
    data = plain.read_bytes()
    for source in (data, io.BytesIO(data)):
        with open_video(source) as video:
            assert numbers_in(video.frames_at([3.2, 0.1])[0]) == [96, 3]
    with plain.open("rb") as handle, open_video(handle) as video:
        assert video.path == str(plain)
        assert numbers_in(video.frames_at([2.0])[0]) == [60]


def test_colours_follow_the_matrix_of_the_stream(tmp_path: Path) -> None:
    rgb = np.full((64, 64, 3), (200, 40, 90), dtype=np.uint8)
    for matrix, name in ((1, "bt709"), (5, "bt470bg")):
        path = tmp_path / f"{name}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv444p"
            stream.codec_context.colorspace = matrix
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame = frame.reformat(format="yuv444p", dst_colorspace=matrix)
            for packet in [*stream.encode(frame), *stream.encode()]:
                container.mux(packet)
        with open_video(path) as video:
            mean = video.frames_at([0.0])[0].float().mean(dim=(0, 1, 2))
            assert mean.tolist() == pytest.approx([200, 40, 90], abs=4)


def test_many_threads_share_one_video(plain: Path) -> None:
    wrong: list[int] = []

    def read(video: Video, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(10):
            wanted = rng.randrange(video.num_frames)
            if numbers_in(video.frames_at([wanted / 30 + 0.01])[0]) != [wanted]:
                wrong.append(wanted)

    with open_video(plain) as video:
        threads = [threading.Thread(target=read, args=(video, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_decoders_do_not_log_through_python(plain: Path) -> None:
    """As torchvision 0.24 makes them: a thread of a decoder that logs would wait for ever for whoever closes it."""
    av.logging.set_level(av.logging.ERROR)
    try:
        with open_video(plain) as video:
            assert av.logging.get_level() is None
            assert video.num_frames > 0
    finally:
        av.logging.set_level(None)


def test_closing_releases_the_file(plain: Path) -> None:
    def handles() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = handles()
    for _ in range(5):
        with open_video(plain) as video:
            video.frames_at([1.0])
        video.close()
    assert handles() == before
    with pytest.raises(ValueError, match="the video must be open, got a closed one"):
        video.frames_at([0.0])


# -- bad requests ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [[4.0], [-0.1], [0.0, float("nan")], [float("inf")]])
def test_times_outside_the_video(plain: Path, seconds: list[float]) -> None:
    with open_video(plain) as video, pytest.raises(ValueError, match=r"seconds must be in \[0, 4\), got"):
        video.frames_at(seconds)


def test_requests_of_the_wrong_kind(plain: Path) -> None:
    with open_video(plain) as video:
        with pytest.raises(TypeError, match="seconds must be a list of times, got 0 dimensions"):
            video.frames_at(1.0)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="seconds must be numbers"):
            video.frames_at(["soon"])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
            video.stream([0.0], chunk=0)
        with pytest.raises(ValueError, match="frame_choice must be 'exact' or 'keyframes', got 'fast'"):
            video.frames_at([0.0], frame_choice="fast")
        with pytest.raises(ValueError, match="seconds must be in"):
            video.stream([99.0])
    with pytest.raises(TypeError, match="source must be a path, bytes or a seekable binary file, got int"):
        open_video(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend must be 'auto', 'pyav' or 'dali', got 'decord'"):
        open_video(plain, backend="decord")
