"""What is taken away is gone, and what is judged stays."""

from pathlib import Path

import yaml
from click.testing import CliRunner

from gmcli.cli.main import cli
from gmcli.manifest import read_manifest
from gmcli.synth.write import write_dataset
from gmcli.train.tiny.ablate import write_ablations


def test_motion_and_questions_are_taken_away(tmp_path):
    write_dataset(tmp_path / "shapes", seed=3, questions=5)
    whole = read_manifest(tmp_path / "shapes/manifest.yaml")
    still, mute = (read_manifest(path) for path in write_ablations(tmp_path / "shapes"))
    for video, one, other in zip(whole, still, mute, strict=True):
        assert [q.ground_truth for q in one.questions] == [q.ground_truth for q in video.questions]
        assert [q.ground_truth for q in other.questions] == [q.ground_truth for q in video.questions]
        assert [q.text for q in one.questions] == [q.text for q in video.questions]
        assert {q.text for q in other.questions} == {"What?"}
        assert other.video == video.video
        frames = sorted(Path(one.video).iterdir())
        assert [frame.name for frame in frames] == sorted(frame.name for frame in Path(video.video).iterdir())
        assert {frame.read_bytes() for frame in frames} == {(Path(video.video) / "frame_000030.jpg").read_bytes()}
    write_ablations(tmp_path / "shapes")  # the same again


def test_a_run_of_them_is_scored(tmp_path):
    write_dataset(tmp_path / "shapes", seed=3, questions=2)
    for path in write_ablations(tmp_path / "shapes"):
        out = tmp_path / path.stem
        runner = CliRunner()
        done = runner.invoke(
            cli, ["infer", str(path), "-o", str(out), "--mask-frames", "sampled"], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        done = runner.invoke(cli, ["eval", str(out), "--json", str(tmp_path / "scores.json")], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert yaml.safe_load((tmp_path / "scores.json").read_text())["overall"]["questions"] == 2
