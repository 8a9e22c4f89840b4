"""The command: what it prints, its exit codes, its filters."""

import json

import pytest
from click.testing import CliRunner

from gmcli.cli.main import cli
from gmcli.manifest import read_manifest
from tests.render.sample import write_run


@pytest.fixture
def manifest(tmp_path, clips):
    videos = [
        {"id": "a", "path": "a.mp4", "questions": [{"id": "q0", "text": "Who?"}, {"id": "q1", "text": "Why\x07"[:3]}]},
        {"id": "f", "path": "frames", "fps": 4, "questions": [{"id": "q0", "text": "<b>Who</b>\n%s {}"}]},
    ]
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"version": 1, "root": str(clips), "videos": videos}))
    return path


def invoke(*arguments):
    return CliRunner().invoke(cli, ["render", *map(str, arguments)], catch_exceptions=False)


def test_a_run_is_rendered_and_then_left_alone(tmp_path, manifest):
    run = write_run(tmp_path / "run", read_manifest(manifest))
    done = invoke(run, "--manifest", manifest)
    assert done.exit_code == 0
    assert done.stdout == f"3 questions drawn, 0 were there already, 0 skipped, 0 failed: {run / 'renders'}\n"
    made = sorted(str(p.relative_to(run / "renders")) for p in (run / "renders").rglob("*.*") if p.name != ".lock")
    assert made == ["a/q0.mp4", "a/q0.png", "a/q1.mp4", "a/q1.png", "f/q0.mp4", "f/q0.png"]
    assert invoke(run, "--manifest", manifest).stdout.startswith("0 questions drawn, 3 were there already")


def test_filters_formats_and_folder(tmp_path, manifest):
    run = write_run(tmp_path / "run", read_manifest(manifest))
    out = tmp_path / "elsewhere"
    done = invoke(run, "--manifest", manifest, "-o", out, "--format", "gif", "--video", "a", "--question", "q1")
    assert done.exit_code == 0
    assert [str(p.relative_to(out)) for p in out.rglob("*.*") if p.name != ".lock"] == ["a/q1.gif"]
    assert not (run / "renders").exists()


def test_what_is_not_drawn_is_said(tmp_path, manifest):
    run = write_run(tmp_path / "run", read_manifest(manifest), failed=("q0",))
    done = invoke(run, "--manifest", manifest, "--format", "sheet", "--truth")
    assert done.exit_code == 0
    assert "skipped: a/q0: failed in the run: out of luck\n" in done.stderr
    assert "no question has ground truth" in done.stderr
    assert done.stdout.startswith("1 questions drawn, 0 were there already, 2 skipped, 0 failed")


def test_what_cannot_be_drawn_exits_with_6(tmp_path, manifest):
    run = write_run(tmp_path / "run", read_manifest(manifest))
    (run / "items" / "f" / "q0.json").write_text("{}")
    done = invoke(run, "--manifest", manifest, "--format", "sheet")
    assert done.exit_code == 6
    assert "failed: f/q0: items/f/q0.json: cannot be read" in done.stderr
    assert done.stdout.startswith("2 questions drawn, 0 were there already, 0 skipped, 1 failed")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--format", "avi"], 2, "'avi' is none of mp4, gif, sheet"),
        (["--format", ""], 2, "'' is none of"),
        (["--video", "z"], 2, "no video has the id 'z'"),
        (["--question", "z"], 2, "no question has the id 'z'"),
    ],
)
def test_wrong_options(tmp_path, manifest, arguments, code, message):
    run = write_run(tmp_path / "run", read_manifest(manifest))
    done = invoke(run, "--manifest", manifest, *arguments)
    assert done.exit_code == code
    assert message in done.stderr


def test_no_run(tmp_path, manifest):
    done = invoke(tmp_path, "--manifest", manifest)
    assert done.exit_code == 3
    assert "not a run directory" in done.stderr
