"""Check what every reader is asked for, and what a file may ask of us."""

from collections.abc import Sequence
from itertools import pairwise

from gmcli.errors import VideoError

# A header may promise any size, and decoders allocate what it promises. 8K video has half of this.
MAX_PIXELS = 8192 * 8192


def check_pixels(path: str, height: int, width: int) -> None:
    """Raise VideoError for a frame size that no sane video has."""
    if height < 1 or width < 1:
        raise VideoError(f"{path}: its header gives no frame size ({width}x{height})")
    if height * width > MAX_PIXELS:
        raise VideoError(f"{path}: frames of {width}x{height} pixels are too large (the limit is {MAX_PIXELS} pixels)")


def check_indices(path: str, indices: Sequence[int], count: int) -> None:
    """Raise ValueError for indices that do not ascend strictly, VideoError for frames that are not there."""
    if any(after <= before for before, after in pairwise(indices)):
        raise ValueError("frame numbers must ascend strictly")
    for index in (*indices[:1], *indices[-1:]):
        if not 0 <= index < count:
            raise VideoError(f"{path}: has no frame {index}: it has {count} frames", "check the item's start and end")
