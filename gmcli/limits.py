"""Say when a run is to stop before its work is done."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from gmcli.errors import EXIT_INTERRUPTED, EXIT_ITEMS_FAILED, UsageError

# What is being worked on when the hours are over may still be finished, for a tenth of them, and for ten minutes at most.
_GRACE = 0.1
_LONGEST_GRACE_S = 600.0


@dataclass(frozen=True, slots=True)
class Stop:
    """Say why a run has stopped with questions pending, and the exit code that goes with it."""

    reason: str
    exit_code: int


class Limits:
    """Hold the limits of one run. None is no limit. max_hours count from here, on a clock that nobody sets."""

    def __init__(
        self,
        *,
        max_failures: int | None = None,
        max_hours: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_hours is not None and math.isnan(max_hours):
            raise UsageError("--max-hours must be a number", "Give hours, such as 7.5.")
        self._max_failures, self._max_hours, self._clock = max_failures, max_hours, clock
        self._start = clock()

    def failures_stop(self, failed: int) -> Stop | None:
        """Return why to stop at once, when so many questions have failed in this run; None to go on."""
        if self._max_failures is None or failed < self._max_failures:
            return None
        return Stop(f"stopped by --max-failures {self._max_failures}: {failed} questions failed", EXIT_ITEMS_FAILED)

    def hours_stop(self) -> Stop | None:
        """Return why no further video is to be begun, when the hours are over; None to go on."""
        if self._max_hours is None or self._clock() - self._start < self._max_hours * 3600:
            return None
        return Stop(f"stopped by --max-hours {self._max_hours:g}", EXIT_INTERRUPTED)

    def grace_is_over(self) -> bool:
        """Say whether what is still being worked on after the hours is to be abandoned."""
        if self._max_hours is None:
            return False
        hours_s = self._max_hours * 3600
        return self._clock() - self._start >= hours_s + min(_GRACE * hours_s, _LONGEST_GRACE_S)
