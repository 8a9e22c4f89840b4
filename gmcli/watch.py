"""Show a run to whoever watches it: a heartbeat in its directory and, where asked for, metrics for Prometheus.

Neither is a truth: nothing is decided by them, they are not made durable, and a run goes on where they cannot be written.
"""

import logging
import os
import platform
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gmcli.errors import EXIT_OK, GmcliError
from gmcli.files import TEMPORARY
from gmcli.ledger import HEARTBEAT
from gmcli.metrics_file import RunFacts, Snapshot, last_success_in, write_metrics
from gmcli.text import json_text

log = logging.getLogger("gmcli.watch")

INTERVAL_S = 15.0


def new_run_id() -> str:
    """Return a name that no other run has: 32 hexadecimal digits."""
    return uuid.uuid4().hex


class Watch:
    """Follow one run from the moment it holds its directory.

    `state` is "running", "finished", "interrupted" (the same command goes on) or "stopped" (by an error); `reason` says
    why it is neither running nor finished.
    """

    def __init__(
        self,
        path: Path,
        run_id: str | None = None,
        *,
        metrics_file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.run_id = path, run_id or new_run_id()
        self.started = datetime.now(UTC)
        self.state = "running"
        self.reason: str | None = None
        self.snapshot: Snapshot | None = None
        self._metrics_file, self._clock = metrics_file, clock
        self._last_success = last_success_in(metrics_file, path) if metrics_file else None
        self._beating = False
        self._last = clock()
        self._warned: set[str] = set()

    def begin(self, snapshot: Snapshot, *, work: bool) -> None:
        """Note where a run starts from. work: whether it has anything to do; else its directory is left alone."""
        self.snapshot, self._beating, self._last = snapshot, work, self._clock()
        if work:
            self._write_heartbeat()
            self._write_metrics(None)

    def beat(self, take: Callable[[], Snapshot]) -> None:
        """Write heartbeat and metrics, if it is time to. take: makes the snapshot, which costs a little."""
        now = self._clock()
        if now - self._last >= INTERVAL_S:
            self._last, self.snapshot = now, take()
            self._write_heartbeat()
            self._write_metrics(None)

    def end(self, state: str, reason: str | None = None, snapshot: Snapshot | None = None) -> None:
        """Note how the run ended, and write its last heartbeat. Only the first end counts."""
        if self.state != "running":
            return
        self.state, self.reason, self.snapshot = state, reason, snapshot or self.snapshot
        self._write_heartbeat()

    def fail(self, error: BaseException) -> None:
        """Note that the run was ended by an exception."""
        self.end("interrupted" if isinstance(error, KeyboardInterrupt) else "stopped", reason_of(error))

    def close(self, exit_code: int) -> None:
        """Write the last metrics, and the last line of the log."""
        log.info("run %s, exit code %d%s", self.state, exit_code, f": {self.reason}" if self.reason else "")
        self._write_metrics(exit_code)

    def summary(self, exit_code: int) -> dict[str, Any]:
        """Return what the run came to, as JSON values."""
        return self._facts() | {"exit_code": exit_code, "output": str(self.path.absolute())}

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run_id": self.run_id,
            "pid": os.getpid(),
            "host": platform.node(),
            "started": self.started.isoformat(timespec="seconds"),
            "state": self.state,
            "reason": self.reason,
        }
        if (snapshot := self.snapshot) is not None:
            facts |= {
                **snapshot.statuses,
                "answered_now": snapshot.answered,
                "failed_now": snapshot.failed,
                "frames": snapshot.frames,
                "frames_s": round(snapshot.frames_s, 3),
                "eta_s": None if snapshot.eta_s is None else round(snapshot.eta_s, 1),
                "worker_restarts": snapshot.restarts,
                "at_work": {str(worker): video for worker, video in snapshot.at_work.items()},
            }
        return facts

    def _write_heartbeat(self) -> None:
        if not self._beating:
            return
        temporary = self.path / TEMPORARY / uuid.uuid4().hex
        try:
            temporary.parent.mkdir(exist_ok=True)
            temporary.write_bytes(json_text(self._facts()).encode() + b"\n")
            os.replace(temporary, self.path / HEARTBEAT)  # noqa: PTH105
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._warn("heartbeat", self.path / HEARTBEAT, error)

    def _write_metrics(self, exit_code: int | None) -> None:
        if self._metrics_file is None:
            return
        now = time.time()
        if exit_code == EXIT_OK:
            self._last_success = now
        facts = RunFacts(
            self.run_id, self.path, self.state, self.started.timestamp(), now, exit_code, self._last_success
        )
        try:
            write_metrics(self._metrics_file, facts, self.snapshot)
        except OSError as error:
            self._warn("metrics", self._metrics_file, error)

    def _warn(self, what: str, path: Path, error: OSError) -> None:
        if what not in self._warned:
            self._warned.add(what)
            log.warning("%s: the %s cannot be written (%s); the run goes on", path, what, error.strerror or error)


def reason_of(error: BaseException) -> str:
    """Say in one line why an exception ended a run."""
    if isinstance(error, KeyboardInterrupt):
        return f"ended by {error.args[0] if error.args else 'SIGINT'}"
    if isinstance(error, GmcliError):
        return error.message.split("\n")[0]
    return f"{type(error).__name__}: {error}".split("\n")[0]
