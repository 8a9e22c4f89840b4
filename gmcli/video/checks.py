"""Check what every reader is asked for, and what a file may ask of us."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gmcli.errors import VideoError
from gmcli.video.limits import DecodeLimits

# A mask's file is <name>.png, and file systems end at 255 bytes.
_LONGEST_NAME = 250


def check_pixels(path: str, height: int, width: int, limits: DecodeLimits) -> None:
    """Raise VideoError for a frame size that no sane video has. A header may promise any, and decoders allocate it."""
    if height < 1 or width < 1:
        raise VideoError(f"{path}: its header gives no frame size ({width}x{height})")
    if height * width > limits.max_pixels:
        raise VideoError(
            f"{path}: frames of {width}x{height} pixels are too large (max_pixels is {limits.max_pixels})",
            "scale the video down, or raise max_pixels",
        )


def check_count(path: str, count: int, limits: DecodeLimits) -> None:
    """Raise VideoError for more frames than may be."""
    if count > limits.max_frames:
        raise VideoError(
            f"{path}: has more frames than may be (max_frames is {limits.max_frames})",
            "cut the video into pieces, or raise max_frames",
        )


def check_duration(path: str, seconds: float, limits: DecodeLimits) -> None:
    """Raise VideoError for a video that lasts longer than may be."""
    if seconds > limits.max_duration_s:
        raise VideoError(
            f"{path}: lasts {seconds:.0f} s, longer than may be (max_duration_s is {limits.max_duration_s})",
            "cut the video into pieces, or raise max_duration_s",
        )


def check_times(path: str, times: NDArray[np.float64], limits: DecodeLimits) -> None:
    """Raise VideoError for times that are none: [N] float64, finite, ascending from 0, within the limits."""
    check_count(path, len(times), limits)
    if not len(times) or times[0] != 0 or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise VideoError(f"{path}: corrupt: the times of its frames make no sense")
    check_duration(path, float(times[-1]), limits)


def check_names(path: str, names: Sequence[str]) -> None:
    """Raise VideoError for names that cannot be files in one folder. Folders of frames bring their own."""
    for name in names:
        if not name or name in (".", "..") or "/" in name or any(ord(c) < 32 or ord(c) == 127 for c in name):
            raise VideoError(f"{path}: a frame is called {name!r}", "rename it: no control characters")
        if len(name.encode(errors="surrogateescape")) > _LONGEST_NAME:
            raise VideoError(f"{path}: a frame's name is too long: {name[:40]!r}…", "rename it")


def check_indices(path: str, indices: Sequence[int], count: int) -> None:
    """Raise ValueError for indices that do not ascend strictly, VideoError for frames that are not there."""
    if any(after <= before for before, after in pairwise(indices)):
        raise ValueError("frame numbers must ascend strictly")
    for index in (*indices[:1], *indices[-1:]):
        if not 0 <= index < count:
            raise VideoError(f"{path}: has no frame {index}: it has {count} frames", "check the item's start and end")
