"""Score one answer on plain arrays, by the GroundMoRe protocol.

The protocol looks at 20 frames of a clip, evenly spread. The truth is the union of the question's objects in the indexed
masks, and nothing outside the question's window. J and F are means over the 20 frames.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gmcli.data import TemporalSpan
from gmcli.metrics import Mask, boundary_f, region_similarity, temporal_iou

SAMPLES = 20
FPS = 6.0

# What is left of a frame's number when times in seconds are fractions.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Score:
    """Hold the scores of one answer, each in [0, 1].

    `window_j_and_f` is None where no sampled frame lies in the question's window, `answer_accuracy` (0 or 1) where there
    is nothing to compare.
    """

    j: float
    f: float
    window_j_and_f: float | None
    t_iou: float
    answer_accuracy: float | None = None

    @property
    def j_and_f(self) -> float:
        """Return the mean of J and F."""
        return (self.j + self.f) / 2


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
    truth: Mask | Sequence[Mask],
    prediction: Mask | Sequence[Mask],
    frames: Sequence[int],
    window: TemporalSpan,
    span: TemporalSpan,
) -> Score:
    """Score the masks of one answer, T times [H, W] bool, against the true ones, T times [H, W] bool.

    frames: the numbers of the T frames. window: when the answer is true; `truth` counts as empty outside it. span: when
    the answer says it is. Raises ValueError for other shapes or dtypes.

    Source: evaluate_groundmore.py of dengandong/GroundMoRe; for T = 20 frames of the clip, evenly spread, it is the protocol.
    """
    nothing = np.zeros(truth[0].shape, dtype=np.bool_)
    shown = [mask if frame in window else nothing for mask, frame in zip(truth, frames, strict=True)]
    pairs = list(zip(shown, prediction, strict=True))
    j = np.array([region_similarity(*pair) for pair in pairs])
    f = np.array([boundary_f(*pair) for pair in pairs])
    return _score(j, f, frames, window, span)


def score_uniform(
    truth: Mask | Sequence[Mask], frames: Sequence[int], window: TemporalSpan, span: TemporalSpan, *, full: bool
) -> Score:
    """Score an answer whose masks are all empty, or all full, without making them; otherwise as `score_question`."""
    size = truth[0].size
    areas = np.array(
        [np.count_nonzero(mask) if frame in window else 0 for mask, frame in zip(truth, frames, strict=True)]
    )
    # Empty and full masks have no boundary, so F asks whether the truth has none, either.
    f = ((areas == 0) | (areas == size)).astype(np.float64)
    return _score(areas / size if full else (areas == 0).astype(np.float64), f, frames, window, span)


def _score(
    j: NDArray[np.float64],
    f: NDArray[np.float64],
    frames: Sequence[int],
    window: TemporalSpan,
    span: TemporalSpan,
) -> Score:
    inside = np.array([frame in window for frame in frames], dtype=np.bool_)
    return Score(
        j=float(np.mean(j)),
        f=float(np.mean(f)),
        window_j_and_f=float(np.mean(j[inside]) + np.mean(f[inside])) / 2 if inside.any() else None,
        t_iou=temporal_iou((span.start, span.end), (window.start, window.end)),
    )
