"""Runs that are told when to stop, and that go on where they were."""

import json
import os

import pytest

from gmcli.errors import EXIT_INTERRUPTED, EXIT_ITEMS_FAILED, UsageError
from gmcli.executors.messages import Answered, Job, Ready, Tick
from gmcli.ledger import LOGS
from gmcli.limits import Limits
from gmcli.status import read_status
from gmcli.verify import verify
from tests.fakes import InlineExecutor, executor, run_inline, tree, video_task

HOUR_S = 3600


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowExecutor(InlineExecutor):
    """Let half an hour pass with every video."""

    def __init__(self, clock) -> None:
        super().__init__()
        self.clock = clock

    def run(self, jobs):
        for event in super().run(jobs):
            self.clock.now += HOUR_S / 2 if isinstance(event, Answered) else 0
            yield event


class EndlessExecutor(InlineExecutor):
    """Never come to an end, a second a Tick."""

    def __init__(self, clock) -> None:
        super().__init__()
        self.clock = clock

    def run(self, jobs):
        yield Ready(0)
        while True:
            self.clock.now += 1
            yield Tick()


@pytest.fixture
def tasks(tmp_path):
    return [video_task(tmp_path, name, "q0", "q1") for name in "abcde"]


def test_after_the_hours_no_video_is_begun_and_the_next_run_goes_on(tmp_path, tasks):
    clock, out = Clock(), tmp_path / "out"
    outcome = run_inline(out, tasks, executor=SlowExecutor(clock), limits=Limits(max_hours=1, clock=clock))
    assert (outcome.done, outcome.pending, outcome.stop.exit_code) == (4, 6, EXIT_INTERRUPTED)
    run = json.loads((out / "run.json").read_text())
    assert (run["state"], run["reason"]) == ("interrupted", "stopped by --max-hours 1")
    assert read_status(out)["reason"] == "stopped by --max-hours 1"
    assert verify(out).problems == ()
    run_inline(out, tasks)
    run_inline(tmp_path / "fresh", tasks)
    assert tree(out) == tree(tmp_path / "fresh")
    assert read_status(out)["reason"] is None


@pytest.mark.parametrize(("hours", "last_s"), [(1, HOUR_S + 360), (100, 100 * HOUR_S + 600)])
def test_what_is_in_progress_has_a_tenth_of_the_hours_or_ten_minutes(tmp_path, tasks, hours, last_s):
    clock = Clock()
    limits, runner = Limits(max_hours=hours, clock=clock), EndlessExecutor(clock)
    clock.now = hours * HOUR_S - 1
    outcome = run_inline(tmp_path / "out", tasks, executor=runner, limits=limits)
    assert clock.now == last_s
    assert runner.draining
    assert runner.closed
    assert (outcome.pending, outcome.stop.exit_code) == (10, EXIT_INTERRUPTED)


def test_a_run_that_is_done_when_the_hours_are_over_is_done(tmp_path, tasks):
    clock = Clock()
    outcome = run_inline(
        tmp_path / "out", tasks, executor=SlowExecutor(clock), limits=Limits(max_hours=2.5, clock=clock)
    )
    assert (outcome.pending, outcome.stop) == (0, None)
    assert json.loads((tmp_path / "out/run.json").read_text())["state"] == "finished"


def test_so_many_failures_stop_the_run(tmp_path, tasks):
    bad = [video_task(tmp_path, f"bad{i}", "q0", size=9000) for i in range(4)]
    out = tmp_path / "out"
    outcome = run_inline(out, [*tasks, *bad], limits=Limits(max_failures=2))
    assert (outcome.failed, outcome.done, outcome.pending) == (2, 0, 12)
    assert outcome.stop.exit_code == EXIT_ITEMS_FAILED
    run = json.loads((out / "run.json").read_text())
    assert (run["state"], run["reason"]) == ("interrupted", "stopped by --max-failures 2: 2 questions failed")
    assert len((out / "failures.jsonl").read_text().splitlines()) == 2
    # Only those of this run count: two more, and one that is not enough.
    outcome = run_inline(out, [*tasks, *bad], limits=Limits(max_failures=3))
    assert (outcome.failed, outcome.done, outcome.pending, outcome.stop) == (4, 10, 0, None)


def test_workers_that_are_drained_finish_what_they_are_on(tmp_path):
    runner = executor(tmp_path / LOGS)
    jobs = [Job(video_task(tmp_path, name, "q0", "q1"), ("q0", "q1")) for name in ("slow1", "slow2", "slow3")]
    answered = []
    try:
        for event in runner.run(jobs):
            if isinstance(event, Tick) and runner.at_work():
                assert runner.at_work() == {0: "slow1"}
                runner.drain()
            answered += event.results if isinstance(event, Answered) else ()
    finally:
        runner.close()
    assert [(r.video_id, r.question_id) for r in answered] == [("slow1", "q0"), ("slow1", "q1")]


def test_workers_that_are_drained_before_they_are_ready_begin_nothing(tmp_path):
    runner = executor(tmp_path / LOGS)
    runner.drain()
    assert list(runner.run([Job(video_task(tmp_path, "a"), ("q0",))])) == []


def test_no_number_of_hours_is_refused():
    with pytest.raises(UsageError, match="--max-hours must be a number"):
        Limits(max_hours=float("nan"))


class NthCall:
    """Let a function work until its n-th call, at which somebody is impatient."""

    def __init__(self, function, n) -> None:
        self.function, self.left = function, n

    def __call__(self, *arguments, **settings):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*arguments, **settings)


class ImpatientExecutor(InlineExecutor):
    """Be interrupted once, after two videos; from then on somebody counts."""

    def __init__(self, arm) -> None:
        super().__init__()
        self.arm = arm

    def run(self, jobs):
        yield from super().run(jobs[:2])
        self.arm()
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["fsync", "open", "replace", "rename", "unlink"])
def test_a_second_interrupt_at_any_moment_of_the_summaries_loses_nothing(tmp_path, tasks, monkeypatch, name):
    """The first comes at work, the second at each call of the operating system in turn that the summaries make."""
    run_inline(tmp_path / "fresh", tasks)
    want, n = tree(tmp_path / "fresh"), 0
    while True:
        n += 1
        out, call = tmp_path / f"out{n}", NthCall(getattr(os, name), n)
        with monkeypatch.context() as patch:
            runner = ImpatientExecutor(lambda call=call, patch=patch: patch.setattr(os, name, call))
            with pytest.raises(KeyboardInterrupt):
                run_inline(out, tasks, executor=runner)
        status = read_status(out)
        assert (status["done"], status["pending"]) == (4, 6)
        assert [key for key, _ in verify(out).problems if key] == []
        run_inline(out, tasks)
        assert tree(out) == want
        assert verify(out).problems == ()
        if call.left > 0:
            break
    assert n > 2 or name in ("rename", "unlink")
