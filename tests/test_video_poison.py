"""Files that promise too much, or next to nothing: refused with a reason, or answered with masks; both through the sandbox."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmcli.checkpoints.load import load_checkpoint
from gmcli.config import RunConfig
from gmcli.data import Question, VideoTask
from gmcli.errors import VideoError
from gmcli.masks.rle import decode_rle
from gmcli.segmenter import Segmenter
from gmcli.video.limits import DecodeLimits
from gmcli.video.sandbox import DecoderSandbox
from tests.video_fixtures import SOURCE, clip_maker, ffmpeg

BILLION = 10**9


@pytest.fixture(scope="module")
def sandbox():
    with DecoderSandbox(DecodeLimits(decode_memory_mb=1024, decode_timeout_s=60)) as opened:
        yield opened


def patched(content: bytes, form: str, *changes: tuple[bytes, int]) -> bytes:
    """Put a billion at some bytes after the names of some boxes."""
    for name, offset in changes:
        at = content.index(name) + len(name) + offset
        content = content[:at] + struct.pack(form, BILLION) + content[at + 4 :]
    return content


def png(width: int, height: int) -> bytes:
    """Draw a whole black image that is tiny as a file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(1)
    pixels = b"".join([rows.compress(bytes(1 + 3 * width)) for _ in range(height)] + [rows.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def refusal(sandbox: DecoderSandbox, path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        sandbox.open(path)
    assert caught.value.message.startswith(f"{path}")
    return caught.value.message


@pytest.mark.parametrize("table", ["stsz", "stsc"])
def test_an_mp4_that_promises_a_billion_frames(table, sandbox, tmp_path):
    content = clip_maker(tmp_path)("h264").read_bytes()
    # Frames of one size need no table; with the second, they all lie in one chunk.
    changes = [(b"stsz", 8), (b"stts", 8)] + [(b"stsc", 12)] * (table == "stsc")
    at = content.index(b"stsz") + 8
    path = tmp_path / "billion.mp4"
    path.write_bytes(patched(content[:at] + b"\0\0\0\x01" + content[at + 4 :], ">I", *changes))
    assert "more frames than may be (max_frames is 500000)" in refusal(sandbox, path)


def test_an_avi_that_promises_a_billion_frames(sandbox, tmp_path):
    content = clip_maker(tmp_path)("mpeg4").read_bytes()
    path = tmp_path / "billion.avi"
    path.write_bytes(patched(content, "<I", (b"avih", 4 + 16), (b"strh", 4 + 32)))
    assert "more frames than may be (max_frames is 500000)" in refusal(sandbox, path)


def test_a_video_of_days(sandbox, tmp_path):
    path = tmp_path / "days.mkv"
    ffmpeg(*SOURCE.split(), "-vf", "setpts=PTS*200000", "-fps_mode", "passthrough", str(path))
    assert "longer than may be (max_duration_s is 21600)" in refusal(sandbox, path)


def test_pictures_of_sixteen_thousand_pixels_squared(sandbox, tmp_path):
    (tmp_path / "0.png").write_bytes(png(16000, 16000))
    assert (tmp_path / "0.png").stat().st_size < 5_000_000
    assert "exceeds limit" in refusal(sandbox, tmp_path)
    (tmp_path / "0.png").write_bytes(png(9000, 9000))  # within PIL's own limit
    assert "frames of 9000x9000 pixels are too large (max_pixels is 67108864)" in refusal(sandbox, tmp_path)
    path = tmp_path / "huge.y4m"
    path.write_bytes(b"YUV4MPEG2 W16000 H16000 F25:1 C420\nFRAME\n" + bytes(1000))
    assert "frames of 16000x16000 pixels are too large" in refusal(sandbox, path)


def test_videos_of_one_pixel_have_masks_of_one_pixel(sandbox, small_folder, tmp_path):
    (tmp_path / "folder").mkdir()
    for number in range(3):
        Image.new("RGB", (1, 1), (200, number, 0)).save(tmp_path / "folder" / f"{number}.png")
    dot = tmp_path / "dot.mkv"
    ffmpeg("-f", "lavfi", "-i", "color=red:s=1x1:r=5:d=1", "-c:v", "ffv1", "-pix_fmt", "bgr0", str(dot))
    segmenter = Segmenter(load_checkpoint(str(small_folder)), RunConfig(frames=4), "cpu", opener=sandbox.open)
    for name, count in (("folder", 3), ("dot.mkv", 5)):
        task = VideoTask("v", str(tmp_path / name), (Question("q0", "Who moves?"),))
        (result,) = segmenter.segment(task).results
        assert result.status in ("done", "no_target")
        assert len(result.frames) == count
        assert all(decode_rle(mask).shape == (1, 1) for mask in result.masks)
    with sandbox.open(dot) as reader:
        np.testing.assert_allclose(next(reader.frames([4])), [[[255, 0, 0]]], atol=2)
