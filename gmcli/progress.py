"""Show how far a run is: a bar on a terminal, one line every 30 seconds without one."""

import logging
import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from gmcli.text import clock_face

log = logging.getLogger("gmcli.progress")

INTERVAL_S = 30.0


class Progress:
    """Count videos, questions, frames and failures of one run.

    `done` questions of earlier runs count towards the total but not towards the rate. `bar` is whether to draw a bar.
    """

    def __init__(
        self,
        *,
        videos: int,
        questions: int,
        done: int = 0,
        bar: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.videos, self.questions, self.done = videos, questions, done
        self.frames = self.failures = self.videos_done = self.questions_done = 0
        self._clock = clock
        self._start = self._last = clock()
        drawn = sys.stderr.isatty() if bar is None else bar
        self._bar = (
            tqdm(total=questions + done, initial=done, unit="question", dynamic_ncols=True, file=sys.stderr)
            if drawn
            else None
        )

    def add_frames(self, count: int) -> None:
        """Note frames that have their masks."""
        self.frames += count
        self.tick()

    def add_question(self, *, failed: bool) -> None:
        """Note a question that is settled."""
        self.questions_done += 1
        self.failures += failed
        if self._bar is not None:
            self._bar.update()
        self.tick()

    def add_video(self) -> None:
        """Note a video whose questions are all settled."""
        self.videos_done += 1
        self.tick()

    def tick(self) -> None:
        """Show the state, if it is time to."""
        now = self._clock()
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"videos {self.videos_done}/{self.videos}, {self.frames_s(now):.1f} frames/s, {self.failures} failed"
            )
        elif now - self._last >= INTERVAL_S:
            self._last = now
            log.info("%s", self.line(now))

    def line(self, now: float | None = None) -> str:
        """Describe the state in one line."""
        now = self._clock() if now is None else now
        left = self.left_s(now)
        return (
            f"videos {self.videos_done}/{self.videos}, questions {self.done + self.questions_done}/"
            f"{self.done + self.questions}, {self.frames} frames, {self.frames_s(now):.1f} frames/s, {self.failures} failed, "
            + ("time left unknown" if left is None else f"about {clock_face(left)} left")
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def frames_s(self, now: float | None = None) -> float:
        """Return how many frames a second got masks, over the whole run."""
        now = self._clock() if now is None else now
        return self.frames / max(now - self._start, 1e-9)

    def left_s(self, now: float | None = None) -> float | None:
        """Return how many seconds the rest will take, as long as a question has taken so far; None before the first."""
        if not self.questions_done:
            return None
        now = self._clock() if now is None else now
        return (now - self._start) / self.questions_done * (self.questions - self.questions_done)
