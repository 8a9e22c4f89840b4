"""Hold the values that travel between the rooms: tasks in, results out. No torch, no I/O."""

import re
from dataclasses import dataclass
from typing import Literal

Status = Literal["done", "no_target", "failed"]

_ID = re.compile(r"(?!\.)(?!.*\.\.)[A-Za-z0-9._-]{1,128}")


def is_id(value: object) -> bool:
    """Ask whether a value may be the id of a video or a question: part of a file's name, on any file system."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class TemporalSpan:
    """Delimit frames `start <= frame < end` in the video's own numbering."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end:
            raise ValueError(f"not a span: [{self.start}, {self.end})")

    def __contains__(self, frame: int) -> bool:
        return self.start <= frame < self.end


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """Say where a question's true masks lie: a folder of indexed PNGs, the object ids in it, and the window in seconds.

    `answer` is the true answer in words.
    """

    masks: str
    object_ids: tuple[int, ...]
    start: float | None = None
    end: float | None = None
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Ask one thing about one video. `line` is where the manifest says it."""

    id: str
    text: str
    type: str | None = None
    ground_truth: GroundTruth | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class VideoTask:
    """Name one video and all its questions: the unit of scheduling.

    `video` is an absolute path of a file or a folder of frames. `start` and `end` are seconds; None means the clip's own
    ends. `fps` is the frame rate of a frame folder. `size_bytes` is the size of a video file, 0 for a folder.
    """

    id: str
    video: str
    questions: tuple[Question, ...]
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    size_bytes: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Rle:
    """Hold one mask as COCO compressed RLE. `size` is (H, W); `counts` is pycocotools' string."""

    size: tuple[int, int]
    counts: str


@dataclass(frozen=True, slots=True)
class ItemResult:
    """Answer one question: the unit of completion.

    `finished` is False where the token limit cut the answer. `frames` are frame numbers in the video's own numbering,
    `names` the file stems of their masks, `masks` one Rle a frame (dense: an empty Rle for "nothing"). `span` is the window
    found by [LOC], or the whole clip. `score` is the mean predicted IoU of SAM over the masked frames, None without a
    target. `error` is set where, and only where, `status` is "failed".
    """

    video_id: str
    question_id: str
    status: Status
    answer: str | None = None
    finished: bool = True
    frames: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    masks: tuple[Rle, ...] = ()
    span: TemporalSpan | None = None
    score: float | None = None
    error: str | None = None
