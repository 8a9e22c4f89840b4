"""gmcli report: show a run as one HTML page."""

from pathlib import Path

import click

from gmcli.cli.echo import say


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Page to write.  [default: RUN.html]"
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The run's manifest: pictures, pending questions, ground truth.",
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What `gmcli eval --json` wrote.  [default: scored now, where there is ground truth]",
)
@click.option(
    "--max-mb",
    type=click.FloatRange(min=0),
    default=40.0,
    show_default=True,
    metavar="MB",
    help="Megabytes for frames and masks; where they do not suffice, fewer and smaller frames are embedded.",
)
def report(run: Path, output: Path | None, manifest: Path | None, scores: Path | None, max_mb: float) -> None:
    """Write one HTML page about the run directory RUN, finished or not: questions, masks over frames, scores, failures.

    The page needs no network and no server. Nothing in RUN is touched.
    """
    from gmcli.report import build_report

    path = output or run.resolve().with_name(run.resolve().name + ".html")
    built = build_report(run, path, manifest=manifest, scores=scores, max_mb=max_mb)
    for note in built.notes:
        say(note, err=True, label="note: ")
    say(f"{path}: {built.questions} questions, {built.size / 1e6:.1f} MB")
    say(path.resolve().as_uri())
