"""Keep the run directory: who holds it, which run it belongs to, what is done, failed, pending.

config.yaml     the resolved settings and the checkpoint's fingerprint
manifest.jsonl  the questions and true masks of the last run, with absolute paths (see kept_manifest.py)
ledger.jsonl    one record a question, appended after its files are durable; the truth about what is done
items/ masks/   the answers (written by run.py)
results.json    all answers; failures.jsonl: all failures; run.json: versions, totals, timings
logs/           one file a worker, one of the driver
.lock           held while a run is on
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import yaml

from gmcli.data import Question, Status, VideoTask
from gmcli.errors import ConfigError, EnvironmentProblem, RunLocked
from gmcli.files import TEMPORARY, clear_temporary, fsync_directory, make_directories, write_file
from gmcli.text import shorten

LEDGER = "ledger.jsonl"
CONFIG = "config.yaml"
LOCK = ".lock"
RESULTS = "results.json"
FAILURES = "failures.jsonl"
RENDERS = "renders"
RUN = "run.json"
MANIFEST = "manifest.jsonl"
ITEMS = "items"
MASKS = "masks"
LOGS = "logs"
OURS = frozenset({LEDGER, CONFIG, LOCK, MANIFEST, RESULTS, FAILURES, RUN, ITEMS, MASKS, RENDERS, LOGS, TEMPORARY})

STATUSES: tuple[Status, ...] = ("done", "no_target", "failed")

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Record:
    """Say what became of one question.

    `inputs` are what the answer depends on besides the settings. `sha256` is that of the item's file, which in turn holds
    those of its masks; `error` is set for failed ones only.
    """

    video: str
    question: str
    status: str
    inputs: Mapping[str, Any]
    sha256: str | None = None
    error: str | None = None

    @property
    def key(self) -> Key:
        """Return the ids that name the question."""
        return self.video, self.question

    def line(self) -> bytes:
        """Return the record as one line of JSON."""
        values = {
            "video": self.video,
            "question": self.question,
            "status": self.status,
            "inputs": dict(self.inputs),
            "sha256": self.sha256,
            "error": self.error,
        }
        kept = {k: v for k, v in values.items() if v is not None}
        return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Identity:
    """Say what a run's results depend on besides the questions: settings by name, and the checkpoint's fingerprint."""

    settings: Mapping[str, Any]
    decisive: Mapping[str, Any]
    checkpoint_sha256: str

    @property
    def config_sha256(self) -> str:
        """Hash the decisive settings (sha256, hex)."""
        return hashlib.sha256(json.dumps(dict(self.decisive), sort_keys=True).encode()).hexdigest()


def inputs_of(task: VideoTask, question: Question) -> dict[str, Any]:
    """Return what a question's answer depends on. A moved video is the same video; one of another size is not."""
    values = {
        "file": Path(task.video).name,
        "bytes": task.size_bytes or None,
        "start": task.start,
        "end": task.end,
        "fps": task.fps,
        "text": question.text,
    }
    return {k: v for k, v in values.items() if v is not None}


class Ledger:
    """Hold a run directory for one run. Use it as a context manager: leaving it gives the directory back."""

    def __init__(
        self, path: Path, identity: Identity, lock: BinaryIO | None, records: dict[Key, Record], damaged: Iterable[str]
    ) -> None:
        self.path = path
        self.identity = identity
        self.records = records
        self.damaged = tuple(damaged)
        self._lock = lock
        self._file: BinaryIO | None = None

    @classmethod
    def open(cls, path: Path, identity: Identity, *, restart: bool = False) -> Self:
        """Take a run directory, new or old, and read what is in it.

        Raises RunLocked where another run holds it, ConfigError where it belongs to other settings or is no run
        directory, EnvironmentProblem where it cannot be written. Nothing is touched before the lock is held.
        """
        try:
            make_directories(path)
            lock = take_lock(path)
        except OSError as error:
            raise EnvironmentProblem(
                f"{path}: cannot be used as a run directory ({error.strerror})", "Choose another one with --output."
            ) from None
        try:
            if restart:
                _remove_results(path)
            else:
                _check_identity(path, identity)
            clear_temporary(path)
            settings = {**identity.settings, "checkpoint_sha256": identity.checkpoint_sha256}
            write_if_changed(path, CONFIG, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True).encode())
            (path / LOGS).mkdir(exist_ok=True)
            _cut_torn_tail(path / LEDGER)
            records, damaged = read_records(path)
        except OSError as error:
            lock.close()
            raise EnvironmentProblem(f"{path}: {error.strerror}", "Free space or choose another --output.") from None
        except BaseException:
            lock.close()
            raise
        return cls(path, identity, lock, records, damaged)

    @classmethod
    def look(cls, path: Path, identity: Identity) -> Self:
        """Read a run directory that may not exist yet, without taking or changing it; it cannot be appended to.

        Raises ConfigError where it belongs to other settings or is no run directory.
        """
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path}: not a directory", "Choose another --output.")
        if path.is_dir():
            _check_identity(path, identity)
        return cls(path, identity, None, *read_records(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file:
            self._file.close()
        if self._lock:
            with suppress(OSError):  # not empty, where a write failed; the next run clears it
                (self.path / TEMPORARY).rmdir()
            self._lock.close()

    def changed(self, tasks: Iterable[VideoTask]) -> list[str]:
        """List each answered question whose inputs are not those of its record, saying what was and what is.

        Failed ones are not listed: nothing is lost when they are tried again, and their video may have been repaired.
        """
        found = []
        for task in tasks:
            for question in task.questions:
                record = self.records.get((task.id, question.id))
                now = inputs_of(task, question)
                if record and record.status != "failed" and dict(record.inputs) != now:
                    was = record.inputs
                    names = [n for n in (*now, *(n for n in was if n not in now)) if was.get(n) != now.get(n)]
                    found.append(
                        f"{task.id}/{question.id}: "
                        + "; ".join(f"{n} was {_shown(was.get(n))}, is {_shown(now.get(n))}" for n in names)
                    )
        return found

    def pending(self, tasks: Iterable[VideoTask], *, retry_failed: bool = False) -> dict[str, list[str]]:
        """Return the questions that need work, by video: those without a record, changed ones, lost ones.

        Failed ones are left alone unless `retry_failed`, or their video or text has changed.
        """
        found: dict[str, list[str]] = {}
        for task in tasks:
            for question in task.questions:
                record = self.records.get((task.id, question.id))
                settled = (
                    record is not None
                    and dict(record.inputs) == inputs_of(task, question)
                    and (not retry_failed if record.status == "failed" else self._has_item(record))
                )
                if not settled:
                    found.setdefault(task.id, []).append(question.id)
        return found

    def _has_item(self, record: Record) -> bool:
        return (self.path / item_name(*record.key)).is_file()

    def append(self, record: Record) -> None:
        """Record one question, durably. Its files must be durable already."""
        if self._lock is None:
            raise RuntimeError("the directory was looked at, not taken")
        if self._file is None:
            self._file = (self.path / LEDGER).open("ab", buffering=0)
            fsync_directory(self.path)
        self._file.write(record.line())
        os.fsync(self._file.fileno())
        self.records[record.key] = record

    def compact(self, tasks: Iterable[VideoTask]) -> None:
        """Rewrite the ledger in the manifest's order, one record a question, so that equal runs leave equal files."""
        if self._file:
            self._file.close()
            self._file = None
        keys = dict.fromkeys((t.id, q.id) for t in tasks for q in t.questions)
        ordered = [self.records[k] for k in keys if k in self.records]
        ordered += [self.records[k] for k in sorted(self.records) if k not in keys]
        write_if_changed(self.path, LEDGER, b"".join(record.line() for record in ordered))


def item_name(video: str, question: str) -> str:
    """Return the name, inside the run directory, of a question's file. Ids have been checked: no separators, no dots first."""
    return f"{ITEMS}/{video}/{question}.json"


def take_lock(path: Path) -> BinaryIO:
    """Take the lock of a run directory or raise RunLocked. The lock goes with the process, however it ends."""
    file = (path / LOCK).open("ab")
    for attempt in range(3):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # `gmcli status` asks by taking the lock for an instant.
            if attempt < 2:
                time.sleep(0.05)
        else:
            return file
    file.close()
    raise RunLocked(f"{path}: another run holds this directory", "Wait for it, or look with `gmcli status`.")


def is_running(path: Path) -> bool:
    """Ask whether a run holds a directory, without creating or changing anything in it."""
    try:
        file = (path / LOCK).open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def read_records(path: Path) -> tuple[dict[Key, Record], list[str]]:
    """Read a ledger; return the last record of each question, and one `file:line: message` for each damaged line.

    A last line without an end is a write that was cut off: it is not damage, its question is simply not done.
    """
    records: dict[Key, Record] = {}
    damaged = []
    for number, line in enumerate(_lines(path / LEDGER), start=1):
        if not line.endswith(b"\n"):
            continue
        record = _parse(line)
        if record is None:
            damaged.append(f"{path / LEDGER}:{number}: not a record; its question will be answered again")
        else:
            records[record.key] = record
    return records, damaged


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except FileNotFoundError:
        return


def _parse(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
        record = Record(
            video=value["video"],
            question=value["question"],
            status=value["status"],
            inputs=value["inputs"],
            sha256=value.get("sha256"),
            error=value.get("error"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    good = (
        isinstance(record.video, str)
        and isinstance(record.question, str)
        and record.status in STATUSES
        and isinstance(record.inputs, dict)
        and (isinstance(record.error, str) if record.status == "failed" else isinstance(record.sha256, str))
    )
    return record if good else None


def _cut_torn_tail(path: Path) -> None:
    """Cut off a line that a crash left without its end, so that the next record starts on a line of its own."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position = end
        while position:
            start = max(position - 65536, 0)
            file.seek(start)
            newline = file.read(position - start).rfind(b"\n")
            position = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if position < end:
            file.truncate(position)
            os.fsync(file.fileno())


def _check_identity(path: Path, identity: Identity) -> None:
    if not (path / CONFIG).exists():
        foreign = sorted(p.name for p in path.iterdir() if p.name not in OURS)
        if foreign or (path / LEDGER).exists():
            raise ConfigError(
                f"{path}: not empty and not a run directory (it holds {foreign[0] if foreign else LEDGER!r})",
                "Choose a new or empty directory with --output.",
            )
        return
    was = read_config(path)
    differences = [
        f"{name} was {_shown(was.get(name))}, is {_shown(now)}"
        for name, now in identity.decisive.items()
        if was.get(name) != now
    ]
    if was.get("checkpoint_sha256") != identity.checkpoint_sha256:
        names = f"{_shown(was.get('checkpoint'))} → {_shown(identity.settings.get('checkpoint'))}"
        old = str(was.get("checkpoint_sha256"))[:12]
        differences.append(f"checkpoint content was {old}…, is {identity.checkpoint_sha256[:12]}… ({names})")
    if differences:
        raise ConfigError(
            f"{path}: holds results of other settings:\n  " + "\n  ".join(differences),
            "Use another --output, or --restart to throw these results away.",
        )


def read_config(path: Path) -> dict[str, Any]:
    """Read the settings of a run directory; raise ConfigError where there are none."""
    try:
        value = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not a run directory ({CONFIG}: {type(error).__name__})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path / CONFIG}: not a run's settings")
    return value


def read_run(path: Path) -> dict[str, Any]:
    """Read run.json; return an empty dictionary where no run has left one that can be read."""
    try:
        value = json.loads((path / RUN).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    sections = ("totals", "fingerprints")
    good = isinstance(value, dict) and "state" in value and all(isinstance(value.get(s), dict) for s in sections)
    return value if good else {}


def _remove_results(path: Path) -> None:
    """Remove a former run's results; the ledger first, so that a crash in between leaves nothing that counts as done."""
    foreign = sorted(p.name for p in path.iterdir() if p.name not in OURS)
    if foreign:
        raise ConfigError(
            f"{path}: holds {foreign[0]!r}, which no run wrote; nothing was removed",
            "Choose another --output, or move that away.",
        )
    for name in (LEDGER, CONFIG, MANIFEST, RESULTS, FAILURES, RUN):
        (path / name).unlink(missing_ok=True)
    fsync_directory(path)
    for name in (ITEMS, MASKS, RENDERS, LOGS, TEMPORARY):
        shutil.rmtree(path / name, ignore_errors=True)


def write_if_changed(path: Path, name: str, content: bytes) -> None:
    """Put a file into the run directory unless it is there with this very content.

    A run that finds nothing to do leaves every byte and every time stamp alone.
    """
    target = path / name
    if not (target.is_file() and target.read_bytes() == content):
        write_file(path, name, content)


def _shown(value: object) -> str:
    return shorten(repr(value), 120)
