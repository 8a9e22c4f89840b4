"""Sum scores up: means, over all questions and by type, and how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmcli.evaluate.protocol import Score

METRICS = ("j", "f", "j_and_f", "window_j_and_f", "t_iou", "answer_accuracy")
RESAMPLES = 1000

_SEED = 20241114
# Numbers drawn at once: bounds the memory for many videos.
_BLOCK = 1 << 21


@dataclass(frozen=True, slots=True)
class Row:
    """Hold what came out for one question: the run's `score`, and `baselines`, the scores of answers that know nothing.

    `status` is the ledger's, or "missing".
    """

    video: str
    question: str
    type: str
    status: str
    answer: str | None
    true_answer: str | None
    score: Score
    baselines: dict[str, Score]


def summaries(rows: Sequence[Row]) -> dict[str, Any]:
    """Return {"overall", "by_type", "baselines": {name: {"overall", "by_type"}}}; types in order of appearance.

    A summary holds the number of `questions` and each of METRICS in [0, 1], or None where no question has it; the run's
    own also `ci95`, as `interval95` gives it.
    """
    videos = np.unique([row.video for row in rows], return_inverse=True)[1]
    own = _by_type(rows, [row.score for row in rows], videos)
    names = rows[0].baselines if rows else ()
    return {**own, "baselines": {name: _by_type(rows, [row.baselines[name] for row in rows], None) for name in names}}


def interval95(values: NDArray[np.float64], videos: NDArray[np.intp]) -> list[float] | None:
    """Give the 95 % interval [low, high] of the mean of `values` [Q], by the percentile bootstrap over videos.

    videos: [Q], the number of each value's video. NaN values are left out. 1000 times, as many videos as there are are
    drawn with replacement, each with all its values. Equal input gives equal digits. None for fewer than two videos with
    values: one says nothing about others.
    """
    there = ~np.isnan(values)
    groups = np.unique(videos[there], return_inverse=True)[1]
    count = int(groups.max(initial=-1)) + 1
    if count < 2:
        return None
    sums, sizes = np.bincount(groups, weights=values[there]), np.bincount(groups)
    generator = np.random.default_rng(_SEED)
    means: list[NDArray[np.float64]] = []
    step = max(_BLOCK // count, 1)
    for first in range(0, RESAMPLES, step):
        drawn = generator.integers(0, count, size=(min(step, RESAMPLES - first), count))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return [float(low), float(high)]


def _by_type(rows: Sequence[Row], scores: Sequence[Score], videos: NDArray[np.intp] | None) -> dict[str, Any]:
    """Sum scores up by the types of their rows; `videos` where intervals are wanted."""
    table = np.array([[_number(getattr(score, name)) for name in METRICS] for score in scores])
    positions: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        positions.setdefault(row.type, []).append(position)
    return {
        "overall": _summary(table, videos),
        "by_type": {
            name: _summary(table[chosen], None if videos is None else videos[chosen])
            for name, chosen in positions.items()
        },
    }


def _summary(table: NDArray[np.float64], videos: NDArray[np.intp] | None) -> dict[str, Any]:
    columns = dict(zip(METRICS, table.T, strict=True))
    means = {name: _mean(column) for name, column in columns.items()}
    # As published: the mean of the means.
    j, f = means["j"], means["f"]
    means["j_and_f"] = None if j is None or f is None else (j + f) / 2
    summary: dict[str, Any] = {"questions": len(table), **means}
    if videos is not None:
        summary["ci95"] = {name: interval95(column, videos) for name, column in columns.items()}
    return summary


def _mean(column: NDArray[np.float64]) -> float | None:
    there = column[~np.isnan(column)]
    return float(np.mean(there)) if there.size else None


def _number(value: float | None) -> float:
    return np.nan if value is None else value
