"""Score masks as DAVIS 2017 does: J, F and their statistics over a sequence, and the overlap of two spans of time."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Mask = NDArray[np.bool_]
Box = tuple[slice, slice]

# DAVIS counts a boundary as found where the other one is within this part of the frame's diagonal.
BOUND_TH = 0.008


def region_similarity(truth: Mask, prediction: Mask, void: Mask | None = None) -> float:
    """Compute J, the intersection over union of two masks [H, W] bool.

    Pixels of `void` [H, W] bool count nowhere. The result is in [0, 1], and 1 where both masks are empty. Raises
    ValueError for other shapes or dtypes.

    Source: db_eval_iou in davis2017/metrics.py of davisvideochallenge/davis2017-evaluation.
    """
    truth, prediction = _without_void(truth, prediction, void)
    box = _bounding_box(truth)
    if box is None:
        return 0.0 if prediction.any() else 1.0
    # What both have lies in the truth's box: the rest of the frame only needs counting.
    truth_part = truth[box]
    common = int(np.count_nonzero(truth_part & prediction[box]))
    union = int(np.count_nonzero(truth_part)) + int(np.count_nonzero(prediction)) - common
    return common / union


def boundary_f(truth: Mask, prediction: Mask, void: Mask | None = None, bound_th: float = BOUND_TH) -> float:
    """Compute F, the harmonic mean of precision and recall of the boundaries of two masks [H, W] bool.

    A boundary pixel is found where the other mask has one within `boundary_radius`. Pixels of `void` [H, W] bool are
    background in both masks. The result is in [0, 1], 1 where neither mask has a boundary and 0 where one has none; a
    full mask has none, so F of a full and an empty one is 1. Raises ValueError for other shapes or dtypes, and for
    thresholds as `boundary_radius` does.

    Source: f_measure in davis2017/metrics.py of davisvideochallenge/davis2017-evaluation.
    """
    truth, prediction = _without_void(truth, prediction, void)
    radius = boundary_radius((truth.shape[0], truth.shape[1]), bound_th)
    truth_box, prediction_box = _bounding_box(truth), _bounding_box(prediction)
    if truth_box is None or prediction_box is None:
        # Only masks of one value have no boundary.
        other = prediction if truth_box is None else truth
        return 1.0 if other.all() or not other.any() else 0.0
    box = _union_box(truth_box, prediction_box)
    truth, prediction = truth[box], prediction[box]
    height, width = truth.shape
    # Growing sideways past a row's end must end in padding, not in the next row; rows of whole bytes pack fast.
    stride = -(-(width + min(radius, width - 1)) // 8) * 8
    truth_edge, prediction_edge = _edge_bits(truth, stride), _edge_bits(prediction, stride)
    in_truth, in_prediction = truth_edge.bit_count(), prediction_edge.bit_count()
    if in_truth == 0 or in_prediction == 0:
        return 1.0 if in_truth == in_prediction else 0.0
    if truth_edge == prediction_edge:
        return 1.0
    if _are_apart(truth_box, prediction_box, radius):
        return 0.0
    right, found = _matches(truth_edge, prediction_edge, (height, width), stride, radius)
    precision, recall = right / in_prediction, found / in_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def region_similarities(truths: Mask, predictions: Mask, voids: Mask | None = None) -> NDArray[np.float64]:
    """Compute J of each frame of two stacks [T, H, W] bool, as [T] float64 in [0, 1].

    Raises ValueError for other shapes or dtypes. Source: as `region_similarity`.
    """
    _check(truths, predictions, voids, ndim=3)
    return np.array(
        [
            region_similarity(truth, prediction, None if voids is None else voids[frame])
            for frame, (truth, prediction) in enumerate(zip(truths, predictions, strict=True))
        ],
        dtype=np.float64,
    )


def boundary_fs(
    truths: Mask, predictions: Mask, voids: Mask | None = None, bound_th: float = BOUND_TH
) -> NDArray[np.float64]:
    """Compute F of each frame of two stacks [T, H, W] bool, as [T] float64 in [0, 1].

    Raises ValueError as `boundary_f` does. Source: db_eval_boundary in davis2017/metrics.py of
    davisvideochallenge/davis2017-evaluation.
    """
    _check(truths, predictions, voids, ndim=3)
    return np.array(
        [
            boundary_f(truth, prediction, None if voids is None else voids[frame], bound_th)
            for frame, (truth, prediction) in enumerate(zip(truths, predictions, strict=True))
        ],
        dtype=np.float64,
    )


def temporal_iou(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Compute the intersection over union of two half-open spans (start, end), in any one unit.

    A span whose end is not after its start is empty. The result is in [0, 1]: 1 where both are empty, 0 where one is.
    Raises ValueError for numbers that are not finite.
    """
    if not all(math.isfinite(number) for number in (*a, *b)):
        raise ValueError(f"a span is two finite numbers, not {a} or {b}")
    lengths = max(a[1] - a[0], 0), max(b[1] - b[0], 0)
    if not all(lengths):
        return 0.0 if any(lengths) else 1.0
    common = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    return common / (sum(lengths) - common)


def statistics(values: ArrayLike) -> tuple[float, float, float]:
    """Compute mean, recall and decay of a measure over the frames [T] of a sequence, NaN where a frame has none.

    The mean leaves NaN out. Recall is the part of all frames, those with NaN too, above 0.5. Decay is the mean of the
    first quarter less that of the last. A mean of nothing is NaN. Beyond 256 frames decay is what DAVIS gives and means
    little (NaN, mostly): its frame numbers have eight bits and wrap. Raises ValueError unless `values` has one axis.

    Source: db_statistics in davis2017/utils.py of davisvideochallenge/davis2017-evaluation.
    """
    frames = np.asarray(values, dtype=np.float64)
    if frames.ndim != 1:
        raise ValueError(f"the values are [T], not {list(frames.shape)}")
    bounds = np.round(np.linspace(1, frames.size, 5) + 1e-10).astype(np.int64) - 1
    # Python integers, so that only the wrap is of eight bits and not the additions below.
    quarters = [int(bound) % 256 for bound in bounds]
    first, last = frames[quarters[0] : quarters[1] + 1], frames[quarters[3] : quarters[4] + 1]
    recall = float(np.mean(frames > 0.5)) if frames.size else math.nan
    return _mean(frames), recall, _mean(first) - _mean(last)


def boundary_radius(size: tuple[int, int], bound_th: float = BOUND_TH) -> int:
    """Give the distance in pixels at which two boundaries still match, in frames of `size` (H, W).

    Below 1, `bound_th` is a part of the diagonal, rounded up; from 1 on it is the radius itself. Raises ValueError for a
    negative threshold, for one that is not finite and for a radius of part of a pixel.

    Source: f_measure in davis2017/metrics.py of davisvideochallenge/davis2017-evaluation.
    """
    if not 0 <= bound_th < math.inf or (bound_th >= 1 and bound_th != int(bound_th)):
        raise ValueError(f"bound_th is a part of the diagonal or a radius in whole pixels, not {bound_th}")
    if bound_th >= 1:
        return int(bound_th)
    # Not math.hypot: it may differ in the last digit, and then so may the rounding up.
    return math.ceil(bound_th * math.sqrt(size[0] * size[0] + size[1] * size[1]))


def boundary(mask: Mask) -> Mask:
    """Find the pixels of a mask [H, W] bool that differ from the one to the right, below, or below to the right.

    The last row looks to the right only, the last column down only. The result is [H, W] bool.

    Source: _seg2bmap in davis2017/metrics.py of davisvideochallenge/davis2017-evaluation.
    """
    edge = np.zeros_like(mask)
    edge[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def _check(truth: Mask, prediction: Mask, void: Mask | None, ndim: int) -> None:
    axes = "[H, W]" if ndim == 2 else "[T, H, W]"
    for name, mask in (("truth", truth), ("prediction", prediction), ("void", void)):
        if mask is None:
            continue
        if mask.ndim != ndim or mask.dtype != np.bool_:
            raise ValueError(f"{name} must be {axes} bool, not {list(mask.shape)} {mask.dtype}")
        if mask.shape != truth.shape:
            raise ValueError(f"{name} is {list(mask.shape)}, but truth is {list(truth.shape)}")


def _without_void(truth: Mask, prediction: Mask, void: Mask | None) -> tuple[Mask, Mask]:
    """Check two masks, and make the pixels of `void` background in both."""
    _check(truth, prediction, void, ndim=2)
    return (truth, prediction) if void is None else (truth & ~void, prediction & ~void)


def _mean(values: NDArray[np.float64]) -> float:
    # NumPy warns about means of nothing; here they are an answer.
    return math.nan if np.isnan(values).all() else float(np.nanmean(values))


def _bounding_box(mask: Mask) -> Box | None:
    """Find the smallest box around a mask, or None for an empty one."""
    rows = np.asarray(mask.any(axis=1))
    if not rows.any():
        return None
    top, bottom = int(rows.argmax()), rows.size - int(rows[::-1].argmax())
    columns = np.asarray(mask[top:bottom].any(axis=0))
    return slice(top, bottom), slice(int(columns.argmax()), columns.size - int(columns[::-1].argmax()))


def _union_box(a: Box, b: Box) -> Box:
    """Find the box around two masks' boxes and one pixel more on each side, within the frame.

    The pixel more makes the crop exact. A boundary reaches one pixel up and left of its mask, never further. Where the
    box ends within the frame, its last row and column are background, and `boundary`'s rules for a last row and column
    find nothing there, which is right; where it ends with the frame, they are the frame's own.
    """
    rows, columns = (
        slice(max(min(one.start, other.start) - 1, 0), max(one.stop, other.stop) + 1)
        for one, other in zip(a, b, strict=True)
    )
    return rows, columns


def _are_apart(a: Box, b: Box, radius: int) -> bool:
    """Ask whether the boundaries in two boxes are too far from each other to match anywhere.

    A boundary lies in its mask's box and in the row above and the column left of it.
    """
    return any(
        max(first.start, second.start) - 1 - (min(first.stop, second.stop) - 1) > radius
        for first, second in zip(a, b, strict=True)
    )


def _edge_bits(mask: Mask, stride: int) -> int:
    """Find a mask's boundary, as `boundary` does, as one integer: pixel (y, x) is the bit y * stride + x.

    stride: a multiple of 8, at least the width.
    """
    # An integer is an eighth of a bool array, and its shifts look at all neighbours at once.
    height, width = mask.shape
    rows = np.zeros((height, stride // 8), dtype=np.uint8)
    rows[:, : -(-width // 8)] = np.packbits(mask, axis=1, bitorder="little")
    bits = int.from_bytes(rows.tobytes(), "little")
    # All columns but the last one have a neighbour to the right, all rows but the last one have one below.
    inner = np.packbits(np.arange(stride) < width - 1, bitorder="little").tobytes()
    with_right = int.from_bytes(inner * height, "little")
    with_below: int = (1 << (height - 1) * stride) - 1
    right, below, diagonal = bits ^ bits >> 1, bits ^ bits >> stride, bits ^ bits >> stride + 1
    return right & with_right | (below | diagonal & with_right) & with_below


def _matches(truth_edge: int, prediction_edge: int, size: tuple[int, int], stride: int, radius: int) -> tuple[int, int]:
    """Count the pixels of the prediction's boundary that are near the truth's, and the other way round.

    Both are written as `_edge_bits` writes them, of a crop of `size` (H, W). Near is at most `radius` pixels away
    (Euclid, so the disk of scikit-image).
    """
    # Further than the crop's own sides there is nothing to find.
    reach = min(radius, size[0] - 1), min(radius, size[1] - 1)
    origin = reach[0] * stride + reach[1]
    near_truth, near_prediction = (
        _grow(bits, stride, radius, reach) >> origin for bits in (truth_edge, prediction_edge)
    )
    return (prediction_edge & near_truth).bit_count(), (truth_edge & near_prediction).bit_count()


def _grow(bits: int, stride: int, radius: int, reach: tuple[int, int]) -> int:
    """Dilate a mask written as an integer by a disk, cut to `reach` (rows, columns) from its centre.

    So that nothing is shifted out, the result is `reach[0]` rows and `reach[1]` columns further than its mask.
    """
    # Each row of the disk is a run of pixels. From the outermost row to the middle one the runs only get longer, so
    # each is made of the one before. Whole-frame shifts and ORs of an integer touch an eighth of the memory that a
    # bool array's would.
    grown, run, length = 0, bits, 1
    for row in range(reach[0], -1, -1):
        half = min(math.isqrt(radius * radius - row * row), reach[1])
        while length < 2 * half + 1:
            step = min(length, 2 * half + 1 - length)
            run |= run << step
            length += step
        indent = reach[1] - half
        grown |= run << ((reach[0] - row) * stride + indent)
        if row:
            grown |= run << ((reach[0] + row) * stride + indent)
    return grown
