"""Gather what the page says of a run's questions: from the ledger, the items, a manifest and scores."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmcli.data import Question, VideoTask
from gmcli.distrust import load_json, read_file
from gmcli.errors import ConfigError
from gmcli.evaluate import evaluate
from gmcli.items import read_item
from gmcli.kept_manifest import KEPT_MANIFEST, read_kept_manifest
from gmcli.manifest import read_manifest
from gmcli.records import Key, Record

METRICS = ("window_j_and_f", "t_iou", "j_and_f", "j", "f", "answer_accuracy")

# Characters that are invisible, end lines or turn the direction of all that follows; a browser would obey them.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")

_LEADING_PATH = re.compile(r"\A/[^:\n]+: (?=.)")


@dataclass(frozen=True, slots=True)
class Entry:
    """Name one video of the page and its questions, in order. `task` is None where no manifest tells of the video."""

    id: str
    questions: tuple[str, ...]
    task: VideoTask | None = None


def tasks_of(run: Path, manifest: Path | None) -> tuple[VideoTask, ...]:
    """Return the tasks that the run was made from, as it kept them, or those of another manifest.

    None where nobody says. Raises ManifestError.
    """
    if manifest is not None:
        return read_manifest(manifest)
    return read_kept_manifest(run) if (run / KEPT_MANIFEST).is_file() else ()


def entries_of(tasks: Sequence[VideoTask], records: Mapping[Key, Record]) -> tuple[list[Entry], int]:
    """List the videos to show, and count the records left out because the tasks do not know their questions.

    With tasks it is these, in their order; without, what the ledger holds, in its order.
    """
    if not tasks:
        grouped: dict[str, list[str]] = {}
        for video, question in records:
            grouped.setdefault(video, []).append(question)
        return [Entry(video, tuple(questions)) for video, questions in grouped.items()], 0
    entries = [Entry(task.id, tuple(question.id for question in task.questions), task) for task in tasks]
    known = {(entry.id, question) for entry in entries for question in entry.questions}
    return entries, sum(key not in known for key in records)


def row_of(
    key: Key, record: Record | None, item: Mapping[str, Any] | None, question: Question | None
) -> dict[str, Any]:
    """Describe one question for the page; keys without a value are left out.

    status: as in the ledger, "pending" without a record, "unreadable" where the ledger has an answer but `item` is None.
    """
    item = item or {}
    status = record.status if record else "pending"
    if record and record.status != "failed" and not item:
        status = "unreadable"
    inputs = record.inputs if record else {}
    row = {
        "q": shown(key[1]),
        "t": shown(question.text if question else item.get("text") or inputs.get("text") or ""),
        "y": shown(question.type if question else item.get("type")),
        "s": status,
        "a": shown(item.get("answer")),
        "ta": shown(question.ground_truth.answer) if question and question.ground_truth else None,
        "cut": item.get("finished") is False or None,
        # Without a target the window means nothing: scoring counts it as empty, too.
        "span": _span(item.get("span")) if status == "done" else None,
        "sam": finite(item.get("score")),
        "e": reason(record.error) if record else None,
    }
    return {name: value for name, value in row.items() if value is not None}


def read_answer(run: Path, record: Record | None) -> dict[str, Any] | None:
    """Read a question's item file; return None where there is none, or it is not what the ledger recorded."""
    if record is None or record.status == "failed":
        return None
    try:
        return read_item(run, *record.key, recorded=record.sha256)[0]
    except (OSError, ValueError):
        return None


def scores_of(run: Path, tasks: Sequence[VideoTask], file: Path | None) -> tuple[dict[str, Any] | None, str | None]:
    """Return the scores as `gmcli eval --json` gives them, and a note where there should be some and are none.

    They are read from `file`, or computed where every question has ground truth; questions without an answer count as
    empty ones. Raises ConfigError for a file that holds no scores.
    """
    if file is not None:
        return read_scores(file), None
    questions = [question for task in tasks for question in task.questions]
    if not questions or any(question.ground_truth is None for question in questions):
        return None, None
    try:
        return evaluate(run, tasks, allow_missing=True), None
    except ConfigError as error:
        return None, f"No scores: {error.message}"


def read_scores(file: Path) -> dict[str, Any]:
    """Read what `gmcli eval --json` wrote. Raises ConfigError where it cannot be read or is something else."""
    try:
        value = load_json(read_file(file))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as scores ({error})", "Write it with `gmcli eval --json`.") from None
    if not isinstance(value, dict) or not isinstance(value.get("overall"), dict):
        raise ConfigError(f"{file}: holds no scores ('overall' is missing)", "Write it with `gmcli eval --json`.")
    return value


def tables_of(scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the score tables, the run's first: {"name", "rows": [{"name", "n", metric: value, "ci": {metric: [a, b]}}]}."""
    baselines = scores.get("baselines")
    named = [("run", scores), *(baselines.items() if isinstance(baselines, dict) else ())]
    tables = []
    for name, table in named:
        if isinstance(table, dict) and isinstance(table.get("overall"), dict):
            by_type = table.get("by_type")
            parts = [("overall", table["overall"]), *(by_type.items() if isinstance(by_type, dict) else ())]
            rows = [_score_row(str(part), summary) for part, summary in parts if isinstance(summary, dict)]
            tables.append({"name": shown(str(name)), "rows": rows})
    return tables


def _score_row(name: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    intervals = summary.get("ci95")
    values = {metric: finite(summary.get(metric)) for metric in METRICS}
    row: dict[str, Any] = {"name": shown(name), "n": finite(summary.get("questions"))}
    row |= {metric: value for metric, value in values.items() if value is not None}
    if isinstance(intervals, dict):
        row["ci"] = {m: _pair(intervals.get(m)) for m in METRICS if _pair(intervals.get(m)) is not None}
    return row


def question_scores(scores: Mapping[str, Any]) -> dict[Key, dict[str, float]]:
    """Return the scores of single questions, where there are any."""
    table = scores.get("questions_table")
    found = {}
    for entry in table if isinstance(table, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("video"), str) and isinstance(entry.get("question"), str):
            figures = {metric: finite(entry.get(metric)) for metric in METRICS}
            kept = {metric: figure for metric, figure in figures.items() if figure is not None}
            found[entry["video"], entry["question"]] = kept
    return found


def shown(text: object) -> str | None:
    """Return text with what nobody would see, or what would rearrange the rest, written out as escapes."""
    return None if text is None else _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def reason(error: str | None) -> str | None:
    """Return an error without the path that it begins with: the page names the video, and not where it lay."""
    return None if error is None else shown(_LEADING_PATH.sub("", error))


def finite(value: object) -> float | int | None:
    """Return a number that JSON can hold, else None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if good else None  # type: ignore[return-value]


def _pair(value: object) -> list[float | int] | None:
    sides = [finite(side) for side in value] if isinstance(value, list | tuple) else []
    numbers = [side for side in sides if side is not None]
    return numbers if len(sides) == len(numbers) == 2 else None


def _span(value: object) -> list[int] | None:
    good = isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value)
    return value if good and isinstance(value, list) else None
