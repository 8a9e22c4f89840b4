"""gmcli status: say how far a run is, also while it is running."""

import json
from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(directory: Path, as_json: bool) -> None:
    """Say how far the run in DIRECTORY is. Nothing in it is touched."""
    from gmcli.status import read_status

    found = read_status(directory)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{directory}: {found['state']}")
    for name in ("questions", "done", "no_target", "failed", "pending"):
        click.echo(f"  {name:10} {found[name] if found[name] is not None else 'unknown'}")
    if found["damaged"]:
        click.echo(f"  damaged    {found['damaged']} ledger lines; their questions will be answered again")
    if found["failed"]:
        click.echo(f"  see {directory / 'ledger.jsonl'}, and retry with `gmcli infer … --retry-failed`")
