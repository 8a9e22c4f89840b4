"""Build tasks, ledgers and executors around the fake worker."""

import types
from pathlib import Path

from gmcli.config import RunConfig
from gmcli.data import ItemResult, Question, VideoTask
from gmcli.executors.local import LocalExecutor
from gmcli.executors.messages import WorkerSetup
from gmcli.ledger import LOGS, Identity, Ledger
from gmcli.progress import Progress
from gmcli.run import check_unchanged, plan, run

IDENTITY = Identity(settings={"checkpoint": "x", "frames": 20}, decisive={"frames": 20}, checkpoint_sha256="c" * 64)


def video_task(folder: Path, video: str, *questions: str, size: int = 1000) -> VideoTask:
    return VideoTask(
        video,
        str(folder / f"{video}.mp4"),
        tuple(Question(q, f"Who {q}?") for q in questions or ("q0",)),
        size_bytes=size,
    )


def executor(logs: Path, *, workers: int = 1, dtype: str = "fp32", **settings) -> LocalExecutor:
    logs.mkdir(parents=True, exist_ok=True)
    setup = WorkerSetup(
        files=types.SimpleNamespace(),
        config=RunConfig(**settings),
        device="cpu",
        dtype=dtype,
        threads=1,
        log_format="text",
    )
    return LocalExecutor(
        setup,
        gpus=None,
        workers=workers,
        logs=logs,
        worker_module="tests.fake_worker",
    )


def run_tasks(out: Path, tasks, *, formats=("png", "rle"), retry_failed=False, identity=IDENTITY, **settings):
    """Do what `gmcli infer` does once everything is loaded."""
    with Ledger.open(out, identity) as ledger:
        jobs = plan(tasks, ledger.pending(tasks, retry_failed=retry_failed))
        progress = Progress(videos=len(jobs), questions=sum(len(j.pending) for j in jobs), bar=False)
        return run(tasks, jobs, ledger, executor(out / LOGS, **settings), formats, progress)


def tree(folder: Path, *, without=("run.json", "heartbeat.json")) -> dict[str, bytes]:
    """Read every file of a run directory but logs, the lock, and what holds timings."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in (*without, ".lock") and LOGS not in p.relative_to(folder).parts
    }


class InlineExecutor:
    """Answer jobs in this process, as the fake worker would."""

    def __init__(self) -> None:
        self.closed = self.draining = False
        self.restarts = 0

    def drain(self) -> None:
        self.draining = True

    def at_work(self):
        return {}

    def run(self, jobs):
        from gmcli.executors.messages import Answered, Frames, Ready
        from tests.fake_worker import FRAMES, result

        yield Ready(0, {"device": "none"})
        for job in jobs:
            if self.draining:
                return
            yield Frames(job.task.id, FRAMES)
            if job.task.id.startswith("interrupt"):
                raise KeyboardInterrupt
            failed = job.task.id.startswith("bad")
            results = [
                ItemResult(job.task.id, q, "failed", error="no video") if failed else result(job, q)
                for q in job.pending
            ]
            yield Answered(job.task.id, tuple(results), {"llm": 0.5}, {"sam_frames": FRAMES})

    def close(self) -> None:
        self.closed = True


def run_inline(
    out: Path,
    tasks,
    *,
    formats=("png", "rle"),
    retry_failed=False,
    redo=False,
    identity=IDENTITY,
    executor=None,
    limits=None,
    watch=None,
):
    with Ledger.open(out, identity) as ledger:
        check_unchanged(ledger, tasks, redo=redo)
        jobs = plan(tasks, ledger.pending(tasks, retry_failed=retry_failed))
        progress = Progress(videos=len(jobs), questions=sum(len(j.pending) for j in jobs), bar=False)
        return run(tasks, jobs, ledger, executor or InlineExecutor(), formats, progress, limits, watch)
