"""gmcli verify: check a run directory's files against its ledger."""

import sys
from pathlib import Path

import click

from gmcli.cli.echo import say, say_json
from gmcli.errors import EXIT_ITEMS_FAILED, EXIT_OK


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--redo", is_flag=True, help="Take damaged questions out of the ledger: the next infer answers them again."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(directory: Path, redo: bool, as_json: bool) -> None:
    """Read every file of the run in DIRECTORY again and compare it with the ledger by content hash.

    Exit code 0 where all is as recorded, 6 where something is missing or differs.
    """
    from gmcli.ledger import read_config
    from gmcli.verify import forget_damaged, verify

    read_config(directory)
    verdict = verify(directory)
    if as_json:
        problems = [{"question": "/".join(key) if key else None, "problem": text} for key, text in verdict.problems]
        value = {
            "files": verdict.files,
            "questions": verdict.questions,
            "problems": problems,
            "unrecorded": verdict.unrecorded,
        }
        say_json(value)
    else:
        for _, problem in verdict.problems:
            say(problem, err=True)
        for name in verdict.unrecorded:
            say(f"{name}: no record knows it", err=True)
        say(
            f"{verdict.files} files of {verdict.questions} questions read: {len(verdict.problems)} problems, "
            f"{len(verdict.unrecorded)} unrecorded files"
        )
    if redo and verdict.problems:
        say(f"{forget_damaged(directory, verdict)} questions will be answered again by the next infer", err=True)
    elif verdict.problems and not as_json:
        say("hint: `gmcli verify --redo` marks them; then run `gmcli infer` again", err=True)
    sys.exit(EXIT_ITEMS_FAILED if verdict.problems else EXIT_OK)
