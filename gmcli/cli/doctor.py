"""`gmcli doctor`: say what this machine has and lacks."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gmcli.cli.echo import say, say_json
from gmcli.errors import EXIT_ENVIRONMENT

if TYPE_CHECKING:
    from gmcli.doctor import Check

_COLOURS = {"ok": "green", "missing": "yellow", "broken": "red"}


@click.command()
@click.option(
    "--checkpoint",
    metavar="REF",
    default="mora-tiny",
    show_default=True,
    help="Check this checkpoint: a folder, a hub name that was downloaded before, or the one that ships with gmcli.",
)
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path(),
    show_default="the working directory",
    help="Check that a run could write here.",
)
@click.option("--json", "as_json", is_flag=True, help='Print {"ok": bool, "checks": [...]} instead of a table.')
def doctor(checkpoint: str, output: Path, as_json: bool) -> None:
    """Check this machine: packages, GPU, video decoders, disks, checkpoint.

    What is wrong comes with the command that mends it. The exit code is 0 if everything required is there (a GPU,
    torch-tensorrt, flash-attn, ray and decord are optional), 4 otherwise.
    """
    from gmcli.doctor import all_required_ok, run_checks

    checks = run_checks(checkpoint, output)
    ok = all_required_ok(checks)
    if as_json:
        say_json({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=2)
    else:
        _print_table(checks)
    if not ok:
        sys.exit(EXIT_ENVIRONMENT)


def _print_table(checks: "list[Check]") -> None:
    """Print a line for each check, its remedy below; click drops the colours where nobody sees them."""
    names = [check.name if check.required else f"{check.name} (optional)" for check in checks]
    width = max(map(len, names))
    for name, check in zip(names, checks, strict=True):
        say(f"  {name:<{width}}  {check.detail}", label=f"{check.status:<7}", colour=_COLOURS[check.status])
        if check.remedy:
            say(f"{'':<{width + 9}}  -> {check.remedy}")
    failed = [check.name for check in checks if check.required and check.status != "ok"]
    say(f"Required, but not ok: {', '.join(failed)}" if failed else "Everything required is here.")
