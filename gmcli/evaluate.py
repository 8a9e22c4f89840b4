"""Score a finished run against a manifest with ground truth, by the GroundMoRe protocol.

The protocol looks at 20 frames of a clip, evenly spread. The truth is the union of the question's objects in the indexed
masks, and nothing outside the question's window. J and F are means over the 20 frames, then over the questions. An answer
that is empty in a frame outside the window scores 1 there: so the same figures are given for two answers that know nothing,
and beside them J&F inside the window only, and the overlap of the windows in time.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gmcli.data import GroundTruth, Question, TemporalSpan, VideoTask
from gmcli.errors import ConfigError, GmcliError, VideoError
from gmcli.items import mask_folder, read_item
from gmcli.ledger import Key, Record, item_name, read_config, read_records
from gmcli.masks.rle import MAX_PIXELS, decode_rle, rle_from_json
from gmcli.metrics import Mask, boundary_fs, region_similarities, temporal_iou
from gmcli.video import open_video, sample_indices

SAMPLES = 20
FPS = 6.0
BASELINES = ("all_empty", "every_pixel")
UNTYPED = "untyped"

_RUN = "run"
# What is left of a frame's number when times in seconds are fractions.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Score:
    """Hold the scores of one answer, each in [0, 1].

    `window_j_and_f` is None where no sampled frame lies in the question's window.
    """

    j: float
    f: float
    window_j_and_f: float | None
    t_iou: float


@dataclass(frozen=True, slots=True)
class _Clip:
    """Hold what the protocol needs of a clip: the names of all its frames in order, their (H, W), and the sampled ones."""

    names: tuple[str, ...]
    size: tuple[int, int]
    sampled: tuple[int, ...]


def window_frames(start: float | None, end: float | None, fps: float, count: int) -> TemporalSpan:
    """Turn a window in seconds from the clip's start into frames of a clip of `count` frames; None leaves a side open.

    The protocol's window is `start * fps` to `end * fps - 1`, both included.

    Source: evaluate_groundmore.py of dengandong/GroundMoRe.
    """
    first = 0 if start is None else math.ceil(start * fps - _ROUNDING)
    stop = count if end is None else math.floor(end * fps + _ROUNDING)
    first = min(max(first, 0), count)
    return TemporalSpan(first, max(first, min(stop, count)))


def score_question(
    truth: Mask, prediction: Mask, frames: Sequence[int], window: TemporalSpan, span: TemporalSpan
) -> Score:
    """Score the masks of one answer [T, H, W] bool against the true ones [T, H, W] bool.

    frames: the numbers of the T frames. window: when the answer is true; `truth` counts as empty outside it. span: when
    the answer says it is. Raises ValueError for other shapes or dtypes.

    Source: evaluate_groundmore.py of dengandong/GroundMoRe; for T = 20 frames of the clip, evenly spread, it is the protocol.
    """
    inside = np.array([frame in window for frame in frames], dtype=np.bool_)
    truth = truth & inside[:, None, None]
    j, f = region_similarities(truth, prediction), boundary_fs(truth, prediction)
    return Score(
        j=float(np.mean(j)),
        f=float(np.mean(f)),
        window_j_and_f=float(np.mean(j[inside]) + np.mean(f[inside])) / 2 if inside.any() else None,
        t_iou=temporal_iou((span.start, span.end), (window.start, window.end)),
    )


def evaluate(run: Path, tasks: Sequence[VideoTask], *, allow_missing: bool = False) -> dict[str, Any]:
    """Score every question of `tasks` with the answers in the run directory.

    Returns {"overall": summary, "by_type": {type: summary}, "baselines": {name: {"overall", "by_type"}}, "missing":
    ["video/question"]}; a summary holds the number of `questions` and j, f, j_and_f, window_j_and_f and t_iou in [0, 1]
    (window_j_and_f is None where no question has a sampled frame in its window).

    Raises ConfigError for tasks without ground truth, for a run that did not answer all of them (failed is not answered)
    unless `allow_missing`, which counts those as empty, and for masks that do not fit the frames.
    """
    read_config(run)
    records, _ = read_records(run)
    _check_tasks(tasks)
    missing = _missing(run, tasks, records)
    if missing and not allow_missing:
        raise ConfigError(
            f"{run}: questions of the manifest without an answer ({len(missing)}):\n  " + "\n  ".join(_named(missing)),
            "Finish the run (`gmcli infer …`, with --retry-failed for failed ones), or count them as empty with "
            "--allow-missing.",
        )
    rows = [row for task in tasks for row in _score_video(run, task, records, frozenset(missing))]
    types = [row_type for row_type, _ in rows]
    tables = {name: _table(types, [scores[name] for _, scores in rows]) for name in (_RUN, *BASELINES)}
    return {**tables.pop(_RUN), "baselines": tables, "missing": _named(missing)}


def _named(keys: Iterable[Key]) -> list[str]:
    return [f"{video}/{question}" for video, question in keys]


def _check_tasks(tasks: Sequence[VideoTask]) -> None:
    """Refuse what the protocol cannot score, all of it at once."""
    problems = []
    for task in tasks:
        if not Path(task.video).is_dir():
            problems.append(f"{task.id}: {task.video} is not a folder of frames, whose names the true masks have")
        if task.start is not None or task.end is not None:
            problems.append(f"{task.id}: 'start' or 'end' is set; the protocol scores whole clips")
        problems += [f"{task.id}/{q.id}: has no ground truth" for q in task.questions if q.ground_truth is None]
    if not any(task.questions for task in tasks):
        problems.append("the manifest has no questions")
    if problems:
        raise ConfigError("the manifest cannot be scored:\n  " + "\n  ".join(problems))


def _missing(run: Path, tasks: Sequence[VideoTask], records: dict[Key, Record]) -> list[Key]:
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


def _score_video(
    run: Path, task: VideoTask, records: dict[Key, Record], missing: frozenset[Key]
) -> Iterator[tuple[str, dict[str, Score]]]:
    """Yield the type of each question of a video, and the scores of the run and of the baselines."""
    clip = _read_clip(task.video)
    count = len(clip.names)
    nothing = np.zeros((len(clip.sampled), *clip.size), dtype=np.bool_)
    empty, whole = TemporalSpan(0, 0), TemporalSpan(0, count)
    # The questions of a video mostly share one folder of masks.
    folder: str | None = None
    ids: NDArray[np.integer[Any]] = np.zeros(0, dtype=np.int64)
    for question in task.questions:
        truth = _ground_truth(question)
        if truth.masks != folder:
            folder, ids = truth.masks, _read_object_ids(Path(truth.masks), clip)
        true = np.isin(ids, truth.object_ids)
        window = window_frames(truth.start, truth.end, task.fps or FPS, count)
        key = task.id, question.id
        answer = (nothing, empty) if key in missing else _read_answer(run, records[key], clip)
        answers = {_RUN: answer, "all_empty": (nothing, empty), "every_pixel": (~nothing, whole)}
        yield (
            question.type or UNTYPED,
            {name: score_question(true, masks, clip.sampled, window, span) for name, (masks, span) in answers.items()},
        )


def _ground_truth(question: Question) -> GroundTruth:
    if question.ground_truth is None:
        raise ValueError("tasks have been checked for ground truth")
    return question.ground_truth


def _table(types: Sequence[str], scores: Sequence[Score]) -> dict[str, Any]:
    by_type: dict[str, list[Score]] = {}
    for name, score in zip(types, scores, strict=True):
        by_type.setdefault(name, []).append(score)
    return {"overall": _summary(scores), "by_type": {name: _summary(part) for name, part in by_type.items()}}


def _summary(scores: Sequence[Score]) -> dict[str, Any]:
    j, f = float(np.mean([score.j for score in scores])), float(np.mean([score.f for score in scores]))
    windows = [score.window_j_and_f for score in scores if score.window_j_and_f is not None]
    return {
        "questions": len(scores),
        "j": j,
        "f": f,
        "j_and_f": (j + f) / 2,
        "window_j_and_f": float(np.mean(windows)) if windows else None,
        "t_iou": float(np.mean([score.t_iou for score in scores])),
    }


# The answers


def _read_answer(run: Path, record: Record, clip: _Clip) -> tuple[Mask, TemporalSpan]:
    """Read the masks [20, H, W] bool of the sampled frames, and the span, which is empty without a target."""
    where = run / item_name(*record.key)
    try:
        item, sha256 = read_item(run, *record.key)
        if sha256 != record.sha256:
            raise ValueError("its content differs from what was recorded")
        positions = _positions(where, item, clip)
        span = TemporalSpan(*(item["span"] if item["span"] and record.status != "no_target" else (0, 0)))
        rles = item.get("masks")
        pngs = run / mask_folder(*record.key)
        masks = [
            decode_rle(rle_from_json(rles[position])) if rles is not None else _read_png(pngs / f"{name}.png") > 0
            for position, name in positions
        ]
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError, GmcliError) as error:
        raise ConfigError(f"{where}: cannot be read ({error})", f"See what `gmcli verify {run}` says.") from None
    for (_, name), mask in zip(positions, masks, strict=True):
        if mask.shape != clip.size:
            raise ConfigError(f"{where}: the mask of frame {name} is {mask.shape}, the frame {clip.size} (H, W)")
    return np.stack(masks), span


def _positions(where: Path, item: dict[str, Any], clip: _Clip) -> list[tuple[int, str]]:
    """Find the sampled frames among an item's: the position and the name of each."""
    position_of = {frame: position for position, frame in enumerate(item["frames"])}
    found = []
    for frame in clip.sampled:
        if frame not in position_of:
            raise ConfigError(
                f"{where}: has no mask of frame {frame}, which the protocol scores",
                f"Run with --mask-frames all, or --mask-frames sampled and --frames {SAMPLES}.",
            )
        position, name = position_of[frame], clip.names[frame]
        if item["names"][position] != name:
            raise ConfigError(
                f"{where}: frame {frame} is {item['names'][position]!r}, in the clip's folder it is {name!r}",
                "Were frames added or removed since the run?",
            )
        found.append((position, name))
    return found


# The truth


def _read_clip(folder: str) -> _Clip:
    try:
        with open_video(folder) as reader:
            names, size = tuple(reader.names), reader.size
    except VideoError as error:
        raise ConfigError(error.message, error.hint) from None
    if size[0] * size[1] > MAX_PIXELS:
        raise ConfigError(f"{folder}: frames of more than {MAX_PIXELS} pixels")
    return _Clip(names, size, tuple(sample_indices(0, len(names), SAMPLES)))


def _read_object_ids(folder: Path, clip: _Clip) -> NDArray[np.integer[Any]]:
    """Read the object's number of each pixel of the sampled frames, [20, H, W]; a missing PNG has none."""
    present = {path.stem for path in folder.glob("*.png")}
    if present and present.isdisjoint(clip.names):
        raise ConfigError(f"{folder}: no mask is named after a frame ({min(present)}.png is none of the clip's)")
    planes: list[NDArray[Any]] = []
    for frame in clip.sampled:
        name = clip.names[frame]
        if name not in present:
            planes.append(np.zeros(clip.size, dtype=np.uint8))
            continue
        path = folder / f"{name}.png"
        try:
            plane = _read_png(path, clip.size)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as a mask ({error})") from None
        planes.append(plane)
    return np.stack(planes)


def _read_png(path: Path, size: tuple[int, int] | None = None) -> NDArray[Any]:
    """Read a PNG of one channel, [H, W]: the palette's indices, or the grey values.

    Raises OSError, and ValueError for several channels and for another size than `size`.
    """
    with _open(path) as image:
        found = image.height, image.width
        if size is not None and found != size:
            raise ValueError(f"it is {found}, the frame {size} (H, W)")
        # Colours say nothing of objects, and turning them into a palette invents some.
        if image.mode not in ("P", "L", "1", "I;16", "I"):
            raise ValueError(f"its pixels are {image.mode}, not indices")
        pixels = np.asarray(image)
    return pixels.astype(np.uint8) if pixels.dtype == np.bool_ else pixels


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path}: {error}") from None
