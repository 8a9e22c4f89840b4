"""Words of strangers reach no terminal as they are: commands print through one door, and it escapes."""

import ast
import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from gmcli.cli import echo
from gmcli.cli.main import cli
from gmcli.errors import ConfigError, ManifestError

COMMANDS = sorted(Path(echo.__file__).parent.glob("*.py"))
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# A file may be called so; the second half would pass for a line of our own.
NAME = "\x1b[31mred\u202e\x9b2J\nerror: forged %s {{x}} <img src=x onerror=alert(1)>"


def printed(arguments, **settings):
    done = CliRunner().invoke(cli, arguments, **settings)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert OBEYED.search(done.output) is None, ascii(done.output)
    assert not any(line.startswith("error: forged") for line in done.output.splitlines())
    return done


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_commands_print_through_one_door(path):
    if path.name == "echo.py":
        return
    calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    # A plan drawn with colours is the terminal's own; a file given by name is no terminal.
    forbidden = {"print", "click.echo", "click.secho", "click.echo_via_pager", "sys.stdout.write", "sys.stderr.write"}
    assert not calls & forbidden


def test_a_name_that_the_terminal_would_obey(tmp_path):
    (tmp_path / NAME.replace("/", "")).write_bytes(b"no video")
    (tmp_path / "m.json").write_text(
        json.dumps(
            {
                "version": 1,
                "videos": [
                    {"id": "v", "path": NAME.replace("/", ""), "questions": [{"id": "q", "text": "<script>\u202e${x}"}]}
                ],
            }
        )
    )
    done = printed(["infer", str(tmp_path / "m.json"), "--dry-run", "-o", str(tmp_path / "run"), "--gpus", "cpu"])
    assert done.exit_code == 0, done.output
    assert "\\x1b[31mred\\u202e\\x9b2J\\nerror: forged" in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", NAME],
        ["infer", "--config", NAME, "x"],
        ["status", NAME],
        ["verify", NAME],
        ["eval", NAME],
        ["report", NAME],
        ["render", NAME],
        ["render", NAME, "--format", NAME],
        ["manifest", "groundmore", NAME, "-o", f"{NAME}.yaml"],
        ["train", NAME, "-o", "x"],
        [NAME],
        ["infer", "x", f"--{NAME}"],
    ],
    ids=lambda arguments: " ".join(a for a in arguments if a != NAME)[:20],
)
def test_names_on_the_command_line(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = printed(arguments)
    assert done.exit_code in (2, 3, 4), done.output


def test_an_error_without_a_problem_list_keeps_its_lines_off_the_margin(capsys):
    echo.say_error(ConfigError("a\n  b\nerror: forged\x1b", "do\nthis"))
    shown = capsys.readouterr().err
    assert shown == "error: a\n  b\n  error: forged\\x1b\nhint: do\\nthis\n"


@pytest.mark.parametrize(("terminal", "lines"), [(True, 102), (False, 251)])
def test_a_terminal_is_spared_the_rest_of_many_problems(terminal, lines, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    echo.say_error(ManifestError([f"m.yaml:{n}: no" for n in range(250)], "hint"))
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == lines
    assert ("… and 150 more problems" in shown[100]) == terminal


def test_a_name_that_is_no_utf_8(tmp_path):
    name = os.fsdecode(b"\xff\xfe.yaml")
    done = printed(["infer", str(tmp_path / name)])
    assert done.exit_code == 3
    assert "\\udcff" in done.output
