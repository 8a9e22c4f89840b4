"""Read how far a run is, without touching its directory."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gmcli.distrust import load_json, read_file
from gmcli.ledger import HEARTBEAT, read_config, read_run
from gmcli.lock import is_running
from gmcli.records import STATUSES, read_records

_MOST_FAILURES = 5
_OF_THE_RUN = ("reason", "run_id", "pid", "host", "started")
_OF_THE_HEARTBEAT = ("frames", "frames_s", "eta_s", "worker_restarts", "at_work")


def read_status(path: Path) -> dict[str, Any]:
    """Return state, totals and counts of a run directory; docs/cron.md explains each.

    state: "running"; "finished"; "interrupted" (by a person, a scheduler or a limit); "stopped" (killed, ended by an error,
    or never got going). `questions` and `pending` are None before the first run has planned, and what only a run can say
    before it has said it. Counts are of the run's manifest. Raises ConfigError where there is no run.
    """
    config = read_config(path)
    running = is_running(path)
    run = read_run(path)
    # After run.json: what it says of former manifests must not be younger than the ledger.
    records, damaged = read_records(path)
    said = run.get("state")
    if running:
        state = "running"
    else:
        state = said if said in ("finished", "interrupted") else "stopped"
    # A run that has just begun has not written its own yet.
    facts = run if not running or said == "running" else {}
    beat = _read_heartbeat(path)
    if beat.get("run_id") != facts.get("run_id"):
        beat = {}
    former = run.get("questions_of_former_manifests")
    statuses = Counter(record.status for record in records.values())
    statuses.subtract({s: former.get(s, 0) for s in STATUSES} if isinstance(former, dict) else {})
    questions = run.get("totals", {}).get("questions")
    failed = [record for record in records.values() if record.status == "failed"]
    return {
        "state": state,
        "videos": run.get("totals", {}).get("videos"),
        "questions": questions,
        **{status: max(statuses[status], 0) for status in STATUSES},
        "pending": None if questions is None else max(questions - statuses.total(), 0),
        "damaged": len(damaged),
        "checkpoint": config.get("checkpoint"),
        **{name: facts.get(name) for name in _OF_THE_RUN},
        "heartbeat": beat.get("time"),
        "heartbeat_age_s": _age_s(beat.get("time")),
        **{name: beat.get(name) for name in _OF_THE_HEARTBEAT},
        "failures": [{"video": r.video, "question": r.question, "error": r.error} for r in failed[:_MOST_FAILURES]],
    }


def _read_heartbeat(path: Path) -> Mapping[str, Any]:
    try:
        value = load_json(read_file(path / HEARTBEAT))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _age_s(time: object) -> float | None:
    """Return how old a time is by this machine's clock: something to show, never to decide by."""
    try:
        return round((datetime.now(UTC) - datetime.fromisoformat(str(time))).total_seconds(), 1)
    except (ValueError, TypeError):
        return None
