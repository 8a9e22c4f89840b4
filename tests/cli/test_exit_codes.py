"""Every exit code, provoked through the real command line, one by one; and the tables that say what they mean."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from gmcli import errors
from gmcli.cli.main import cli
from gmcli.records import read_records
from gmcli.status import read_status
from tests.fakes import tree

ROOT = Path(__file__).parent.parent.parent


def write_manifest(folder: Path, *videos: Path) -> Path:
    lines = ["version: 1", "videos:"]
    for video in videos:
        lines.append(f"  - {{id: {video.stem}, path: {video}, questions: [{{id: q0, text: Who moves to the left?}}]}}")
    path = folder / "manifest.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def gmcli(*arguments, env=None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gmcli", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)


@pytest.fixture(scope="module")
def videos(tmp_path_factory, clips) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    found = {}
    for name in ("good", "broken"):
        found[name] = folder / f"{name}.mp4"
        found[name].write_bytes((clips / "c.mp4").read_bytes() if name == "good" else b"no video at all" * 10_000)
    return found


@pytest.fixture(scope="module")
def settings(small_folder) -> tuple[str, ...]:
    return "--checkpoint", str(small_folder), "--gpus", "cpu", "--frames", "2", "--mask-frames", "sampled"


@pytest.fixture(scope="module")
def ended(tmp_path_factory, videos, settings):
    """One run that answers one question and fails at another, with a program that is told."""
    folder = tmp_path_factory.mktemp("ended")
    tell = folder / "tell"
    tell.write_text('#!/bin/sh\ncat > "$1/$GMCLI_STATE-$GMCLI_EXIT_CODE.json"\n')
    tell.chmod(0o755)
    out = folder / "out"
    done = gmcli(
        "infer", write_manifest(folder, *videos.values()), "-o", out, *settings, "--log-format", "json",
        "--metrics-file", folder / "gmcli.prom", "--notify-cmd", f"'{tell}' '{folder}'",
    )  # fmt: skip
    return folder, out, done


def test_6_some_questions_failed(ended):
    _, out, done = ended
    assert done.returncode == errors.EXIT_ITEMS_FAILED, done.stderr
    assert "1 failed, 0 pending; 2 answered now" in done.stdout
    assert len((out / "failures.jsonl").read_text().splitlines()) == 1


def test_0_all_done(ended, videos, settings, tmp_path):
    _, out, _ = ended
    done = gmcli("infer", write_manifest(tmp_path, videos["good"]), "-o", out, *settings)
    assert done.returncode == errors.EXIT_OK, done.stderr
    assert "0 failed, 0 pending; 0 answered now" in done.stdout


def test_1_a_bug(tmp_path):
    """Break the program from outside: Python imports a module of this name at its start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import gmcli.manifest\ndef broken(*_, **__):\n    raise ZeroDivisionError('a bug')\n"
        "gmcli.manifest.read_manifest = broken\n"
    )
    done = gmcli("infer", "m.yaml", "-o", tmp_path / "out", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert done.returncode == errors.EXIT_BUG
    assert "ZeroDivisionError: a bug" in done.stderr


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (errors.EXIT_USAGE, ("--nonsense",), "No such option"),
        (errors.EXIT_USAGE, ("--gpus", "0", "--workers", "2"), "a GPU has one worker"),
        (errors.EXIT_USAGE, ("--max-failures", "0"), "--max-failures"),
        (errors.EXIT_USAGE, ("--max-hours", "0"), "--max-hours"),
        (errors.EXIT_USAGE, ("--max-hours", "nan"), "--max-hours must be a number"),
        (errors.EXIT_USAGE, ("--notify-cmd", "no-such-program x"), "no program 'no-such-program'"),
        (errors.EXIT_USAGE, ("--metrics-file", "README.md"), "it was left alone"),
        (errors.EXIT_CONFIG, ("--config", "nowhere"), "no such configuration"),
        (errors.EXIT_ENVIRONMENT, ("--gpus", "99"), "no GPU 99"),
        (errors.EXIT_CHECKPOINT, ("--checkpoint", "nowhere"), "no such checkpoint"),
    ],
)
def test_2_to_5_what_is_wrong_is_said_in_a_line_before_anything_happens(tmp_path, videos, code, arguments, message):
    done = gmcli("infer", write_manifest(tmp_path, videos["good"]), "-o", tmp_path / "out", *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_3_a_manifest(tmp_path):
    done = gmcli("infer", write_manifest(tmp_path, tmp_path / "nowhere.mp4"), "-o", tmp_path / "out")
    assert done.returncode == errors.EXIT_CONFIG
    assert done.stderr.startswith(f"{tmp_path / 'manifest.yaml'}:3: ")


def test_4_a_directory_that_cannot_be_used(tmp_path, videos, settings):
    (tmp_path / "file").touch()
    done = gmcli("infer", write_manifest(tmp_path, videos["good"]), "-o", tmp_path / "file/out", *settings)
    assert done.returncode == errors.EXIT_ENVIRONMENT
    assert "cannot be used as a run directory" in done.stderr


def test_7_another_run_holds_the_directory(ended, videos, settings, tmp_path):
    _, out, _ = ended
    metrics, before = tmp_path / "m.prom", tree(out, without=())
    with (out / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = gmcli(
            "infer", write_manifest(tmp_path, videos["good"]), "-o", out, *settings, "--metrics-file", metrics,
            "--notify-cmd", f"touch {tmp_path / 'told'}",
        )  # fmt: skip
    assert done.returncode == errors.EXIT_LOCKED
    assert "another run holds this directory" in done.stderr
    assert tree(out, without=()) == before
    # They are the other run's to write and to tell.
    assert not metrics.exists()
    assert not (tmp_path / "told").exists()


def start(*arguments, **settings) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "gmcli", *map(str, arguments)],
        cwd=ROOT,
        text=True,
        # Tests that run in the background of a script have these ignored, and hand that on.
        preexec_fn=lambda: [signal.signal(s, signal.SIG_DFL) for s in (signal.SIGINT, signal.SIGHUP)],
        **settings,
    )


def wait_for(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def has_begun(out: Path) -> bool:
    return (out / "heartbeat.json").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_130_a_signal(tmp_path, videos, settings, sent):
    out, metrics = tmp_path / "out", tmp_path / "gmcli.prom"
    process = start(
        "infer", write_manifest(tmp_path, videos["good"]), "-o", out, *settings, "--metrics-file", metrics,
        "--notify-cmd", f"tee {tmp_path / 'told.json'}", stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(lambda: has_begun(out))
    status = read_status(out)
    assert (status["state"], status["pid"], status["pending"]) == ("running", process.pid, 1)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == errors.EXIT_INTERRUPTED, stderr
    assert "run the same command again" in stderr
    reason = f"ended by {sent.name}"
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["state"], told["exit_code"], told["reason"]) == ("interrupted", 130, reason)
    assert read_status(out)["reason"] == json.loads((out / "heartbeat.json").read_text())["reason"] == reason
    assert 'gmcli_run_exit_code{output="' in metrics.read_text()
    assert f"run interrupted, exit code 130: {reason}" in (out / "logs/driver.log").read_text()


def test_130_the_hours_are_over(tmp_path, videos, settings):
    out = tmp_path / "out"
    manifest = write_manifest(tmp_path, videos["good"])
    done = gmcli("infer", manifest, "-o", out, *settings, "--max-hours", "0.0001")
    assert done.returncode == errors.EXIT_INTERRUPTED, done.stderr
    assert "stopped by --max-hours 0.0001; 1 questions are pending" in done.stderr
    assert (read_status(out)["state"], read_status(out)["pending"]) == ("interrupted", 1)


def test_a_closed_terminal_is_ignored_where_nohup_asked_for_it(tmp_path, videos, settings):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gmcli",
            "infer",
            str(write_manifest(tmp_path, videos["good"])),
            "-o",
            str(out),
            *settings,
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(lambda: has_begun(out))
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == errors.EXIT_INTERRUPTED
    assert read_status(out)["reason"] == "ended by SIGTERM"


def test_6_so_many_failures(tmp_path, videos, settings):
    """Also with stderr and stdout gone: whoever started it over ssh may have left."""
    out = tmp_path / "out"
    process = start(
        "infer", write_manifest(tmp_path, videos["broken"], videos["good"]), "-o", out, *settings, "--max-failures", "1",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) == errors.EXIT_ITEMS_FAILED
    log = (out / "logs/driver.log").read_text()
    assert "stopped by --max-failures 1: 1 questions failed; 1 questions are pending" in log
    assert "Traceback" not in log
    records, _ = read_records(out)
    assert [r.status for r in records.values()] == ["failed"]


def test_141_whoever_read_the_output_is_gone(ended):
    _, out, _ = ended
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline(); from gmcli.cli.main import main; main()",
         "status", str(out), "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == errors.EXIT_PIPE
    assert stderr == b""


# What the run of `ended` leaves for those who watch


def test_its_logs_are_json_and_say_what_they_are_about(ended):
    _, out, done = ended
    first = json.loads((ended[0] / "finished-6.json").read_text())["run_id"]
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["run_id"] for line in lines} == {first}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) for line in lines)
    assert [(x["video"], x["question"]) for x in lines if x["level"] == "error"] == [("broken", "q0")]
    # Later runs into the directory have written text.
    driver = (out / "logs/driver.log").read_text().splitlines()
    assert [json.loads(line) for line in driver if line.startswith("{")] == lines
    worker = (out / "logs/worker-0.log").read_text().splitlines()
    worker = [json.loads(line) for line in worker if line.startswith("{")]
    assert {(line["run_id"], line["worker"]) for line in worker} == {(first, 0)}
    assert {line["video"] for line in worker} == {"good", "broken"}


def test_the_program_is_told_what_it_came_to(ended):
    folder, out, _ = ended
    told = json.loads((folder / "finished-6.json").read_text())
    keys = ("failed", "pending", "answered_now", "failed_now", "exit_code", "output", "reason")
    assert [told[key] for key in keys] == [1, 0, 2, 1, 6, str(out), None]
    assert told["done"] + told["no_target"] == 1


# The tables


def words(text):
    return " ".join(text.split())


def documented(text):
    return {int(code): what for code, what in re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)}


def test_the_tables_agree():
    constants = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert set(documented((ROOT / "README.md").read_text())) == constants
    assert set(documented((ROOT / "docs/cron.md").read_text())) == constants
    sentence = words(errors.__doc__).partition("Exit codes: ")[2]
    assert {int(code) for code in re.findall(r"(?:^|, )(\d+) ", sentence)} == constants
    assert sentence in words(CliRunner().invoke(cli, ["--help"]).output)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RunLocked("x"), 7),
        (errors.VideoError("x"), 6),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (OSError(28, "full"), 4),
        (ZeroDivisionError(), 1),
        (SystemExit(3), 1),
    ],
)
def test_an_exceptions_code(error, code):
    assert errors.exit_code_of(error) == code


def test_the_lock_is_given_back_before_the_program_is_told(tmp_path, videos, settings):
    """What it is told of, it may look at, and even start again."""
    out = tmp_path / "out"
    command = f"{sys.executable} -m gmcli status {out}"
    arguments = ("-o", out, *settings, "--max-hours", "0.0001", "--notify-cmd", command)
    done = gmcli("infer", write_manifest(tmp_path, videos["good"]), *arguments)
    assert f"{out}: interrupted (stopped by --max-hours 0.0001)" in done.stderr
