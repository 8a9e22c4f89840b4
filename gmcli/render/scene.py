"""Gather what the renders of one question show: the clip, the answer, its masks, and the truth where it is wanted."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmcli.data import GroundTruth, Question, Rle, TemporalSpan, VideoTask
from gmcli.errors import GmcliError, ItemError
from gmcli.items import masks_of, read_item
from gmcli.ledger import item_name
from gmcli.masks.png import read_indices
from gmcli.masks.rle import decode_rle, rle_from_json
from gmcli.records import Record
from gmcli.render.paint import Mask
from gmcli.video import VideoReader, frame_range

NO_TARGET = "no target"
CUT_OFF = " … (cut off)"

# How long a clip of one frame is shown, in seconds: it has no frame rate.
_STILL_S = 1.0
# What is left of a time in seconds that is a fraction.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold one question's renders before they are drawn.

    `frames` are the clip's in the video's own numbering, `edges` [len(frames)+1] float64 the seconds from the clip's
    start at which each is shown, and the end. `window` is the predicted one, empty without a target. `names` maps the
    frames that have masks to those masks' file stems, `rles` to the masks where the item holds them; else they are
    `<name>.png` in `pngs`. `truth` is None where it is not wanted, or not known; `true_answer` is in words.
    """

    video: str
    question: str
    answer: str
    reader: VideoReader
    frames: range
    edges: NDArray[np.float64]
    window: TemporalSpan
    names: Mapping[int, str]
    rles: Mapping[int, Rle]
    pngs: Path
    truth: GroundTruth | None
    truth_window: TemporalSpan
    true_answer: str


def read_scene(
    run: Path, reader: VideoReader, task: VideoTask, question: Question, record: Record, truth: bool
) -> Scene:
    """Read a question's item file and lay it beside its video, which is open as `reader`.

    Raises ItemError where the item is missing, is not what was recorded, or does not fit the video.
    """
    frames = frame_range(reader.times, task.start, task.end)
    edges = _edges(reader.times, frames)
    where = item_name(*record.key)
    try:
        item, _ = read_item(run, *record.key, recorded=record.sha256)
        names = dict(zip(item["frames"], item["names"], strict=True))
        masks = item.get("masks")
        rles = {} if masks is None else dict(zip(names, map(rle_from_json, masks), strict=True))
        aimed = record.status != "no_target" and item["span"] is not None
        window = TemporalSpan(*item["span"]) if aimed else TemporalSpan(0, 0)
        answer = _answer(item, record.status)
        pngs = masks_of(run, *record.key)
    except (OSError, ValueError, KeyError, TypeError, GmcliError) as error:
        raise ItemError(f"{where}: cannot be read ({error})", f"See what `gmcli verify {run}` says.") from None
    _check_names(where, names, reader)
    known = question.ground_truth if truth else None
    return Scene(
        video=task.id,
        question=question.text,
        answer=answer,
        reader=reader,
        frames=frames,
        edges=edges,
        window=window,
        names=names,
        rles=rles,
        pngs=pngs,
        truth=known,
        truth_window=TemporalSpan(0, 0) if known is None else _truth_window(known, frames, edges),
        true_answer=(known.answer or "") if known is not None else "",
    )


def mask_of(scene: Scene, frame: int) -> Mask | None:
    """Return the mask [H, W] bool that was recorded for a frame; None where none was, and outside the window.

    Raises ItemError for a mask that cannot be read or does not fit the frame.
    """
    if frame not in scene.names or frame not in scene.window:
        return None
    path = scene.pngs / f"{scene.names[frame]}.png"
    try:
        rle = scene.rles.get(frame)
        mask = decode_rle(rle) if rle is not None else read_indices(path) > 0
    except (OSError, ValueError, GmcliError) as error:
        raise ItemError(f"{scene.video}: the mask of frame {scene.names[frame]} cannot be read ({error})") from None
    if mask.shape != scene.reader.size:
        raise ItemError(
            f"{scene.video}: the mask of frame {scene.names[frame]} is {mask.shape}, the frame {scene.reader.size} (H, W)"
        )
    return mask


def truth_of(scene: Scene, frame: int) -> Mask | None:
    """Return the true mask [H, W] bool of a frame; None where there is none, and outside the true window.

    Raises ItemError for a mask that cannot be read or does not fit the frame.
    """
    if scene.truth is None or frame not in scene.truth_window:
        return None
    path = Path(scene.truth.masks) / f"{scene.reader.names[frame]}.png"
    try:
        ids = read_indices(path)
    except FileNotFoundError:
        return None  # GroundMoRe stores no mask where the object is not to be seen
    except (OSError, ValueError) as error:
        raise ItemError(f"{path}: cannot be read as a mask ({error})") from None
    if ids.shape != scene.reader.size:
        raise ItemError(f"{path}: is {ids.shape}, the frame {scene.reader.size} (H, W)")
    return np.isin(ids, scene.truth.object_ids)


def _edges(times: NDArray[np.float64], frames: range) -> NDArray[np.float64]:
    """Return when each frame of a clip appears, and when the last one goes, in seconds from the clip's start."""
    if frames.stop < len(times):
        end = float(times[frames.stop])
    else:
        steps = np.diff(times)
        end = float(times[-1]) + (float(np.median(steps)) if len(steps) else _STILL_S)
    edges = np.append(times[frames.start : frames.stop], end)
    return np.asarray(edges - edges[0], dtype=np.float64)


def _truth_window(truth: GroundTruth, frames: range, edges: NDArray[np.float64]) -> TemporalSpan:
    """Find the frames that are shown wholly within the true window: at a constant rate, those that `gmcli eval` scores."""
    start = 0.0 if truth.start is None else truth.start
    end = float(edges[-1]) if truth.end is None else truth.end
    inside = (edges[:-1] >= start - _ROUNDING) & (edges[1:] <= end + _ROUNDING)
    found = np.flatnonzero(inside)
    if not len(found):
        return TemporalSpan(0, 0)
    return TemporalSpan(frames.start + int(found[0]), frames.start + int(found[-1]) + 1)


def _answer(item: Mapping[str, Any], status: str) -> str:
    answer = item["answer"] or ""
    if not isinstance(answer, str):
        raise ValueError("its answer is no text")
    if not item.get("finished", True):
        answer += CUT_OFF
    if status == "no_target":
        answer = f"{answer} ({NO_TARGET})" if answer else NO_TARGET
    return answer


def _check_names(where: str, names: Mapping[int, str], reader: VideoReader) -> None:
    """Refuse masks of another video: of frames that this one has not, or has under other names."""
    for frame, name in names.items():
        if type(frame) is not int or not 0 <= frame < len(reader.names) or reader.names[frame] != name:
            raise ItemError(
                f"{where}: has a mask of frame {frame!r}, {name!r}, which is none of {reader.path}",
                "Has the video changed since the run?",
            )
