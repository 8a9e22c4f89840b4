import signal

import pytest

from gmcli.config import RunConfig
from gmcli.executors.deaths import Death, cannot_start, death_of, pause_s, to_blame, video_error

KILLED = Death("was killed by SIGKILL", "out of memory, perhaps", from_outside=True)
CRASHED = Death("was killed by SIGSEGV")


@pytest.mark.parametrize(
    ("deaths", "blamed"),
    [
        ([CRASHED], False),
        ([CRASHED] * 2, True),
        ([KILLED] * 4, False),
        ([KILLED] * 5, True),
        ([KILLED] * 3 + [CRASHED], False),
        ([KILLED, CRASHED, CRASHED], True),
    ],
)
def test_a_crash_tells_more_than_a_kill(deaths, blamed):
    assert to_blame(deaths, RunConfig()) == blamed


def test_starts_that_were_killed_count_less():
    assert not cannot_start([CRASHED], RunConfig())
    assert cannot_start([CRASHED] * 2, RunConfig())
    assert not cannot_start([KILLED] * 9, RunConfig())
    assert cannot_start([KILLED] * 10, RunConfig())
    pauses = [pause_s([KILLED] * count) for count in range(12)]
    assert pauses == sorted(pauses)
    assert pauses[0] == 0
    assert pauses[-1] == 15


@pytest.mark.parametrize(
    ("code", "said", "from_outside"),
    [
        (1, "ended with exit code 1 (ValueError: last words)", False),
        (-signal.SIGSEGV, "was killed by SIGSEGV", False),
        (-signal.SIGTERM, "was killed by SIGTERM", True),
        (-signal.SIGKILL, "was killed by SIGKILL (out of memory, perhaps)", True),
        (-signal.SIGRTMAX, "was killed by SIGRTMAX", False),
        (-63, "was killed by signal 63", False),
    ],
)
def test_how_a_process_ended(tmp_path, code, said, from_outside):
    (tmp_path / "log").write_text("Traceback\nValueError: last words\n\n")
    death = death_of(code, tmp_path / "log")
    assert (str(death), death.from_outside) == (said, from_outside)


def test_last_words_are_kept_short(tmp_path):
    (tmp_path / "log").write_text("x" * 5000)
    assert len(str(death_of(1, tmp_path / "log"))) < 250
    assert "No such file" in str(death_of(1, tmp_path / "gone"))


def test_the_error_names_each_kind_of_death():
    assert (
        video_error([KILLED] * 5) == "the worker was killed by SIGKILL on this video, 5 times (out of memory, perhaps)"
    )
    assert video_error([CRASHED]) == "the worker was killed by SIGSEGV on this video, once"
    assert video_error([KILLED, CRASHED, CRASHED]) == (
        "the worker was lost on this video 3 times: it was killed by SIGKILL (out of memory, perhaps), 1×; "
        "was killed by SIGSEGV, 2×"
    )
