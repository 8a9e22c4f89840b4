"""What is written is read back by PyAV and Pillow: sizes, times, tinted pixels, windows, borders."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from gmcli.data import GroundTruth, Question
from gmcli.masks.png import encode_png
from gmcli.render.board import _column, lay_out, spread
from gmcli.render.formats import _MP4, GIF_FRAMES, source_of
from gmcli.render.paint import MASK_COLOUR, TRUTH_COLOUR, overlay, resize, resize_mask
from gmcli.render.scene import read_scene
from gmcli.video import open_video
from tests.clips import write_clip
from tests.render.sample import decode, draw, square, video_task, write_run

PICTURE = (288, 480)  # the clips' 48 x 80, enlarged six times


def close(pixels: np.ndarray, colour) -> np.ndarray:
    return np.abs(pixels.astype(int) - colour).max(axis=-1) < 60


def board_of(run: Path, task, truth=False):
    from gmcli.records import read_records

    record = read_records(run)[0][task.id, task.questions[0].id]
    with open_video(task.video, fps=task.fps) as reader:
        scene = read_scene(run, reader, task, task.questions[0], record, truth)
        return scene, lay_out(scene, _MP4)


@pytest.fixture(params=["a.mp4", "frames"])
def task(request, clips):
    return video_task(clips / request.param, fps=4.0 if request.param == "frames" else None)


def test_a_video_has_the_clips_frames_times_and_size(tmp_path, task):
    run = write_run(tmp_path / "run", [task])
    draw(run, [task])
    path = run / "renders" / task.id / "q0.mp4"
    pictures, times = decode(path)
    with open_video(task.video, fps=task.fps) as reader:
        np.testing.assert_allclose(times, reader.times, atol=1e-4)
        step = reader.times[1]
    height, width = pictures[0].shape[:2]
    assert (height % 2, width) == (0, 480)
    assert height > PICTURE[0]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.duration * stream.time_base) == pytest.approx(len(times) * step, abs=1e-3)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # it starts before it is there whole


def test_masks_are_where_they_belong_and_only_in_the_window(tmp_path, task):
    run = write_run(tmp_path / "run", [task], window=(2, 4))
    draw(run, [task])
    pictures, _ = decode(run / "renders" / task.id / "q0.mp4")
    with open_video(task.video, fps=task.fps) as reader:
        frames = list(reader.frames(range(len(reader.names))))
    for number, (picture, frame) in enumerate(zip(pictures, frames, strict=True)):
        plain = resize(frame, PICTURE)
        mask = resize_mask(square(number), PICTURE)
        expected = overlay(plain, mask, MASK_COLOUR) if number in (2, 3) else plain
        difference = np.abs(picture[: PICTURE[0]] - expected).mean(axis=2)
        assert np.median(difference) < 8, number
        assert difference[mask].mean() < 20, number
        if number in (2, 3):  # the square is nearly of the masks' colour: what is left of H.264 is less
            untinted = np.abs(picture[: PICTURE[0]] - plain).mean(axis=2)
            assert difference[mask].mean() < untinted[mask].mean() / 2, number


def test_only_frames_with_a_recorded_mask_carry_one(tmp_path, clips):
    task = video_task(clips / "a.mp4")
    run = write_run(tmp_path / "run", [task], window=(0, 12), every=5, formats=("png",))
    draw(run, [task])
    pictures, _ = decode(run / "renders" / "a" / "q0.mp4")
    shown = []
    for number, picture in enumerate(pictures):
        inner = resize_mask(square(number), PICTURE)
        shown.append(bool(close(picture[: PICTURE[0]][inner], MASK_COLOUR).mean() > 0.1))
    assert [number for number, mask in enumerate(shown) if mask] == [0, 5, 10]
    scene, board = board_of(run, task)
    ticks = board.canvas[board.track.top, board.track.left : board.track.right]
    lit = np.flatnonzero((ticks > 100).all(axis=1)) + board.track.left
    assert lit.tolist() == [_column(board.track, scene.edges[f], scene.edges[-1]) for f in (0, 5, 10)]


def test_the_window_is_bright_on_the_timeline_and_the_head_moves(tmp_path, clips):
    task = video_task(clips / "a.mp4")
    run = write_run(tmp_path / "run", [task], window=(3, 9))
    draw(run, [task])
    _, board = board_of(run, task)
    bar = board.canvas[board.track.bottom - 2, board.track.left : board.track.right]
    lit = np.flatnonzero(close(bar, MASK_COLOUR)) / len(bar)
    assert (lit.min(), lit.max()) == (pytest.approx(3 / 12, abs=0.01), pytest.approx(9 / 12, abs=0.01))
    pictures, _ = decode(run / "renders" / "a" / "q0.mp4")
    heads = []
    for picture in pictures:
        row = picture[board.track.bottom - 2 : board.track.bottom, board.track.left : board.track.right]
        heads.append(int(np.argmax(row.min(axis=2).mean(axis=0))) / len(bar))
    np.testing.assert_allclose(heads, np.arange(12) / 12, atol=0.02)


def test_a_part_of_a_video_is_rendered_alone(tmp_path, clips):
    task = video_task(clips / "b.mp4", start=0.5, end=1.2)
    run = write_run(tmp_path / "run", [task], window=(6, 8))
    draw(run, [task])
    pictures, times = decode(run / "renders" / "b" / "q0.mp4")
    np.testing.assert_allclose(times, np.arange(7) / 10, atol=1e-4)
    with open_video(task.video) as reader:
        first = next(iter(reader.frames([5])))
    assert np.abs(pictures[0][: PICTURE[0]] - resize(first, PICTURE)).mean() < 8


def test_uneven_times_are_kept(tmp_path):
    path = tmp_path / "uneven.mkv"
    times = [0, 40, 80, 500, 540, 2000]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    task = video_task(path)
    run = write_run(tmp_path / "run", [task], window=(1, 3))
    draw(run, [task], formats=("mp4", "gif", "sheet"))
    _, shown = decode(run / "renders" / "uneven" / "q0.mp4")
    np.testing.assert_allclose(shown, np.array(times) / 1000, atol=2e-3)


@pytest.mark.parametrize("size", [(192, 192), (50, 70), (600, 34)])
def test_any_size_becomes_even_and_readable(tmp_path, size):
    write_clip(tmp_path / "v.mp4", 3, 1, size=size)
    task = video_task(tmp_path / "v.mp4")
    run = write_run(tmp_path / "run", [task], window=(0, 3))
    assert draw(run, [task], formats=("mp4", "gif", "sheet"))[1] == []
    height, width = decode(run / "renders" / "v" / "q0.mp4")[0][0].shape[:2]
    assert height % 2 == width % 2 == 0
    assert width >= 480


def test_an_odd_frame_folder(tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    picture = np.random.RandomState(1).randint(0, 255, (301, 481, 3), np.uint8)
    Image.fromarray(picture).save(folder / "only.png")
    task = video_task(folder)
    run = write_run(tmp_path / "run", [task], window=(0, 1))
    draw(run, [task], formats=("mp4", "gif", "sheet"))
    pictures, _ = decode(run / "renders" / "odd" / "q0.mp4")
    assert pictures[0].shape[1] == 482
    with Image.open(run / "renders" / "odd" / "q0.png") as sheet:
        assert sheet.width >= 480


def test_a_gif_is_small_and_takes_as_long(tmp_path, clips):
    write_clip(tmp_path / "long.mp4", 90, 4, fps=30, size=(180, 640))
    task = video_task(tmp_path / "long.mp4")
    run = write_run(tmp_path / "run", [task], window=(0, 45))
    draw(run, [task], formats=("gif",))
    path = run / "renders" / "long" / "q0.gif"
    total = 0
    with Image.open(path) as gif:
        assert gif.width <= 320
        assert gif.n_frames == GIF_FRAMES
        assert gif.info["loop"] == 0
        for number in range(gif.n_frames):
            gif.seek(number)
            total += gif.info["duration"]
        gif.seek(5)
        assert close(np.asarray(gif.convert("RGB")), MASK_COLOUR).sum() > 50
    assert total == pytest.approx(3000, abs=20)
    assert not (run / "renders" / "long" / "q0.mp4").exists()


def test_a_sheet_is_the_same_bytes_again_with_borders_in_the_window(tmp_path, clips):
    task = video_task(clips / "b.mp4")
    run = write_run(tmp_path / "run", [task], window=(0, 10))
    draw(run, [task], formats=("sheet",))
    draw(run, [task], formats=("sheet",), out=tmp_path / "again")
    path = run / "renders" / "b" / "q0.png"
    assert path.read_bytes() == (tmp_path / "again" / "b" / "q0.png").read_bytes()
    with Image.open(path) as image:
        sheet = np.asarray(image.convert("RGB"))
    # Borders are the only rows of a cell's full width in the pure colour: 6 cells of 12, two edges each.
    cell = 80 * 3 + 8
    pure = (sheet == MASK_COLOUR).all(axis=2)
    edges = 0
    for row in range(1, len(pure)):
        starts = np.flatnonzero(np.diff(np.concatenate(([0], pure[row].astype(int), [0]))))
        longs = [stop - start for start, stop in zip(starts[::2], starts[1::2], strict=True)].count(cell)
        before = np.flatnonzero(np.diff(np.concatenate(([0], pure[row - 1].astype(int), [0]))))
        longs_before = [stop - start for start, stop in zip(before[::2], before[1::2], strict=True)].count(cell)
        edges += max(0, longs - longs_before)
    inside = sum(frame < 10 for frame in spread(range(20), 12))
    assert edges == 2 * inside


def test_the_truth_is_outlined_and_has_its_own_bar(tmp_path, clips):
    masks = tmp_path / "truth"
    masks.mkdir()
    with open_video(clips / "frames") as reader:
        names = list(reader.names)
    for number in (1, 2, 4):  # frame 3 has none
        ids = np.where(square(number), 7, 3).astype(np.uint8)
        Image.fromarray(ids).save(masks / f"{names[number]}.png")
    truth = GroundTruth(str(masks), (7,), start=0.25, end=1.0)  # frames 1 to 3 of 4 a second
    question = Question("q0", "Who moves?", ground_truth=truth)
    task = video_task(clips / "frames", question, fps=4.0)
    run = write_run(tmp_path / "run", [task], window=(0, 0))
    draw(run, [task], truth=True)
    pictures, _ = decode(run / "renders" / "frames" / "q0.mp4")
    found = [bool(close(p[: PICTURE[0]], TRUTH_COLOUR).sum() > 100) for p in pictures]
    assert found == [False, True, True, False, False]
    inner = resize_mask(square(1), PICTURE)
    assert close(pictures[1][: PICTURE[0]][inner], TRUTH_COLOUR).mean() < 0.4  # an outline, no filling
    _, board = board_of(run, task, truth=True)
    bar = board.canvas[board.track.bottom - 2, board.track.left : board.track.right]
    lit = np.flatnonzero((bar == TRUTH_COLOUR).all(axis=1)) / len(bar)
    assert (lit.min(), lit.max()) == (pytest.approx(1 / 5, abs=0.01), pytest.approx(4 / 5, abs=0.01))
    # Without --truth nothing of it is seen.
    draw(run, [task], out=tmp_path / "without")
    pictures, _ = decode(tmp_path / "without" / "frames" / "q0.mp4")
    assert not any(close(p, TRUTH_COLOUR).sum() > 100 for p in pictures)


def test_the_true_window_is_that_of_the_protocol(tmp_path, clips):
    from gmcli.evaluate import window_frames

    for start, end in ((None, None), (0.3, 0.9), (0.25, 1.0), (0.26, 1.24), (1.0, 9.0), (9.0, 10.0)):
        truth = GroundTruth(str(tmp_path), (1,), start=start, end=end)
        task = video_task(clips / "frames", Question("q0", "Who?", ground_truth=truth), fps=4.0)
        run = write_run(tmp_path / f"run{start}{end}", [task])
        scene, _ = board_of(run, task, truth=True)
        expected = window_frames(start, end, 4.0, 5)
        assert [f in scene.truth_window for f in range(5)] == [f in expected for f in range(5)], (start, end)


def test_no_target_is_said(tmp_path, clips):
    task = video_task(clips / "a.mp4")
    run = write_run(tmp_path / "run", [task], none=("q0",))
    draw(run, [task])
    scene, board = board_of(run, task)
    assert scene.answer == "It is [SEG]. (no target)"
    bar = board.canvas[board.track.bottom - 2, board.track.left : board.track.right]
    assert not close(bar, MASK_COLOUR).any()


def test_what_it_was_made_from_is_in_each_file(tmp_path, clips):
    task = video_task(clips / "a.mp4")
    run = write_run(tmp_path / "run", [task])
    planned, _, _ = draw(run, [task], formats=("mp4", "gif", "sheet"))
    ((_, (wanted,)),) = planned.videos
    folder = run / "renders" / "a"
    for kind, ending in (("mp4", "mp4"), ("gif", "gif"), ("sheet", "png")):
        path = folder / f"q0.{ending}"
        assert source_of(path, kind) == wanted.source
        path.write_bytes(path.read_bytes()[:20])
        assert source_of(path, kind) is None
    assert source_of(folder / "nothing.mp4", "mp4") is None


def test_spread():
    assert spread([3, 5], 12) == [3, 5]
    assert spread(range(100), 3) == [0, 50, 99]
    assert len(set(spread(range(61), 60))) == 60


def test_memory_does_not_grow_with_the_video(tmp_path, clips, monkeypatch):
    """Frames are drawn as they are encoded: never two of them are held."""
    from gmcli.render import formats

    task = video_task(clips / "b.mp4")
    run = write_run(tmp_path / "run", [task])
    order = []
    kept = formats.draw
    monkeypatch.setattr(formats, "draw", lambda *given: (order.append("drawn"), kept(*given))[1])
    from gmcli.render.batch import plan

    planned = plan(run, [replace(task)], tmp_path / "out", ("mp4",), truth=False, force=False)
    ((_, (wanted,)),) = planned.videos
    with open_video(task.video) as reader, (tmp_path / "out.mp4").open("wb") as file:
        scene = read_scene(run, reader, task, wanted.question, wanted.record, False)
        formats.write_mp4(scene, "x", file, lambda count: order.append("coded"))
    assert order == ["drawn", "coded"] * 20


def test_encode_png_reads_back_as_a_mask(tmp_path, clips):
    task = video_task(clips / "a.mp4")
    run = write_run(tmp_path / "run", [task], formats=("png",))
    mask = run / "masks" / "a" / "q0" / "00003.png"
    assert mask.read_bytes() == encode_png(square(3))
    mask.write_bytes(encode_png(np.ones((4, 4), bool)))
    _, failed, _ = draw(run, [task])
    assert failed == ["a/q0: a: the mask of frame 00003 is (4, 4), the frame (48, 80) (H, W)"]
    assert not list((run / "renders").rglob("*.mp4"))
