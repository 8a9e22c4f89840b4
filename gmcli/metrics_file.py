"""Write a run's numbers where Prometheus' node exporter looks for them: its textfile collector's format.

Every metric carries the label `output`, the run directory, so that files of several runs may lie in one folder.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gmcli import __version__
from gmcli.errors import UsageError
from gmcli.text import printable

_LARGEST_BYTES = 1_000_000
_FIRST_WORDS = b"# HELP gmcli_"
_STATES = ("running", "finished", "interrupted", "stopped")

# Name, type, help. What a name ends in follows Prometheus' naming rules.
_METRICS = (
    ("gmcli_run_info", "gauge", "Who runs: always 1."),
    ("gmcli_run_state", "gauge", "1 for the state that the run is in, 0 for the others."),
    ("gmcli_run_exit_code", "gauge", "Exit code of the run; absent while it is on."),
    ("gmcli_run_start_timestamp_seconds", "gauge", "When the run started."),
    ("gmcli_heartbeat_timestamp_seconds", "gauge", "When this file was written."),
    ("gmcli_last_success_timestamp_seconds", "gauge", "When a run last ended with exit code 0; absent before that."),
    ("gmcli_questions", "gauge", "Questions of the manifest by what became of them."),
    ("gmcli_videos", "gauge", "Videos of the manifest: settled, or with questions pending."),
    ("gmcli_run_failed_questions", "gauge", "Questions that failed in this run."),
    ("gmcli_run_answered_questions", "gauge", "Questions that were settled in this run, failed ones included."),
    ("gmcli_frames_masked_total", "counter", "Frames that got masks in this run."),
    ("gmcli_frames_per_second", "gauge", "Frames that got masks a second, over this run."),
    ("gmcli_eta_seconds", "gauge", "Seconds that the rest will take at this rate; absent where there is none yet."),
    ("gmcli_stage_seconds_total", "counter", "Seconds of all workers by stage in this run, videos that are answered."),
    ("gmcli_worker_restarts_total", "counter", "Workers that died or fell silent in this run and were replaced."),
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Say how far a run is. `statuses` count the manifest's questions, `pending` ones included; the rest is this run's.

    `at_work` are the videos that workers are on, by the worker's number. `eta_s` is None before there is a rate.
    """

    statuses: Mapping[str, int]
    videos: int
    videos_pending: int
    answered: int
    failed: int
    frames: int
    frames_s: float
    eta_s: float | None
    stage_seconds: Mapping[str, float]
    restarts: int
    at_work: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Say which run it is and how it stands as a whole. Times are seconds since 1970."""

    run_id: str
    output: Path
    state: str
    started: float
    now: float
    exit_code: int | None = None
    last_success: float | None = None


def check_metrics_file(path: Path, output: Path) -> None:
    """Refuse a place in the run directory, and to replace what is no metrics file of gmcli; raise UsageError."""
    if path.resolve().is_relative_to(output.resolve()):
        raise UsageError(f"--metrics-file {path}: lies inside the run directory, which holds the run's own files only")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        if path.is_dir() or not _read(path).startswith(_FIRST_WORDS):
            raise UsageError(
                f"--metrics-file {path}: exists and holds no metrics of gmcli; it was left alone", "Name a new file."
            )


def last_success_in(path: Path, output: Path) -> float | None:
    """Read when a run into `output` last succeeded, from the metrics file that it left; None where none says so."""
    try:
        text = _read(path).decode()
    except (OSError, UnicodeDecodeError):
        return None
    sample = f"gmcli_last_success_timestamp_seconds{_labels({'output': _output(output)})}"
    found = re.search(rf"^{re.escape(sample)} (\d+(?:\.\d+)?)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST_BYTES)


def write_metrics(path: Path, run: RunFacts, snapshot: Snapshot | None) -> None:
    """Replace the file in one step, readable by all. Raises OSError; then the old file is untouched.

    Not made durable: after a crash of the machine the next run writes it anew.
    """
    # The collector reads every file that ends in .prom, also half-written ones.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            # A cron job's umask may be tight, and the node exporter is another user.
            os.fchmod(file.fileno(), 0o644)
            file.write(metrics_text(run, snapshot).encode())
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def metrics_text(run: RunFacts, snapshot: Snapshot | None) -> str:
    """Return the metrics in Prometheus' text format. snapshot: None where the run ended before it had counted anything."""
    samples: dict[str, list[str]] = {}
    for name, labels, value in (*_run_samples(run), *(_snapshot_samples(snapshot) if snapshot else ())):
        line = f"{name}{_labels({'output': _output(run.output), **labels})} {value}"
        samples.setdefault(name, []).append(line)
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} {kind}\n" + "".join(f"{line}\n" for line in samples[name])
        for name, kind, text in _METRICS
        if name in samples
    )


def _run_samples(run: RunFacts) -> Iterator[tuple[str, Mapping[str, str], float]]:
    yield "gmcli_run_info", {"run_id": run.run_id, "version": __version__}, 1
    for state in _STATES:
        yield "gmcli_run_state", {"state": state}, int(state == run.state)
    if run.exit_code is not None:
        yield "gmcli_run_exit_code", {}, run.exit_code
    yield "gmcli_run_start_timestamp_seconds", {}, round(run.started, 3)
    yield "gmcli_heartbeat_timestamp_seconds", {}, round(run.now, 3)
    if run.last_success is not None:
        yield "gmcli_last_success_timestamp_seconds", {}, round(run.last_success, 3)


def _snapshot_samples(snapshot: Snapshot) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for status, count in snapshot.statuses.items():
        yield "gmcli_questions", {"state": status}, count
    yield "gmcli_videos", {"state": "settled"}, snapshot.videos - snapshot.videos_pending
    yield "gmcli_videos", {"state": "pending"}, snapshot.videos_pending
    yield "gmcli_run_failed_questions", {}, snapshot.failed
    yield "gmcli_run_answered_questions", {}, snapshot.answered
    yield "gmcli_frames_masked_total", {}, snapshot.frames
    yield "gmcli_frames_per_second", {}, round(snapshot.frames_s, 3)
    if snapshot.eta_s is not None:
        yield "gmcli_eta_seconds", {}, round(snapshot.eta_s, 3)
    for stage, seconds in sorted(snapshot.stage_seconds.items()):
        yield "gmcli_stage_seconds_total", {"stage": stage}, round(seconds, 3)
    yield "gmcli_worker_restarts_total", {}, snapshot.restarts


def _output(path: Path) -> str:
    return str(path.absolute())


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escape(printable(value))}"' for name, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
