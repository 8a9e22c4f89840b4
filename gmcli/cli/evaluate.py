"""gmcli eval: score a run against ground truth."""

from pathlib import Path

import click

from gmcli.cli.echo import say


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ground truth to score with.  [default: that of the manifest which RUN was made from]",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write all figures here.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), metavar="FILE", help="Write one row a question.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(path_type=Path), metavar="FILE", help="Write the table here."
)
@click.option(
    "--workers", type=click.IntRange(min=1), metavar="N", help="Processes that score videos.  [default: one a core]"
)
@click.option("--allow-missing", is_flag=True, help="Count questions without an answer as empty ones.")
def evaluate(
    run: Path,
    manifest: Path | None,
    json_file: Path | None,
    csv_file: Path | None,
    markdown_file: Path | None,
    workers: int | None,
    allow_missing: bool,
) -> None:
    """Score the run directory RUN by the GroundMoRe protocol.

    Prints J, F, temporal IoU and answer accuracy by question type, with intervals, beside answers that know nothing.
    """
    from gmcli import __version__
    from gmcli.devices import cpu_count
    from gmcli.evaluate import evaluate as score
    from gmcli.evaluate.tables import NOTE, csv_table, markdown_table, text_table, write_report
    from gmcli.kept_manifest import read_kept_manifest
    from gmcli.ledger import read_config
    from gmcli.logs import set_up_logging
    from gmcli.manifest import read_manifest
    from gmcli.progress import Progress
    from gmcli.text import json_text

    set_up_logging("text")
    read_config(run)
    tasks = read_manifest(manifest) if manifest is not None else read_kept_manifest(run)
    progress = Progress(videos=len(tasks), questions=sum(len(task.questions) for task in tasks))
    try:
        scores = score(run, tasks, allow_missing=allow_missing, workers=workers or cpu_count(), progress=progress)
    finally:
        progress.close()
    if json_file is not None:
        write_report(json_file, json_text(scores, indent=1) + "\n")
    if csv_file is not None:
        write_report(csv_file, csv_table(scores))
    if markdown_file is not None:
        write_report(markdown_file, markdown_table(str(run), scores, f"gmcli {__version__}"))
    for line in text_table(str(run), scores):
        say(line)
    if scores["missing"]:
        say("")
        say(f"{len(scores['missing'])} without an answer, counted as empty:")
        for name in scores["missing"]:
            say(f"  {name}")
    for line in ("", *NOTE.splitlines()):
        say(line)
