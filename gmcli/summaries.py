"""Write what a run leaves besides its answers: the ledger in order, results.json, failures.jsonl, run.json."""

import hashlib
import json
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

from gmcli import __version__
from gmcli.data import VideoTask
from gmcli.executors.messages import Answered
from gmcli.files import write_file
from gmcli.ledger import FAILURES, RESULTS, RUN, Ledger, item_name, kept_hashes, read_run, write_if_changed
from gmcli.limits import Stop
from gmcli.records import STATUSES, Key, Record
from gmcli.text import json_text
from gmcli.watch import Watch

_PACKAGES = ("torch", "torchvision", "transformers", "segment-anything", "av", "numpy", "pycocotools")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Count what a run directory holds after a run: questions by status, and what this run did.

    `stop` is set where a limit ended the run with questions pending.
    """

    done: int
    no_target: int
    failed: int
    pending: int
    worked: int
    stop: Stop | None = None


class Totals:
    """Add up what a run costs, and count the manifest's questions by status as they are settled."""

    def __init__(self, tasks: Sequence[VideoTask], ledger: Ledger) -> None:
        self.clock = time.monotonic()
        self.devices: list[dict[str, Any]] = []
        self.seconds: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.worked = 0
        self.videos = len(tasks)
        self.questions = sum(len(t.questions) for t in tasks)
        self._statuses = Counter(r.status for r in records_of(ledger, tasks))

    def add(self, event: Answered) -> None:
        """Add what a message of a worker says."""
        self.seconds.update(event.seconds)
        self.counts.update(event.counts)
        self.worked += len(event.results)

    def settle(self, before: Record | None, status: str) -> None:
        """Count a question's new record in the place of its old one."""
        if before is not None:
            self._statuses[before.status] -= 1
        self._statuses[status] += 1

    def statuses(self) -> dict[str, int]:
        """Return the manifest's questions by status, with those that are pending."""
        return {**{s: self._statuses[s] for s in STATUSES}, "pending": self.questions - self._statuses.total()}


def finish(ledger: Ledger, tasks: Sequence[VideoTask], totals: Totals, watch: Watch, stop: Stop | None) -> Outcome:
    """Write the summaries and return what there is. stop: why the run ended early, if it did."""
    ledger.compact(tasks)
    records = records_of(ledger, tasks)
    statuses = Counter(r.status for r in records)
    pending = totals.questions - len(records)
    outcome = Outcome(
        done=statuses["done"],
        no_target=statuses["no_target"],
        failed=statuses["failed"],
        pending=pending,
        worked=totals.worked,
        # Whoever was stopped by a limit when all was done was not stopped.
        stop=stop if pending else None,
    )
    if totals.worked or not _is_finished(ledger.path, tasks, records):
        if not totals.worked:
            # A kill amid these files must not leave the last run's word that they are whole.
            write_run_file(ledger, tasks, totals, watch, "running")
        write_if_changed(ledger.path, FAILURES, failures_content(records))
        answered = [r.key for r in records if r.status != "failed"]
        write_file(ledger.path, RESULTS, lambda file: write_results(ledger.path, answered, file))
        state = "interrupted" if outcome.stop else "finished"
        write_run_file(ledger, tasks, totals, watch, state, outcome.stop.reason if outcome.stop else None)
    return outcome


def records_of(ledger: Ledger, tasks: Sequence[VideoTask]) -> list[Record]:
    """Return the records of the manifest's questions, in its order; the ledger may hold those of former manifests, too."""
    keys = ((t.id, q.id) for t in tasks for q in t.questions)
    return [ledger.records[key] for key in keys if key in ledger.records]


def _is_finished(path: Path, tasks: Sequence[VideoTask], records: Sequence[Record]) -> bool:
    """Say whether the summaries are those of a finished run of these questions: then there is nothing to do again."""
    run = read_run(path)
    return (
        run.get("state") == "finished"
        and run["fingerprints"].get("questions") == _questions_sha256(tasks)
        and run["totals"] == _counts(tasks, records)
        and run["files"] == kept_hashes(path)
        and (path / RESULTS).is_file()
        and (path / FAILURES).is_file()
    )


def _counts(tasks: Sequence[VideoTask], records: Sequence[Record]) -> dict[str, int]:
    return {"videos": len(tasks), "questions": sum(len(t.questions) for t in tasks), **_by_status(records)}


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
    return json_text(value).encode() + b"\n"


def write_results(root: Path, keys: Sequence[Key], file: BinaryIO) -> None:
    """Write results.json: the questions' files, one a line, without holding them in memory."""
    file.write(b'{"version": 1, "results": [')
    for number, key in enumerate(keys):
        file.write(b"," if number else b"\n")
        # Piece by piece: an item of a long clip is megabytes. It ends its line itself.
        with (root / item_name(*key)).open("rb") as item:
            shutil.copyfileobj(item, file)
    file.write(b"]}\n")


def write_run_file(
    ledger: Ledger,
    tasks: Sequence[VideoTask],
    totals: Totals,
    watch: Watch,
    state: str,
    reason: str | None = None,
) -> None:
    """Write run.json: how the results were made, and what this run took. reason: why it is neither on nor finished."""
    records = records_of(ledger, tasks)
    value = {
        "state": state,
        "reason": reason,
        "run_id": watch.run_id,
        "pid": os.getpid(),
        "totals": _counts(tasks, records),
        # So that `gmcli status` can tell from the ledger alone what is pending of this manifest.
        "questions_of_former_manifests": _by_status(ledger.records.values(), less=records),
        "fingerprints": {
            "checkpoint": ledger.identity.checkpoint_sha256,
            "config": ledger.identity.config_sha256,
            "questions": _questions_sha256(tasks),
        },
        "files": kept_hashes(ledger.path),
        "started": watch.started.isoformat(timespec="seconds"),
        "wall_seconds": round(time.monotonic() - totals.clock, 3),
        "stage_seconds": {k: round(v, 3) for k, v in sorted(totals.seconds.items())},
        "counts": dict(sorted(totals.counts.items())),
        "workers": totals.devices,
        "versions": {"gmcli": __version__, "python": platform.python_version(), **dict(_versions())},
        "host": platform.node(),
    }
    write_file(ledger.path, RUN, json.dumps(value, indent=2).encode() + b"\n")


def _by_status(records: Iterable[Record], less: Iterable[Record] = ()) -> dict[str, int]:
    counts = Counter(record.status for record in records)
    counts.subtract(record.status for record in less)
    return {str(status): counts[status] for status in STATUSES}


def _versions() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
