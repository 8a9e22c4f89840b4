"""Check every file of a run directory against the ledger, by content hash."""

import hashlib
import io
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gmcli.files import remove, write_file
from gmcli.items import ItemChanged, mask_folder, read_item
from gmcli.ledger import FAILURES, ITEMS, MASKS, RESULTS, check_links, item_name, kept_hashes, read_run
from gmcli.lock import is_running, take_lock
from gmcli.records import LEDGER, STATUSES, Key, Record, read_records
from gmcli.summaries import failures_content, write_results

_KINDS = {stat.S_IFDIR: "directory", stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say what a check found: files read, problems by question (None: of the directory as a whole), and odd files."""

    files: int
    questions: int
    problems: tuple[tuple[Key | None, str], ...]
    unrecorded: tuple[str, ...]


def verify(path: Path) -> Verdict:
    """Read every recorded file again and compare its hash; list also files that no record knows.

    The summaries are compared with what the records say they should hold, unless a run is on.
    """
    records, damaged = read_records(path)
    problems: list[tuple[Key | None, str]] = [(None, line) for line in damaged]
    known: set[str] = set()
    for record in records.values():
        if record.status != "failed":
            problems += [(record.key, problem) for problem in _check_item(path, record, known)]
    if not is_running(path):
        problems += [(None, problem) for problem in _check_summaries(path, records)]
    present = {str(p.relative_to(path)) for top in (ITEMS, MASKS) for p in (path / top).rglob("*") if not p.is_dir()}
    return Verdict(len(known), len(records), tuple(problems), tuple(sorted(present - known)))


def forget_damaged(path: Path, verdict: Verdict) -> int:
    """Take the damaged questions out of the ledger, so that the next run answers them again; return how many.

    Summaries that are wrong are removed: the next run writes them again. Raises RunLocked where a run is on.
    """
    check_links(path)
    keys = {key for key, _ in verdict.problems if key is not None}
    with take_lock(path):
        records, _ = read_records(path)
        kept = [record.line() for key, record in records.items() if key not in keys]
        write_file(path, LEDGER, b"".join(kept))
        if any(key is None for key, _ in verdict.problems):
            for name in (RESULTS, FAILURES):
                remove(path / name)
    return len(keys)


def _check_item(path: Path, record: Record, known: set[str]) -> Iterator[str]:
    name = item_name(*record.key)
    known.add(name)
    if odd := _not_a_file(path / name):
        yield f"{name}: {odd}"
        return
    try:
        item, _ = read_item(path, *record.key, recorded=record.sha256)
    except FileNotFoundError:
        yield f"{name}: missing"
        return
    except ItemChanged:
        yield f"{name}: content differs from what was recorded"
        return
    except (OSError, ValueError) as error:
        yield f"{name}: cannot be read ({error})"
        return
    pngs: dict[str, Any] = item.get("png_sha256", {})
    for file, wanted in pngs.items():
        mask = f"{mask_folder(*record.key)}/{file}"
        known.add(mask)
        if odd := _not_a_file(path / mask):
            yield f"{mask}: {odd}"
            continue
        try:
            with (path / mask).open("rb") as opened:
                got = hashlib.file_digest(opened, "sha256").hexdigest()
        except FileNotFoundError:
            yield f"{mask}: missing"
        except OSError as error:
            yield f"{mask}: cannot be read ({error.strerror})"
        else:
            if got != wanted:
                yield f"{mask}: content differs from what was recorded"


def _not_a_file(path: Path) -> str | None:
    """Say what is there instead of a file, if so. It is not opened: a pipe would wait, a device never end."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None  # opening it says why
    if stat.S_ISREG(mode):
        return None
    return "not the file that was written, but a " + _KINDS.get(stat.S_IFMT(mode), "device")


class _Compare(io.RawIOBase):
    """Compare what is written with what a file holds, block by block."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.equal = True

    def write(self, content: Any) -> int:
        data = bytes(content)
        self.equal = self.equal and self._file.read(len(data)) == data
        return len(data)


def _check_summaries(path: Path, records: dict[Key, Record]) -> Iterator[str]:
    """Compare results.json and failures.jsonl with the records, and what the run was asked with what it noted of that.

    A run that was killed has not written them yet.

    They hold what the last run's manifest asked; the ledger has that first, and then what former manifests asked.
    """
    run = read_run(path)
    if run.get("state") not in ("finished", "interrupted"):
        return
    now = kept_hashes(path)
    for name, wanted in run.get("files", {}).items():
        if now.get(name) != wanted:
            yield f"{name}: content differs from what the last run noted"
    summed_up = list(records.values())[: sum(run["totals"].get(status, 0) for status in STATUSES)]
    answered = [r.key for r in summed_up if r.status != "failed"]
    try:
        with (path / RESULTS).open("rb") as file:
            compare = _Compare(file)
            write_results(path, answered, compare)  # type: ignore[arg-type]
            if not compare.equal or file.read(1):
                yield f"{RESULTS}: does not hold what the recorded items hold"
        if (path / FAILURES).read_bytes() != failures_content(summed_up):
            yield f"{FAILURES}: does not hold the recorded failures"
    except OSError as error:
        name = Path(str(error.filename)).name
        yield f"{RESULTS}, {FAILURES}: cannot be compared ({name}: {error.strerror})"
