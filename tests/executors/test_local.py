import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict

import pytest
import torch

from gmcli.checkpoints.locate import locate_checkpoint
from gmcli.config import RunConfig
from gmcli.errors import CheckpointError, EnvironmentProblem
from gmcli.executors import local
from gmcli.executors.local import LocalExecutor, _visible
from gmcli.executors.messages import Answered, Frames, Job, Ready, Tick, WorkerSetup
from gmcli.ledger import LOGS, Ledger
from gmcli.progress import Progress
from gmcli.run import plan, run
from tests.fakes import IDENTITY, executor, run_inline, tree, video_task
from tests.processes import alive, children_of


def jobs(folder, *videos):
    return [Job(video_task(folder, v, "q0", "q1"), ("q0", "q1")) for v in videos]


def collect(runner: LocalExecutor, work):
    try:
        return list(runner.run(work))
    finally:
        runner.close()


def answers(events):
    found = defaultdict(list)
    for event in events:
        if isinstance(event, Answered):
            found[event.video] += event.results
    return found


def test_every_job_is_answered_once_by_workers_that_stay(tmp_path):
    events = collect(executor(tmp_path / "logs", workers=2), jobs(tmp_path, *"abcdefgh"))
    assert sorted(answers(events)) == list("abcdefgh")
    assert sum(isinstance(e, Answered) and e.last for e in events) == 8
    assert sum(len(e.results) for e in events if isinstance(e, Answered)) == 16
    assert sum(isinstance(e, Ready) for e in events) <= 2
    assert sum(e.count for e in events if isinstance(e, Frames)) == 32


def test_jobs_are_handed_out_in_their_order(tmp_path):
    events = collect(executor(tmp_path / "logs"), jobs(tmp_path, *"cab"))
    assert [e.video for e in events if isinstance(e, Answered) and e.last] == list("cab")


def test_no_message_holds_the_masks_of_two_questions(tmp_path):
    events = collect(executor(tmp_path / "logs"), jobs(tmp_path, "a"))
    assert [(len(e.results), e.last) for e in events if isinstance(e, Answered)] == [(1, False), (1, False), (0, True)]


def test_what_a_dying_worker_has_delivered_is_not_asked_again(tmp_path):
    events = collect(executor(tmp_path / "logs"), jobs(tmp_path, "half", "b"))
    assert (tmp_path / "half.tried").exists()
    delivered = [r.question_id for e in events if isinstance(e, Answered) and e.video == "half" for r in e.results]
    assert delivered == ["q0", "q1"]


def test_a_worker_that_dies_is_replaced_and_its_video_retried_once(tmp_path):
    found = answers(collect(executor(tmp_path / "logs"), jobs(tmp_path, "a", "dies-once", "b")))
    assert all(r.status == "done" for results in found.values() for r in results)
    assert (tmp_path / "dies-once.tried").exists()


def test_a_video_on_which_workers_are_killed_gets_five_tries_and_the_rest_goes_on(tmp_path):
    events = collect(executor(tmp_path / "logs", workers=2), jobs(tmp_path, "a", "dies", "b", "c"))
    found = answers(events)
    assert [r.status for r in found["dies"]] == ["failed", "failed"]
    assert found["dies"][0].error == (
        "the worker was killed by SIGKILL on this video, 5 times (out of memory, perhaps)"
    )
    assert all(r.status == "done" for v in "abc" for r in found[v])


def test_a_worker_that_ends_by_itself_gets_two_and_its_last_words_are_kept(tmp_path):
    found = answers(collect(executor(tmp_path / "logs"), jobs(tmp_path, "exits", "a")))
    assert found["exits"][0].error == (
        "the worker ended with exit code 1 on this video, 2 times (RuntimeError: CUDA error: an illegal address)"
    )
    assert found["a"][0].status == "done"


def test_the_number_of_tries_is_a_setting(tmp_path, caplog):
    runner = executor(tmp_path / "logs", attempts=3, kill_attempts=1)
    found = answers(collect(runner, jobs(tmp_path, "exits", "dies")))
    assert "on this video, 3 times" in found["exits"][0].error
    assert "on this video, 3 times" in found["dies"][0].error  # never fewer than attempts
    assert runner.restarts == 5


def test_after_two_deaths_a_video_waits_until_the_others_are_done(tmp_path):
    events = collect(executor(tmp_path / "logs"), jobs(tmp_path, "dies", *"abc"))
    assert [e.video for e in events if isinstance(e, Answered) and e.last] == ["a", "b", "c", "dies"]


@pytest.mark.parametrize(
    ("video", "settings", "said"),
    [
        ("hangs", {"stall_timeout_s": 1}, "gave no sign of life for 1 s on this video, 2 times"),
        (
            "hangs-llm",
            {"stall_timeout_s": 5, "stage_timeouts_s": {"llm": 1}},
            "gave no sign of life for 1 s while in llm on this video, 2 times",
        ),
        # Half a message: the driver may not wait for the other half.
        ("stops", {"stall_timeout_s": 1}, "gave no sign of life for 1 s on this video, 2 times"),
    ],
)
def test_a_worker_without_a_sign_of_life_is_replaced(tmp_path, video, settings, said):
    found = answers(collect(executor(tmp_path / "logs", **settings), jobs(tmp_path, video, "a")))
    assert found[video][0].error == f"the worker {said}"
    assert found["a"][0].status == "done"


def test_a_worker_that_never_gets_ready_is_replaced_and_then_given_up(tmp_path):
    with pytest.raises(EnvironmentProblem, match="workers cannot start: the last one was not ready after 1 s"):
        collect(executor(tmp_path / "logs", dtype="slow-start", start_timeout_s=1), jobs(tmp_path, "a"))


def test_a_worker_that_is_stopped_from_outside_is_replaced(tmp_path):
    runner = executor(tmp_path / "logs", stall_timeout_s=2)
    events = runner.run(jobs(tmp_path, "slow", "b"))
    ready = next(e for e in events if isinstance(e, Ready))
    os.kill(ready.facts["pid"], signal.SIGSTOP)
    rest = list(events)
    runner.close()
    found = answers(rest)
    assert [r.status for v in ("slow", "b") for r in found[v]] == ["done"] * 4
    assert sum(isinstance(e, Ready) for e in rest) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(ready.facts["pid"], 0)


def test_a_driver_that_stood_still_does_not_blame_its_workers(tmp_path, monkeypatch, caplog):
    """Stop both, as a laptop that is closed does: the driver wakes up first and has heard nothing for long."""
    monkeypatch.setattr(local, "_DEAF_S", 1.5)
    runner = executor(tmp_path / "logs", stall_timeout_s=2)
    events = runner.run(jobs(tmp_path, "slow"))
    ready = next(e for e in events if isinstance(e, Ready))
    os.kill(ready.facts["pid"], signal.SIGSTOP)
    time.sleep(3)
    threading.Timer(0.2, os.kill, (ready.facts["pid"], signal.SIGCONT)).start()
    rest = list(events)
    runner.close()
    assert not any(isinstance(e, Ready) for e in rest)
    assert runner.restarts == 0
    assert "the driver stood still for 3 s" in caplog.text


def test_starts_that_are_killed_do_not_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "pause_s", lambda deaths: 0.0)
    found = answers(collect(executor(tmp_path / "logs", dtype=f"killed-start|{tmp_path}|9"), jobs(tmp_path, "a")))
    assert [r.status for r in found["a"]] == ["done", "done"]
    with pytest.raises(EnvironmentProblem, match="killed by SIGKILL"):
        collect(executor(tmp_path / "logs", dtype=f"killed-start|{tmp_path}|99"), jobs(tmp_path, "a"))


def test_one_place_that_cannot_start_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(local, "pause_s", lambda deaths: 0.0)
    runner = executor(tmp_path / "logs", dtype="one-start", workers=2)
    found = answers(collect(runner, jobs(tmp_path, *[f"slow{i}" for i in range(3)])))
    assert all(r.status == "done" for results in found.values() for r in results)
    assert "worker 1 cannot start and is given up; the others go on" in caplog.text


def test_a_job_longer_than_the_sockets_buffer_arrives_and_a_stopped_worker_does_not_hold_the_driver(tmp_path):
    runner = executor(tmp_path / "logs", stall_timeout_s=1)
    long = Job(video_task(tmp_path, "long", *[f"q{i}" for i in range(20_000)]), ("q7",))
    events = runner.run([long])
    # Stopped before it is handed the job: so much does not fit the buffer.
    ready = next(e for e in events if isinstance(e, Ready))
    os.kill(ready.facts["pid"], signal.SIGSTOP)
    found = answers(events)
    runner.close()
    assert [r.status for r in found["long"]] == ["done"]


def test_random_kills_lose_nothing_and_answer_nothing_twice(tmp_path):
    """Kill one of two workers every 0.3 s, loading or at work, through 200 videos."""
    rng = random.Random(11)
    work = [video_task(tmp_path, f"works{i:03}") for i in range(200)]
    run_inline(tmp_path / "fresh", work)
    runner = executor(tmp_path / "out" / LOGS, workers=2)
    killed, stop = [], threading.Event()

    def kill() -> None:
        # Ended after so many: a machine on which starting takes as long as the pause would never come to an end.
        while not stop.wait(0.3) and len(killed) < 25:
            children = children_of(os.getpid(), b"tests.fake_worker")
            if children:
                killed.append(rng.choice(children))
                os.kill(killed[-1], signal.SIGKILL)

    with Ledger.open(tmp_path / "out", IDENTITY) as ledger:
        todo = plan(work, ledger.pending(work))
        seen = Counter()

        class Counting:
            restarts, drain, at_work, close = 0, runner.drain, runner.at_work, runner.close

            def run(self, jobs):
                for event in runner.run(jobs):
                    if isinstance(event, Answered):
                        seen.update((r.video_id, r.question_id) for r in event.results)
                    yield event

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            outcome = run(
                work, todo, ledger, Counting(), ("png", "rle"), Progress(videos=200, questions=200, bar=False)
            )
        finally:
            stop.set()
            killer.join()
    assert len(killed) >= 8
    assert (outcome.done, outcome.failed, outcome.pending) == (200, 0, 0)
    assert set(seen.values()) == {1}
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_a_checkpoint_that_does_not_load_ends_the_run(tmp_path):
    with pytest.raises(CheckpointError, match="weights do not fit") as caught:
        collect(executor(tmp_path / "logs", dtype="no-checkpoint"), jobs(tmp_path, "a"))
    assert caught.value.hint == "convert again"


def test_workers_that_cannot_start_end_the_run_with_their_last_words(tmp_path):
    with pytest.raises(EnvironmentProblem, match=r"exit code 1 \(this worker cannot start\)"):
        collect(executor(tmp_path / "logs", dtype="no-start", workers=2), jobs(tmp_path, "a", "b"))


def test_waiting_is_told(tmp_path):
    events = collect(executor(tmp_path / "logs"), jobs(tmp_path, "slow", "slower"))
    assert any(isinstance(e, Tick) for e in events)


def test_no_more_workers_than_jobs(tmp_path):
    events = collect(executor(tmp_path / "logs", workers=5), jobs(tmp_path, "slow"))
    assert sum(isinstance(e, Ready) for e in events) == 1


def test_close_ends_a_worker_at_work(tmp_path):
    runner = executor(tmp_path / "logs")
    events = runner.run(jobs(tmp_path, "hangs"))
    ready = next(events)
    start = time.monotonic()
    runner.close()
    assert time.monotonic() - start < 5
    with pytest.raises(ProcessLookupError):
        os.kill(ready.facts["pid"], 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_real_worker_without_a_gpu_says_so_and_does_not_fall_back(tmp_path):
    setup = WorkerSetup(
        files=locate_checkpoint("mora-tiny"),
        config=RunConfig(),
        device="cuda",
        dtype="bf16",
        threads=1,
        log_format="text",
    )
    runner = LocalExecutor(setup, gpus=["0"], workers=1, logs=tmp_path)
    with pytest.raises(EnvironmentProblem, match="sees no GPU"):
        collect(runner, jobs(tmp_path, "a"))


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a signal")
def test_the_drivers_death_leaves_no_orphan(tmp_path):
    """Kill a driver whose worker is stopped, and so cannot notice by itself: the worker goes too."""
    code = (
        "import os, pathlib, signal, sys, time\n"
        "from tests.fakes import executor, video_task\n"
        "from gmcli.executors.messages import Job, Ready\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "runner = executor(folder / 'logs')\n"
        "for event in runner.run([Job(video_task(folder, 'a'), ('q0',))]):\n"
        "    if isinstance(event, Ready):\n"
        "        os.kill(event.facts['pid'], signal.SIGSTOP)\n"
        "        print(event.facts['pid'], flush=True)\n"
        "        time.sleep(60)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(driver.stdout.readline())
    assert alive(worker)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and alive(worker):
        time.sleep(0.05)
    assert not alive(worker)


def test_gpu_numbers_count_within_what_the_caller_may_see(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _visible("1") == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [_visible("0"), _visible("1")] == ["4", "6"]
