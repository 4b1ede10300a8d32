"""Frames are counted as they are shown, and a clip read on its own is the same as one read in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rad_bench.data import video
from rad_bench.data.video import frames_in_order, inspect_video, read_frames

av = pytest.importorskip("av", reason="PyAV is not installed (extra: video)")
FRAMES = 60
BITS = 6


def encode(
    path: Path, codec: str = "libx264", times: Sequence[int] | None = None, format: str | None = None, **options: str
) -> Path:
    """Write frames that show their number in black and white, 20 a second or at `times` in twentieths of a second."""
    with av.open(str(path), "w", format=format) as file:
        stream = file.add_stream(codec, rate=20, options={"g": "12", **options})
        stream.height, stream.width, stream.pix_fmt = 32, 16 * BITS, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(FRAMES):
            squares = np.repeat((number >> np.arange(BITS)) & 1, 16).astype(np.uint8) * 255
            picture = np.broadcast_to(squares[None, :, None], (32, 16 * BITS, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 20)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def cut(whole: Path, path: Path, packets: slice, shift: int = 0) -> Path:
    """Copy some of a video's packets without encoding them again, `shift` frames earlier."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        origin = source.streams.video[0]
        stream = target.add_stream_from_template(origin)
        step = int(1 / (20 * origin.time_base))
        for packet in [packet for packet in source.demux(origin) if packet.dts is not None][packets]:
            packet.pts, packet.dts = packet.pts - shift * step, packet.dts - shift * step
            packet.stream = stream
            target.mux(packet)
    return path


def avi_with_a_header_that_lies(path: Path) -> Path:
    encode(path, "mpeg4")
    content = bytearray(path.read_bytes())
    content[content.index(b"strh") + 40 : content.index(b"strh") + 44] = (45).to_bytes(4, "little")  # dwLength
    path.write_bytes(content)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 45
    return path


def jitter() -> list[int]:
    return np.cumsum(np.random.default_rng(0).integers(1, 9, FRAMES)).tolist()


VIDEOS: dict[str, Callable[[Path], Path]] = {
    "B frames": lambda p: encode(p / "v.mp4", bf="3"),
    "a pause": lambda p: encode(p / "v.mp4", times=[t + 60 * (t > 20) for t in range(FRAMES)]),
    "a clock that jitters": lambda p: encode(p / "v.mp4", times=jitter(), bf="2"),
    "a clock that jitters, mkv": lambda p: encode(p / "v.mkv", times=jitter(), bf="2"),
    "a late beginning": lambda p: encode(p / "v.mp4", times=list(range(500, 500 + FRAMES))),
    "open groups": lambda p: encode(p / "v.mp4", **{"x264-params": "open-gop=1:keyint=12:bframes=3"}),
    "open groups, HEVC": lambda p: encode(p / "v.mp4", "libx265", **{"x265-params": "log-level=none:keyint=12"}),
    "refreshed bit by bit": lambda p: encode(p / "v.mp4", **{"x264-params": "intra-refresh=1:keyint=12"}),
    "one key frame": lambda p: encode(p / "v.mp4", g="999"),
    "key frames only": lambda p: encode(p / "v.mov", g="1"),
    "avi, mpeg4": lambda p: encode(p / "v.avi", "mpeg4", bf="2"),
    "avi, H.264": lambda p: encode(p / "v.avi", bf="2"),
    "avi, mjpeg": lambda p: encode(p / "v.avi", "mjpeg"),
    "avi, a header that lies": lambda p: avi_with_a_header_that_lies(p / "v.avi"),
    "webm, hidden frames": lambda p: encode(p / "v.webm", "libvpx", **{"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "webm, VP9": lambda p: encode(p / "v.webm", "libvpx-vp9", **{"lag-in-frames": "10"}),
    "a transport stream": lambda p: encode(p / "v.ts", bf="2"),
    "flv": lambda p: encode(p / "v.flv", bf="2"),
    "wmv": lambda p: encode(p / "v.wmv", "wmv2"),
    "mpeg 2": lambda p: encode(p / "v.mpg", "mpeg2video", bf="2"),
    "raw H.264, no clock": lambda p: encode(p / "v.mp4", format="h264", bf="2"),
    "fragments": lambda p: encode(p / "v.mp4", bf="2", movflags="frag_keyframe+empty_moov"),
    "cut by negative times": lambda p: encode(p / "v.mp4", times=list(range(-7, FRAMES - 7))),
    "cut at both ends": lambda p: cut(encode(p / "whole.mp4", bf="2"), p / "v.mp4", slice(12, 50)),
    "cut, hidden frames first": lambda p: cut(encode(p / "whole.mp4", bf="2"), p / "v.mp4", slice(12, None), 17),
    "cut, hidden frames first, mkv": lambda p: cut(encode(p / "whole.mp4", bf="2"), p / "v.mkv", slice(12, None), 17),
}


def numbers(frames: Tensor) -> list[int]:
    """Return the numbers that frames show."""
    bright = frames.float().mean((1, 2)).unflatten(1, (BITS, 16)).mean(2) > 127
    return [int(n) for n in (bright * 2 ** torch.arange(BITS)).sum(1)]


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_clip_is_the_same_from_a_key_frame_and_from_the_beginning(tmp_path: Path, kind: str) -> None:
    path = VIDEOS[kind](tmp_path)
    found = inspect_video(path)
    shown = torch.from_numpy(np.stack([f.to_ndarray(format="rgb24") for f in frames_in_order(path)])).permute(
        0, 3, 1, 2
    )
    first = numbers(shown)[0]
    assert numbers(shown) == list(range(first, first + found.length))  # each frame once, in order
    assert kind.startswith("cut") or found.length == FRAMES
    for start in range(0, found.length - 3, 2):
        assert torch.equal(read_frames(path, found.key_frames, start, start + 3), shown[start : start + 3])
    assert torch.equal(read_frames(path, found.key_frames, 0, found.length), shown)
    with pytest.raises(ValueError, match=f"has no frame {found.length}"):
        read_frames(path, found.key_frames, found.length - 2, found.length + 1)


@pytest.mark.parametrize(
    "kind", ["B frames", "a pause", "a clock that jitters, mkv", "webm, hidden frames", "fragments"]
)
def test_a_clip_is_decoded_from_the_key_frame_before_it(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = VIDEOS[kind](tmp_path)
    key_frames = inspect_video(path).key_frames
    assert len(key_frames) >= FRAMES // 12
    monkeypatch.setattr(video, "frames_in_order", None)
    read_frames(path, key_frames, FRAMES - 5, FRAMES)


def test_a_video_that_is_not_whole_says_so(tmp_path: Path) -> None:
    (tmp_path / "few.mp4").write_bytes(encode(tmp_path / "v.mp4").read_bytes()[:700])
    with pytest.raises(ValueError, match="is not a readable video"):
        inspect_video(tmp_path / "few.mp4")
    (tmp_path / "text.mp4").write_text("no video" * 99)
    with pytest.raises(ValueError, match="is not a readable video"):
        inspect_video(tmp_path / "text.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=48000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 48000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    with pytest.raises(ValueError, match="has no video stream"):
        inspect_video(tmp_path / "sound.mp4")


def test_names_that_libav_takes_for_patterns_or_addresses_are_files(tmp_path: Path) -> None:
    whole = encode(tmp_path / "v.mp4").read_bytes()
    for name in (b"clip%03d.mp4", b"file:0.mp4", b"caf\xe9.mp4", "naïve.MP4".encode()):
        path = tmp_path / Path(str(name, "utf-8", "surrogateescape"))
        path.write_bytes(whole)
        assert inspect_video(path).length == FRAMES
