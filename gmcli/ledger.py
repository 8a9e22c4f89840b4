"""Keep the run directory: who holds it, which run it belongs to, what is done, failed, pending.

config.yaml     the resolved settings and the checkpoint's fingerprint
manifest.jsonl  the questions and true masks of the last run, with absolute paths (see kept_manifest.py)
ledger.jsonl    one record a question, appended after its files are durable; the truth about what is done
items/ masks/   the answers (written by run.py)
results.json    all answers; failures.jsonl: all failures; run.json: versions, totals, timings
heartbeat.json  when the run last gave a sign of life, and how far it was; no truth (see watch.py)
logs/           one file a worker, one of the driver
.lock           held while a run is on
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import yaml

from gmcli.data import VideoTask
from gmcli.distrust import load_json, read_file, refuse_links
from gmcli.errors import ConfigError, EnvironmentProblem
from gmcli.files import TEMPORARY, clear_temporary, fsync_directory, make_directories, remove, write_file
from gmcli.lock import LOCK, is_lock_of, take_lock
from gmcli.records import LEDGER, WITHDRAWN, Key, Record, cut_torn_tail, inputs_of, read_records
from gmcli.text import shorten
from gmcli.yaml_fields import read_values

CONFIG = "config.yaml"
RESULTS = "results.json"
FAILURES = "failures.jsonl"
RENDERS = "renders"
RUN = "run.json"
HEARTBEAT = "heartbeat.json"
MANIFEST = "manifest.jsonl"
ITEMS = "items"
MASKS = "masks"
LOGS = "logs"
OURS = frozenset(
    {LEDGER, CONFIG, LOCK, MANIFEST, RESULTS, FAILURES, RUN, HEARTBEAT, ITEMS, MASKS, RENDERS, LOGS, TEMPORARY}
)


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
            check_links(path)
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
            cut_torn_tail(path / LEDGER)
            _make_durable(path)
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
                if is_lock_of(self._lock, self.path):
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

    def check_place(self) -> None:
        """Raise EnvironmentProblem where the directory is no longer the one that was taken."""
        if self._lock is None:
            raise RuntimeError("the directory was looked at, not taken")
        if not is_lock_of(self._lock, self.path):
            raise EnvironmentProblem(
                f"{self.path}: the run directory was moved, removed or replaced while the run was on",
                "What was recorded went with it: run the same command again, with its new name.",
            )

    def withdraw(self, key: Key) -> None:
        """Take back the record of an answer, durably, before its files are touched; no record is fine, too.

        Else a crash amid the replacement would leave a record of the old answer with files of the new one.
        """
        self.check_place()
        record = self.records.get(key)
        if record is not None and record.status != "failed":
            del self.records[key]
            self._write(Record(*key, WITHDRAWN, {}))

    def append(self, record: Record) -> None:
        """Record one question, durably. Its files must be durable already. Raises OSError; then nothing is recorded."""
        self.check_place()
        # First: an interruption after the write must not forget a record that is in the file.
        self.records[record.key] = record
        try:
            self._write(record)
        except OSError:
            del self.records[record.key]
            raise

    def _write(self, record: Record) -> None:
        """Add a line to the ledger, durably and whole, or leave the ledger as it was."""
        if self._file is None:
            self._file = (self.path / LEDGER).open("ab", buffering=0)
            fsync_directory(self.path)
        end = os.fstat(self._file.fileno()).st_size
        try:
            rest = record.line()
            while rest:  # where the disk fills up, a part of a line is written before there is an error
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError:
            # A torn line would swallow the next one; a whole one whose fsync failed may never reach the disk.
            with suppress(OSError):
                self._file.truncate(end)
            raise

    def compact(self, tasks: Iterable[VideoTask]) -> None:
        """Rewrite the ledger in the manifest's order, one record a question, so that equal runs leave equal files."""
        if self._file:
            self._file.close()
            self._file = None
        self.check_place()
        keys = dict.fromkeys((t.id, q.id) for t in tasks for q in t.questions)
        ordered = [self.records[k] for k in keys if k in self.records]
        ordered += [self.records[k] for k in sorted(self.records) if k not in keys]
        write_if_changed(self.path, LEDGER, b"".join(record.line() for record in ordered))


def item_name(video: str, question: str) -> str:
    """Return the name, inside the run directory, of a question's file. Ids have been checked: no separators, no dots first."""
    return f"{ITEMS}/{video}/{question}.json"


def check_links(path: Path) -> None:
    """Raise ConfigError for links inside a run directory, through which a run would write elsewhere."""
    refuse_links(path, OURS, (ITEMS, MASKS, LOGS))


def _make_durable(path: Path) -> None:
    """Make durable what is there. A run that was killed may have ended before its own fsync, and nobody repeats that."""
    with suppress(PermissionError):  # the parent may be one where nothing can be listed
        fsync_directory(path.parent)
    for folder in (path, path / ITEMS, path / MASKS):
        if folder.is_dir():
            fsync_directory(folder)
    if (path / LEDGER).exists():
        with (path / LEDGER).open("rb") as file:
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
        return read_values(path / CONFIG, ConfigError)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: not a run directory: {error.message.splitlines()[0]}", "Name a directory that `gmcli infer` made."
        ) from None


def read_run(path: Path) -> dict[str, Any]:
    """Read run.json; return an empty dictionary where no run has left one that can be read."""
    try:
        value = load_json(read_file(path / RUN))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict) or "state" not in value:
        return {}
    # Runs of former versions have noted no files.
    sections = (value.get("totals"), value.get("fingerprints"), value.setdefault("files", {}))
    good = all(isinstance(s, dict) for s in sections) and all(isinstance(n, int) for n in value["totals"].values())
    former = value.get("questions_of_former_manifests", {})
    good = good and isinstance(former, dict) and all(isinstance(n, int) for n in former.values())
    return value if good else {}


def kept_hashes(path: Path) -> dict[str, str | None]:
    """Return the sha256 of each file that says what a run was asked, or None where it cannot be read."""
    found: dict[str, str | None] = {}
    for name in (CONFIG, MANIFEST):
        try:
            found[name] = hashlib.sha256(read_file(path / name)).hexdigest()
        except OSError:
            found[name] = None
    return found


def _remove_results(path: Path) -> None:
    """Remove a former run's results; the ledger first, so that a crash in between leaves nothing that counts as done."""
    foreign = sorted(p.name for p in path.iterdir() if p.name not in OURS)
    if foreign:
        raise ConfigError(
            f"{path}: holds {foreign[0]!r}, which no run wrote; nothing was removed",
            "Choose another --output, or move that away.",
        )
    # Each is gone durably before the next: a power cut may undo and reorder what was not.
    for name in (LEDGER, CONFIG, MANIFEST, RESULTS, FAILURES, RUN, HEARTBEAT, ITEMS, MASKS, RENDERS, LOGS, TEMPORARY):
        remove(path / name)


def write_if_changed(path: Path, name: str, content: bytes) -> None:
    """Put a file into the run directory unless it is there with this very content.

    A run that finds nothing to do leaves every byte and every time stamp alone.
    """
    target = path / name
    if not (target.is_file() and target.read_bytes() == content):
        write_file(path, name, content)


def _shown(value: object) -> str:
    return shorten(repr(value), 120)
