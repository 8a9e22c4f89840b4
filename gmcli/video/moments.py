"""Choose frames of a video by their times. All times are float64 seconds, ascending."""

import numpy as np
from numpy.typing import NDArray

from gmcli.data import TemporalSpan


def nearest(times: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return for each time the index of the nearest centre (the earlier one of two). centres: ascending."""
    after = np.searchsorted(centres, times).clip(1, max(len(centres) - 1, 1))
    if len(centres) == 1:
        return np.zeros(len(times), np.int64)
    before = after - 1
    return np.where(times - centres[before] <= centres[after] - times, before, after)


def hull(inside: NDArray[np.bool_], first: int) -> TemporalSpan:
    """Return the span of all frames that are inside; `first` is the number of the first one. Empty where none is."""
    selected = np.flatnonzero(inside)
    if not len(selected):
        return TemporalSpan(first, first)
    return TemporalSpan(first + int(selected[0]), first + int(selected[-1]) + 1)


def at_rate(times: NDArray[np.float64], span: range, fps: float) -> list[int]:
    """Pick the frame nearest to every 1/fps seconds from the first on; each frame at most once."""
    own = times[span.start : span.stop]
    ticks = np.arange(own[0], own[-1] + 1e-9, 1 / fps)
    return [span.start + int(i) for i in np.unique(nearest(ticks, own))]
