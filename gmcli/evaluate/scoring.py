"""Score a run against ground truth, video by video, in one process or several.

An answer that is empty in a frame outside the window scores 1 there: so the same figures are given for answers that know
nothing, and beside them J&F inside the window only, and the overlap of the windows in time.
"""

import hashlib
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gmcli.data import GroundTruth, Question, TemporalSpan, VideoTask
from gmcli.errors import ConfigError, EnvironmentProblem
from gmcli.evaluate.answers import Answer, answer_accuracy, read_answer
from gmcli.evaluate.clips import Clip, Objects, images_beside, read_clip, read_objects
from gmcli.evaluate.protocol import SAMPLES, score_question, score_uniform, window_frames
from gmcli.evaluate.summary import METRICS, Row, summaries
from gmcli.ledger import item_name, read_config
from gmcli.progress import Progress
from gmcli.records import Key, Record, read_records
from gmcli.video import OpenVideo
from gmcli.video.limits import DecodeLimits, limits_from
from gmcli.video.sandbox import DecoderSandbox

UNTYPED = "untyped"
MISSING = "missing"

_EMPTY = TemporalSpan(0, 0)


def evaluate(
    run: Path,
    tasks: Sequence[VideoTask],
    *,
    allow_missing: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score every question of `tasks` with the answers in the run directory.

    Returns what `summaries` gives, and "missing": ["video/question"], and "questions_table": one dictionary a question,
    with its ids, type, scores, answer, true answer and status. `workers` processes share the videos; their number
    changes no digit.

    Raises ConfigError for tasks without ground truth, for a run that did not answer all of them (failed is not answered)
    unless `allow_missing`, which counts those as empty, and for masks that do not fit the frames. Raises
    EnvironmentProblem where a worker process dies.
    """
    limits = limits_from(read_config(run))
    records, _ = read_records(run)
    _check_tasks(tasks)
    missing = _missing(run, tasks, records)
    if missing and not allow_missing:
        raise ConfigError(
            f"{run}: questions of the manifest without an answer ({len(missing)}):\n  " + "\n  ".join(_named(missing)),
            "Finish the run (`gmcli infer …`, with --retry-failed for failed ones), or count them as empty with "
            "--allow-missing.",
        )
    for key in missing:
        records.pop(key, None)
    rows: list[Row] = []
    for part in _score_videos(run, tasks, records, workers, limits):
        rows += part
        if progress is not None:
            _show(progress, len(part))
    return {**summaries(rows), "missing": _named(missing), "questions_table": [_flat(row) for row in rows]}


def _show(progress: Progress, questions: int) -> None:
    progress.add_frames(SAMPLES * questions)
    for _ in range(questions):
        progress.add_question(failed=False)
    progress.add_video()


def _named(keys: Iterable[Key]) -> list[str]:
    return [f"{video}/{question}" for video, question in keys]


def _flat(row: Row) -> dict[str, Any]:
    return {
        "video": row.video,
        "question": row.question,
        "type": row.type,
        **{name: getattr(row.score, name) for name in METRICS},
        "answer": row.answer,
        "true_answer": row.true_answer,
        "status": row.status,
    }


def _check_tasks(tasks: Sequence[VideoTask]) -> None:
    """Refuse what the protocol cannot score, all of it at once."""
    problems = []
    for task in tasks:
        folders = {q.ground_truth.masks for q in task.questions if q.ground_truth is not None}
        if not Path(task.video).is_dir() and not (folders and all(map(_tells_frames, folders))):
            problems.append(
                f"{task.id}: {task.video} is not a folder of frames, whose names the true masks have, "
                "nor is there a folder 'images' beside the masks, or a mask for every frame"
            )
        if task.start is not None or task.end is not None:
            problems.append(f"{task.id}: 'start' or 'end' is set; the protocol scores whole clips")
        problems += [f"{task.id}/{q.id}: has no ground truth" for q in task.questions if q.ground_truth is None]
    if not any(task.questions for task in tasks):
        problems.append("the manifest has no questions")
    if problems:
        raise ConfigError("the manifest cannot be scored:\n  " + "\n  ".join(problems))


def _tells_frames(masks: str) -> bool:
    """Ask whether it may be told which frame of a video file a mask belongs to; `read_objects` finds out whether it can."""
    return images_beside(masks).is_dir() or any(Path(masks).glob("*.png"))


def _missing(run: Path, tasks: Sequence[VideoTask], records: Mapping[Key, Record]) -> list[Key]:
    """List the questions without an answer; refuse answers to questions of another wording."""
    missing, others = [], []
    for task in tasks:
        for question in task.questions:
            key = task.id, question.id
            record = records.get(key)
            if record is None or record.status == "failed" or not (run / item_name(*key)).is_file():
                missing.append(key)
            elif record.inputs.get("text") != question.text:
                others.append(key)
    if others:
        raise ConfigError(
            f"{run}: answered other questions under the same ids:\n  " + "\n  ".join(_named(others)),
            "Score it with the manifest that it was made from.",
        )
    return missing


# Videos, in this process or in others


def _score_videos(
    run: Path, tasks: Sequence[VideoTask], records: Mapping[Key, Record], workers: int, limits: DecodeLimits
) -> Iterator[list[Row]]:
    """Yield the rows of each video, in order."""
    jobs = [(run, task, [records.get((task.id, question.id)) for question in task.questions]) for task in tasks]
    if min(workers, len(jobs)) <= 1:
        with DecoderSandbox(limits) as sandbox:
            for job in jobs:
                yield score_video(*job, sandbox.open)
        return
    # Spawned, not forked: a fork of a process with threads (tqdm has one) may hang.
    pool = ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn"), initializer=_leave_interrupts)
    try:
        for future in [pool.submit(_score_alone, *job, limits) for job in jobs]:
            yield future.result()
    except BrokenProcessPool:
        raise EnvironmentProblem(
            "a process that scored videos died (killed for want of memory?)", "Try fewer with --workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_interrupts() -> None:
    """Leave Ctrl-C to the process that waits for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _score_alone(run: Path, task: VideoTask, records: Sequence[Record | None], limits: DecodeLimits) -> list[Row]:
    # A sandbox cannot be handed to another process.
    with DecoderSandbox(limits) as sandbox:
        return score_video(run, task, records, sandbox.open)


def score_video(run: Path, task: VideoTask, records: Sequence[Record | None], open_video: OpenVideo) -> list[Row]:
    """Score all questions of a video; `records` has theirs in the same order, None for one without an answer."""
    clip = read_clip(task, open_video)
    objects: dict[str, Objects] = {}
    rows = []
    for question, record in zip(task.questions, records, strict=True):
        truth = _ground_truth(question)
        # The questions of a video mostly share one folder of masks; only one is held.
        if truth.masks not in objects:
            objects = {truth.masks: read_objects(Path(truth.masks), clip, open_video)}
        rows.append(_score(run, task.id, question, record, clip, objects[truth.masks]))
    return rows


def _score(run: Path, video: str, question: Question, record: Record | None, clip: Clip, objects: Objects) -> Row:
    truth = _ground_truth(question)
    masks, frames = objects.masks(truth.object_ids), clip.sampled
    window = window_frames(truth.start, truth.end, clip.fps, len(clip.names))
    silence = score_uniform(masks, frames, window, _EMPTY, full=False)
    answer = Answer((), _EMPTY, None) if record is None else read_answer(run, record, clip)
    own = silence if record is None else score_question(masks, answer.masks, frames, window, answer.span)
    drawn = draw_object(video, question.id, objects.numbers)
    # A clip without objects has none to name: that answer is empty.
    named = objects.masks(() if drawn is None else (drawn,))
    pointing = score_question(masks, named, frames, window, _whole(clip))
    return Row(
        video=video,
        question=question.id,
        type=question.type or UNTYPED,
        status=MISSING if record is None else record.status,
        answer=answer.text,
        true_answer=truth.answer,
        score=replace(own, answer_accuracy=answer_accuracy(truth.answer, answer.text)),
        baselines={
            "all_empty": silence,
            "every_pixel": score_uniform(masks, frames, window, _whole(clip), full=True),
            "random_object": replace(pointing, answer_accuracy=_is_right(drawn, truth.object_ids)),
        },
    )


def draw_object(video: str, question: str, numbers: Sequence[int]) -> int | None:
    """Draw one of a clip's objects for a question, always the same one; None where the clip has none."""
    if not numbers:
        return None
    # Not Python's hash, which differs from process to process.
    digest = hashlib.sha256(f"{video}/{question}".encode()).digest()
    return numbers[int.from_bytes(digest, "big") % len(numbers)]


def _is_right(drawn: int | None, numbers: Sequence[int]) -> float | None:
    """Give 1 where the drawn object is the true one, 0 where it is not, None where several are true."""
    return float(drawn == numbers[0]) if len(numbers) == 1 else None


def _whole(clip: Clip) -> TemporalSpan:
    return TemporalSpan(0, len(clip.names))


def _ground_truth(question: Question) -> GroundTruth:
    if question.ground_truth is None:
        raise ValueError("tasks have been checked for ground truth")
    return question.ground_truth
