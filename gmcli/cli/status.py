"""gmcli status: say how far a run is, also while it is running."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gmcli.cli.echo import say, say_json
from gmcli.text import clock_face, shorten

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(directory: Path, as_json: bool) -> None:
    """Say how far the run in DIRECTORY is. Nothing in it is touched."""
    from gmcli.status import read_status

    found = read_status(directory)
    if as_json:
        say_json(found)
        return
    say(f"{directory}: {found['state']}" + (f" ({found['reason']})" if found["reason"] else ""))
    for name in ("questions", "done", "no_target", "failed", "pending"):
        say(f"  {name:10} {found[name] if found[name] is not None else 'unknown'}")
    if found["state"] == "running":
        _say_life(found)
    if found["damaged"]:
        say(f"  damaged    {found['damaged']} ledger lines; their questions will be answered again")
    for failure in found["failures"]:
        say(f"  {failure['video']}/{failure['question']}: {shorten(failure['error'], 200)}")
    if found["failed"]:
        more = "all of them are" if found["failed"] > len(found["failures"]) else "they are"
        say(f"  {more} in {directory / 'ledger.jsonl'}; retry with `gmcli infer … --retry-failed`")


def _say_life(found: "Mapping[str, Any]") -> None:
    say(
        f"  process    {found['pid'] or 'unknown'} on {found['host'] or 'unknown'}, since {found['started'] or 'unknown'}"
    )
    if found["heartbeat_age_s"] is not None:
        say(f"  heartbeat  last sign of life {found['heartbeat_age_s']:.0f} s ago")
    if found["frames_s"] is not None:
        left = "unknown" if found["eta_s"] is None else clock_face(found["eta_s"])
        say(f"  speed      {found['frames_s']:.1f} frames/s; time left {left}")
    for worker, video in (found["at_work"] or {}).items():
        say(f"  worker {worker:3} on {video}")
