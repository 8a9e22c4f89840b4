"""Write and read the lines of the ledger: one record a question, each with a check sum of its own."""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmcli.data import Question, Status, VideoTask, is_id
from gmcli.distrust import open_file
from gmcli.text import json_text

LEDGER = "ledger.jsonl"

STATUSES: tuple[Status, ...] = ("done", "no_target", "failed")

# The status of a line that takes a record back: its question is being answered again.
WITHDRAWN = "withdrawn"
_CHECKSUM = b',"crc":"'
_MAX_LINE_BYTES = 256 << 20
_FIELDS = {"video", "question", "status", "inputs", "sha256", "error", "crc"}

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
        """Return the record as one line of JSON; its last field is a check sum (CRC-32) of what stands before it."""
        values = {
            "video": self.video,
            "question": self.question,
            "status": self.status,
            "inputs": dict(self.inputs),
            "sha256": self.sha256,
            "error": self.error,
        }
        kept = {k: v for k, v in values.items() if v is not None}
        text = json_text(kept, separators=(",", ":")).encode()[:-1]
        return text + _CHECKSUM + b'%08x"}\n' % zlib.crc32(text)


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


def read_records(path: Path) -> tuple[dict[Key, Record], list[str]]:
    """Read a ledger; return the last record of each question, and one `file:line: message` for each damaged line.

    A last line without an end is a write that was cut off: it is not damage, its question is simply not done.
    """
    records: dict[Key, Record] = {}
    damaged = []
    summed = False  # former versions wrote no check sums; behind a line with one, a line without has lost it
    for number, line in enumerate(_lines(path / LEDGER), start=1):
        if not line.endswith(b"\n"):
            continue
        record = _parse(line) if _CHECKSUM in line or not summed else None
        summed = summed or (record is not None and _CHECKSUM in line)
        if record is None:
            damaged.append(f"{path / LEDGER}:{number}: not a record; its question will be answered again")
        elif record.status == WITHDRAWN:
            records.pop(record.key, None)
        else:
            records[record.key] = record
    return records, damaged


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open_file(path) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_MAX_LINE_BYTES)
                    line = line and b"\n"  # no record is so long
                yield line
    except FileNotFoundError:
        return


def _parse(line: bytes) -> Record | None:
    text, separator, checksum = line.rpartition(_CHECKSUM)
    if separator and checksum != b'%08x"}\n' % zlib.crc32(text):
        return None
    try:
        value = json.loads(line)
        if not value.keys() <= _FIELDS:
            return None
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
        # They become names of files: a ledger from elsewhere must not lead out of its directory.
        is_id(record.video)
        and is_id(record.question)
        and record.status in (*STATUSES, WITHDRAWN)
        and isinstance(record.inputs, dict)
        and (record.status != "failed" or isinstance(record.error, str))
        and (record.status in ("failed", WITHDRAWN) or isinstance(record.sha256, str))
    )
    return record if good else None


def cut_torn_tail(path: Path) -> None:
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
