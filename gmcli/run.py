"""Run a manifest: plan, hand out, write, record. The driver alone writes results, so there are no locks inside a run."""

import errno
import hashlib
import json
import logging
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from gmcli import __version__
from gmcli.data import ItemResult, Question, VideoTask
from gmcli.errors import ConfigError, EnvironmentProblem
from gmcli.executors.messages import Answered, Executor, Frames, Job, Ready, Tick
from gmcli.files import write_file
from gmcli.items import write_item
from gmcli.kept_manifest import KEPT_MANIFEST, manifest_content
from gmcli.ledger import (
    FAILURES,
    RESULTS,
    RUN,
    STATUSES,
    Key,
    Ledger,
    Record,
    inputs_of,
    item_name,
    read_run,
    write_if_changed,
)
from gmcli.progress import Progress

log = logging.getLogger("gmcli.run")

# What a frame of compressed video takes on disk, roughly; used only to put long videos first.
_BYTES_PER_FRAME = 15_000
_PACKAGES = ("torch", "torchvision", "transformers", "segment-anything", "av", "numpy", "pycocotools")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Count what a run directory holds after a run: questions by status, and what this run did."""

    done: int
    no_target: int
    failed: int
    pending: int
    worked: int


def plan(tasks: Sequence[VideoTask], pending: Mapping[str, Sequence[str]]) -> list[Job]:
    """Return the jobs of all videos with pending questions, longest first; equally long ones in the manifest's order."""
    jobs = [Job(task, tuple(pending[task.id])) for task in tasks if task.id in pending]
    return sorted(jobs, key=lambda job: -_length(job.task))


def _length(task: VideoTask) -> float:
    """Estimate a video's frames without opening it: from its size, or from the files of its folder."""
    if task.size_bytes:
        return task.size_bytes / _BYTES_PER_FRAME
    try:
        return sum(1 for _ in Path(task.video).iterdir())
    except OSError:
        return 0


def check_unchanged(ledger: Ledger, tasks: Sequence[VideoTask], *, redo: bool) -> None:
    """Notice questions whose text or video has changed since they were answered.

    Raises ConfigError naming each, unless `redo`: then they are answered again.
    """
    changed = ledger.changed(tasks)
    if changed and not redo:
        raise ConfigError(
            f"{ledger.path}: {len(changed)} answered questions have changed since:\n  " + "\n  ".join(changed),
            "Answer them again with --redo-changed, or use another --output.",
        )
    for line in changed:
        log.warning("changed, will be answered again: %s", line)


def run(
    tasks: Sequence[VideoTask],
    jobs: Sequence[Job],
    ledger: Ledger,
    executor: Executor,
    formats: Sequence[str],
    progress: Progress,
) -> Outcome:
    """Keep the manifest, work through the jobs, write each question's files and then its record, and sum up at the end.

    Also when interrupted (KeyboardInterrupt passes through), the summaries say what there is. Raises EnvironmentProblem
    when the disk is full or the directory cannot be written; what was recorded before stays good.
    """
    questions = {(t.id, q.id): (t, q) for t in tasks for q in t.questions}
    totals = _Totals()
    interrupted = False
    try:
        # Before any result, so that whatever a kill leaves can be scored.
        write_if_changed(ledger.path, KEPT_MANIFEST, manifest_content(tasks))
        if jobs:
            _write_run_file(ledger, tasks, totals, "running")
        try:
            for event in executor.run(jobs) if jobs else ():
                match event:
                    case Ready():
                        totals.devices.append(dict(event.facts))
                    case Tick():
                        progress.tick()
                    case Frames():
                        progress.add_frames(event.count)
                    case Answered():
                        totals.add(event)
                        for result in event.results:
                            _settle(ledger, *questions[result.video_id, result.question_id], result, formats)
                            progress.add_question(failed=result.status == "failed")
                        if event.last:
                            progress.add_video()
        except KeyboardInterrupt:
            interrupted = True
        finally:
            executor.close()
            progress.close()
        outcome = _finish(ledger, tasks, totals, "interrupted" if interrupted else "finished")
    except OSError as error:
        raise _write_problem(ledger.path, error) from None
    if interrupted:
        raise KeyboardInterrupt
    return outcome


def _settle(ledger: Ledger, task: VideoTask, question: Question, result: ItemResult, formats: Sequence[str]) -> None:
    """Write a question's files and then, once they are durable, its record."""
    sha256 = None if result.status == "failed" else write_item(ledger.path, result, question, formats)
    if result.status == "failed":
        log.error("%s/%s failed: %s", task.id, question.id, result.error)
    ledger.append(
        Record(task.id, question.id, result.status, inputs_of(task, question), sha256=sha256, error=result.error)
    )


def _write_problem(path: Path, error: OSError) -> EnvironmentProblem:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return EnvironmentProblem(
        f"{error.filename or path}: {'no space left' if full else error.strerror}; "
        "the run has stopped, everything recorded so far is safe",
        ("Free space" if full else "Make the directory writable") + " and run the same command again.",
    )


class _Totals:
    """Add up what a run costs."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self.clock = time.monotonic()
        self.devices: list[dict[str, Any]] = []
        self.seconds: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.worked = 0

    def add(self, event: Answered) -> None:
        self.seconds.update(event.seconds)
        self.counts.update(event.counts)
        self.worked += len(event.results)


def _finish(ledger: Ledger, tasks: Sequence[VideoTask], totals: _Totals, state: str) -> Outcome:
    """Write the summaries: the ledger in order, results.json, failures.jsonl, run.json."""
    ledger.compact(tasks)
    records = _records_of(ledger, tasks)
    statuses = Counter(r.status for r in records)
    outcome = Outcome(
        done=statuses["done"],
        no_target=statuses["no_target"],
        failed=statuses["failed"],
        pending=sum(len(t.questions) for t in tasks) - len(records),
        worked=totals.worked,
    )
    if totals.worked or not _is_finished(ledger.path, tasks):
        write_if_changed(ledger.path, FAILURES, failures_content(records))
        answered = [r.key for r in records if r.status != "failed"]
        write_file(ledger.path, RESULTS, lambda file: write_results(ledger.path, answered, file))
        _write_run_file(ledger, tasks, totals, state)
    return outcome


def _records_of(ledger: Ledger, tasks: Sequence[VideoTask]) -> list[Record]:
    """Return the records of the manifest's questions, in its order; the ledger may hold those of former manifests, too."""
    keys = ((t.id, q.id) for t in tasks for q in t.questions)
    return [ledger.records[key] for key in keys if key in ledger.records]


def _is_finished(path: Path, tasks: Sequence[VideoTask]) -> bool:
    """Say whether the summaries are those of a finished run of these questions: then there is nothing to do again."""
    run = read_run(path)
    return (
        run.get("state") == "finished"
        and run["fingerprints"].get("questions") == _questions_sha256(tasks)
        and (path / RESULTS).is_file()
        and (path / FAILURES).is_file()
    )


def _questions_sha256(tasks: Sequence[VideoTask]) -> str:
    return hashlib.sha256("".join(f"{t.id}/{q.id}\n" for t in tasks for q in t.questions).encode()).hexdigest()


def failures_content(records: Sequence[Record]) -> bytes:
    """Return failures.jsonl: one failed question a line, with its error and text."""
    return b"".join(_failure_line(record) for record in records if record.status == "failed")


def _failure_line(record: Record) -> bytes:
    value = {
        "video": record.video,
        "question": record.question,
        "error": record.error,
        "text": record.inputs.get("text"),
    }
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def write_results(root: Path, keys: Sequence[Key], file: BinaryIO) -> None:
    """Write results.json: the questions' files, one a line, without holding them in memory."""
    file.write(b'{"version": 1, "results": [')
    for number, key in enumerate(keys):
        file.write(b"," if number else b"\n")
        # Piece by piece: an item of a long clip is megabytes. It ends its line itself.
        with (root / item_name(*key)).open("rb") as item:
            shutil.copyfileobj(item, file)
    file.write(b"]}\n")


def _write_run_file(ledger: Ledger, tasks: Sequence[VideoTask], totals: _Totals, state: str) -> None:
    """Write run.json: how the results were made, and what this run took."""
    statuses = Counter(r.status for r in _records_of(ledger, tasks))
    value = {
        "state": state,
        "totals": {
            "videos": len(tasks),
            "questions": sum(len(t.questions) for t in tasks),
            **{str(status): statuses[status] for status in STATUSES},
        },
        "fingerprints": {
            "checkpoint": ledger.identity.checkpoint_sha256,
            "config": ledger.identity.config_sha256,
            "questions": _questions_sha256(tasks),
        },
        "started": totals.started.isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - totals.clock, 3),
        "stage_seconds": {k: round(v, 3) for k, v in sorted(totals.seconds.items())},
        "counts": dict(sorted(totals.counts.items())),
        "workers": totals.devices,
        "versions": {"gmcli": __version__, "python": platform.python_version(), **dict(_versions())},
        "host": platform.node(),
    }
    write_file(ledger.path, RUN, json.dumps(value, indent=2).encode() + b"\n")


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
