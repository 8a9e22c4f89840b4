"""Gather the commands and turn errors into messages and exit codes."""

import sys
from contextlib import suppress
from typing import Any

import click

from gmcli import __version__
from gmcli.cli.bench import bench
from gmcli.cli.convert import convert
from gmcli.cli.doctor import doctor
from gmcli.cli.echo import say, say_error
from gmcli.cli.engines import engines
from gmcli.cli.evaluate import evaluate
from gmcli.cli.export import export, export_trt
from gmcli.cli.infer import infer
from gmcli.cli.manifest import manifest
from gmcli.cli.render import render
from gmcli.cli.report import report
from gmcli.cli.status import status
from gmcli.cli.synth import synth
from gmcli.cli.train import train
from gmcli.cli.verify import verify
from gmcli.errors import GmcliError, exit_code_of
from gmcli.text import printable


class Commands(click.Group):
    """Run a command; show our own errors as a line and a hint, never as a trace."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and turn errors into exit codes."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            # It quotes the command line.
            error.message = printable(error.message)  # type: ignore[misc]
            raise
        except (GmcliError, OSError, KeyboardInterrupt) as error:
            # Nobody may be there to read it any more: a terminal that was closed, a pipe. The exit code stays.
            with suppress(OSError):
                _explain(error)
            sys.exit(exit_code_of(error))


def _explain(error: GmcliError | OSError | KeyboardInterrupt) -> None:
    match error:
        case GmcliError():
            say_error(error)
        case BrokenPipeError():
            pass  # as usual tools do, when `head` has seen enough
        case OSError():
            # Disks fill and directories close anywhere; whatever was recorded before is safe.
            say(f"{error.filename or 'a file'}: {error.strerror or error}", err=True, label="error: ", colour="red")
            say("hint: free space or make it accessible, then run the same command again", err=True)
        case KeyboardInterrupt():
            say("interrupted; run the same command again to go on", err=True)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="gmcli")
def cli() -> None:
    """Ask questions about motion in videos; get masks: which pixels, in which frames.

    Exit codes: 0 all done, 1 bug, 2 usage, 3 bad manifest or configuration, 4 environment, 5 checkpoint or engine,
    6 finished but some items failed, 7 another run holds the directory, 130 interrupted (resumable),
    141 whoever read the output is gone.
    """


COMMANDS = (
    infer,
    status,
    verify,
    manifest,
    evaluate,
    render,
    report,
    convert,
    export,
    export_trt,
    engines,
    bench,
    doctor,
    synth,
    train,
)
for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line."""
    cli()
