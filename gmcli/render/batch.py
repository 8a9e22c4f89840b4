"""Render a run: find out what is missing, draw it question by question, say what was left out and why."""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from gmcli.data import Question, VideoTask
from gmcli.errors import ConfigError, ItemError, UsageError
from gmcli.files import TEMPORARY, make_directories, write_file
from gmcli.ledger import check_links, read_config
from gmcli.lock import take_lock
from gmcli.progress import Progress
from gmcli.records import Key, Record, inputs_of, read_records
from gmcli.render.formats import ENDINGS, WRITERS, Format, source_of
from gmcli.render.scene import read_scene
from gmcli.video import OpenVideo, VideoReader
from gmcli.video.limits import limits_from
from gmcli.video.sandbox import DecoderSandbox

# Part of what a render was made from: with another number everything is drawn again.
_DRAWING = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """Name one question and the formats in which its render is missing. `source` is what they will be made from."""

    question: Question
    record: Record
    formats: tuple[Format, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold what is to be drawn, by video; how many questions are drawn already; and which cannot be, with the reason."""

    videos: tuple[tuple[VideoTask, tuple[Wanted, ...]], ...]
    kept: int
    skipped: tuple[str, ...]

    @property
    def questions(self) -> int:
        """Count the questions that are to be drawn."""
        return sum(len(wanted) for _, wanted in self.videos)


def choose(tasks: Sequence[VideoTask], videos: Sequence[str], questions: Sequence[str]) -> list[VideoTask]:
    """Keep the named videos and questions; nothing named keeps all. Raises UsageError for a name that nothing has."""
    known = {"video": {t.id for t in tasks}, "question": {q.id for t in tasks for q in t.questions}}
    for what, names in (("video", videos), ("question", questions)):
        for name in names:
            if name not in known[what]:
                raise UsageError(f"no {what} has the id {name!r}", "Ids are those of the manifest.")
    kept = [_keep(task, questions) for task in tasks if not videos or task.id in videos]
    if not any(task.questions for task in kept):
        raise UsageError("no question has the ids asked for", "A --question is looked for in each --video.")
    return kept


def _keep(task: VideoTask, questions: Sequence[str]) -> VideoTask:
    if not questions:
        return task
    kept = tuple(question for question in task.questions if question.id in questions)
    return replace(task, questions=kept)


def plan(
    run: Path, tasks: Sequence[VideoTask], out: Path, formats: Sequence[Format], *, truth: bool, force: bool
) -> Plan:
    """Find out which renders of the tasks' questions are missing in `out`, or were made from something else.

    force: all are. Raises ConfigError where `run` is no run directory, or answered other questions or videos under the
    same ids.
    """
    read_config(run)
    check_links(run)
    if out.resolve() == run.resolve():
        raise UsageError(f"{out}: renders cannot lie among a run's own files", "Choose another --output.")
    records, damaged = read_records(run)
    _check_ids(tasks)
    _check_unchanged(run, tasks, records)
    videos, kept, skipped = [], 0, list(damaged)
    for task in tasks:
        found = []
        for question in task.questions:
            record = records.get((task.id, question.id))
            if record is None or record.status == "failed":
                reason = "not answered yet" if record is None else f"failed in the run: {record.error}"
                skipped.append(f"{task.id}/{question.id}: {reason}")
                continue
            source = _source(question, record, truth)
            missing = tuple(f for f in formats if force or source_of(_path(out, record.key, f), f) != source)
            kept += not missing
            found += [Wanted(question, record, missing, source)] if missing else []
        videos += [(task, tuple(found))] if found else []
    return Plan(tuple(videos), kept, tuple(skipped))


def render(run: Path, out: Path, planned: Plan, progress: Progress, *, truth: bool) -> list[str]:
    """Draw what is planned into `out`; return a line for each question that could not be drawn.

    Each file is there whole or not at all. Raises RunLocked where another render works in `out`, OSError where it cannot
    be written.
    """
    failed: list[str] = []
    try:
        if planned.videos:
            make_directories(out)
            with take_lock(out), DecoderSandbox(limits_from(read_config(run))) as sandbox:
                _clear_temporary(out)
                for task, wanted in planned.videos:
                    failed += _render_video(run, out, task, wanted, progress, truth, sandbox.open)
                _clear_temporary(out)
    finally:
        progress.close()
    return failed


def _render_video(
    run: Path,
    out: Path,
    task: VideoTask,
    wanted: Sequence[Wanted],
    progress: Progress,
    truth: bool,
    open_video: OpenVideo,
) -> list[str]:
    failed: list[str] = []
    with ExitStack() as stack:
        reader: VideoReader | None = None
        for item in wanted:
            try:
                # Where a video cannot be opened, each of its questions says so.
                reader = reader or stack.enter_context(open_video(task.video, fps=task.fps))
                _render_question(run, out, task, item, reader, progress, truth)
            except ItemError as error:
                failed.append(f"{task.id}/{item.question.id}: {error.message}")
                progress.add_question(failed=True)
            else:
                progress.add_question(failed=False)
    progress.add_video()
    return failed


def _render_question(
    run: Path, out: Path, task: VideoTask, item: Wanted, reader: VideoReader, progress: Progress, truth: bool
) -> None:
    scene = read_scene(run, reader, task, item.question, item.record, truth)
    for kind in item.formats:
        content = partial(WRITERS[kind], scene, item.source, watch=progress.add_frames)
        write_file(out, str(_path(Path(), item.record.key, kind)), content)


def _path(out: Path, key: Key, kind: Format) -> Path:
    return out / key[0] / (key[1] + ENDINGS[kind])


def _source(question: Question, record: Record, truth: bool) -> str:
    """Return a hash (sha256, hex) of all that decides what a render shows, as far as it can be had without the video."""
    known = question.ground_truth if truth else None
    value = {
        "drawing": _DRAWING,
        "item": record.sha256,
        "inputs": dict(record.inputs),
        "truth": None if known is None else asdict(known),
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _check_ids(tasks: Sequence[VideoTask]) -> None:
    """Refuse ids that are no file names. A manifest's are checked when it is read; tasks may come from elsewhere."""
    for name in (name for task in tasks for name in (task.id, *(q.id for q in task.questions))):
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
            raise ConfigError(
                f"an id may contain only A-Z, a-z, 0-9, '.', '_' and '-', and not start with '.': {name!r}"
            )


def _check_unchanged(run: Path, tasks: Sequence[VideoTask], records: dict[Key, Record]) -> None:
    changed = [
        f"{task.id}/{question.id}"
        for task in tasks
        for question in task.questions
        for record in [records.get((task.id, question.id))]
        if record and record.status != "failed" and dict(record.inputs) != inputs_of(task, question)
    ]
    if changed:
        raise ConfigError(
            f"{run}: answered other questions, or other videos, under the same ids:\n  " + "\n  ".join(changed),
            "Render it with the manifest that it was made from.",
        )


def _clear_temporary(out: Path) -> None:
    """Remove what a killed render left, and nothing else: `out` may be anybody's folder."""
    folder = out / TEMPORARY
    for path in folder.glob("*"):
        if re.fullmatch("[0-9a-f]{32}", path.name) and path.is_file():
            path.unlink()
    with suppress(OSError):  # there is none, or it holds something of somebody else's
        folder.rmdir()
