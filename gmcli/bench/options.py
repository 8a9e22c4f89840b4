"""Say what a bench measures. Nothing heavy is imported here: the command line reads it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gmcli.errors import UsageError

SIZES = ("tiny", "vit_b-160m", "vit_h-7b")
# What the random model says, eight tokens with </s>: an answer that gmcli tries as a guess, or one that it does not know.
ANSWERS = {"known": "Sure, it is [SEG].", "unknown": "Look, that is [SEG]."}
# Of each table what is varied, and over which points.
POINTS: Mapping[str, tuple[int, ...]] = {
    "workers": (1, 2),
    "questions": (1, 2, 4, 8, 16),
    "frames": (4, 16, 64, 256),
    "length": (10, 40, 160),
}


@dataclass(frozen=True, slots=True)
class Options:
    """Say what to measure. `checkpoint` is a name or folder; None means random weights of `size`, which say `answer`.

    `settings` are laid over the defaults of `gmcli infer`. `scaling` maps names of tables to their points. `frame_size`
    is the video's (H, W).
    """

    size: str = "vit_b-160m"
    answer: str = "known"
    checkpoint: str | None = None
    questions: int = 3
    frames: int = 4
    against_published: bool = False
    device: str = "cpu"
    dtype: str = "fp32"
    threads: int = 1
    repeat: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    scaling: Mapping[str, Sequence[int]] = field(default_factory=dict)
    frame_size: tuple[int, int] = (720, 1280)

    def run_settings(self) -> dict[str, Any]:
        """Return the settings of the run, by the names of RunConfig."""
        return {"frames": self.frames, "mask_frames": "sampled", **self.settings}


def read_scaling(value: str | None) -> dict[str, tuple[int, ...]]:
    """Read `workers,questions=1,4,16`: tables by name, with their points or the usual ones. Raises UsageError."""
    points: dict[str, list[int]] = {}
    for part in value.split(",") if value else ():
        name, equals, number = part.strip().rpartition("=")
        table_alone = not equals and not number.isdigit()
        if table_alone or name:
            points[number if table_alone else name] = []
        if not table_alone:
            if not points or not number.isdigit() or int(number) < 1:
                raise UsageError(f"--scaling {value}: {number!r} is no number above 0 of a table")
            points[next(reversed(points))].append(int(number))
    unknown = [name for name in points if name not in POINTS]
    if unknown:
        raise UsageError(f"--scaling {value}: {unknown[0]!r} is none of {', '.join(POINTS)}")
    return {name: tuple(given) or POINTS[name] for name, given in points.items()}
