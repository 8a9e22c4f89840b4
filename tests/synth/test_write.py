"""A dataset is GroundMoRe's layout, real video, and a manifest that one importer and one scorer read."""

import hashlib
import json
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from gmcli.cli.main import cli
from gmcli.errors import UsageError
from gmcli.manifest import read_manifest
from gmcli.synth.draw import SIZE
from gmcli.synth.scene import FPS, FRAMES
from gmcli.synth.write import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "shapes"
    result = CliRunner().invoke(cli, ["synth", "--seed", "3", "--questions", "20", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    assert "20 questions" in result.output
    return folder


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_manifest_has_the_questions_with_ground_truth(dataset):
    tasks = read_manifest(dataset / "manifest.yaml")
    questions = [question for task in tasks for question in task.questions]
    assert len(questions) == 20
    types = [question.type for question in questions]
    assert {types.count(t) for t in ("Descriptive", "Sequential", "Causal", "Counterfactual")} <= {3, 4, 5, 6, 7}
    for task in tasks:
        assert task.fps == FPS
        assert len(task.questions) <= 6
        for question in task.questions:
            truth = question.ground_truth
            assert truth.answer.startswith("the ")
            assert 0 <= truth.start < truth.end <= 10


def test_the_object_is_in_the_masks_while_it_answers(dataset):
    for task in read_manifest(dataset / "manifest.yaml"):
        for question in task.questions:
            truth = question.ground_truth
            frames = range(int(truth.start * FPS), int(truth.end * FPS))
            areas = [
                (np.asarray(Image.open(f"{truth.masks}/frame_{n:06d}.png")) == truth.object_ids[0]).sum()
                for n in frames
            ]
            assert max(areas) > 200


def test_ffmpeg_reads_the_video_as_the_frames(dataset):
    clip = next((dataset / "videos").iterdir())
    source = ["-i", str(clip / "video.mp4")]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    video = np.frombuffer(raw, np.uint8).reshape(-1, SIZE, SIZE, 3)
    assert len(video) == FRAMES
    for number in (0, 17, 59):
        still = np.asarray(Image.open(clip / "images" / f"frame_{number:06d}.jpg")).astype(int)
        assert np.abs(video[number] - still).mean() < 6


def test_equal_seeds_give_equal_files_and_others_do_not(dataset, tmp_path):
    write_dataset(tmp_path / "again", seed=3, questions=20)
    assert digest(tmp_path / "again") == digest(dataset)
    write_dataset(tmp_path / "other", seed=4, questions=6)
    one = json.loads((dataset / "annotations.json").read_text())["videos"]
    other = json.loads((tmp_path / "other" / "annotations.json").read_text())["videos"]
    assert not set(one) & set(other)


def test_what_is_there_is_not_overwritten(dataset):
    before = digest(dataset)
    with pytest.raises(UsageError, match="exists already"):
        write_dataset(dataset, seed=3, questions=1)
    assert digest(dataset) == before


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("gmcli.synth.write.write_video", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_dataset(tmp_path / "shapes", seed=3, questions=6)
    assert list(tmp_path.iterdir()) == []
