"""Build the page of a run: video by video, within a budget for frames and masks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmcli.errors import UsageError
from gmcli.files import TEMPORARY, make_directories, write_file
from gmcli.ledger import read_config, read_run
from gmcli.progress import Progress
from gmcli.records import Key, Record, read_records
from gmcli.report import sources
from gmcli.report.media import LEVELS, Clip, encode_clip, read_clip, true_window
from gmcli.report.page import write_page
from gmcli.report.sources import Entry, finite, shown
from gmcli.status import read_status
from gmcli.video.limits import limits_from
from gmcli.video.sandbox import DecoderSandbox

# A video's share of the budget: its frames weigh about as much as the masks of so many questions.
_FRAMES_WEIGHT = 50
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Report:
    """Say what was written: the file, its bytes, the number of questions, and the notes that the page shows, too."""

    path: Path
    size: int
    questions: int
    notes: tuple[str, ...]


def build_report(
    run: Path,
    output: Path,
    *,
    manifest: Path | None = None,
    scores: Path | None = None,
    max_mb: float = 40.0,
    bar: bool | None = None,
) -> Report:
    """Write one HTML file about the run directory `run`, finished or not, and return what it came to.

    manifest: where video paths, texts and ground truth are. scores: what `gmcli eval --json` wrote. max_mb: megabytes for
    frames and masks; smaller ones are embedded rather than more. bar: whether to draw a progress bar; None: on a terminal.
    Equal runs give equal bytes, but for what run.json says of when and how long. Raises ConfigError for what is no run,
    UsageError for an output inside the run directory, OSError where the file cannot be written.
    """
    state = read_status(run)
    if output.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"{output}: lies inside the run directory, which holds the run's own files only")
    tasks = sources.tasks_of(run, manifest)
    records, damaged = read_records(run)
    entries, strangers = sources.entries_of(tasks, records)
    table, problem = sources.scores_of(run, tasks, scores)
    notes = [problem] if problem else []
    videos, rows, blobs, said = _read_videos(run, entries, records, max_mb * 1e6, bar)
    _add_scores(rows, entries, sources.question_scores(table) if table else {})
    notes += said + _gaps(state, rows, strangers, len(damaged), with_tasks=bool(tasks))
    data = {
        "run": describe_run(run, state, rows, len(videos)),
        "scores": _scores(table),
        "videos": videos,
        "rows": rows,
        "notes": notes,
    }
    make_directories(output.parent)
    write_file(output.parent, output.name, lambda file: write_page(file, data, blobs))
    with suppress(OSError):  # not empty: somebody else is writing beside us
        (output.parent / TEMPORARY).rmdir()
    return Report(output, output.stat().st_size, len(rows), tuple(notes))


def _read_videos(
    run: Path, entries: Sequence[Entry], records: Mapping[Key, Record], budget: float, bar: bool | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[bytes], list[str]]:
    """Return the videos, their questions' rows, their frames and masks, and notes."""
    videos: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    unread: list[str] = []
    levels: Counter[int] = Counter()
    weight = sum(_weight(entry) for entry in entries)
    progress = Progress(videos=len(entries), questions=sum(len(entry.questions) for entry in entries), bar=bar)
    sandbox = DecoderSandbox(limits_from(read_config(run)))
    try:
        for number, entry in enumerate(entries):
            answers = _answers(run, entry, records)
            clip = read_clip(run, entry.id, entry.task, answers, sandbox.open)
            # What earlier videos left over is shared by the later ones.
            level, blob = _fit(clip, entry, budget * _weight(entry) / weight)
            budget, weight = budget - len(blob), weight - _weight(entry)
            levels[level] += 1
            blobs.append(blob)
            videos.append(_video(entry, clip))
            rows += _rows(number, entry, records, answers, clip)
            if clip.note:
                unread.append(f"{shown(entry.id)}: {sources.reason(clip.note)}")
            progress.add_frames(len(clip.frames))
            for question in entry.questions:
                record = records.get((entry.id, question))
                progress.add_question(failed=record is not None and record.status == "failed")
            progress.add_video()
    finally:
        sandbox.close()
        progress.close()
    return videos, rows, blobs, _reductions(levels) + _unread(unread)


def _answers(run: Path, entry: Entry, records: Mapping[Key, Record]) -> dict[str, dict[str, Any]]:
    found = {question: sources.read_answer(run, records.get((entry.id, question))) for question in entry.questions}
    return {question: item for question, item in found.items() if item is not None}


def _weight(entry: Entry) -> int:
    return _FRAMES_WEIGHT + len(entry.questions)


def _fit(clip: Clip, entry: Entry, share: float) -> tuple[int, bytes]:
    """Encode a clip at the first level that fits its share of the budget (bytes); the number after the last is none."""
    for number, level in enumerate(LEVELS):
        blob = encode_clip(clip, level, entry.questions)
        if len(blob) <= share:
            return number, blob
    return len(LEVELS), b"null"


def _reductions(levels: Mapping[int, int]) -> list[str]:
    """Say which videos did not get all their frames, and what they got instead."""
    full, total = LEVELS[0], sum(levels.values())
    parts = []
    for number, count in sorted(levels.items()):
        if number == len(LEVELS):
            parts.append(f"{count} of {total} videos have neither frames nor masks here")
        elif number:
            level = LEVELS[number]
            parts.append(f"{count} of {total} videos have at most {level.frames} frames of {level.pixels} pixels")
    what = f"instead of {full.frames} frames of {full.pixels} pixels"
    return [f"To keep within --max-mb: {'; '.join(parts)}, {what}."] if parts else []


def _unread(videos: Sequence[str]) -> list[str]:
    """Name the videos without pictures, the first of them where there are many."""
    if len(videos) <= _NAMED:
        return [f"Pictures are missing: {video}" for video in videos]
    return [f"Pictures of {len(videos)} videos are missing, the first one: {videos[0]}"]


def _video(entry: Entry, clip: Clip) -> dict[str, Any]:
    """Describe a video: its name, its file's name (not where it lies), and its clip in frames and seconds."""
    return {
        "id": shown(entry.id),
        "file": shown(Path(entry.task.video).name) if entry.task else None,
        "first": clip.first,
        "stop": clip.stop,
        "from": clip.seconds(clip.first),
        "to": clip.seconds(clip.stop),
    }


def _rows(
    number: int, entry: Entry, records: Mapping[Key, Record], answers: Mapping[str, dict[str, Any]], clip: Clip
) -> list[dict[str, Any]]:
    known = {question.id: question for question in entry.task.questions} if entry.task else {}
    rows = []
    for position, name in enumerate(entry.questions):
        key = entry.id, name
        row = sources.row_of(key, records.get(key), answers.get(name), known.get(name))
        truth = known[name].ground_truth if name in known else None
        window = true_window(entry.task, truth, clip) if entry.task and truth else None
        row |= {"v": number, "i": position}
        row |= _in_seconds("span", row.get("span"), clip) | _in_seconds("win", window, clip)
        rows.append(row)
    return rows


def _in_seconds(name: str, span: list[int] | None, clip: Clip) -> dict[str, Any]:
    """Return a window in frames and, where the video tells, in seconds."""
    if span is None:
        return {}
    seconds = [clip.seconds(edge) for edge in span]
    return {name: span} | ({} if None in seconds else {f"{name}_s": seconds})


def _add_scores(
    rows: Sequence[dict[str, Any]], entries: Sequence[Entry], scores: Mapping[Key, Mapping[str, float]]
) -> None:
    for row in rows:
        entry = entries[row["v"]]
        if figures := scores.get((entry.id, entry.questions[row["i"]])):
            row["m"] = {metric: round(figure, 4) for metric, figure in figures.items()}


def _scores(scores: dict[str, Any] | None) -> dict[str, Any] | None:
    if scores is None:
        return None
    missing = scores.get("missing")
    return {"tables": sources.tables_of(scores), "missing": len(missing) if isinstance(missing, list) else 0}


def _gaps(
    state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], strangers: int, damaged: int, *, with_tasks: bool
) -> list[str]:
    """Say what the page cannot show, and why."""
    notes = []
    if not with_tasks:
        notes.append("The run kept no manifest: no pictures, no times and no true windows; give one with --manifest.")
        if state["pending"]:
            notes.append(
                f"{state['pending']} questions without an answer are not listed: only the manifest names them."
            )
    if strangers:
        notes.append(f"{strangers} answers to questions that the manifest does not have are left out.")
    if unreadable := sum(row["s"] == "unreadable" for row in rows):
        notes.append(f"{unreadable} answers could not be read or were changed since; see `gmcli verify`.")
    if damaged:
        notes.append(f"{damaged} damaged lines of the ledger were passed over.")
    return notes


def describe_run(run: Path, state: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], videos: int) -> dict[str, Any]:
    """Describe a run for the page: state, counts by status, settings, and what run.json says of work and time.

    Where the run was made stays out: a page travels farther than its run directory.
    """
    config, file = read_config(run), read_run(run)
    counts = Counter(row["s"] for row in rows)
    unlisted = max((state["questions"] or 0) - len(rows), 0)
    counts["pending"] += unlisted
    workers = file.get("workers")
    devices = Counter(str(w.get("device")) for w in workers if isinstance(w, dict)) if isinstance(workers, list) else {}
    return {
        "name": shown(run.resolve().name),
        "state": state["state"],
        "videos": videos,
        "questions": len(rows) + unlisted,
        "counts": {status: count for status, count in sorted(counts.items()) if count},
        "checkpoint": shown(state["checkpoint"]),
        "started": shown(file.get("started")),
        "wall_seconds": finite(file.get("wall_seconds")),
        "stages": _numbers(file.get("stage_seconds")),
        "work": _numbers(file.get("counts")),
        "devices": [shown(f"{count} × {name}" if count > 1 else name) for name, count in devices.items()],
        "settings": [[shown(name), shown(_setting(value))] for name, value in config.items()],
        "versions": [[shown(name), shown(value)] for name, value in _mapping(file.get("versions")).items()],
    }


def _setting(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(value: object) -> list[list[Any]]:
    return [[shown(name), number] for name, number in _mapping(value).items() if finite(number) is not None]
