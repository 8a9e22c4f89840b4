"""Leave small run directories over the shared clips: a mask that follows the bright square, in a window."""

from pathlib import Path

import av
import numpy as np

from gmcli.data import ItemResult, Question, TemporalSpan, VideoTask
from gmcli.items import write_item
from gmcli.ledger import Ledger
from gmcli.masks.rle import encode_rle
from gmcli.progress import Progress
from gmcli.records import Record, inputs_of
from gmcli.render.batch import plan, render
from gmcli.video import frame_range, open_video
from tests.fakes import IDENTITY


def video_task(path: Path, *questions: Question, **fields) -> VideoTask:
    size = 0 if path.is_dir() else path.stat().st_size
    return VideoTask(path.stem, str(path), questions or (Question("q0", "Who moves?"),), size_bytes=size, **fields)


def square(number: int, size: tuple[int, int] = (48, 80)) -> np.ndarray:
    """Where tests.clips draws its bright square."""
    mask = np.zeros(size, bool)
    left = (4 + 3 * number) % (size[1] - 16)
    mask[16:32, left : left + 16] = True
    return mask


def write_run(
    out: Path, tasks, *, window=(2, 6), every=1, formats=("rle",), failed=(), without=(), none=(), answer="It is [SEG]."
) -> Path:
    """Answer every question with masks of every `every`-th frame of the clip, empty outside the window."""
    with Ledger.open(out, IDENTITY) as ledger:
        for task in tasks:
            with open_video(task.video, fps=task.fps) as reader:
                frames = tuple(frame_range(reader.times, task.start, task.end))[::every]
                names, size = tuple(reader.names[frame] for frame in frames), reader.size
            for question in task.questions:
                key = task.id, question.id
                if question.id in without:
                    continue
                if question.id in failed:
                    ledger.append(Record(*key, "failed", inputs_of(task, question), error="out of luck"))
                    continue
                span = TemporalSpan(*window)
                nothing = question.id in none
                shown = [square(f, size) & (f in span and not nothing) for f in frames]
                result = ItemResult(
                    *key,
                    "no_target" if nothing else "done",
                    answer=answer,
                    frames=frames,
                    names=names,
                    masks=tuple(encode_rle(mask) for mask in shown),
                    span=span,
                )
                ledger.append(
                    Record(*key, result.status, inputs_of(task, question), write_item(out, result, question, formats))
                )
    return out


def draw(run: Path, tasks, *, out=None, formats=("mp4", "sheet"), truth=False, force=False):
    """Do what `gmcli render` does; return the plan, the failures, and how many frames were drawn."""
    out = out or run / "renders"
    planned = plan(run, tasks, out, formats, truth=truth, force=force)
    progress = Progress(videos=len(planned.videos), questions=planned.questions, done=planned.kept, bar=False)
    failed = render(run, out, planned, progress, truth=truth)
    return planned, failed, progress.frames


def decode(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """Read a video back by PyAV alone: pictures and times."""
    with av.open(str(path)) as container:
        decoded = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24").astype(int) for frame in decoded], [float(f.time) for f in decoded]
