"""Run worker processes on this machine: one for each GPU, or some on the CPU.

Workers pull: each gets its next video the moment it delivers one. A worker that dies or falls silent is replaced, its
video is tried once more, then its questions are marked failed with the reason; the rest of the run goes on.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from gmcli.data import ItemResult
from gmcli.errors import EnvironmentProblem
from gmcli.executors.messages import Answered, Event, Failed, Frames, Job, Ready, Tick, WorkerSetup, logs_of

log = logging.getLogger("gmcli.executor")

ATTEMPTS = 2
_POLL_S = 1.0


@dataclass(slots=True)
class _Worker:
    """Follow one worker process. `job` is what it works on; `silent_since` when it last said anything."""

    number: int
    gpu: str | None
    process: "subprocess.Popen[bytes]"
    connection: Connection
    ready: bool = False
    job: Job | None = None
    silent_since: float = field(default_factory=time.monotonic)


class LocalExecutor:
    """Spread jobs over worker processes. `gpus` are device numbers, or None for `workers` processes on the CPU."""

    def __init__(
        self,
        setup: WorkerSetup,
        *,
        gpus: Sequence[str] | None,
        workers: int,
        logs: Path,
        stall_timeout_s: float,
        worker_module: str = "gmcli.executors.worker",
    ) -> None:
        self._setup = setup
        self._slots: list[str | None] = list(gpus) if gpus is not None else [None] * workers
        self._logs = logs
        self._stall_timeout_s = stall_timeout_s
        self._worker_module = worker_module
        self._workers: list[_Worker] = []
        self._queue: deque[Job] = deque()
        self._deaths: dict[str, int] = {}
        self._failed_starts = 0

    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Yield events until every job is answered; see Executor."""
        self._queue = deque(jobs)
        open_jobs = len(jobs)
        for number, gpu in enumerate(self._slots[: len(jobs)]):
            self._workers.append(self._start(number, gpu))
        while open_jobs:
            self._hand_out()
            for event in self._events():
                # The next video goes out before the driver turns to this one's results, which it has to write.
                self._hand_out()
                yield event
                open_jobs -= isinstance(event, Answered) and event.last

    def close(self) -> None:
        """Kill all workers."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.connection.close()
        self._workers.clear()

    def _start(self, number: int, gpu: str | None) -> _Worker:
        ours, theirs = Pipe()
        environment = dict(os.environ, PYTHONUNBUFFERED="1", OMP_NUM_THREADS=str(self._setup.threads))
        if gpu is not None:
            environment |= {"CUDA_VISIBLE_DEVICES": _visible(gpu), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        with theirs, logs_of(self._logs, number).open("ab") as log_file:
            process = subprocess.Popen(
                [sys.executable, "-m", self._worker_module, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                env=environment,
                pass_fds=[theirs.fileno()],
            )
        worker = _Worker(number, gpu, process, ours)
        try:
            ours.send((number, self._setup))
        except (BrokenPipeError, ConnectionResetError):
            log.debug("worker %d ended before it was set up", number)
        return worker

    def _hand_out(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.job is None and self._queue:
                worker.job = self._queue.popleft()
                worker.silent_since = time.monotonic()
                try:
                    worker.connection.send(worker.job)
                except (BrokenPipeError, ConnectionResetError):
                    # It has just died; its end of the pipe will say so.
                    log.debug("worker %d is gone", worker.number)

    def _events(self) -> Iterator[Event]:
        by_connection = {w.connection: w for w in self._workers}
        heard = wait(list(by_connection), timeout=_POLL_S)
        if not heard:
            yield Tick()
        for connection in heard:
            worker = by_connection[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                yield from self._bury(worker, None)
                continue
            worker.silent_since = time.monotonic()
            match message:
                case Failed(error):
                    raise error
                case Ready():
                    worker.ready = True
                    self._failed_starts = 0
                    yield message
                case Frames():
                    yield message
                case Answered():
                    worker.job = None if message.last else _without(worker.job, message.results)
                    yield message
        now = time.monotonic()
        for worker in [w for w in self._workers if w.job and now - w.silent_since > self._stall_timeout_s]:
            worker.process.kill()
            yield from self._bury(worker, f"gave no sign of life for {self._stall_timeout_s:.0f} s")

    def _bury(self, worker: _Worker, reason: str | None) -> Iterator[Event]:
        """Replace a worker that has ended, and try its video again or give it up."""
        self._workers.remove(worker)
        worker.connection.close()
        code = worker.process.wait()
        reason = reason or _end(code)
        where = logs_of(self._logs, worker.number)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= ATTEMPTS * len(self._slots):
                raise EnvironmentProblem(
                    f"workers cannot start: the last one {reason} ({_last_line(where)})",
                    f"See {where}, and run `gmcli doctor`.",
                )
        job = worker.job
        given_up = False
        if job is not None:
            video = job.task.id
            self._deaths[video] = self._deaths.get(video, 0) + 1
            given_up = self._deaths[video] >= ATTEMPTS
            log.warning(
                "worker %d %s on video %s; %s",
                worker.number,
                reason,
                video,
                "giving up" if given_up else "trying again",
            )
            if not given_up:
                self._queue.appendleft(job)
        if self._queue or any(w.job for w in self._workers):
            self._workers.append(self._start(worker.number, worker.gpu))
        if job is not None and given_up:
            error = f"the worker {reason} on this video, {ATTEMPTS} times"
            yield Answered(job, tuple(ItemResult(job.task.id, q, "failed", error=error) for q in job.pending))


def _without(job: Job | None, results: Sequence[ItemResult]) -> Job | None:
    """Take from a job the questions that are answered, so that none is answered twice should the worker die now."""
    answered = {result.question_id for result in results}
    return job and replace(job, pending=tuple(question for question in job.pending if question not in answered))


def _visible(gpu: str) -> str:
    """Translate a device number where the caller's own CUDA_VISIBLE_DEVICES already restricts them."""
    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    return visible[int(gpu)] if int(gpu) < len(visible) else gpu


def _last_line(log_file: Path) -> str:
    with log_file.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it wrote no log"


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory, perhaps)" if -code == signal.SIGKILL else "")
