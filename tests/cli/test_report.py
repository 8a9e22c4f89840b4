"""`gmcli report` writes the page beside the run and says where."""

import json

from click.testing import CliRunner

from gmcli.cli.main import cli
from tests.report.sample import make_tasks, write_manifest, write_run


def report(*arguments):
    return CliRunner().invoke(cli, ["report", *map(str, arguments)], catch_exceptions=False)


def test_the_page_lies_beside_the_run(tmp_path):
    tasks, scenes = make_tasks(tmp_path, videos=1, questions=2, scenes=1, frames=6)
    run = write_run(tmp_path / "clips", tasks, scenes, spoil=False)
    manifest = write_manifest(tmp_path / "m.jsonl", tasks)
    result = report(run, "--manifest", manifest)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "clips.html").is_file()
    assert result.stdout.splitlines()[-1] == (tmp_path / "clips.html").as_uri()
    assert "2 questions" in result.stdout


def test_notes_and_mistakes_go_to_stderr(tmp_path):
    tasks, scenes = make_tasks(tmp_path, videos=1, questions=1, scenes=1, frames=6)
    run = write_run(tmp_path / "run", tasks, scenes, spoil=False)
    result = report(run, "-o", tmp_path / "out" / "page.html", "--max-mb", "0")
    assert result.exit_code == 0
    assert "note: To keep within --max-mb" in result.stderr
    assert (tmp_path / "out" / "page.html").is_file()
    scores = tmp_path / "s.json"
    scores.write_text(json.dumps([]))
    assert report(run, "--scores", scores).exit_code == 3
    assert report(tmp_path / "none").exit_code == 3
    assert report(run, "-o", run / "page.html").exit_code == 2
    assert report(run, "--max-mb", "-1").exit_code == 2
