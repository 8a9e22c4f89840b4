"""A command that is told of a run's end: an argument vector, never a shell."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from gmcli.errors import UsageError
from gmcli.notify import notify, split_command

SUMMARY = {"run_id": "ab" * 16, "state": "finished", "exit_code": 6, "output": "/data/ru\nn", "failed": 2}


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr("gmcli.notify.log.warning", lambda form, *values: said.append(form % values))
    return said


@pytest.fixture
def script(tmp_path):
    """Write a program of Python lines; return the words that run it."""

    def write(*lines):
        path = tmp_path / "tell.py"
        path.write_text("\n".join(("import json, os, subprocess, sys, time", *lines)))
        return [sys.executable, str(path)]

    return write


def test_it_gets_the_summary_its_arguments_and_nothing_is_expanded(tmp_path, script, warnings):
    words = ("a b", "$HOME", "; touch pwned", "`id`", "*")
    command = script(
        f"open({str(tmp_path / 'told.json')!r}, 'w').write(json.dumps(",
        "    [json.load(sys.stdin), sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith('GMCLI_')}]))",
    )
    notify([*command, *words], SUMMARY)
    summary, arguments, environment = json.loads((tmp_path / "told.json").read_text())
    assert summary == SUMMARY
    assert tuple(arguments) == words
    assert {k: environment[f"GMCLI_{k}"] for k in ("RUN_ID", "STATE", "EXIT_CODE", "OUTPUT", "FAILED", "DONE")} == {
        "RUN_ID": "ab" * 16,
        "STATE": "finished",
        "EXIT_CODE": "6",
        "OUTPUT": "/data/ru\nn",
        "FAILED": "2",
        "DONE": "",
    }
    assert warnings == []


def test_a_command_is_split_as_a_shell_would():
    command = split_command(f"""{sys.executable} 'a b' "c d" e\\ f '$HOME'""")
    assert command == [sys.executable, "a b", "c d", "e f", "$HOME"]
    assert split_command("sh -c true")[0] == "sh"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("tell 'them", "No closing quotation"),
        ("no-such-program --now", "no program 'no-such-program'"),
        ("/no/such/program", "no program '/no/such/program'"),
        ("/etc/passwd", "no program"),
        ("''", "no program ''"),
    ],
)
def test_what_cannot_be_run_is_found_at_once(text, message):
    with pytest.raises(UsageError, match=message):
        split_command(text)


def test_a_failure_is_a_warning(script, warnings):
    notify(script("sys.exit(3)"), SUMMARY)
    assert len(warnings) == 1
    assert warnings[0].endswith(": exit code 3")


def test_one_that_has_gone_meanwhile_is_a_warning(tmp_path, warnings):
    notify([str(tmp_path / "gone")], SUMMARY)
    assert warnings == [f"--notify-cmd: {tmp_path / 'gone'}: No such file or directory"]


def test_one_that_reads_nothing_is_none(script, warnings):
    notify(script("os.close(0)"), SUMMARY | {"long": "x" * 500_000})
    assert warnings == []


def test_one_that_hangs_is_killed_with_all_it_started(tmp_path, script, warnings):
    pids = tmp_path / "pids"
    command = script(
        "child = subprocess.Popen(['sleep', '600'])",
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')",
        "time.sleep(600)",
    )
    notify(command, SUMMARY, timeout_s=2)
    assert warnings == [f"--notify-cmd: {sys.executable}: killed after 2 s"]
    deadline = time.monotonic() + 10
    while any(alive(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_it_prints_goes_to_stderr(script, capfd):
    notify(script("print('told', flush=True)"), SUMMARY)
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("", "told\n")
    assert os.environ.get("GMCLI_STATE") is None
