"""Put what the published schedule and gmcli found, and what each cost, side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gmcli.bench.ours import Ours
from gmcli.bench.published import Published
from gmcli.bench.stopwatch import Stopwatch
from gmcli.errors import GmcliError

# Two ways of adding up the same float32 products differ in few pixels on a mask's edge.
SAME_IOU = 0.999

Masks = Sequence[Mapping[int, NDArray[np.bool_]]]


def mask_iou(first: Masks, second: Masks) -> dict[str, float]:
    """Compare masks by (question, frame). Returns the least IoU and the mean one; two empty masks have 1.

    Raises GmcliError where the frames are not the same.
    """
    if [sorted(masks) for masks in first] != [sorted(masks) for masks in second]:
        raise GmcliError("the two sides have masks on different frames")
    values = [_iou(a[number], b[number]) for a, b in zip(first, second, strict=True) for number in a]
    return {"min": min(values), "mean": float(np.mean(values))}


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


def foreground(masks: Masks) -> dict[str, float]:
    """Return the share of foreground pixels, and how many masks are empty or full: those compare nothing."""
    shares = [float(mask.mean()) for frames in masks for mask in frames.values()]
    return {
        "share": float(np.mean(shares)),
        "empty": sum(share == 0 for share in shares),
        "full": sum(share == 1 for share in shares),
        "masks": len(shares),
    }


def side_by_side(published: Sequence[Stopwatch], ours: Sequence[Ours]) -> dict[str, Any]:
    """Compare the cheapest runs of both sides: ratios in all and by stage. Ratios are published / ours.

    A stage's `share` is its part of gmcli's CPU seconds. A stage that one side has not got has no ratio.
    """
    theirs, mine = min(published, key=_cpu), min(ours, key=lambda run: run.cpu_s)
    by_stage = mine.cpu_by_stage()
    names = list(dict.fromkeys([*theirs.cpu, *by_stage]))
    return {
        "ratio_cpu_seconds": _cpu(theirs) / mine.cpu_s,
        "ratio_wall_seconds": min(map(_wall, published)) / min(run.wall_s for run in ours),
        "stages": {
            name: {
                "published_cpu_s": theirs.cpu.get(name, 0.0),
                "ours_cpu_s": by_stage.get(name, 0.0),
                "ratio": _ratio(theirs.cpu.get(name, 0.0), by_stage.get(name, 0.0)),
                "share": by_stage.get(name, 0.0) / mine.cpu_s,
                "published_wall_s": theirs.wall.get(name, 0.0),
                "ours_wall_s": mine.stages.get(name, 0.0),
            }
            for name in names
        },
    }


def repeats(published: Sequence[Stopwatch], ours: Sequence[Ours]) -> dict[str, Any]:
    """List the seconds of every repetition."""
    return {
        "published": {"cpu_s": [_cpu(clock) for clock in published], "wall_s": [_wall(clock) for clock in published]},
        "ours": {"cpu_s": [run.cpu_s for run in ours], "wall_s": [run.wall_s for run in ours]},
    }


def agreement(published: Published, ours: Ours) -> dict[str, Any]:
    """Say whether both sides found the same."""
    iou = mask_iou(published.masks, ours.masks())
    return {
        "answers_equal": published.answers == ours.answers,
        "mask_iou": iou,
        "masks_equal": iou["min"] >= SAME_IOU,
    }


def _cpu(clock: Stopwatch) -> float:
    return sum(clock.cpu.values())


def _wall(clock: Stopwatch) -> float:
    return sum(clock.wall.values())


def _ratio(theirs: float, mine: float) -> float | None:
    return theirs / mine if theirs and mine else None
