"""Define what passes between the driver and its workers. Workers are our own processes: pickle is safe between them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gmcli.checkpoints.locate import CheckpointFiles
from gmcli.config import RunConfig
from gmcli.data import ItemResult, VideoTask
from gmcli.errors import GmcliError


@dataclass(frozen=True, slots=True)
class Job:
    """Ask for one video; `pending` are the ids of the questions that need results."""

    task: VideoTask
    pending: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """Tell a worker what to load, and where."""

    files: CheckpointFiles
    config: RunConfig
    device: str
    dtype: str
    threads: int
    log_format: str
    run_id: str = ""


@dataclass(frozen=True, slots=True)
class Ready:
    """Say that a worker has loaded the model; `facts` name its device and versions."""

    worker: int
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """Say that a worker cannot work at all, so that the run must end."""

    error: GmcliError


@dataclass(frozen=True, slots=True)
class Frames:
    """Say that so many more frames of a video have their masks."""

    video: str
    count: int


@dataclass(frozen=True, slots=True)
class Answered:
    """Deliver some results of one video's job; the `last` message of a job also says what it cost.

    A worker sends question by question, so that the driver never holds the masks of more than one.
    """

    video: str
    results: tuple[ItemResult, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    last: bool = True


@dataclass(frozen=True, slots=True)
class Tick:
    """Say that a moment has passed without news, so that whoever waits can show it."""


Event = Ready | Frames | Answered | Tick


class Executor(Protocol):
    """Work through jobs on some machines and deliver each question's result exactly once.

    `restarts` counts the workers that died or fell silent and were replaced.
    """

    restarts: int

    def run(self, jobs: Sequence[Job]) -> Iterator[Event]:
        """Yield events until every job is answered. Raises GmcliError where no worker can work."""

    def drain(self) -> None:
        """Begin no more jobs: run() ends when those in progress are answered."""

    def at_work(self) -> Mapping[int, str]:
        """Return the id of the video that each worker is on, by the worker's number."""

    def close(self) -> None:
        """End all workers at once; what they were doing is lost."""


def logs_of(folder: Path, worker: int) -> Path:
    """Return the log file of one worker."""
    return folder / f"worker-{worker}.log"
