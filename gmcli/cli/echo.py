"""Print for people and for machines. No command prints in any other way: what is printed may hold the words of strangers."""

import sys

import click

from gmcli.errors import GmcliError
from gmcli.text import json_text, one_line

# What a person reads of a manifest's problems; a file or a pipe gets them all.
_MOST_PROBLEMS = 100


def say(text: str, *, err: bool = False, label: str = "", colour: str | None = None) -> None:
    """Print one line; control characters and line ends in it are escaped.

    label: our own words in front, in a colour where the output is a terminal.
    """
    click.echo((click.style(label, fg=colour, bold=colour == "red" or None) if label else "") + one_line(text), err=err)


def say_json(value: object, indent: int | None = None) -> None:
    """Print a value as JSON."""
    click.echo(json_text(value, indent=indent))


def say_error(error: GmcliError) -> None:
    """Print an error and its hint to stderr: a line, or one for each problem of a manifest."""
    problems = getattr(error, "problems", ())
    if problems:
        most = _MOST_PROBLEMS if sys.stderr.isatty() else len(problems)
        for problem in problems[:most]:
            say(problem, err=True)
        if len(problems) > most:
            say(f"… and {len(problems) - most} more problems; `2> problems.txt` writes all of them there", err=True)
    else:
        first, *others = error.message.split("\n")
        say(first, err=True, label="error: ", colour="red")
        for line in others:
            # Not at the margin: a line end in a file's name must not forge a message of its own.
            say(line if line.startswith(" ") else f"  {line}", err=True)
    if error.hint:
        say(error.hint, err=True, label="hint: ")
