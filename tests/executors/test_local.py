import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from gmcli.checkpoints.locate import locate_checkpoint
from gmcli.config import RunConfig
from gmcli.errors import CheckpointError, EnvironmentProblem
from gmcli.executors.local import LocalExecutor, _visible
from gmcli.executors.messages import Answered, Frames, Job, Ready, Tick, WorkerSetup
from tests.fakes import executor, video_task


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
            found[event.job.task.id] += event.results
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
    assert [e.job.task.id for e in events if isinstance(e, Answered) and e.last] == list("cab")


def test_no_message_holds_the_masks_of_two_questions(tmp_path):
    events = collect(executor(tmp_path / "logs"), jobs(tmp_path, "a"))
    assert [(len(e.results), e.last) for e in events if isinstance(e, Answered)] == [(1, False), (1, False), (0, True)]


def test_what_a_dying_worker_has_delivered_is_not_asked_again(tmp_path):
    events = collect(executor(tmp_path / "logs"), jobs(tmp_path, "half", "b"))
    assert (tmp_path / "half.tried").exists()
    delivered = [
        r.question_id for e in events if isinstance(e, Answered) and e.job.task.id == "half" for r in e.results
    ]
    assert delivered == ["q0", "q1"]


def test_a_worker_that_dies_is_replaced_and_its_video_retried_once(tmp_path):
    found = answers(collect(executor(tmp_path / "logs"), jobs(tmp_path, "a", "dies-once", "b")))
    assert all(r.status == "done" for results in found.values() for r in results)
    assert (tmp_path / "dies-once.tried").exists()


def test_a_video_that_kills_twice_is_marked_failed_and_the_rest_goes_on(tmp_path):
    found = answers(collect(executor(tmp_path / "logs", workers=2), jobs(tmp_path, "a", "dies", "b", "c")))
    assert [r.status for r in found["dies"]] == ["failed", "failed"]
    assert "killed by SIGKILL" in found["dies"][0].error
    assert "2 times" in found["dies"][0].error
    assert all(r.status == "done" for v in "abc" for r in found[v])


def test_a_worker_without_a_sign_of_life_is_replaced(tmp_path):
    found = answers(collect(executor(tmp_path / "logs", stall_timeout_s=3), jobs(tmp_path, "hangs", "a")))
    assert "no sign of life for 3 s" in found["hangs"][0].error
    assert found["a"][0].status == "done"


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
    runner = LocalExecutor(setup, gpus=["0"], workers=1, logs=tmp_path, stall_timeout_s=60)
    with pytest.raises(EnvironmentProblem, match="sees no GPU"):
        collect(runner, jobs(tmp_path, "a"))


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a signal")
def test_the_drivers_death_leaves_no_orphan(tmp_path):
    """Start a real worker process under a driver that is killed at once: the worker goes too."""
    code = (
        "import os, subprocess, sys, time\n"
        "from multiprocessing.connection import Pipe\n"
        "ours, theirs = Pipe()\n"
        "p = subprocess.Popen([sys.executable, '-m', 'gmcli.executors.worker', str(theirs.fileno()), str(os.getpid())],"
        " pass_fds=[theirs.fileno()])\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    worker = int(driver.stdout.readline())
    time.sleep(1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(worker):
        time.sleep(0.05)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_gpu_numbers_count_within_what_the_caller_may_see(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _visible("1") == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [_visible("0"), _visible("1")] == ["4", "6"]
