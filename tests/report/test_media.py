"""Frames are chosen to show the questions, and masks survive the way to the page."""

import base64
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from gmcli.data import GroundTruth, VideoTask
from gmcli.records import read_records
from gmcli.report.media import (
    LEVELS,
    Level,
    choose_frames,
    encode_clip,
    read_clip,
    shrink_mask,
    thumbnail_size,
    true_window,
)
from gmcli.report.sources import read_answer
from gmcli.video import open_video
from tests.report.sample import make_tasks, write_run


def decoded(counts: str, size: tuple[int, int]) -> np.ndarray:
    with warnings.catch_warnings():  # pycocotools and NumPy 2
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(coco.decode({"size": list(size), "counts": counts.encode()})).astype(bool)


@given(st.sets(st.integers(0, 500), max_size=120), st.lists(st.integers(0, 500), max_size=30), st.integers(1, 20))
def test_chosen_frames_are_available_ascend_and_hold_the_keys(available, keys, count):
    ascending = sorted(available)
    chosen = choose_frames(ascending, keys, count)
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= available
    assert len(chosen) == min(count, len(available))
    wanted = list(dict.fromkeys(key for key in keys if key in available))
    assert set(wanted[:count]) <= set(chosen)


def test_frames_are_spread_evenly_without_keys():
    assert choose_frames(range(100), [], 4) == (0, 33, 66, 99)
    assert choose_frames(range(100), [50], 4) == (0, 33, 50, 99)


def test_thumbnails_keep_the_shape_and_never_grow():
    assert thumbnail_size((1080, 1920), 256) == (144, 256)
    assert thumbnail_size((1920, 1080), 256) == (256, 144)
    assert thumbnail_size((48, 80), 256) == (48, 80)
    assert thumbnail_size((1, 4000), 256) == (1, 256)


def test_a_mask_shrinks_to_what_is_half_covered_and_never_vanishes():
    mask = np.zeros((100, 200), bool)
    mask[20:60, 40:120] = True
    small = shrink_mask(mask, 50)
    assert small.shape == (25, 50)
    assert small.sum() == 10 * 20
    dot = np.zeros((1000, 1000), bool)
    dot[500, 500] = True
    assert shrink_mask(dot, 100).sum() == 1


@pytest.fixture(scope="module", params=[("rle",), ("png",)], ids=["rle", "png"])
def sample(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    tasks, scenes = make_tasks(folder, videos=1, questions=3, scenes=1)
    run = write_run(folder / "run", tasks, scenes, formats=request.param, spoil=False)
    records = read_records(run)[0]
    items = {q.id: read_answer(run, records["match000", q.id]) for q in tasks[0].questions}
    return run, tasks[0], scenes[0], items


def test_an_independent_decoder_reads_the_masks_that_are_embedded(sample):
    run, task, scene, items = sample
    blob = json.loads(
        encode_clip(read_clip(run, task.id, task, items, open_video), LEVELS[0], ["q0", "gone", "q1", "q2"])
    )
    assert (blob["h"], blob["w"], len(blob["n"])) == (144, 256, 16)
    assert blob["m"][1] is None
    for number, listed in ((0, blob["m"][0]), (1, blob["m"][2]), (2, blob["m"][3])):
        first, stop = items[f"q{number}"]["span"]
        for frame, counts in zip(blob["n"], listed, strict=True):
            if not first <= frame < stop:
                assert counts == 0
                continue
            full = scene.mask(number, max(frame - 1, 0)) | scene.mask(number, frame)
            small = decoded(counts, (144, 256))
            whole = np.asarray(Image.fromarray(full).resize((256, 144), Image.Resampling.NEAREST))
            assert (small & whole).sum() / (small | whole).sum() > 0.9
    for picture in blob["j"]:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert (image.format, image.size) == ("JPEG", (256, 144))


def test_the_frame_that_stands_for_a_question_shows_its_mask(sample):
    run, task, _, items = sample
    clip = read_clip(run, task.id, task, items, open_video)
    for level in LEVELS[:-2]:
        blob = json.loads(encode_clip(clip, level, list(items)))
        assert len(blob["n"]) == level.frames
        assert all(masks[key] for masks, key in zip(blob["m"], blob["k"], strict=True))


def test_a_video_that_is_gone_costs_its_pictures_only(sample, tmp_path):
    run, task, _, items = sample
    gone = VideoTask(task.id, str(tmp_path / "gone.mp4"), task.questions)
    clip = read_clip(run, task.id, gone, items, open_video)
    assert "gone.mp4" in clip.note
    blob = json.loads(encode_clip(clip, Level(4, 64, 50), list(items)))
    assert blob["j"] == [None] * 4
    assert any(blob["m"][0])
    assert (clip.first, clip.stop, clip.seconds(0)) == (0, 36, None)
    assert read_clip(run, task.id, None, items, open_video).note is None


def test_the_clip_and_its_times_are_those_of_a_video_file(clips):
    path = str(clips / "b.mp4")
    task = VideoTask("b", path, (), start=0.5, end=1.5)
    clip = read_clip(Path("none"), "b", task, {}, open_video)
    assert (clip.first, clip.stop, clip.frames[0], clip.frames[-1]) == (5, 15, 5, 14)
    assert (clip.seconds(5), clip.seconds(20), clip.seconds(21)) == (0.5, 2.0, None)
    truth = GroundTruth("masks", (1,), 0.2, 0.6)
    assert true_window(task, truth, clip) == [7, 11]
    assert true_window(task, GroundTruth("masks", (1,)), clip) is None
