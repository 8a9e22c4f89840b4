"""gmcli render: draw a run's masks onto its videos."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gmcli.cli.echo import say
from gmcli.errors import EXIT_ITEMS_FAILED, EXIT_OK, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gmcli.data import VideoTask
    from gmcli.render.formats import Format


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="Where renders go.  [default: RUN/renders]")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the videos are, and the truth.  [default: the manifest which RUN was made from]",
)
@click.option(
    "--format",
    "formats",
    metavar="LIST",
    default="mp4,sheet",
    show_default=True,
    help="mp4, gif, sheet (a PNG of 12 frames).",
)
@click.option("--truth", is_flag=True, help="Also draw the outline and the window of the ground truth.")
@click.option("--video", "videos", multiple=True, metavar="ID", help="Only this video; may be repeated.")
@click.option(
    "--question", "questions", multiple=True, metavar="ID", help="Only questions of this id; may be repeated."
)
@click.option("--force", is_flag=True, help="Draw also what is drawn already.")
def render(
    run: Path,
    output: Path | None,
    manifest: Path | None,
    formats: str,
    truth: bool,
    videos: tuple[str, ...],
    questions: tuple[str, ...],
    force: bool,
) -> None:
    """Draw masks, question, answer and window of the run in RUN onto its videos, one render a question.

    What is drawn already is left alone, unless its answer has changed. Exit code 6 where a question could not be drawn.
    """
    from gmcli.ledger import RENDERS
    from gmcli.logs import set_up_logging
    from gmcli.progress import Progress
    from gmcli.render.batch import choose, plan
    from gmcli.render.batch import render as draw

    set_up_logging("text")
    output = output or run / RENDERS
    tasks = choose(tasks_of(run, manifest), videos, questions)
    planned = plan(run, tasks, output, _formats(formats), truth=truth, force=force)
    for line in planned.skipped:
        say(line, err=True, label="skipped: ")
    if truth and not any(question.ground_truth for task in tasks for question in task.questions):
        say("note: no question has ground truth; --truth draws nothing", err=True)
    progress = Progress(videos=len(planned.videos), questions=planned.questions, done=planned.kept)
    failed = draw(run, output, planned, progress, truth=truth)
    for line in failed:
        say(line, err=True, label="failed: ")
    say(
        f"{planned.questions - len(failed)} questions drawn, {planned.kept} were there already, "
        f"{len(planned.skipped)} skipped, {len(failed)} failed: {output}"
    )
    sys.exit(EXIT_ITEMS_FAILED if failed else EXIT_OK)


def tasks_of(run: Path, manifest: Path | None) -> "Sequence[VideoTask]":
    """Return the tasks that a run answered, as it kept them, or those of another manifest."""
    from gmcli.kept_manifest import read_kept_manifest
    from gmcli.manifest import read_manifest

    return read_kept_manifest(run) if manifest is None else read_manifest(manifest)


def _formats(value: str) -> "list[Format]":
    from gmcli.render.formats import FORMATS

    names = [name.strip() for name in value.split(",")]
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise UsageError(f"--format: {unknown[0]!r} is none of {', '.join(FORMATS)}")
    return [name for name in FORMATS if name in names]
