"""Read frames of video files and frame folders, frame-accurately. No torch.

Every reader numbers the frames in presentation order, from 0, and yields them as [H,W,3] uint8 RGB. What goes wrong
with a file is a `VideoError` with one line that names it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, assert_never

import numpy as np
from numpy.typing import NDArray

from gmcli.errors import VideoError
from gmcli.video.decord_reader import DecordReader
from gmcli.video.frame_folder import FrameFolderReader
from gmcli.video.limits import DEFAULT_LIMITS, DecodeLimits, do_nothing
from gmcli.video.pyav_reader import PyAvReader

GROUNDMORE_FPS = 6.0

ReaderName = Literal["pyav", "decord"]


class VideoReader(Protocol):
    """Give access to the frames of one video.

    `path`: as it was given. `size`: (H, W) after rotation. `times`: [N] float64, presentation time of every frame in
    seconds, ascending, the first at 0; N is the number of frames. `names`: a file stem for each frame's mask.
    """

    path: str
    size: tuple[int, int]
    times: NDArray[np.float64]
    names: Sequence[str]

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames with these numbers, one at a time, each [H,W,3] uint8 RGB in memory of its own.

        `indices` must ascend strictly, else ValueError. Raises VideoError for a frame that is not there or is damaged.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class OpenVideo(Protocol):
    """Open a video as `open_video` does, in this process or in a sandbox."""

    def __call__(self, path: str | Path, *, reader: ReaderName = "pyav", fps: float | None = None) -> VideoReader: ...


def open_video(
    path: str | Path,
    *,
    reader: ReaderName = "pyav",
    fps: float | None = None,
    limits: DecodeLimits = DEFAULT_LIMITS,
    watch: Callable[[], None] = do_nothing,
) -> VideoReader:
    """Open a video file with the named reader, or a folder of frames, whose frame rate is `fps` frames a second.

    `fps` defaults to GroundMoRe's 6 and says nothing about a video file, which knows its own times. `watch` is called
    again and again as long as reading gets on. The bytes are parsed in this process: for a stranger's files there is
    `gmcli.video.sandbox`. Raises VideoError for what cannot be read or is beyond `limits`,
    EnvironmentProblem when decord is asked for and missing.
    """
    if Path(path).is_dir():
        return FrameFolderReader(path, fps=GROUNDMORE_FPS if fps is None else fps, limits=limits, watch=watch)
    match reader:
        case "pyav":
            return PyAvReader(path, limits=limits, watch=watch)
        case "decord":
            return DecordReader(path, limits=limits, watch=watch)
        case _:
            assert_never(reader)


def read_frames(reader: VideoReader, indices: Sequence[int]) -> NDArray[np.uint8]:
    """Read frames into one [T,H,W,3] uint8 RGB array, in the order of `indices`.

    `indices` may repeat and need not ascend; each distinct frame is decoded once. Raises VideoError as the reader does.
    """
    wanted = np.asarray(indices, dtype=np.int64)
    distinct, positions = np.unique(wanted, return_inverse=True)
    frames = np.empty((len(wanted), *reader.size, 3), dtype=np.uint8)
    for number, frame in enumerate(reader.frames(distinct.tolist())):
        frames[positions == number] = frame
    return frames


def sample_indices(first: int, stop: int, count: int) -> list[int]:
    """Choose `count` frame numbers spread evenly over `first <= frame < stop`, both ends included.

    Numbers repeat when there are fewer frames than `count`; the protocol keeps the repeats. Raises ValueError for an
    empty range or a count below 1. Source: GroundMoRe, `np.linspace(first, stop - 1, count)` truncated to integers.
    """
    if not 0 <= first < stop or count < 1:
        raise ValueError(f"cannot choose {count} of the frames [{first}, {stop})")
    return [int(position) for position in np.linspace(first, stop - 1, count)]


def time_bins(times: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Say in which of `bins` equal parts of a clip's duration the middle of each frame lies, int64 [N].

    `times`: [N] float64, ascending, when frames begin. The last one is taken to last as long as the others do on average.
    """
    step = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1.0
    share = (times - times[0] + step / 2) / (step * len(times))
    # A middle on the border of two parts belongs to the later one, whatever rounding says.
    number: NDArray[np.int64] = np.floor(share * bins + 1e-6).astype(np.int64).clip(0, bins - 1)
    return number


def frame_range(times: NDArray[np.float64], start: float | None, end: float | None) -> range:
    """Find the frames with `start <= time < end`, in seconds; None leaves that side open.

    `times`: [N] float64, ascending. Raises VideoError where no frame lies there.
    """
    first = 0 if start is None else int(np.searchsorted(times, start, side="left"))
    stop = len(times) if end is None else int(np.searchsorted(times, end, side="left"))
    if first >= stop:
        shown = f"{0.0 if start is None else start:g} s <= t < {'the end' if end is None else f'{end:g} s'}"
        last = f"its last frame is at {times[-1]:g} s" if len(times) else "it has no frames"
        raise VideoError(f"no frame of the video lies in {shown}; {last}", "check the item's start and end")
    return range(first, stop)


__all__ = [
    "GROUNDMORE_FPS",
    "DecodeLimits",
    "DecordReader",
    "FrameFolderReader",
    "OpenVideo",
    "PyAvReader",
    "ReaderName",
    "VideoReader",
    "frame_range",
    "open_video",
    "read_frames",
    "sample_indices",
    "time_bins",
]
