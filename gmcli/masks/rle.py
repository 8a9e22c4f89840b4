"""Turn masks into COCO compressed RLE and back, without trusting what others wrote."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from gmcli.data import Rle
from gmcli.errors import GmcliError

# Twice an 8K frame: a few bytes of RLE must not be able to ask for gigabytes.
MAX_PIXELS = 1 << 26

# Six characters of five bits hold any run of MAX_PIXELS, with its sign; longer numbers come from no encoder.
_MAX_CHARACTERS = 6

# Beyond one change in so many pixels, sorting them takes longer than turning the mask: so it is for noise and tiny masks.
_NOISE = 64

# Columns turned at once: as many pixels as a cache line has bytes.
_BLOCK = 64


def encode_rle(mask: NDArray[np.bool_]) -> Rle:
    """Encode a mask [H, W] bool as COCO compressed RLE.

    The string equals pycocotools' own, byte for byte. Raises ValueError for another shape or dtype, for an empty axis
    and for more than MAX_PIXELS pixels.

    Source: rleEncode and rleToString in maskApi.c of cocodataset/cocoapi.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"a mask is [H, W] bool, not {list(mask.shape)} {mask.dtype}")
    height, width = mask.shape
    _check_size(height, width)
    changed = _changed(mask)
    if np.count_nonzero(changed) > mask.size // _NOISE:
        counts = coco.encode(np.asfortranarray(mask).view(np.uint8))["counts"]
    else:
        rows, columns = np.divmod(np.flatnonzero(changed), width)
        ends = np.sort(columns * height + rows)
        counts = _string((height, width), np.diff(np.concatenate(([0], ends, [mask.size]))).tolist())
    return Rle(size=(height, width), counts=counts.decode("ascii"))


def _changed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say of each pixel of a mask [H, W] bool whether it differs from the one before it, column by column.

    Before the first is background. Comparing each row with the one above reads memory in its order; turning the mask
    into the order of its RLE takes several times as long as all else.
    """
    changed = np.empty(mask.shape, np.bool_)
    np.not_equal(mask[1:], mask[:-1], out=changed[1:])
    # Before the first pixel of a column comes the last one of the column before.
    np.not_equal(mask[0, 1:], mask[-1, :-1], out=changed[0, 1:])
    changed[0, 0] = mask[0, 0]
    return changed


def _string(size: tuple[int, int], runs: list[int]) -> bytes:
    counts: bytes = coco.frPyObjects({"size": list(size), "counts": runs}, *size)["counts"]
    return counts


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """Decode COCO compressed RLE to a mask [H, W] bool, C-contiguous.

    Raises GmcliError for a size out of bounds and for counts that do not describe exactly H x W pixels.
    """
    height, width = rle.size
    runs = _run_lengths(rle)
    # Not pycocotools: its C code trusts the string (it reads past the end after an unfinished number), takes twice as
    # long for masks of objects, and warns under NumPy 2.4.
    mask = np.zeros((height, width), dtype=np.bool_)
    if len(runs) == 1:
        return mask
    # Only the columns from the first with foreground to the last are filled in.
    left = int(runs[0]) // height
    after = int(runs[-1]) if len(runs) % 2 else 0
    right = width - after // height
    runs[0] -= left * height
    if after:
        runs[-1] -= after // height * height
    foreground = np.arange(len(runs)) % 2 == 1
    columns = np.repeat(foreground, runs).reshape(right - left, height)
    # Block by block, because turned as a whole, a large mask misses the cache with every pixel.
    for start in range(0, right - left, _BLOCK):
        block = columns[start : start + _BLOCK]
        mask[:, left + start : left + start + len(block)] = block.T
    return mask


def empty_rle(size: tuple[int, int]) -> Rle:
    """Encode "nothing" for frames of `size` (H, W). Raises ValueError as `encode_rle` does."""
    height, width = size
    _check_size(height, width)
    return Rle(size=(height, width), counts=_string((height, width), [height * width]).decode("ascii"))


def area(rle: Rle) -> int:
    """Count the foreground pixels without decoding the mask. Raises GmcliError as `decode_rle` does."""
    return int(_run_lengths(rle)[1::2].sum())


def rle_to_json(rle: Rle) -> dict[str, Any]:
    """Give the form that COCO readers know: {"size": [H, W], "counts": str}."""
    return {"size": list(rle.size), "counts": rle.counts}


def rle_from_json(obj: object) -> Rle:
    """Read {"size": [H, W], "counts": str} from untrusted JSON; other keys are ignored.

    Raises GmcliError for wrong types, for a size out of bounds and for counts that are not ASCII. The counts themselves
    are read, and refused where they do not fit the size, by `decode_rle` and `area`.
    """
    if not isinstance(obj, dict):
        raise GmcliError(f"bad RLE: an object with 'size' and 'counts' is wanted, not {type(obj).__name__}")
    size, counts = obj.get("size"), obj.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int for side in size):
        raise GmcliError("bad RLE: 'size' must be [height, width] in whole pixels")
    if isinstance(counts, list):
        raise GmcliError(
            "bad RLE: 'counts' is a list (uncompressed RLE)", "compress it with pycocotools.mask.frPyObjects"
        )
    if not isinstance(counts, str) or not counts.isascii():
        raise GmcliError("bad RLE: 'counts' must be an ASCII string")
    rle = Rle(size=(size[0], size[1]), counts=counts)
    _check_bounds(rle)
    return rle


def _check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"a mask has 1 to {MAX_PIXELS} pixels, not {height} x {width}")


def _check_bounds(rle: Rle) -> None:
    height, width = rle.size
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise GmcliError(f"bad RLE: size {height} x {width} is out of bounds (1 to {MAX_PIXELS} pixels)")
    if len(rle.counts) > _MAX_CHARACTERS * (height * width + 1):
        raise GmcliError(f"bad RLE: {len(rle.counts)} characters are too many for {height} x {width} pixels")


def _run_lengths(rle: Rle) -> NDArray[np.int64]:
    """Read the run lengths [N] int64, background first, column by column; their sum is H x W.

    A number is a row of characters: 48 + five bits + 32 where more follow, least significant first, in two's
    complement. From the fourth number on, it is the difference to the run two before it.

    Source: rleFrString in maskApi.c of cocodataset/cocoapi.
    """
    _check_bounds(rle)
    height, width = rle.size
    codes = np.frombuffer(rle.counts.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63:
        raise GmcliError("bad RLE: 'counts' is empty or holds characters that no encoder writes")
    last = codes & 32 == 0
    if not last[-1]:
        raise GmcliError("bad RLE: 'counts' ends within a number")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise GmcliError("bad RLE: 'counts' holds a number that is too long")

    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((codes & 31) << shifts, starts)
    negative = codes[ends] & 16 != 0
    numbers[negative] -= 1 << (5 * lengths[negative])

    runs = numbers
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    # In 64 bits nothing above overflows: numbers below 2**30, at most 6 * (MAX_PIXELS + 1) of them.
    if runs.min() < 0 or int(runs.sum()) != height * width:
        raise GmcliError(f"bad RLE: the runs do not add up to {height} x {width} pixels")
    return runs
