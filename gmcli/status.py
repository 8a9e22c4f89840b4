"""Read how far a run is, without touching its directory."""

from collections import Counter
from pathlib import Path
from typing import Any

from gmcli.ledger import is_running, read_config, read_records, read_run


def read_status(path: Path) -> dict[str, Any]:
    """Return state, totals and counts of a run directory.

    state: "running"; "finished"; "interrupted" (by a person or a scheduler); "stopped" (killed, or never got going).
    `questions` and `pending` are None before the first run has planned. Raises ConfigError where there is no run.
    """
    config = read_config(path)
    records, damaged = read_records(path)
    run = read_run(path)
    totals, said = run.get("totals", {}), run.get("state")
    if is_running(path):
        state = "running"
    else:
        state = said if said in ("finished", "interrupted") else "stopped"
    statuses = Counter(record.status for record in records.values())
    questions = totals.get("questions")
    return {
        "state": state,
        "videos": totals.get("videos"),
        "questions": questions,
        "done": statuses["done"],
        "no_target": statuses["no_target"],
        "failed": statuses["failed"],
        "pending": None if questions is None else max(questions - len(records), 0),
        "damaged": len(damaged),
        "checkpoint": config.get("checkpoint"),
    }
