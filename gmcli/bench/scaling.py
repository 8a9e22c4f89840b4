"""Measure how gmcli scales: over workers, questions of a video, frames, and the length of the clip.

Every point is measured in processes of its own: cold, from the start of the process with loading the model, and warm.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmcli.bench.clips import FPS, make_task
from gmcli.bench.options import Options
from gmcli.checkpoints.locate import locate_checkpoint
from gmcli.config import load_config
from gmcli.data import VideoTask
from gmcli.devices import gpu_count
from gmcli.errors import EnvironmentProblem, GmcliError
from gmcli.executors.local import LocalExecutor
from gmcli.executors.messages import Answered, Job, WorkerSetup

# Of one worker's share, besides the first and the last video, at which the workers are not all at work.
_VIDEOS_A_WORKER = 3
_MULTIPLY = {"size": 1024, "seconds": 2.0}

Row = dict[str, float]
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """Say what is measured: a checkpoint by its name or folder, the options, and the folder where clips are kept."""

    ref: str
    options: Options
    clips: Path


def scale(subject: Subject, name: str, points: Sequence[int], say: Say) -> list[Row]:
    """Return one table's rows. name: of the table; points: workers, questions, frames, or seconds of the clip."""
    rows: list[Row] = []
    for point in points:
        say(f"scaling: {name} {point}")
        match name:
            case "workers":
                rows.append(_workers(subject, point))
            case "questions":
                rows.append(_point(subject, {"questions": point}, questions=point))
            case "frames":
                rows.append(_point(subject, {"frames": point}, clip_frames=point, frames=point))
            case "length":
                # A mask a second: what streams through grows with the length, what the language model sees does not.
                rows.append(_point(subject, {"length_s": point}, clip_frames=point * FPS, mask_frames="1"))
    if name == "workers":
        limits = _limits(subject.options, points)
        for row in rows:
            row["ratio"] = row["warm_frames_s"] / rows[0]["warm_frames_s"]
            row["machine_ratio"] = limits[int(row["workers"])] / limits[int(rows[0]["workers"])]
    return rows


def _point(
    subject: Subject, row: Mapping[str, float], *, questions: int | None = None, clip_frames: int = 0, **settings: Any
) -> Row:
    """Measure one video in a process of its own."""
    task = make_task(
        subject.clips,
        frames=max(clip_frames, subject.options.frames, 10 * FPS),
        questions=questions or subject.options.questions,
        size=subject.options.frame_size,
    )
    asked = {
        "do": "segment",
        "ref": subject.ref,
        "video": task.video,
        "questions": [question.text for question in task.questions],
        "settings": {**subject.options.run_settings(), **settings},
        "device": subject.options.device,
        "dtype": subject.options.dtype,
        "threads": subject.options.threads,
        "started": time.time(),
    }
    (answer,) = _together([asked])
    count = len(task.questions)
    return {
        **row,
        **answer,
        "warm_frames_s": answer["masked_frames"] / answer["warm_s"],
        "warm_questions_s": count / answer["warm_s"],
        "cold_questions_s": count / answer["cold_s"],
    }


def _together(asked: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Run one child for each request. Those that say `ready` start together."""
    command = [sys.executable, "-m", "gmcli.bench.child"]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in asked]
    try:
        for child, request in zip(children, asked, strict=True):
            _write(child, json.dumps(request))
        lines = [_line(child) for child in children]
        waiting = [child for child, line in zip(children, lines, strict=True) if line == "ready"]
        for child in waiting:
            _write(child, "go")
        answers = [_line(c) if c in waiting else line for c, line in zip(children, lines, strict=True)]
        return [json.loads(answer) for answer in answers]
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _write(child: "subprocess.Popen[str]", line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def _line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise GmcliError(f"a measuring process ended with exit code {child.wait()}; its error is above")
    return line.strip()


def _limits(options: Options, points: Sequence[int]) -> dict[int, float]:
    """Return what so many workers could do together, in one unit: cores share caches and memory, GPUs share nothing."""
    if options.device == "cuda":
        return {point: float(point) for point in points}
    return {point: _multiply(point, options.dtype) for point in points}


def _multiply(processes: int, dtype: str) -> float:
    """Return the GFLOP/s of so many single-threaded processes together."""
    asked = {"do": "multiply", "dtype": dtype, **_MULTIPLY}
    return sum(answer["gflop_s"] for answer in _together([asked] * processes))


def _workers(subject: Subject, workers: int) -> Row:
    """Run real worker processes, one thread each, over equal videos.

    Warm is between two answers at which all workers were at work, cold from the start to the last answer.
    """
    if subject.options.device == "cuda" and workers > gpu_count():
        raise EnvironmentProblem(f"{workers} workers need as many GPUs; the CUDA driver shows {gpu_count()}")
    count = (_VIDEOS_A_WORKER + 2) * workers
    frames = max(subject.options.frames, 10 * FPS)
    jobs = []
    for number in range(count):
        task = make_task(
            subject.clips, frames=frames, questions=subject.options.questions, size=subject.options.frame_size
        )
        task = VideoTask(f"v{number}", task.video, task.questions, size_bytes=task.size_bytes)
        jobs.append(Job(task, tuple(question.id for question in task.questions)))
    setup = WorkerSetup(
        files=locate_checkpoint(subject.ref),
        config=load_config(None, subject.options.run_settings()),
        device=subject.options.device,
        dtype=subject.options.dtype,
        threads=1,
        log_format="text",
    )
    gpus = [str(i) for i in range(workers)] if subject.options.device == "cuda" else None
    logs = subject.clips.parent / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    executor = LocalExecutor(setup, gpus=gpus, workers=workers, logs=logs)
    start = time.perf_counter()
    ends, masked = [], 0
    try:
        for event in executor.run(jobs):
            if isinstance(event, Answered):
                failed = [result.error for result in event.results if result.status == "failed"]
                if failed:
                    raise GmcliError(f"a worker failed: {failed[0]}", f"See {logs}.")
                if event.last:
                    ends.append(time.perf_counter() - start)
                    masked = event.counts["sam_frames"]
    finally:
        executor.close()
    videos_s = steady_rate(ends, workers)
    return {
        "workers": workers,
        "videos": count,
        "cold_s": ends[-1],
        "cold_frames_s": count * masked / ends[-1],
        "warm_frames_s": videos_s * masked,
        "warm_questions_s": videos_s * subject.options.questions,
    }


def steady_rate(ends: Sequence[float], workers: int) -> float:
    """Return the videos/s of so many workers over equal videos while all are at work. ends: each answer's time, in order.

    After the k-th answer each of k workers has warmed up; until k are left, each has another video. Whole rounds only:
    workers that go in step answer k at once, and part of a round would be counted with a whole round's time.
    """
    rounds = len(ends) // workers - 2
    first = workers - 1
    return rounds * workers / (ends[first + rounds * workers] - ends[first])
