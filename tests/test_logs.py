"""Logs for people and for machines, and what happens to them when they are rotated or cannot be written."""

import io
import json
import logging
import os
import re
import subprocess
import sys

import pytest

from gmcli.logs import JsonFormatter, TextFormatter, set_up_logging


def record(message, *arguments, **extra):
    return logging.getLogger("gmcli.test").makeRecord(
        "gmcli.test", logging.WARNING, "file", 1, message, arguments, None, extra=extra
    )


def test_a_json_line_says_when_which_run_and_what_it_is_about():
    formatter = JsonFormatter({"run_id": "ab" * 16, "worker": 3})
    one = record("%s failed", "v/q", video="v", question="q")
    one.created, one.msecs = 1_700_000_000.0421, 42.1
    assert json.loads(formatter.format(one)) == {
        "time": "2023-11-14T22:13:20.042Z",
        "level": "warning",
        "logger": "gmcli.test",
        "run_id": "ab" * 16,
        "worker": 3,
        "message": "v/q failed",
        "video": "v",
        "question": "q",
    }
    assert "video" not in json.loads(formatter.format(record("about nothing")))


EVERYTHING = "".join(map(chr, range(0x100))) + "\u2028\u2029\u202e\ufeff\U0001f600\udc80é"


def test_a_json_line_is_one_line_of_printable_ascii_whatever_it_says():
    line = JsonFormatter({"run_id": "x"}).format(record("%s", EVERYTHING, video=EVERYTHING, question=EVERYTHING))
    assert re.fullmatch("[ -~]+", line)
    assert json.loads(line)["message"] == json.loads(line)["video"] == EVERYTHING


def test_a_text_line_stays_readable():
    line = TextFormatter().format(record("video %s", "a\x1b[2J\nb", video="a", question="q"))
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning video a\\x1b\[2J\\nb", line)


@pytest.fixture
def driver_log(tmp_path, capsys):
    path = tmp_path / "logs/driver.log"
    path.parent.mkdir()
    set_up_logging("text", path, run_id="x")
    yield path
    set_up_logging("text")


def words(path):
    return [line.split()[-1] for line in path.read_text().splitlines()]


def test_a_log_that_is_moved_away_begins_anew(driver_log):
    log = logging.getLogger("gmcli.test")
    log.info("one")
    driver_log.rename(driver_log.with_suffix(".log.1"))
    log.info("two")
    log.info("three")
    assert words(driver_log.with_suffix(".log.1")) == ["one"]
    assert words(driver_log) == ["two", "three"]


def test_a_log_that_is_copied_and_cut_goes_on_at_its_beginning(driver_log):
    log = logging.getLogger("gmcli.test")
    log.info("one")
    os.truncate(driver_log, 0)
    log.info("two")
    assert words(driver_log) == ["two"]
    assert b"\0" not in driver_log.read_bytes()


def test_a_log_that_cannot_be_written_is_said_once_and_ends_nothing(driver_log, capsys):
    log = logging.getLogger("gmcli.test")
    driver_log.unlink()
    driver_log.parent.rmdir()
    log.info("one")
    log.info("two")
    stderr = capsys.readouterr().err
    assert stderr.count("No such file or directory; the run goes on") == 1
    assert "Traceback" not in stderr
    driver_log.parent.mkdir()
    log.info("three")
    assert words(driver_log) == ["three"]


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "driver.log").symlink_to("/dev/full")
    set_up_logging("text", tmp_path / "driver.log")
    logging.getLogger("gmcli.test").info("one")
    logging.getLogger("gmcli.test").info("two")
    set_up_logging("text")
    stderr = capsys.readouterr().err
    assert stderr.count("No space left on device; the run goes on") == 1
    assert "Traceback" not in stderr


def test_nobody_at_the_terminal_ends_nothing(driver_log, monkeypatch):
    class Gone(io.StringIO):
        def write(self, _text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    logging.getLogger("gmcli.test").info("one")
    assert words(driver_log) == ["one"]


def test_a_workers_log_may_be_copied_and_cut_while_it_works(tmp_path):
    """A worker writes through the descriptor that the executor gave it; after a cut its next line is the first."""
    from gmcli.executors.messages import Answered, Job, logs_of
    from tests.fakes import executor, video_task

    runner = executor(tmp_path)
    log = logs_of(tmp_path, 0)
    jobs = [Job(video_task(tmp_path, name), ("q0",)) for name in ("says-one", "slow", "says-two")]
    try:
        for event in runner.run(jobs):
            if isinstance(event, Answered) and event.video == "says-one" and event.last:
                before = log.read_bytes()
                os.truncate(log, 0)
    finally:
        runner.close()
    assert before == b"says-one\n"
    assert log.read_bytes() == b"says-two\n"


def test_stderr_of_a_command_without_a_reader_does_not_end_it(tmp_path):
    code = (
        "import logging, sys\nfrom gmcli.logs import set_up_logging\nset_up_logging('text')\nsys.stdin.readline()\n"
        "for i in range(1000):\n    logging.getLogger('gmcli').info('%d', i)\nprint('done')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stderr.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stdout.read() == b"done\n"
    process.stdout.close()
    process.wait()
