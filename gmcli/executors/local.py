"""Run worker processes on this machine: one for each GPU, or some on the CPU.

Workers pull: each gets its next video the moment it delivers one. A worker that dies or falls silent is replaced, and its
video is tried again until it is to blame (deaths.py): then its questions are marked failed with the reason. The rest of the
run goes on.
"""

import logging
import os
import selectors
import socket
import subprocess
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gmcli.data import ItemResult
from gmcli.errors import EnvironmentProblem
from gmcli.executors.channel import DriverEnd
from gmcli.executors.deaths import Death, cannot_start, death_of, pause_s, to_blame, video_error
from gmcli.executors.messages import Answered, Event, Failed, Frames, Job, Ready, Tick, WorkerSetup, logs_of
from gmcli.executors.pulse import Pulse, make_pulse

log = logging.getLogger("gmcli.executor")

_POLL_S = 1.0
# A driver that was stopped, asleep or long at writing for more than this has not been listening: nobody was silent.
_DEAF_S = 5.0
# So long a worker may take to end after it has closed its end.
_LAST_BREATH_S = 5.0


@dataclass(slots=True)
class _Worker:
    """Follow one process. `job` is what it works on, `delivered` what it has answered of that."""

    process: "subprocess.Popen[bytes]"
    end: DriverEnd
    pulse: Pulse
    ready: bool = False
    ended: bool = False
    job: Job | None = None
    delivered: set[str] = field(default_factory=set)
    beats: int = 0
    heard: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Place:
    """Hold one worker at a time. `failed_starts` are its deaths in a row before it was ready."""

    number: int
    gpu: str | None
    worker: _Worker | None = None
    failed_starts: list[Death] = field(default_factory=list)
    begun: bool = False
    start_at: float = 0.0
    given_up: bool = False


class LocalExecutor:
    """Spread jobs over worker processes. `gpus` are device numbers, or None for `workers` processes on the CPU."""

    def __init__(
        self,
        setup: WorkerSetup,
        *,
        gpus: Sequence[str] | None,
        workers: int,
        logs: Path,
        worker_module: str = "gmcli.executors.worker",
    ) -> None:
        self._setup, self._config = setup, setup.config
        self._places = [_Place(i, gpu) for i, gpu in enumerate(gpus if gpus is not None else [None] * workers)]
        self._logs = logs
        self._worker_module = worker_module
        self._selector = selectors.DefaultSelector()
        self._queue: deque[Job] = deque()
        self._deaths: defaultdict[str, list[Death]] = defaultdict(list)
        self._listened = time.monotonic()
        self._draining = False
        self.restarts = 0

    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Yield events until every job is answered; see Executor."""
        self._queue = deque(jobs)
        self._listened = time.monotonic()
        open_jobs = len(jobs)
        while open_jobs and not (self._draining and not self.at_work()):
            self._start_missing()
            self._hand_out()
            for event in self._events():
                # The next video goes out before the driver turns to this one's results, which it has to write.
                self._hand_out()
                yield event
                open_jobs -= isinstance(event, Answered) and event.last
                # Kept, it would stay in memory beside the next question's masks.
                del event

    def drain(self) -> None:
        """Begin no more jobs; see Executor."""
        self._draining = True

    def at_work(self) -> Mapping[int, str]:
        """Return the id of the video that each worker is on, by the worker's number."""
        return {place.number: w.job.task.id for place in self._places if (w := place.worker) and w.job}

    def close(self) -> None:
        """Kill all workers."""
        places = [(place, place.worker) for place in self._places if place.worker]
        for _, worker in places:
            worker.process.kill()
        for place, worker in places:
            worker.process.wait()
            self._let_go(place, worker)
        self._selector.close()

    # --- starting ------------------------------------------------------------------------------------------------------

    def _start_missing(self) -> None:
        """Start workers where there are none, as long as more videos wait than workers."""
        now = time.monotonic()
        waiting = sum(1 for place in self._places if place.worker and place.worker.job is None)
        for place in self._places:
            free = place.worker is None and not place.given_up and now >= place.start_at
            if free and len(self._queue) > waiting and not self._draining:
                self.restarts += place.begun
                place.worker, place.begun = self._start(place), True
                waiting += 1

    def _start(self, place: _Place) -> _Worker:
        ours, theirs = socket.socketpair()
        pulse = make_pulse()
        environment = dict(os.environ, PYTHONUNBUFFERED="1", OMP_NUM_THREADS=str(self._setup.threads))
        if place.gpu is not None:
            environment |= {"CUDA_VISIBLE_DEVICES": _visible(place.gpu), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        given = [theirs.fileno(), pulse]
        try:
            with theirs, logs_of(self._logs, place.number).open("ab") as log_file:
                process = subprocess.Popen(
                    [sys.executable, "-m", self._worker_module, *map(str, given), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    env=environment,
                    pass_fds=given,
                )
            worker = _Worker(process, DriverEnd(ours), Pulse(pulse))
        finally:
            os.close(pulse)
        self._selector.register(ours, selectors.EVENT_READ, place)
        worker.end.send((place.number, self._setup))
        return worker

    # --- handing out and listening -------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        for worker in [place.worker for place in self._places if place.worker]:
            if worker.ready and not worker.ended and worker.job is None and self._queue and not self._draining:
                worker.job = self._queue.popleft()
                worker.delivered.clear()
                worker.heard = time.monotonic()
                worker.end.send(worker.job)

    def _events(self) -> Iterator[Event]:
        for place in self._places:
            if worker := place.worker:
                write = selectors.EVENT_WRITE if worker.end.unsent else 0
                self._selector.modify(worker.end.socket, selectors.EVENT_READ | write, place)
        heard = self._selector.select(_POLL_S)
        if not heard:
            yield Tick()
        for key, mask in heard:
            place = key.data
            if mask & selectors.EVENT_WRITE:
                place.worker.end.flush()
            if mask & selectors.EVENT_READ:
                yield from self._understand(place, place.worker, place.worker.end.receive())
        now = time.monotonic()
        self._forgive(now)
        for place in self._places:
            if worker := place.worker:
                silence = self._silence(worker, now)
                if worker.end.ended or silence or worker.process.poll() is not None:
                    yield from self._bury(place, worker, silence)

    def _understand(self, place: _Place, worker: _Worker, messages: Iterator[Any]) -> Iterator[Event]:
        for message in messages:
            worker.heard = time.monotonic()
            match message:
                case Failed(error):
                    raise error
                case Ready():
                    worker.ready = True
                    place.failed_starts.clear()
                    yield message
                case Frames():
                    yield message
                case Answered():
                    worker.delivered.update(result.question_id for result in message.results)
                    if message.last:
                        worker.job = None
                    yield message
            del message  # as in run()

    def _forgive(self, now: float) -> None:
        """Do not count as a worker's silence what the driver has not listened to."""
        deaf = now - self._listened
        self._listened = now
        if deaf > _DEAF_S:
            log.warning("the driver stood still for %.0f s", deaf)
            for worker in [place.worker for place in self._places if place.worker]:
                worker.heard = min(worker.heard + deaf, now)

    def _silence(self, worker: _Worker, now: float) -> Death | None:
        """Say what is wrong with a worker that has shown no life for too long."""
        beats, stage = worker.pulse.look()
        if beats != worker.beats:
            worker.beats, worker.heard = beats, now
        silent = now - worker.heard
        if not worker.ready:
            limit = self._config.start_timeout_s
            return Death(f"was not ready after {limit:g} s") if silent > limit else None
        limit = self._config.stage_timeouts_s.get(stage, self._config.stall_timeout_s)
        if worker.job is None or silent <= limit:
            return None
        return Death(f"gave no sign of life for {limit:g} s" + (f" while in {stage}" if stage else ""))

    # --- deaths --------------------------------------------------------------------------------------------------------

    def _bury(self, place: _Place, worker: _Worker, silence: Death | None) -> Iterator[Event]:
        """Take leave of a worker, and try its video again or give it up."""
        worker.ended = True
        death = self._end(place, worker, silence)
        # What it had sent is delivered, to the last whole message.
        yield from self._understand(place, worker, worker.end.rest())
        self._let_go(place, worker)
        if not worker.ready:
            self._note_failed_start(place, death)
        job = worker.job
        if job is None:
            if worker.ready:
                log.warning("worker %d %s between two videos", place.number, death)
            return
        video, left = job.task.id, tuple(q for q in job.pending if q not in worker.delivered)
        if not left:
            yield Answered(video, ())
            return
        deaths = self._deaths[video]
        deaths.append(death)
        given_up = to_blame(deaths, self._config)
        then = "giving it up" if given_up else "trying again" if len(deaths) == 1 else "trying again after the others"
        about = {"video": video}
        log.warning("worker %d %s on video %s (%d); %s", place.number, death, video, len(deaths), then, extra=about)
        if given_up:
            error = video_error(deaths)
            yield Answered(video, tuple(ItemResult(video, question, "failed", error=error) for question in left))
        elif len(deaths) == 1:
            self._queue.appendleft(replace(job, pending=left))
        else:
            self._queue.append(replace(job, pending=left))

    def _end(self, place: _Place, worker: _Worker, silence: Death | None) -> Death:
        """See a process to its end; return how it came."""
        if silence:
            worker.process.kill()
            worker.process.wait()
            return silence
        try:
            code = worker.process.wait(_LAST_BREATH_S)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
            return Death("hung up")
        return death_of(code, logs_of(self._logs, place.number))

    def _note_failed_start(self, place: _Place, death: Death) -> None:
        """Wait before the next start; give the place up, and the run with the last one, where starting has no sense."""
        place.failed_starts.append(death)
        place.start_at = time.monotonic() + pause_s(place.failed_starts)
        log.warning("worker %d %s before it was ready", place.number, death)
        if not cannot_start(place.failed_starts, self._config):
            return
        place.given_up = True
        where = logs_of(self._logs, place.number)
        if all(each.given_up for each in self._places if each.begun):
            raise EnvironmentProblem(
                f"workers cannot start: the last one {death}", f"See {where}, and run `gmcli doctor`."
            )
        log.error("worker %d cannot start and is given up; the others go on. See %s", place.number, where)

    def _let_go(self, place: _Place, worker: _Worker) -> None:
        self._selector.unregister(worker.end.socket)
        worker.end.socket.close()
        worker.pulse.close()
        place.worker = None


def _visible(gpu: str) -> str:
    """Translate a device number where the caller's own CUDA_VISIBLE_DEVICES already restricts them."""
    visible = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    return visible[int(gpu)] if int(gpu) < len(visible) else gpu
