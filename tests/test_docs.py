"""The documents say what the program does: commands parse, tables agree, the Makefile's words are the README's."""

import re
import shlex
from pathlib import Path

import click
import pytest

from gmcli import errors
from gmcli.cli.main import cli
from gmcli.manifest import read_manifest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCED = "\n".join(re.findall(r"```console\n(.*?)```", README, re.DOTALL)) + (ROOT / "Makefile").read_text()
COMMANDS = sorted(
    {
        line.split("#")[0].strip().removeprefix("$(BIN)/")
        for line in FENCED.splitlines()
        if re.match(r"\s*(\$\(BIN\)/)?gmcli \w+", line)
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_documented_command_parses(line):
    name, *arguments = shlex.split(line)[1:]
    cli.commands[name].make_context(name, arguments)


def test_there_are_documented_commands():
    assert len(COMMANDS) >= 8


def test_every_option_in_the_readme_exists():
    known = {option for c in cli.commands.values() for p in c.params for option in p.opts}
    known |= {"--no-build-isolation", "--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README)) <= known


def test_the_readmes_exit_codes_are_the_programs():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE)
    constants = {v for k, v in vars(errors).items() if k.startswith("EXIT_")}
    assert {int(code) for code, _ in rows} == constants


def test_the_readmes_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([\w-]+)", README)) <= targets


def test_ci_runs_the_readmes_test_command():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [x for x in lines if x and not x.startswith(("#", "set "))] == ["make test"]


def test_the_readmes_manifest_is_valid(tmp_path):
    text = re.search(r"```yaml\n# clips\.yaml\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "clips.yaml").write_text(text)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/match01.mp4").write_text("x")
    (task,) = read_manifest(tmp_path / "clips.yaml")
    assert (task.start, task.end, task.questions[0].type) == (4, 12.5, "Counterfactual")


def test_the_demo_manifest_has_videos_and_truth():
    tasks = read_manifest(ROOT / "examples/manifest.yaml")
    assert all(question.ground_truth.answer for task in tasks for question in task.questions)
    assert {question.type for task in tasks for question in task.questions} == {
        "Causal",
        "Counterfactual",
        "Descriptive",
        "Sequential",
    }


def test_the_manifest_of_real_videos_names_those_that_are_fetched(tmp_path):
    videos = re.search(r"VIDEOS = \((.*?)\)", (ROOT / "examples/fetch_videos.py").read_text())[1]
    names = re.findall(r'"(.*?)"', videos)
    text = (ROOT / "examples/real_videos.yaml").read_text()
    (tmp_path / "manifest.yaml").write_text(text)
    (tmp_path / "videos").mkdir()
    for name in names:
        (tmp_path / "videos" / name).write_text("x")
    tasks = read_manifest(tmp_path / "manifest.yaml")
    assert sorted(Path(t.video).name for t in tasks) == sorted(names)


def test_the_readmes_files_are_those_of_a_run():
    from gmcli import ledger

    for name in ledger.OURS - {ledger.LOCK, ".tmp"}:
        assert name in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_usage_errors_of_click_are_exit_code_2():
    with pytest.raises(click.UsageError) as caught:
        cli.commands["infer"].make_context("infer", ["m.yaml", "--nonsense"])
    assert caught.value.exit_code == errors.EXIT_USAGE


def test_the_python_example_runs(clips, tmp_path, monkeypatch, capsys):
    text = (ROOT / "docs/python.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "clip.mp4").write_bytes((clips / "c.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/python.md", "exec"), {})
    assert "Work(" in capsys.readouterr().out


def test_the_python_pages_names_exist():
    import importlib

    from gmcli.checkpoints.load import Checkpoint
    from gmcli.model.mora import Mora
    from gmcli.model.sam import Sam

    module = None
    for names in re.findall(r"^\| .+? \| (.+) \|$", (ROOT / "docs/python.md").read_text(), re.MULTILINE)[1:]:
        for name in re.findall(r"`([\w.]+)`", names):
            owner, _, leaf = name.rpartition(".")
            if owner.startswith("gmcli."):
                module = importlib.import_module(owner)
                assert hasattr(module, leaf), name
            elif owner:
                assert hasattr({"Mora": Mora, "Sam": Sam, "Checkpoint": Checkpoint}[owner], leaf), name
            else:
                assert hasattr(module, leaf), name
