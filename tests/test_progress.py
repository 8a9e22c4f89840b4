import io
import logging
import sys

import pytest

from gmcli.logs import JsonFormatter, TextFormatter
from gmcli.progress import Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def lines(monkeypatch):
    found = []
    monkeypatch.setattr(logging.getLogger("gmcli.progress"), "info", lambda form, *args: found.append(form % args))
    return found


def test_without_a_terminal_one_line_every_thirty_seconds(lines):
    clock = Clock()
    progress = Progress(videos=2, questions=4, done=6, bar=False, clock=clock)
    for _ in range(40):
        clock.now += 2
        progress.add_frames(10)
    assert len(lines) == 2
    clock.now = 100
    progress.add_question(failed=False)
    progress.add_question(failed=True)
    progress.add_video()
    assert lines[-1] == ("videos 0/2, questions 7/10, 400 frames, 4.0 frames/s, 0 failed, about 0:05:00 left")
    assert progress.line() == ("videos 1/2, questions 8/10, 400 frames, 4.0 frames/s, 1 failed, about 0:01:40 left")


def test_nothing_done_yet_has_no_time_left(lines):
    assert Progress(videos=1, questions=1, bar=False, clock=Clock()).line().endswith("time left unknown")


def test_on_a_terminal_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(videos=2, questions=2, bar=True)
    progress.add_frames(3)
    progress.add_question(failed=True)
    progress.add_video()
    progress.close()
    shown = screen.getvalue()
    assert "videos 1/2" in shown
    assert "1 failed" in shown
    assert "1/2 [" in shown


def test_control_characters_do_not_reach_the_terminal():
    record = logging.LogRecord("gmcli", logging.INFO, "", 0, "video %s", ("a\x1b[2Jb\nc",), None)
    assert TextFormatter().format(record).endswith("video a\\x1b[2Jb\\nc")
    assert "\x1b" not in JsonFormatter({}).format(record)
