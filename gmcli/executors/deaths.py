"""Judge the deaths of workers: is a video to blame, and what is said of it.

Who dies by SIGKILL or SIGTERM was killed by somebody: a person, a scheduler, the system when memory was short. The video in
hand is seldom to blame and gets many tries. A crash, an exit or a silence is the worker's own, and a second one tells.
"""

import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmcli.config import RunConfig
from gmcli.text import shorten

# A worker that is killed while it loads says little about whether it could start.
_KILLED_STARTS = 10
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM})
_LONGEST_NOTE = 200


@dataclass(frozen=True, slots=True)
class Death:
    """Say how a worker ended: `what`, as in "the worker ended with exit code 1", and a `note` on it that may be empty."""

    what: str
    note: str = ""
    from_outside: bool = False

    def __str__(self) -> str:
        """Return both in one line."""
        return f"{self.what} ({self.note})" if self.note else self.what


def death_of(code: int, log_file: Path) -> Death:
    """Describe how a process ended. code: as Popen.returncode has it. log_file: where its last words are."""
    if code >= 0:
        return Death(f"ended with exit code {code}", shorten(_last_line(log_file), _LONGEST_NOTE))
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    note = "out of memory, perhaps" if -code == signal.SIGKILL else ""
    return Death(f"was killed by {name}", note, from_outside=-code in _FROM_OUTSIDE)


def to_blame(deaths: Sequence[Death], config: RunConfig) -> bool:
    """Say whether so many deaths on one video are enough to give it up."""
    own = sum(not death.from_outside for death in deaths)
    return own >= config.attempts or len(deaths) >= max(config.attempts, config.kill_attempts)


def cannot_start(deaths: Sequence[Death], config: RunConfig) -> bool:
    """Say whether so many deaths in a row before a worker was ready are enough to give its place up."""
    return to_blame([death for death in deaths if not death.from_outside], config) or len(deaths) >= _KILLED_STARTS


def pause_s(deaths: Sequence[Death]) -> float:
    """Return how long to wait before the next start, after so many failed ones in a row."""
    return min(0.25 * 2.0 ** len(deaths), 15.0) if deaths else 0.0


def video_error(deaths: Sequence[Death]) -> str:
    """Say in one line why a video is given up."""
    kinds = Counter(death.what for death in deaths)
    if len(kinds) == 1:
        last = deaths[-1]
        times = f"{len(deaths)} times" if len(deaths) > 1 else "once"
        return f"the worker {last.what} on this video, {times}" + (f" ({last.note})" if last.note else "")
    notes = {death.what: str(death) for death in deaths}
    each = "; ".join(f"{notes[what]}, {count}×" for what, count in kinds.items())
    return f"the worker was lost on this video {len(deaths)} times: it {each}"


def _last_line(log_file: Path) -> str:
    try:
        with log_file.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 4096, 0))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError as error:  # rotated away
        return f"its log cannot be read: {error.strerror}"
    return lines[-1].strip() if lines else "it wrote no log"
