"""Count what a video costs, and say what is being done."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Work:
    """Count what a video cost: seconds by stage, and calls that tests compare with what should be needed.

    `entered` is told the stage at each of its steps, so that whoever waits can tell slow from stuck; it must cost nothing.
    `out_of_memory` counts the steps that had to be repeated in smaller pieces.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    decoded_frames: int = 0
    clip_frames: int = 0
    prefixes: int = 0
    llm_passes: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    sam_frames: int = 0
    decoded_pairs: int = 0
    out_of_memory: int = 0
    entered: Callable[[str], None] = field(default=lambda stage: None, repr=False)

    def counts(self) -> dict[str, int]:
        """Return all counts by name, as run.json has them."""
        return {
            "decoded_frames": self.decoded_frames,
            "clip_frames": self.clip_frames,
            "llm_prefixes": self.prefixes,
            "llm_passes": self.llm_passes,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "sam_frames": self.sam_frames,
            "decoded_pairs": self.decoded_pairs,
            "out_of_memory": self.out_of_memory,
        }


@contextmanager
def timed(work: Work, stage: str) -> Iterator[None]:
    """Add the wall seconds of a block to a stage."""
    # A GPU works while Python goes on: what a stage starts there is counted where its result is first needed.
    work.entered(stage)
    start = time.perf_counter()
    yield
    work.seconds[stage] = work.seconds.get(stage, 0.0) + time.perf_counter() - start
